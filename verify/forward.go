package verify

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/model"
	"github.com/nf4conv/nf4conv/verify/metric"
)

// states are the two models at the end of their passes; made by the first stage that needs
// them.
type states struct {
	tried           bool
	plan            plan
	notRun          string
	base, candidate *model.Model
	x, y            []float32 // final hidden states
	layers          []metric.Vectors
	lowRank         [2]func(string) *model.LowRank // of base and candidate
	attended        float64                        // share of dense attention, with a mask
}

// diverged is the relative error of hidden states from which on a layer counts as diverged:
// half of the norm of the residual stream is something else.
const diverged = 0.5

// compute takes the text through both models. It tells why it did not.
func (s *states) compute(ctx context.Context, base, candidate *hf.Checkpoint, o Options) (notRun string, err error) {
	if s.tried {
		return s.notRun, nil
	}
	s.tried = true
	if o.Text == nil {
		s.notRun = "there are no token ids to run the models on"
		return s.notRun, nil
	}
	err = s.walk(ctx, base, candidate, o)
	if err != nil && fault.ClassOf(err) == fault.Input && !errors.Is(err, context.Canceled) {
		s.notRun = err.Error()
		return s.notRun, nil
	}
	return "", err
}

func (s *states) walk(ctx context.Context, base, candidate *hf.Checkpoint, o Options) error {
	if err := s.open(base, candidate, o); err != nil {
		return err
	}
	if o.Mask != nil {
		s.attended = attended(o.Text, o.Mask, s.base.Spec().Causal)
	}
	p, err := s.base.Start(o.Text.Sequences, model.RunOptions{Group: s.plan.group})
	if err != nil {
		return err
	}
	q, err := s.candidate.Start(o.Text.Sequences, model.RunOptions{Mask: o.Mask, Beside: p, Group: s.plan.group})
	if err != nil {
		return err
	}
	for layer := 0; ; layer++ {
		s.layers = append(s.layers, compareRows(o.Threads, p.Hidden(), q.Hidden(), len(p.Hidden())/o.Text.Tokens))
		if layer == s.base.Layers() {
			break
		}
		if err := p.Step(ctx); err != nil {
			return fmt.Errorf("computing the base: %w", err)
		}
		if err := q.Step(ctx); err != nil {
			return fmt.Errorf("computing the candidate: %w", err)
		}
	}
	s.x, s.y = p.Hidden(), q.Hidden()
	return nil
}

// open opens both models, once, and plans their passes.
func (s *states) open(base, candidate *hf.Checkpoint, o Options) error {
	if s.candidate != nil {
		return nil
	}
	var err error
	if s.base, err = model.Open(base, model.Options{Threads: o.Threads, LowRank: s.lowRank[0]}); err != nil {
		return fmt.Errorf("the base cannot be computed: %w", err)
	}
	q, err := model.Open(candidate, model.Options{Threads: o.Threads, LowRank: s.lowRank[1]})
	if err != nil {
		return fmt.Errorf("the candidate cannot be computed: %w", err)
	}
	if s.base.Layers() != q.Layers() || s.base.Width() != q.Width() || s.base.Spec().Hidden != q.Spec().Hidden {
		return fault.Inputf("the candidate has %d layers of width %d; expected %d of width %d", q.Layers(), q.Spec().Hidden, s.base.Layers(), s.base.Spec().Hidden)
	}
	if s.plan, err = planPasses(s.base, q, o); err != nil {
		return err
	}
	s.candidate = q
	return nil
}

// compareRows compares rows of a width, in parallel, and adds them up in their order.
func compareRows(threads int, x, y []float32, width int) metric.Vectors {
	rows := make([]metric.Row, len(x)/width)
	each(threads, len(rows), func(i int) {
		rows[i] = metric.CompareRow(x[i*width:][:width], y[i*width:][:width])
	})
	var v metric.Vectors
	for _, r := range rows {
		v.Add(r)
	}
	return v
}

// layers is the third stage: figures of every layer, and of the run
//
//	hidden.rel_error    of the final hidden states
//	hidden.cosine       mean over tokens, of the final hidden states
func (r *Result) layers(ctx context.Context, base, candidate *hf.Checkpoint, s *states, o Options) (notRun string, err error) {
	if notRun, err := s.compute(ctx, base, candidate, o); notRun != "" || err != nil {
		return notRun, err
	}
	r.Causal = s.base.Spec().Causal
	if o.Mask != nil {
		r.Text.Attended = Number(s.attended)
	}
	before := 0.0
	for i := range s.layers {
		v := &s.layers[i]
		e := v.RelError()
		c := v.Cosine.Estimate()
		r.Layers = append(r.Layers, Layer{
			Layer: i, RelError: Number(e), Growth: Number(e - before), Cosine: Number(c.Value), CosineErr: Number(c.StdErr),
			CosineMin: Number(v.MinCosine), Rows: v.Cosine.N,
		})
		if r.Diverges < 0 && !(e < diverged) {
			r.Diverges = i
		}
		before = e
	}
	last := &s.layers[len(s.layers)-1]
	r.count("hidden.rel_error", last.RelError(), last.Cosine.N)
	r.add("hidden.cosine", last.Cosine.Estimate(), last.Cosine.N)
	return "", nil
}

// logits is the fourth stage. Scored are, of a causal model, the predictions after every
// token of a sequence but its last; of a bidirectional one all positions, without
// perplexities and delta p, because no token follows; of a classifier its labels, at the
// tokens that it looks at, also without.
//
//	tokens                                    how many were scored
//	kld.mean .median .p90 .p99 .p999 .max     divergence of the candidate from the base
//	top1, top5                                same likeliest token; share of the five likeliest
//	ppl.base, ppl.candidate, ppl.ratio        perplexities
//	dp.mean, dp.rms                           change of the probability of the token that follows
func (r *Result) logits(ctx context.Context, base, candidate *hf.Checkpoint, s *states, o Options) (notRun string, err error) {
	if notRun, err := s.compute(ctx, base, candidate, o); notRun != "" || err != nil {
		return notRun, err
	}
	r.Causal = s.base.Spec().Causal
	if o.Mask != nil {
		r.Text.Attended = Number(s.attended)
	}
	p, err := s.base.Slices(s.x)
	if err == nil {
		var q *model.Slices
		if q, err = s.candidate.Slices(s.y); err == nil {
			if p.Vocab() != q.Vocab() {
				return fmt.Sprintf("the candidate has a vocabulary of %d tokens; expected %d", q.Vocab(), p.Vocab()), nil
			}
			return "", r.score(ctx, p, q, s.base.Spec().Causal, s.plan.rows, o)
		}
	}
	if fault.ClassOf(err) == fault.Input {
		return err.Error(), nil
	}
	return "", err
}

// sliceTokens is how many tokens of the vocabulary are scored at a time: the head is read
// once, and never whole in memory. It shifts the last digits of figures.
const sliceTokens = 4096

// score goes through the vocabulary, and through all rows for every slice of it, some at a
// time.
func (r *Result) score(ctx context.Context, p, q *model.Slices, causal bool, rows int, o Options) error {
	next := following(o.Text, causal && !p.Labels)
	if p.Pick != model.AllTokens {
		next = slices.Repeat([]int{ignored}, len(next))
		for _, k := range p.Picked(o.Text.Sequences) {
			next[k] = nothing
		}
	}
	vocab := p.Vocab()
	width := min(sliceTokens, vocab)
	step := min(o.Text.Tokens, rows)
	a, b := make([]float32, step*width), make([]float32, step*width)
	tokens := make([]metric.Partial, o.Text.Tokens)
	for v0 := 0; v0 < vocab; v0 += width {
		n := min(width, vocab-v0)
		if err := errors.Join(p.Load(v0, v0+n), q.Load(v0, v0+n)); err != nil {
			return err
		}
		for first := 0; first < o.Text.Tokens; first += step {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("computing logits: %w", err)
			}
			k := min(step, o.Text.Tokens-first)
			p.Logits(a, first, k)
			q.Logits(b, first, k)
			each(o.Threads, k, func(i int) {
				if k := next[first+i]; k > ignored {
					tokens[first+i].Add(v0, a[i*n:][:n], b[i*n:][:n], k)
				}
			})
		}
	}
	var all metric.Logits
	for i := range tokens {
		if k := next[i]; k > ignored {
			all.Add(tokens[i].Token(), k >= 0)
		}
	}
	r.summarize(&all)
	return nil
}

// What follows a token that has none: it is scored without one, or not at all.
const (
	nothing = -1
	ignored = -2
)

// following is the token after each, nothing or ignored.
func following(ids *IDs, causal bool) []int {
	out := make([]int, 0, ids.Tokens)
	for _, s := range ids.Sequences {
		if !causal {
			for range s.IDs {
				out = append(out, nothing)
			}
			continue
		}
		out = append(append(out, s.IDs[1:]...), ignored)
	}
	return out
}

func (r *Result) summarize(l *metric.Logits) {
	n := l.KLD.N
	r.count("tokens", float64(n), n)
	r.add("kld.mean", l.KLD.Estimate(), n)
	for _, q := range []struct {
		name string
		p    float64
	}{{"median", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}} {
		r.add("kld."+q.name, l.KLDs.Quantile(q.p), n)
	}
	r.add("kld.max", l.KLDs.Max(), n)
	r.add("top1", l.Same1.Estimate(), n)
	r.add("top5", l.Same5.Estimate(), n)
	if k := l.Base.N; k > 0 {
		r.add("ppl.base", l.PerplexityBase(), k)
		r.add("ppl.candidate", l.PerplexityCandidate(), k)
		r.add("ppl.ratio", l.PerplexityRatio(), k)
		r.add("dp.mean", l.DeltaP.Estimate(), k)
		r.add("dp.rms", l.RMSDeltaP(), k)
	}
	r.Histogram = histogram(l.KLDs.Values())
}

// histogram has four bins for every power of ten from 1e-6 to 1e2, and one for what is below
// and one for what is above. NaN is in none.
func histogram(v []float64) []Bin {
	bins := []Bin{{From: 0, To: 1e-6}}
	for k := -24; k < 8; k++ {
		bins = append(bins, Bin{From: Number(math.Pow(10, float64(k)/4)), To: Number(math.Pow(10, float64(k+1)/4))})
	}
	bins = append(bins, Bin{From: 100, To: Number(math.Inf(1))})
	for _, x := range v {
		x = max(x, 0) // rounding makes divergences of nearly equal distributions negative
		for i := range bins {
			if x < float64(bins[i].To) && (i == 0 || x >= float64(bins[i].From)) || math.IsInf(x, 1) && i == len(bins)-1 {
				bins[i].Count++
				break
			}
		}
	}
	return bins
}
