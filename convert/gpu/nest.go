package gpu

import (
	"errors"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// nest fills in codes, nested absmax and offset of double quantization. Absmax that do not
// fit into the worker's buffers go to the device in pieces, twice: for their sum, and when
// their mean is known.
func (s *scratch) nest(c *convert.Scales) error {
	n := int64(len(c.Absmax))
	piece := s.piece()
	count := cuda.SumLen(n)
	for at := int64(0); at < n; at += piece {
		v := c.Absmax[at:min(at+piece, n)]
		if err := s.send(v); err != nil {
			return err
		}
		s.args.Reset().Ptr(s.dIn).Ptr(s.dSums + driver.Ptr(8*at/cuda.SumGroup)).U64(uint64(len(v)))
		if err := s.launch(cuda.AbsmaxSumLaunch(int64(len(v)))); err != nil {
			return err
		}
	}
	sums, count, err := s.fold(count)
	if err != nil {
		return err
	}
	offset := s.dSums + driver.Ptr(16*s.sums)
	for at := int64(0); at < n; at += piece {
		v := c.Absmax[at:min(at+piece, n)]
		if n > piece { // else they are there
			if err := s.send(v); err != nil {
				return err
			}
		}
		groups := doublequant.Groups(int64(len(v)))
		nested := align(int64(len(v)))
		s.args.Reset().Ptr(s.dIn).Ptr(sums).U32(uint32(count)).Ptr(s.dynamic).Ptr(s.dOut).Ptr(s.dOut + driver.Ptr(nested)).Ptr(offset).U64(uint64(len(v))).U64(uint64(n))
		if err := s.launch(cuda.QuantizeAbsmaxLaunch(int64(len(v)))); err != nil {
			return err
		}
		out := s.out[:nested+4*groups]
		if err := errors.Join(s.stream.CopyOut(out, s.dOut), s.stream.Synchronize()); err != nil {
			return s.fail("quantizing scales", err)
		}
		copy(c.Codes[at:], out[:len(v)])
		cast.ToF32(c.Nested[at/doublequant.BlockSize:][:groups], out[nested:], kernels.F32)
	}
	var mean [4]byte
	if err := errors.Join(s.stream.CopyOut(mean[:], offset), s.stream.Synchronize()); err != nil {
		return s.fail("reading the mean of the scales", err)
	}
	var v [1]float32
	cast.ToF32(v[:], mean[:], kernels.F32)
	c.Offset = v[0]
	return nil
}

// piece is how many absmax are worked on at a time: whole groups of the sum whose codes
// and nested absmax fit into the results.
func (s *scratch) piece() int64 {
	perGroup := int64(cuda.SumGroup + 4*cuda.SumGroup/doublequant.BlockSize + cuda.Alignment)
	return cuda.SumGroup * min(int64(len(s.in))/(4*cuda.SumGroup), int64(len(s.out))/perGroup)
}

// send copies absmax to dIn. The memory they go through is free afterwards.
func (s *scratch) send(v []float32) error {
	b := s.in[:4*len(v)]
	if err := s.stream.Synchronize(); err != nil { // a copy from there may be on its way
		return s.fail("summing scales", err)
	}
	cast.FromF32(b, v, kernels.F32)
	if err := s.stream.CopyIn(s.dIn, b); err != nil {
		return s.fail("copying to it", err)
	}
	return nil
}

// fold adds up count partial sums in dSums until they are few enough for a kernel, and
// says where they are.
func (s *scratch) fold(count int64) (driver.Ptr, int64, error) {
	from, to := s.dSums, s.dSums+driver.Ptr(8*s.sums)
	for count > cuda.FoldAbove {
		s.args.Reset().Ptr(from).Ptr(to).U64(uint64(count))
		if err := s.launch(cuda.AbsmaxFoldLaunch(count)); err != nil {
			return 0, 0, err
		}
		from, to, count = to, from, cuda.SumLen(count)
	}
	return from, count, nil
}
