package peft

import (
	"math"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// ReadFloats reads n elements of an adapter's tensor, flat, from element first on. Errors are
// of class fault.Input for another dtype than F32, BF16 or F16 and for a value that is not
// finite.
func ReadFloats(t *hf.Tensor, first int64, n int) ([]float32, error) {
	f, ok := t.DType.Float()
	if !ok {
		return nil, fault.Inputf("reading %q: tensor %q: dtype %s; expected F32, BF16 or F16", t.File.Path(), t.Name, t.DType)
	}
	b := make([]byte, n*f.Size())
	if err := t.ReadAt(b, first*int64(f.Size())); err != nil {
		return nil, err
	}
	x := make([]float32, n)
	cast.ToF32(x, b, f)
	for i, v := range x {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fault.WithHint(fault.Inputf("reading %q: tensor %q: value at %d is %v", t.File.Path(), t.Name, first+int64(i), v),
				"such an adapter came out of a diverged training")
		}
	}
	return x, nil
}

// ReadAll reads a tensor whole; see [ReadFloats].
func ReadAll(t *hf.Tensor) ([]float32, error) { return ReadFloats(t, 0, int(t.Elems())) }
