// Package vexp has the exponentials of a forward pass over vectors: activations that are a
// gate of their own argument, and the sums from which the divergence of two distributions
// over a vocabulary is made. All arithmetic is float64, from float32 and to float32.
//
// # Exponential
//
// With x limited to [-708, 709], so that nothing overflows or becomes subnormal,
//
//	n = x/ln 2 rounded to the nearest integer, ties to even
//	r = x - n*ln 2, in two steps with a product each that is not rounded (FMA)
//	e^x = 2^n * (1 + r + r^2/2! + ... + r^13/13!), by Horner's rule with FMA
//
// whose error is below one unit in the last place. NaN stays NaN.
//
// # Tiers
//
// All of them compute this, operation by operation, and give the same bits.
package vexp

import "fmt"

// group is how many elements the assembly takes at a time, and how many partial sums there
// are.
const group = 8

// Gate sets every x to x / (1 + exp(-x*(c1 + c3*x^2))), rounded once: SiLU with (1, 0),
// the approximation of GELU by a sigmoid with (1.702, 0), and that by tanh, since
// (1+tanh u)/2 = 1/(1+exp(-2u)), with (2*sqrt(2/pi), 2*sqrt(2/pi)*0.044715). An infinity
// gives itself.
func Gate(x []float32, c1, c3 float64) {
	n := gateGroups(x, -c1, -c3)
	gateGeneric(x[n:], -c1, -c3)
}

// Sums are sums over elements of two vectors of logits, a and b, relative to what is about
// the largest of each:
//
//	A = sum exp(a-ma)     B = sum exp(b-mb)     D = sum exp(a-ma) * (a-b)
type Sums struct{ A, B, D float64 }

// Divergence computes the sums. Each is made of eight partial sums, over every eighth
// element, which are added in order at the end. a and b are of one length.
func Divergence(a, b []float32, ma, mb float64) Sums {
	if len(a) != len(b) {
		panic(fmt.Sprintf("vexp: internal error: %d and %d elements", len(a), len(b)))
	}
	var p partial
	n := divergenceGroups(&p, a, b, ma, mb)
	divergenceGeneric(&p, a[n:], b[n:], ma, mb)
	return Sums{A: p.sum(0), B: p.sum(1), D: p.sum(2)}
}

// partial are the partial sums A, B and D.
type partial [3 * group]float64

func (p *partial) sum(k int) float64 {
	s := 0.0
	for _, v := range p[k*group : (k+1)*group] {
		s += v
	}
	return s
}

// Max is the largest element that is a number, -Inf if there is none. Which zero it is,
// of several, is not defined.
func Max(x []float32) float32 {
	m, n := maxGroups(x)
	return max(m, maxGeneric(x[n:]))
}
