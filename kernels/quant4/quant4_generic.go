package quant4

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

const tiny = float32(1e-38)

func rank(v float32, book *Codebook) uint8 {
	r := uint8(0)
	for _, t := range book.Thresholds {
		if !(v <= t) {
			r++
		}
	}
	return r
}

func quantizeGeneric(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *Codebook) {
	size := from.Size()
	n := len(src) / size
	buf := make([]float32, blockSize)
	for b := 0; b*blockSize < n; b++ {
		lo, hi := b*blockSize, min((b+1)*blockSize, n)
		x := buf[:hi-lo]
		cast.ToF32(x, src[lo*size:hi*size], from)
		var bits uint32
		for _, f := range x {
			bits = max(bits, math.Float32bits(f)&0x7fffffff)
		}
		a := math.Float32frombits(bits)
		d := a
		if a < tiny {
			d = tiny
		}
		r := 1 / d
		full := len(x) == blockSize
		if !full {
			a = d
		}
		absmax[b] = a
		for i := 0; i < len(x); i += 2 {
			var c [2]uint8
			for k := range c {
				v := float32(0)
				if i+k < len(x) {
					v = x[i+k] * r
					if !full {
						v = x[i+k] / d
					}
				}
				c[k] = book.ByRank[rank(v, book)]
			}
			packed[(lo+i)/2] = c[0]<<4 | c[1]
		}
	}
}

func dequantizeGeneric(dst []byte, to kernels.Float, packed []byte, absmax []float32, n, blockSize int, book *Codebook) {
	var buf [2]float32
	size := to.Size()
	for i := 0; i < n; i += 2 {
		k := min(2, n-i)
		DequantizeF32(buf[:k], packed[i/2:], absmax[i/blockSize:], blockSize, book)
		cast.FromF32(dst[i*size:(i+k)*size], buf[:k], to)
	}
}

func blockMomentsGeneric(src []byte, from kernels.Float, packed []byte, blockSize int, book *Codebook) Moments {
	x := make([]float32, len(src)/from.Size())
	cast.ToF32(x, src, from)
	var m Moments
	for i, f := range x {
		q := float64(book.Levels[packed[i/2]>>(4-i%2*4)&15])
		m.XX += float64(f) * float64(f)
		m.XQ += float64(f) * q
		m.QQ += q * q
	}
	return m
}
