package flash

import "math"

// softmaxGeneric is one step of the online softmax on scores s, [rows][w]. Per column, with
// m the largest score so far and l the sum of exponentials relative to it:
//
//	m'   = max(m, scores)
//	corr = 2^((m-m')*(c+cLow))
//	s    = 2^((s-m')*(c+cLow))
//	l    = l*corr + sum of s
//
// m starts as the smallest float32 and not as -Inf, whose difference with itself is NaN.
// The difference is taken before it is scaled, so that the largest score gives exactly 1.
// cLow, which is positive, is what c lacks of a factor rounded down: the rounding error
// of c alone would be that of another temperature. Results below 2^-126 are 0.
func softmaxGeneric(s []float32, rows, w int, c, cLow float32, m, l, corr []float32) {
	for j := range w {
		top := m[j]
		for i := range rows {
			if x := s[i*w+j]; !(x <= top) {
				top = x
			}
		}
		corr[j] = exp2(m[j]-top, c, cLow)
		m[j] = top
		var sum float32
		for i := range rows {
			p := exp2(s[i*w+j]-top, c, cLow)
			s[i*w+j] = p
			sum += p
		}
		l[j] = float32(l[j]*corr[j]) + sum
	}
}

func exp2(d, c, cLow float32) float32 {
	x := float32(float64(d) * (float64(c) + float64(cLow)))
	if x < -126 {
		return 0
	}
	return float32(math.Exp2(float64(x)))
}

// biasGeneric scales and subtracts slope*distance: s = s*scale - slope[j]*|pos[j] - i| for
// row i, column j.
func biasGeneric(s []float32, rows, w int, scale float32, slope, pos []float32) {
	for i := range rows {
		for j := range w {
			d := float32(math.Abs(float64(pos[j] - float32(i))))
			s[i*w+j] = float32(s[i*w+j]*scale) - float32(slope[j]*d)
		}
	}
}

// softcapGeneric is limit*tanh(s*scale).
func softcapGeneric(s []float32, scale, limit float32) {
	for i, x := range s {
		s[i] = limit * float32(math.Tanh(float64(x*scale)))
	}
}
