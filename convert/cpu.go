package convert

import (
	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

// CPU is the engine that runs on the processor.
type CPU struct{}

// Name implements Engine.
func (CPU) Name() string { return "cpu (" + kernels.Tier() + ")" }

type cpuScratch struct {
	in     []byte
	cast   []byte
	packed []byte
}

// NewScratch implements Engine. The buffers of results are made when a job first needs them.
func (CPU) NewScratch(_ int, need ScratchSpec) (Scratch, error) {
	return &cpuScratch{in: make([]byte, need.In)}, nil
}

// Input implements Scratch.
func (s *cpuScratch) Input() []byte { return s.in }

// Close implements Scratch.
func (s *cpuScratch) Close() error { return nil }

// grow returns a slice of n bytes of *buf, which it replaces when it is too small.
func grow(buf *[]byte, n int) []byte {
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	return (*buf)[:n]
}

// Begin implements Engine.
func (CPU) Begin(spec JobSpec) (Transform, error) {
	t := &cpuTransform{spec: spec}
	if spec.Quantize {
		t.absmax = make([]float32, nf4.NumBlocks(spec.Elems, spec.BlockSize))
		t.sample = NewSample(&spec)
	}
	return t, nil
}

type cpuTransform struct {
	spec   JobSpec
	absmax []float32
	sample *Sample
}

// Chunk implements Transform. Data passes memory once: what is not finite shows in the
// results, in the scale of its block or while it is converted, and is looked for only then.
func (t *cpuTransform) Chunk(s Scratch, first int64, in []byte) ([]byte, error) {
	b := s.(*cpuScratch)
	n := len(in) / t.spec.Read.Size()
	x := in
	check := t.spec.Check && !t.spec.Quantize
	switch {
	case t.spec.To != t.spec.Read:
		x = grow(&b.cast, n*t.spec.To.Size())
		if !check {
			cast.Convert(x, t.spec.To, in, t.spec.Read)
		} else if cast.ConvertFinite(x, t.spec.To, in, t.spec.Read) >= 0 {
			return nil, FindRefused(&t.spec, first, in)
		}
	case check:
		if cast.FirstNonFinite(in, t.spec.Read) >= 0 {
			return nil, FindRefused(&t.spec, first, in)
		}
	}
	if !t.spec.Quantize {
		return x, nil
	}
	bs := t.spec.BlockSize
	packed, absmax := grow(&b.packed, (n+1)/2), t.absmax[first/int64(bs):][:(n+bs-1)/bs]
	quant4.Quantize(packed, absmax, x, t.spec.To, bs, t.spec.Type.Codebook())
	if t.spec.Check && !cast.AllFinite(absmax) {
		return nil, FindRefused(&t.spec, first, in)
	}
	t.sample.Add(first, x, t.spec.To, packed)
	return packed, nil
}

// Finish implements Transform.
func (t *cpuTransform) Finish(_ Scratch, emit Emit) (Report, error) {
	scales := Scales{Absmax: t.absmax}
	if t.spec.DoubleQuant {
		scales.Codes = make([]byte, len(t.absmax))
		scales.Nested = make([]float32, doublequant.Groups(int64(len(t.absmax))))
		scales.Offset = doublequant.Offset(t.absmax)
		doublequant.Quantize(scales.Codes, scales.Nested, t.absmax, scales.Offset)
	}
	return scales.Emit(&t.spec, t.sample, emit)
}
