package convert

import (
	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// Scales are the scales of a quantized weight: absmax of every block, and what double
// quantization makes of them.
type Scales struct {
	Absmax []float32
	Codes  []byte    // with double quantization, one per absmax
	Nested []float32 // with double quantization, one per doublequant.BlockSize codes
	Offset float32   // with double quantization, the mean of absmax
}

// emitElems is how many float32 are encoded at a time.
const emitElems = 1 << 14

// Emit hands the parts beside the weight to emit, but for PartQuantState, and reports.
func (c *Scales) Emit(spec *JobSpec, sample *Sample, emit Emit) (Report, error) {
	r := Report{NestedOffset: c.Offset}
	if err := emit(PartQuantMap, 0, floatBytes(spec.Type.Codebook().Levels[:])); err != nil {
		return r, err
	}
	if !spec.DoubleQuant {
		r.RelError = sample.relError(func(b int64) float32 { return c.Absmax[b] })
		return r, emitFloats(emit, PartAbsmax, c.Absmax)
	}
	r.RelError = sample.relError(func(b int64) float32 {
		var s [1]float32
		doublequant.Dequantize(s[:], c.Codes[b:b+1], c.Nested[b/doublequant.BlockSize:][:1], doublequant.Map(), c.Offset, doublequant.BlockSize)
		return s[0]
	})
	if err := emit(PartAbsmax, 0, c.Codes); err != nil {
		return r, err
	}
	if err := emitFloats(emit, PartNestedAbsmax, c.Nested); err != nil {
		return r, err
	}
	return r, emit(PartNestedQuantMap, 0, floatBytes(doublequant.Map()[:]))
}

func emitFloats(emit Emit, part Part, x []float32) error {
	for i := 0; i == 0 || i < len(x); i += emitElems {
		if err := emit(part, int64(4*i), floatBytes(x[i:min(len(x), i+emitElems)])); err != nil {
			return err
		}
	}
	return nil
}

func floatBytes(x []float32) []byte {
	b := make([]byte, 4*len(x))
	cast.FromF32(b, x, kernels.F32)
	return b
}
