package vexp

import "math"

// Constants of the exponential. magic pushes the fraction of a number below 2^51 out of
// the mantissa and leaves the integer in its low bits.
const (
	lowest  = -708.0
	highest = 709.0
	magic   = 3 << 51
	ln2High = 6.93147180369123816490e-01 // its last 21 bits are 0
	ln2Low  = 1.90821492927058770002e-10
	square  = 1e300 // limit of x^2, which a factor of 0 must not turn into NaN
	terms   = 13
)

// taylor is 1/k!, of the highest power first.
var taylor = func() (c [terms + 1]float64) {
	f := 1.0
	for k := range c {
		if k > 0 {
			f *= float64(k)
		}
		c[terms-k] = 1 / f
	}
	return c
}()

// exp is the exponential of the package comment.
func exp(x float64) float64 {
	if x < lowest {
		x = lowest
	}
	if x > highest {
		x = highest
	}
	t := math.FMA(x, math.Log2E, magic)
	n := t - magic
	r := math.FMA(-n, ln2High, x)
	r = math.FMA(-n, ln2Low, r)
	p := taylor[0]
	for _, c := range taylor[1:] {
		p = math.FMA(p, r, c)
	}
	return float64(p * math.Float64frombits((math.Float64bits(t)+1023)<<52)) // not to be fused with a sum
}

// gateGeneric is the definition of Gate, of negative c1 and c3.
func gateGeneric(x []float32, c1, c3 float64) {
	for i, f := range x {
		v := float64(f)
		s := v * v
		if s > square {
			s = square
		}
		x[i] = float32(v / (1 + exp(float64(v*math.FMA(c3, s, c1)))))
	}
}

// divergenceGeneric adds elements, the first of which is a first of eight.
func divergenceGeneric(p *partial, a, b []float32, ma, mb float64) {
	for i, v := range a {
		x, y := float64(v), float64(b[i])
		e := exp(x - ma)
		k := i % group
		p[k] += e
		p[group+k] += exp(y - mb)
		p[2*group+k] = math.FMA(e, x-y, p[2*group+k])
	}
}

func maxGeneric(x []float32) float32 {
	m := float32(math.Inf(-1))
	for _, v := range x {
		if v > m {
			m = v
		}
	}
	return m
}
