package convert

import (
	"math"
	"strconv"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// FindRefused is the *ValueError of the first element of a chunk that the job's check
// refuses, or nil: NaN, infinity, or a value too large for the format of the cast. It is for
// engines that know of a chunk only that it holds one.
func FindRefused(spec *JobSpec, first int64, in []byte) error {
	if i := cast.FirstNonFinite(in, spec.Read); i >= 0 {
		return nonFinite(in, spec.Read, i, first)
	}
	if spec.To == spec.Read {
		return nil
	}
	x := make([]byte, len(in)/spec.Read.Size()*spec.To.Size())
	cast.Convert(x, spec.To, in, spec.Read)
	if i := cast.FirstNonFinite(x, spec.To); i >= 0 {
		return tooLarge(in, spec, i, first)
	}
	return nil
}

func nonFinite(in []byte, f kernels.Float, i int, first int64) error {
	found := "infinity"
	if v := element(in, f, i); math.IsNaN(float64(v)) {
		found = "NaN"
	} else if v < 0 {
		found = "-infinity"
	}
	return &ValueError{Index: first + int64(i), Found: found}
}

func tooLarge(in []byte, spec *JobSpec, i int, first int64) error {
	v := strconv.FormatFloat(float64(element(in, spec.Read, i)), 'g', -1, 32)
	return &ValueError{Index: first + int64(i), Found: v + ", which " + spec.To.String() + " cannot hold"}
}

func element(in []byte, f kernels.Float, i int) float32 {
	var v [1]float32
	cast.ToF32(v[:], in[i*f.Size():][:f.Size()], f)
	return v[0]
}
