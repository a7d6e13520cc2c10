package convert

import (
	"math"
	"strconv"

	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// maxSample bounds the blocks whose error is measured while a weight is quantized:
// enough for three digits of the relative error, at no cost that shows.
const maxSample = 1 << 13

// sample holds the moments of every stride-th block of a weight. Which blocks these
// are depends on the weight alone, so the figures do not depend on the schedule.
type sample struct {
	stride  int64
	moments []quant4.Moments
}

func newSample(blocks int64) sample {
	stride := max(1, (blocks+maxSample-1)/maxSample)
	return sample{stride: stride, moments: make([]quant4.Moments, (blocks+stride-1)/stride)}
}

// sampleBytes is the memory that newSample takes.
func sampleBytes(blocks int64) int64 { return 24 * min(blocks, maxSample) }

// firstFrom is the number of the first sampled block at or after block.
func (s *sample) firstFrom(block int64) int64 { return (block + s.stride - 1) / s.stride }

// relError is the relative Frobenius error over the sample when block b is scaled by
// scale(b): sqrt(sum |x - s q|^2 / sum |x|^2).
func (s *sample) relError(scale func(block int64) float32) float64 {
	var err2, norm2 float64
	for k, m := range s.moments {
		a := float64(scale(int64(k) * s.stride))
		e := float64(m.XX - float64(2*a*m.XQ))
		err2 += max(0, e+float64(a*a*m.QQ))
		norm2 += m.XX
	}
	if norm2 == 0 {
		return 0
	}
	return math.Sqrt(err2 / norm2)
}

func formatFloat(v float32) string { return strconv.FormatFloat(float64(v), 'g', -1, 32) }
