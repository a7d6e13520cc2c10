package flashtest

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// reference is textbook attention of one query: every score, their softmax, the sum. The
// exact one computes in float64. The plain ones round everything to float32, as a simple
// program would, with sums in several orders: their errors say what is unavoidable. All follow the package comment of kernels/flash and share no code
// with it.
type reference struct {
	*flash.Params
	c    *Case
	q    []float32 // [tokens][heads][dim], widened
	k, v []float32
}

func (r *reference) sees(b, i, j int) bool {
	sq, sk := r.c.Seqs[b][0], r.c.keys(b)
	p := i + sk - sq
	return j < sk && (!r.Causal || j <= p) &&
		(r.Window == nil || (r.Window.Left < 0 || j >= p-r.Window.Left) && (r.Window.Right < 0 || j <= p+r.Window.Right)) &&
		(r.Mask == nil || r.Mask.Has(i, j))
}

// order is a way in which sums are taken: ascending (0), descending (1) or, above, one of
// many shuffled ones, with the terms of a score in several partial sums, as vectors take
// them: equal terms have the same sum in any sequence.
type order int

func (o order) partial() int {
	if o < 2 {
		return 1
	}
	return 1 << (o % 5)
}

func (o order) of(n int) []int {
	list := everyOne(n)
	switch {
	case o == 1:
		slices.Reverse(list)
	case o > 1:
		rand.New(rand.NewPCG(uint64(o), uint64(n))).Shuffle(n, func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	return list
}

// attend computes query i of sequence b in head h in the precision of F, with sums in the
// given order. size is the largest sum of magnitudes of the terms of a score, in which its
// rounding errors are measured.
func attend[F float32 | float64](r *reference, b, i, h int, sums order) (out []F, lse, size float64) {
	c := r.c
	q0, k0 := c.starts(b)
	sk, hk := c.keys(b), h/(c.Heads/c.KVHeads)
	dims, keys, parts := sums.of(c.Dim), sums.of(sk), make([]F, sums.partial())
	q := r.q[((q0+i)*c.Heads+h)*c.Dim:][:c.Dim]
	scale := F(r.Scale)
	if scale == 0 {
		scale = F(float32(1 / math.Sqrt(float64(c.Dim))))
	}
	seen := make([]bool, sk)
	x, top := make([]F, sk), F(math.Inf(-1))
	if r.Sinks != nil {
		top = F(r.Sinks[h])
	}
	for j := range x {
		if seen[j] = r.sees(b, i, j); !seen[j] {
			continue
		}
		k := r.k[((k0+j)*c.KVHeads+hk)*c.Dim:][:c.Dim]
		var s F
		terms := 0.0
		clear(parts)
		for n, d := range dims {
			parts[n%len(parts)] += F(F(q[d]) * F(k[d])) //nolint:unconvert // it forbids a fused multiply-add
			terms += math.Abs(float64(q[d]) * float64(k[d]))
		}
		size = max(size, terms*float64(scale))
		for _, part := range parts {
			s += part
		}
		s *= scale
		if r.Softcap != 0 {
			s = F(r.Softcap) * F(math.Tanh(float64(s/F(r.Softcap))))
		}
		if r.Slopes != nil {
			s -= F(F(r.Slopes[h]) * F(math.Abs(float64(i+sk-c.Seqs[b][0]-j)))) //nolint:unconvert // it forbids a fused multiply-add
		}
		x[j], top = s, max(top, s)
	}
	out = make([]F, c.vdim())
	if math.IsInf(float64(top), -1) {
		return out, float64(top), size
	}
	var z F
	for _, j := range keys {
		if seen[j] {
			x[j] = F(math.Exp(float64(x[j] - top)))
			z += x[j]
		}
	}
	if r.Sinks != nil {
		z += F(math.Exp(float64(F(r.Sinks[h]) - top)))
	}
	for _, j := range keys {
		if !seen[j] {
			continue
		}
		p := x[j] / z
		v := r.v[((k0+j)*c.KVHeads+hk)*c.vdim():][:c.vdim()]
		for d := range out {
			out[d] += F(p * F(v[d])) //nolint:unconvert // it forbids a fused multiply-add
		}
	}
	return out, float64(top) + math.Log(float64(z)), size
}

// widen is what n elements of the format of the case stand for.
func (c *Case) widen(x []float32) (exact []float32, raw []byte) {
	raw = make([]byte, 1+len(x)*c.Format.Size())[1:] // at an odd address
	cast.FromF32(raw, x, c.Format)
	exact = make([]float32, len(x))
	cast.ToF32(exact, raw, c.Format)
	return exact, raw
}
