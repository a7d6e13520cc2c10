// Command kernelbench runs one kernel at a time on request, so that a script can measure it
// in turns with others: on a shared machine, figures taken minutes apart do not compare.
//
// Every line of standard input is a request in JSON, every line of standard output its
// answer: {"seconds": wall time, "cpu": processor time of all threads, "flop": operations,
// "tier": name}. Requests are
//
//	{"op": "peak", "threads": 1}                            multiply-adds in registers
//	{"op": "read"}                                          256 MiB from memory in one thread; "flop" is bytes
//	{"op": "gemm", "threads": 1, "m": 2048, "n": 2048, "k": 2048, "weights": "float32"}
//	{"op": "attention", "threads": 1, "heads": 8, "s": 2048, "d": 128, "causal": true,
//	 "format": "float32", "block": 64, "density": 0.1}
//
// weights are float32, bfloat16 or nf4; a density below 1 is a random mask of blocks.
// Tensors are normal random numbers, attention on [1, heads, s, d]; they are kept from one
// request to an equal one. interop/bench/attention.py asks for it.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/kernels/peak"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kernelbench:", err)
		os.Exit(1)
	}
}

// request is one line of input.
type request struct {
	Op       string  `json:"op"`
	Threads  int     `json:"threads"`
	M        int     `json:"m"`
	N        int     `json:"n"`
	K        int     `json:"k"`
	Weights  string  `json:"weights"`
	Heads    int     `json:"heads"`
	S        int     `json:"s"`
	D        int     `json:"d"`
	Causal   bool    `json:"causal"`
	Format   string  `json:"format"`
	Block    int     `json:"block"`
	Density  float64 `json:"density"`
	Repeated int     `json:"repeated"` // calls that are timed together; 0 is one
}

// answer is one line of output.
type answer struct {
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"`
	FLOP    float64 `json:"flop"`
	Tier    string  `json:"tier"`
}

func serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	enc := json.NewEncoder(out)
	var last request
	var run func()
	var flop float64
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		r.Threads, r.Repeated = max(1, r.Threads), max(1, r.Repeated)
		if r != last || run == nil {
			var err error
			if run, flop, err = prepare(r); err != nil {
				return err
			}
			run() // the first touches all memory
			last = r
		}
		at, cpu := time.Now(), cpuSeconds()
		for range r.Repeated {
			run()
		}
		n := float64(r.Repeated)
		if err := enc.Encode(answer{time.Since(at).Seconds() / n, (cpuSeconds() - cpu) / n, flop, panel.Best().Tier}); err != nil {
			return err
		}
	}
	return lines.Err()
}

// prepare makes the tensors of a request.
func prepare(r request) (run func(), flop float64, err error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	normal := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rnd.NormFloat64())
		}
		return x
	}
	switch r.Op {
	case "peak":
		if run, flop = peak.Loop(panel.Best().Tier, r.Threads); run == nil {
			return nil, 0, errors.New("peak: the generic tier has no vector instructions")
		}
		return run, flop, nil
	case "read":
		raw := make([]byte, 256<<20)
		for i := range raw {
			raw[i] = byte(i) & 0x3f // finite numbers of bfloat16
		}
		return func() { cast.FirstNonFinite(raw, kernels.BF16) }, float64(len(raw)), nil
	case "gemm":
		if r.M < 1 || r.N < 1 || r.K < 1 {
			return nil, 0, fmt.Errorf("gemm of %d x %d x %d: expected positive sizes", r.M, r.N, r.K)
		}
		a, c := normal(r.M*r.K), make([]float32, r.M*r.N)
		w, err := weights(r, normal(r.N*r.K))
		if err != nil {
			return nil, 0, err
		}
		g := gemm.New(r.Threads)
		return func() { g.Mul(c, r.N, a, r.K, r.M, w, false) }, 2 * float64(r.M) * float64(r.N) * float64(r.K), nil
	case "attention":
		return attention(r, rnd, normal)
	}
	return nil, 0, fmt.Errorf("op %q: expected peak, read, gemm or attention", r.Op)
}

func weights(r request, w []float32) (*gemm.Matrix, error) {
	raw := make([]byte, 2*len(w))
	switch r.Weights {
	case "", "float32":
		return gemm.F32(w, r.N, r.K), nil
	case "bfloat16":
		cast.FromF32(raw, w, kernels.BF16)
		return gemm.Stored(raw, kernels.BF16, r.N, r.K), nil
	case "nf4":
		cast.FromF32(raw, w, kernels.BF16)
		packed, absmax := make([]byte, (len(w)+1)/2), make([]float32, (len(w)+63)/64)
		quant4.Quantize(packed, absmax, raw, kernels.BF16, 64, nf4.NF4.Codebook())
		return gemm.Quant4(packed, absmax, 64, nf4.NF4.Codebook(), r.N, r.K), nil
	}
	return nil, fmt.Errorf("weights %q: expected float32, bfloat16 or nf4", r.Weights)
}

func attention(r request, rnd *rand.Rand, normal func(int) []float32) (run func(), flop float64, err error) {
	if r.Heads < 1 || r.S < 1 || r.D < 1 {
		return nil, 0, fmt.Errorf("attention with %d heads, %d tokens, dimension %d: expected positive sizes", r.Heads, r.S, r.D)
	}
	var heads func() flash.Heads
	switch r.Format {
	case "", "float32":
		heads = func() flash.Heads { return flash.F32(normal(r.Heads*r.S*r.D), r.D, r.S*r.D) }
	case "bfloat16", "float16":
		f := map[string]kernels.Float{"bfloat16": kernels.BF16, "float16": kernels.F16}[r.Format]
		heads = func() flash.Heads {
			raw := make([]byte, 2*r.Heads*r.S*r.D)
			cast.FromF32(raw, normal(r.Heads*r.S*r.D), f)
			return flash.Stored(raw, f, r.D, r.S*r.D)
		}
	default:
		return nil, 0, fmt.Errorf("format %q: expected float32, bfloat16 or float16", r.Format)
	}
	p := &flash.Params{Q: heads(), K: heads(), V: heads(), Out: make([]float32, r.Heads*r.S*r.D), OutRow: r.D, OutHead: r.S * r.D,
		QHeads: r.Heads, KVHeads: r.Heads, HeadDim: r.D, QTokens: r.S, KTokens: r.S, Causal: r.Causal}
	flop = 4 * float64(r.Heads) * float64(r.S) * float64(r.S) * float64(r.D)
	if r.Causal {
		flop /= 2
	}
	if r.Density > 0 && r.Density < 1 {
		block := max(1, r.Block)
		p.Mask = flash.FromFunc(block, block, r.S, r.S, func(int, int) bool { return rnd.Float64() < r.Density })
		flop *= p.Mask.Density()
	}
	a := flash.New(r.Threads)
	return func() { a.Forward(p) }, flop, nil
}
