package flash

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels/panel"
)

// assembly is what one tier has for panels of scores.
type assembly struct {
	softmax [panel.MaxVecs + 1]softmaxFunc
	bias    [panel.MaxVecs + 1]biasFunc
	softcap func(s *float32, vecs int, scale, limit float32)
}

type (
	softmaxFunc func(s *float32, rows int, c, cLow float32, m, l, corr *float32)
	biasFunc    func(s *float32, rows int, scale float32, slope, pos *float32)
)

// scores dispatches to a tier; nil is generic Go.
type scores struct{ asm *assembly }

// softmax works like softmaxGeneric on a panel of w columns in vecs vectors.
func (x scores) softmax(s []float32, rows, w, vecs int, c, cLow float32, m, l, corr []float32) {
	if len(s) < rows*w || len(m) < w || len(l) < w || len(corr) < w {
		panic(fmt.Sprintf("flash: internal error: softmax of %dx%d: %d, %d, %d, %d elements", rows, w, len(s), len(m), len(l), len(corr)))
	}
	switch {
	case rows == 0:
	case x.asm == nil:
		softmaxGeneric(s, rows, w, c, cLow, m, l, corr)
	default:
		x.asm.softmax[vecs](&s[0], rows, c, cLow, &m[0], &l[0], &corr[0])
	}
}

// bias works like biasGeneric.
func (x scores) bias(s []float32, rows, w, vecs int, scale float32, slope, pos []float32) {
	if len(s) < rows*w || len(slope) < w || len(pos) < w {
		panic(fmt.Sprintf("flash: internal error: bias of %dx%d: %d, %d, %d elements", rows, w, len(s), len(slope), len(pos)))
	}
	switch {
	case rows == 0:
	case x.asm == nil:
		biasGeneric(s, rows, w, scale, slope, pos)
	default:
		x.asm.bias[vecs](&s[0], rows, scale, &slope[0], &pos[0])
	}
}

// softcap works like softcapGeneric on rows*vecs vectors, the whole of s.
func (x scores) softcap(s []float32, vecs int, scale, limit float32) {
	switch {
	case len(s) == 0:
	case x.asm == nil:
		softcapGeneric(s, scale, limit)
	default:
		x.asm.softcap(&s[0], vecs, scale, limit)
	}
}
