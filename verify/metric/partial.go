package metric

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels/vexp"
)

// A Partial is the measure of a token from logits of a part of the vocabulary, so that
// those of the whole need not exist. The zero value has seen none. It has the sums
//
//	A = sum exp(a_v-ma)     B = sum exp(b_v-mb)     D = sum exp(a_v-ma) (a_v-b_v)
//
// over the logits a of the base and b of the candidate so far, ma and mb their largest: with
// them, ln P(v) = a_v - ma - ln A, and the divergence is D/A - (ma + ln A) + (mb + ln B).
type Partial struct {
	sums         vexp.Sums
	ma, mb       float64
	base, other  best
	targetA      float32 // logits of the token that follows
	targetB      float32
	seen, target int32
}

// Add takes the logits of base and candidate, of one length, of the tokens from first on:
// parts come in ascending order. next is as in [Compare], and the same in every call.
func (p *Partial) Add(first int, base, candidate []float32, next int) {
	if len(base) == 0 {
		return
	}
	ma, mb := p.base.add(first, base), p.other.add(first, candidate)
	if p.seen == 0 {
		p.ma, p.mb = ma, mb
	}
	// What is there is brought to the new largest.
	if ma > p.ma {
		f := math.Exp(p.ma - ma)
		p.sums.A, p.sums.D, p.ma = p.sums.A*f, p.sums.D*f, ma
	}
	if mb > p.mb {
		p.sums.B, p.mb = p.sums.B*math.Exp(p.mb-mb), mb
	}
	s := vexp.Divergence(base, candidate, p.ma, p.mb)
	p.sums.A += s.A
	p.sums.B += s.B
	p.sums.D += s.D
	if k := next - first; next >= 0 && k >= 0 && k < len(base) {
		p.targetA, p.targetB, p.target = base[k], candidate[k], 1
	}
	p.seen += int32(len(base))
}

// Token is the measure, once all parts have been added.
func (p *Partial) Token() Token {
	a, b := p.ma+math.Log(p.sums.A), p.mb+math.Log(p.sums.B)
	t := Token{KLD: p.sums.D/p.sums.A - (a - b)}
	if math.IsInf(t.KLD, 0) {
		t.KLD = math.NaN()
	}
	if p.target > 0 {
		t.Base, t.Candidate = a-float64(p.targetA), b-float64(p.targetB)
	}
	if p.base.index[0] == p.other.index[0] {
		t.Same1 = 1
	}
	n, same := min(Top, int(p.seen)), 0
	for _, x := range p.base.index[:n] {
		for _, y := range p.other.index[:n] {
			if x == y {
				same++
			}
		}
	}
	t.Same5 = float64(same) / float64(n)
	return t
}

// best are the largest values so far, largest first, the first one on a tie.
type best struct {
	index [Top]int32
	value [Top]float32
	n     int32
}

// glance is how many values are looked at for their largest before any of them is.
const glance = 512

// add takes the values of the indices from first on and returns the largest of them.
func (b *best) add(first int, x []float32) float64 {
	largest := float32(math.Inf(-1))
	for at := 0; at < len(x); at += glance {
		part := x[at:min(len(x), at+glance)]
		m := vexp.Max(part)
		largest = max(largest, m)
		if b.n < Top || m > b.value[Top-1] {
			b.scan(first+at, part)
		}
	}
	return float64(largest)
}

func (b *best) scan(first int, x []float32) {
	for i, v := range x {
		if b.n == Top && !(v > b.value[Top-1]) {
			continue
		}
		k := min(b.n, Top-1)
		for ; k > 0 && v > b.value[k-1]; k-- {
			b.index[k], b.value[k] = b.index[k-1], b.value[k-1]
		}
		b.index[k], b.value[k] = int32(first+i), v
		b.n = min(b.n+1, Top)
	}
}
