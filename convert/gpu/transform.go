package gpu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/nf4"
)

// transform is one job.
type transform struct {
	spec   convert.JobSpec
	absmax []float32
	sample *convert.Sample
}

// Begin implements convert.Engine.
func (e *Engine) Begin(spec convert.JobSpec) (convert.Transform, error) {
	t := &transform{spec: spec}
	if spec.Quantize {
		t.absmax = make([]float32, nf4.NumBlocks(spec.Elems, spec.BlockSize))
		t.sample = convert.NewSample(&t.spec)
	}
	return t, nil
}

// Chunk implements convert.Transform.
func (t *transform) Chunk(sc convert.Scratch, first int64, in []byte) ([]byte, error) {
	s := sc.(*scratch)
	switch {
	case t.spec.Quantize:
		return t.quantize(s, first, in)
	case t.spec.To != t.spec.Read:
		return t.cast(s, first, in)
	}
	if t.spec.Check { // decoded values that stay float32: nothing for a device to do
		return in, convert.FindRefused(&t.spec, first, in)
	}
	return in, nil
}

// quantize needs no finite check of its own: a block with a NaN or an infinity, also one
// that the cast made, has such an absmax.
func (t *transform) quantize(s *scratch, first int64, in []byte) ([]byte, error) {
	n := int64(len(in) / t.spec.Read.Size())
	packed, blocks := nf4.PackedLen(n), nf4.NumBlocks(n, t.spec.BlockSize)
	scales := align(packed)
	src, from := s.dIn, t.spec.Read
	if err := s.stream.CopyIn(s.dIn, in); err != nil {
		return nil, s.fail("copying to it", err)
	}
	l, ok := cuda.QuantizeLaunch(t.spec.Type, from, t.spec.To, n)
	if !ok {
		if err := s.convert(from, t.spec.To, n); err != nil {
			return nil, err
		}
		src, from = s.dCast, t.spec.To
		l, _ = cuda.QuantizeLaunch(t.spec.Type, from, from, n)
	}
	s.args.Reset().Ptr(src).Ptr(s.dOut).Ptr(s.dOut + driver.Ptr(scales)).U64(uint64(n)).U32(uint32(t.spec.BlockSize))
	if err := s.launch(l); err != nil {
		return nil, err
	}
	out := s.out[:scales+4*blocks]
	if err := errors.Join(s.stream.CopyOut(out, s.dOut), s.stream.Synchronize()); err != nil {
		return nil, s.fail("quantizing", err)
	}
	absmax := t.absmax[first/int64(t.spec.BlockSize):][:blocks]
	finite := true
	for i := range absmax {
		bits := binary.LittleEndian.Uint32(out[scales+4*int64(i):])
		absmax[i] = math.Float32frombits(bits)
		finite = finite && bits < math.Float32bits(float32(math.Inf(1)))
	}
	if !finite && t.spec.Check {
		if err := convert.FindRefused(&t.spec, first, in); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("nf4conv: internal error: %s: absmax of finite weights is not finite", s.dev.Info().Name)
	}
	t.sample.Add(first, in, t.spec.Read, out[:packed])
	return out[:packed], nil
}

// cast converts a chunk of a tensor that stays in 16 or 32 bits.
func (t *transform) cast(s *scratch, first int64, in []byte) ([]byte, error) {
	n := int64(len(in) / t.spec.Read.Size())
	out := s.out[:n*int64(t.spec.To.Size())]
	if err := s.stream.CopyIn(s.dIn, in); err != nil {
		return nil, s.fail("copying to it", err)
	}
	if err := s.convert(t.spec.Read, t.spec.To, n); err != nil {
		return nil, err
	}
	var index [8]byte
	if t.spec.Check {
		if err := s.findAbove(n, t.spec.Read, cuda.FiniteLimit(t.spec.Read, t.spec.To)); err != nil {
			return nil, err
		}
	}
	err := s.stream.CopyOut(out, s.dCast)
	if t.spec.Check {
		err = errors.Join(err, s.stream.CopyOut(index[:], s.dSums))
	}
	if err = errors.Join(err, s.stream.Synchronize()); err != nil {
		return nil, s.fail("converting", err)
	}
	if t.spec.Check && binary.LittleEndian.Uint64(index[:]) != math.MaxUint64 {
		return nil, convert.FindRefused(&t.spec, first, in)
	}
	return out, nil
}

// convert casts n elements of dIn to dCast.
func (s *scratch) convert(from, to kernels.Float, n int64) error {
	s.args.Reset().Ptr(s.dIn).Ptr(s.dCast).U64(uint64(n))
	return s.launch(cuda.ConvertLaunch(from, to, n))
}

// findAbove leaves in dSums the index of the first of n elements of dIn with at least the
// magnitude limit, or all ones.
func (s *scratch) findAbove(n int64, f kernels.Float, limit uint32) error {
	if err := s.stream.Fill(s.dSums, 0xff, 8); err != nil {
		return s.fail("filling memory", err)
	}
	s.args.Reset().Ptr(s.dIn).U64(uint64(n)).U32(limit).Ptr(s.dSums)
	return s.launch(cuda.FiniteLaunch(f, n))
}

// Finish implements convert.Transform.
func (t *transform) Finish(sc convert.Scratch, emit convert.Emit) (convert.Report, error) {
	scales := convert.Scales{Absmax: t.absmax}
	if t.spec.DoubleQuant {
		scales.Codes = make([]byte, len(t.absmax))
		scales.Nested = make([]float32, doublequant.Groups(int64(len(t.absmax))))
		if err := sc.(*scratch).nest(&scales); err != nil {
			return convert.Report{}, err
		}
	}
	return scales.Emit(&t.spec, t.sample, emit)
}

// bytesOf is v as it stands in memory of the device, little endian.
func bytesOf(v []float32) []byte {
	b := make([]byte, 4*len(v))
	cast.FromF32(b, v, kernels.F32)
	return b
}
