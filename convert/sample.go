package convert

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

// maxSample bounds the blocks whose error is measured while a weight is quantized:
// enough for three digits of the relative error, at no cost that shows.
const maxSample = 1 << 13

// Sample holds the moments of every stride-th block of a weight. Which blocks these
// are depends on the weight alone, so the figures do not depend on the schedule.
type Sample struct {
	spec    *JobSpec
	stride  int64
	moments []quant4.Moments
}

// NewSample begins the sample of a quantize job.
func NewSample(spec *JobSpec) *Sample {
	blocks := nf4.NumBlocks(spec.Elems, spec.BlockSize)
	stride := max(1, (blocks+maxSample-1)/maxSample)
	return &Sample{spec: spec, stride: stride, moments: make([]quant4.Moments, (blocks+stride-1)/stride)}
}

// sampleBytes is the memory that NewSample takes.
func sampleBytes(blocks int64) int64 { return 24 * min(blocks, maxSample) }

// Add takes from a chunk that begins at element first the blocks that belong to the
// sample. x holds the chunk's elements in format f, which is cast to the job's where they
// differ, packed their codes. Chunks may be added concurrently.
func (s *Sample) Add(first int64, x []byte, f kernels.Float, packed []byte) {
	bs, size, n := s.spec.BlockSize, f.Size(), len(x)/f.Size()
	block := first / int64(bs)
	end := block + nf4.NumBlocks(int64(n), bs)
	var buf []byte
	for k := (block + s.stride - 1) / s.stride; k*s.stride < end; k++ {
		lo := int(k*s.stride-block) * bs
		hi := min(lo+bs, n)
		v := x[lo*size : hi*size]
		if f != s.spec.To {
			buf = grow(&buf, (hi-lo)*s.spec.To.Size())
			cast.Convert(buf, s.spec.To, v, f)
			v = buf
		}
		s.moments[k] = quant4.BlockMoments(v, s.spec.To, packed[lo/2:(hi+1)/2], bs, s.spec.Type.Codebook())
	}
}

// relError is the relative Frobenius error over the sample when block b is scaled by
// scale(b): sqrt(sum |x - s q|^2 / sum |x|^2).
func (s *Sample) relError(scale func(block int64) float32) float64 {
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
