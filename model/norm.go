package model

import "math"

// norm is a Norm with its weights.
type norm struct {
	*Norm
	weight, bias []float32 // Groups*Dim elements, or nil
}

// apply normalises rows of width n.Dim*k: dst[i*ldd:] from src[i*lds:]. They may be the same.
func (n *norm) apply(e *engine, dst []float32, ldd int, src []float32, lds, rows, width int) {
	e.rows(rows, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for at := 0; at < width; at += n.Dim {
				g := at % (n.Groups * n.Dim)
				n.row(dst[r*ldd+at:][:n.Dim], src[r*lds+at:][:n.Dim], g)
			}
		}
	})
}

func (n *norm) row(dst, src []float32, g int) {
	mean := 0.0
	if n.Layer {
		for _, v := range src {
			mean += float64(v)
		}
		mean /= float64(len(src))
	}
	square := 0.0
	for _, v := range src {
		d := float64(v) - mean
		square += d * d
	}
	inv := 1 / math.Sqrt(square/float64(len(src))+n.Eps)
	for i, v := range src {
		y := (float64(v) - mean) * inv
		if n.weight != nil {
			y *= float64(n.weight[g+i])
		}
		if n.bias != nil {
			y += float64(n.bias[g+i])
		}
		dst[i] = float32(y)
	}
}
