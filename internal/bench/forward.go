package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/model"
	"github.com/nf4conv/nf4conv/verify/metric"
)

// forwards are forward passes of one sequence in this process, weights read each time.
type forwards struct {
	dir                   string
	tokens, runs, threads int
	logits                bool
	model                 *model.Model
	sequence              model.Sequence
}

// forwardRow is what is printed. Rates in GFLOP/s of one thread are by processor time.
type forwardRow struct {
	Kind      string  `json:"kind"`
	Tier      string  `json:"tier"`
	Logits    bool    `json:"logits"`
	Threads   int     `json:"threads"`
	Tokens    int     `json:"tokens"`
	Seconds   float64 `json:"seconds"`
	CPU       float64 `json:"cpu_seconds"`
	Rate      float64 `json:"tok_per_s"`
	FLOP      float64 `json:"gflop_per_token"`
	GEMM      float64 `json:"gemm_gflops"`   // of the product below, in this process
	Share     float64 `json:"share_of_gemm"` // of that rate, by the time on the wall
	ShareCPU  float64 `json:"share_by_cpu"`  // ... by processor time
	Private   int64   `json:"private_mib"`   // peak of RssAnon
	Resident  int64   `json:"resident_mib"`  // VmHWM
	NLL       float64 `json:"mean_nll"`      // of the tokens that follow; 0 without logits
	Predicted int     `json:"predicted_tokens"`
}

func (f *forwards) run(ctx context.Context, to io.Writer) (err error) {
	if f.tokens < 1 || f.threads < 1 {
		return errors.New("-tokens and -threads: expected 1 or more")
	}
	if err := warm(f.dir); err != nil {
		return err
	}
	c, err := hf.Open(f.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if f.model, err = model.Open(c, model.Options{Threads: f.threads}); err != nil {
		return err
	}
	f.sequence.IDs = randomIDs(f.tokens, f.model.Spec().Vocab)
	row := forwardRow{Kind: "forward_nf4conv", Tier: panel.Best().Tier, Logits: f.logits, Threads: f.threads, Tokens: f.tokens}
	stop, peak := make(chan struct{}), make(chan memory)
	go watch(os.Getpid(), stop, peak)
	var walls, cpus, gemms, gemmCPUs []float64
	for i := range max(1, f.runs) + 1 {
		g, gc := product(f.threads)
		wall, cpu := time.Now(), cpuTime()
		if row.NLL, row.Predicted, err = f.pass(ctx); err != nil {
			return err
		}
		if i > 0 {
			walls, cpus = append(walls, time.Since(wall).Seconds()), append(cpus, cpuTime()-cpu)
			gemms, gemmCPUs = append(gemms, g), append(gemmCPUs, gc)
		}
	}
	close(stop)
	m := <-peak
	row.Private, row.Resident = m.private>>20, m.highest>>20
	row.Seconds, row.CPU, row.GEMM = middle(walls), middle(cpus), middle(gemms)/1e9
	row.Rate = float64(f.tokens) / row.Seconds
	layers, head := operations(f.model.Spec(), f.tokens)
	if f.logits {
		layers += head
	}
	row.FLOP = layers / 1e9
	row.Share = layers * float64(f.tokens) / row.Seconds / middle(gemms)
	row.ShareCPU = layers * float64(f.tokens) / row.CPU / middle(gemmCPUs)
	return json.NewEncoder(to).Encode(row)
}

// pass is the layers, and with logits the distribution after every token.
func (f *forwards) pass(ctx context.Context) (nll float64, scored int, err error) {
	h, err := model.Forward(ctx, f.model, []model.Sequence{f.sequence}, model.RunOptions{}, nil)
	if err != nil || !f.logits {
		return 0, 0, err
	}
	s, err := f.model.Slices(h)
	if err != nil {
		return 0, 0, err
	}
	const slice = 4096
	out, tokens := make([]float32, f.tokens*min(slice, s.Vocab())), make([]metric.Partial, f.tokens-1)
	for v := 0; v < s.Vocab(); v += slice {
		n := min(slice, s.Vocab()-v)
		if err := s.Load(v, v+n); err != nil {
			return 0, 0, err
		}
		s.Logits(out, 0, f.tokens)
		for i := range tokens {
			tokens[i].Add(v, out[i*n:][:n], out[i*n:][:n], f.sequence.IDs[i+1])
		}
	}
	for i := range tokens {
		nll += tokens[i].Token().Base / float64(len(tokens))
	}
	return nll, len(tokens), nil
}

// randomIDs are n tokens.
func randomIDs(n, vocab int) []int {
	r := rand.New(rand.NewPCG(1, 2))
	ids := make([]int, n)
	for i := range ids {
		ids[i] = r.IntN(vocab)
	}
	return ids
}

// operations are floating-point operations a token of sequences of a length: two for every
// weight of a matrix that it goes through, and attention with half of the keys, if causal.
func operations(s *model.Spec, length int) (layers, head float64) {
	linear := func(l *model.Linear) float64 {
		if l == nil {
			return 0
		}
		return 2 * float64(l.In) * float64(l.Out)
	}
	for i := range s.Layers {
		l := &s.Layers[i]
		a := &l.Attn
		for k := range a.Inputs {
			layers += linear(&a.Inputs[k])
		}
		layers += linear(&a.Out)
		keys := float64(length)
		if a.Causal {
			keys = float64(length+1) / 2
		}
		layers += 2 * keys * float64(a.Heads) * float64(a.HeadDim+a.ValueDim)
		if m := l.MLP; m != nil {
			layers += linear(m.Gate) + linear(&m.Up) + linear(&m.Down)
		}
	}
	if s.Head != nil {
		head = linear(s.Head.Transform) + linear(&s.Head.Out)
	}
	return layers, head
}

// product is the rate of the product that a feed-forward block of the 1b shape begins with,
// weights in bfloat16, in FLOP a second of time on the wall and of processor time.
func product(threads int) (wall, cpu float64) {
	const m, n, k = 960, 8192, 2048
	g := gemm.New(threads)
	x, y := make([]float32, m*k), make([]float32, m*n)
	for i := range x {
		x[i] = float32(i%7) - 3
	}
	w := gemm.Stored(make([]byte, 2*n*k), kernels.BF16, n, k)
	g.Mul(y, n, x, k, m, w, false)
	var walls, cpus []float64
	for range 7 {
		began, used := time.Now(), cpuTime()
		g.Mul(y, n, x, k, m, w, false)
		walls, cpus = append(walls, time.Since(began).Seconds()), append(cpus, cpuTime()-used)
	}
	return 2 * m * n * k / middle(walls), 2 * m * n * k / middle(cpus)
}

// middle is the median, the upper one of two.
func middle[T cmp.Ordered](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
