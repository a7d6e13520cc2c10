package quant4test

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// Quantize is the definition, one element after the other.
func Quantize(src []byte, f kernels.Float, bs int, book *quant4.Codebook) (packed []byte, absmax []float32) {
	n := len(src) / f.Size()
	x := make([]float32, n)
	cast.ToF32(x, src, f)
	codes := make([]byte, n+n%2)
	if n%2 == 1 {
		codes[n] = code(0, book)
	}
	for lo := 0; lo < n; lo += bs {
		block := x[lo:min(lo+bs, n)]
		a := blockMax(block)
		if len(block) < bs {
			a = atLeast(a, 1e-38)
			for i, v := range block {
				codes[lo+i] = code(v/a, book)
			}
		} else {
			r := 1 / atLeast(a, 1e-38)
			for i, v := range block {
				codes[lo+i] = code(v*r, book)
			}
		}
		absmax = append(absmax, a)
	}
	packed = make([]byte, len(codes)/2)
	for i := range packed {
		packed[i] = codes[2*i]<<4 | codes[2*i+1]
	}
	return packed, absmax
}

// blockMax is the largest magnitude; a NaN is larger than anything.
func blockMax(x []float32) float32 {
	var a float32
	for _, v := range x {
		if v != v {
			return v
		}
		a = float32(math.Max(float64(a), math.Abs(float64(v))))
	}
	return a
}

func atLeast(a, least float32) float32 {
	if a < least {
		return least
	}
	return a
}

// code is that of the rank: the number of thresholds that v is above. NaN is above all.
func code(v float32, book *quant4.Codebook) byte {
	rank := 0
	for _, t := range book.Thresholds {
		if v > t || v != v {
			rank++
		}
	}
	return book.ByRank[rank]
}

// Dequantize is the definition, to float32.
func Dequantize(packed []byte, absmax []float32, n, bs int, book *quant4.Codebook) []float32 {
	out := make([]float32, n)
	for i := range out {
		c := packed[i/2] & 15
		if i%2 == 0 {
			c = packed[i/2] >> 4
		}
		out[i] = book.Levels[c] * absmax[i/bs]
	}
	return out
}

// moments sums in the order that quant4.BlockMoments promises.
func moments(src []byte, f kernels.Float, packed []byte, book *quant4.Codebook) quant4.Moments {
	x := make([]float32, len(src)/f.Size())
	cast.ToF32(x, src, f)
	var acc [8]quant4.Moments
	for i, v := range x {
		c := packed[i/2] & 15
		if i%2 == 0 {
			c = packed[i/2] >> 4
		}
		a, q := float64(v), float64(book.Levels[c])
		m := &acc[i%8]
		m.XX += float64(a * a)
		m.XQ += float64(a * q)
		m.QQ += float64(q * q)
	}
	for half := 4; half > 0; half /= 2 {
		for i := range half {
			acc[i].XX += acc[i+half].XX
			acc[i].XQ += acc[i+half].XQ
			acc[i].QQ += acc[i+half].QQ
		}
	}
	return acc[0]
}
