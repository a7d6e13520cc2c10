package lora

import "math"

// Moments are sums over elements of a merged weight: w what stood there, d what was meant
// to be added, v what stands there now. They are added up in float64.
type Moments struct {
	N       int64   // elements
	Changed int64   // with v other than w
	WW      float64 // sum of w^2
	DD      float64 // sum of d^2
	RD      float64 // sum of (v-w) d
}

// Measure is the moments of some elements.
func Measure(w, d, v []float32) Moments {
	m := Moments{N: int64(len(w))}
	for i := range w {
		w, d, v := float64(w[i]), float64(d[i]), float64(v[i])
		if v != w {
			m.Changed++
		}
		m.WW += float64(w * w)
		m.DD += float64(d * d)
		m.RD += float64((v - w) * d)
	}
	return m
}

// Add adds up.
func (m *Moments) Add(o Moments) {
	m.N += o.N
	m.Changed += o.Changed
	m.WW += o.WW
	m.DD += o.DD
	m.RD += o.RD
}

// Relative is |d| / |w|, in Frobenius norms; 0 where w is.
func (m *Moments) Relative() float64 {
	if m.WW == 0 {
		return 0
	}
	return math.Sqrt(m.DD / m.WW)
}

// Kept is the projection of the realised change on the intended one, <v-w, d> / <d, d>: 1
// when all of the delta arrived, 0 when rounding swallowed it. Of a delta that is zero it
// is 1: nothing was lost.
func (m *Moments) Kept() float64 {
	if m.DD == 0 {
		return 1
	}
	return m.RD / m.DD
}

// ChangedShare is the share of elements that are not what they were.
func (m *Moments) ChangedShare() float64 {
	if m.N == 0 {
		return 0
	}
	return float64(m.Changed) / float64(m.N)
}
