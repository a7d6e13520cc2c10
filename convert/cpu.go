package convert

import (
	"math"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

// Codebook is the code book of a quantize job.
type Codebook = *quant4.Codebook

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
		nb := nf4.NumBlocks(spec.Elems, spec.BlockSize)
		t.absmax = make([]float32, nb)
		t.sample = newSample(nb)
	}
	return t, nil
}

type cpuTransform struct {
	spec   JobSpec
	absmax []float32
	sample sample
}

// Chunk implements Transform.
func (t *cpuTransform) Chunk(s Scratch, first int64, in []byte) ([]byte, error) {
	b := s.(*cpuScratch)
	if t.spec.Check {
		if i := cast.FirstNonFinite(in, t.spec.Read); i >= 0 {
			return nil, nonFinite(in, t.spec.Read, i, first)
		}
	}
	n := len(in) / t.spec.Read.Size()
	x := in
	if t.spec.To != t.spec.Read {
		x = grow(&b.cast, n*t.spec.To.Size())
		cast.Convert(x, t.spec.To, in, t.spec.Read)
		if t.spec.Check {
			if i := cast.FirstNonFinite(x, t.spec.To); i >= 0 {
				return nil, tooLarge(in, t.spec, i, first)
			}
		}
	}
	if !t.spec.Quantize {
		return x, nil
	}
	book, bs := t.spec.Codebook, t.spec.BlockSize
	packed := grow(&b.packed, (n+1)/2)
	block := first / int64(bs)
	absmax := t.absmax[block:][:(n+bs-1)/bs]
	quant4.Quantize(packed, absmax, x, t.spec.To, bs, book)
	size := t.spec.To.Size()
	for k := t.sample.firstFrom(block); k*t.sample.stride < block+int64(len(absmax)); k++ {
		lo := int(k*t.sample.stride-block) * bs
		hi := min(lo+bs, n)
		t.sample.moments[k] = quant4.BlockMoments(x[lo*size:hi*size], t.spec.To, packed[lo/2:(hi+1)/2], bs, book)
	}
	return packed, nil
}

// emitElems is how many scales are encoded at a time when a job is finished.
const emitElems = 1 << 14

// Finish implements Transform.
func (t *cpuTransform) Finish(emit func(Part, int64, []byte) error) (Report, error) {
	var r Report
	if err := emit(PartQuantMap, 0, floatBytes(t.spec.Codebook.Levels[:])); err != nil {
		return r, err
	}
	if !t.spec.DoubleQuant {
		r.RelError = t.sample.relError(func(b int64) float32 { return t.absmax[b] })
		return r, emitFloats(emit, PartAbsmax, t.absmax)
	}
	nb := len(t.absmax)
	codes := make([]byte, nb)
	nested := make([]float32, (nb+doublequant.BlockSize-1)/doublequant.BlockSize)
	r.NestedOffset = doublequant.Offset(t.absmax)
	doublequant.Quantize(codes, nested, t.absmax, r.NestedOffset)
	r.RelError = t.sample.relError(func(b int64) float32 {
		var s [1]float32
		doublequant.Dequantize(s[:], codes[b:b+1], nested[b/doublequant.BlockSize:][:1], doublequant.Map(), r.NestedOffset, doublequant.BlockSize)
		return s[0]
	})
	if err := emit(PartAbsmax, 0, codes); err != nil {
		return r, err
	}
	if err := emitFloats(emit, PartNestedAbsmax, nested); err != nil {
		return r, err
	}
	return r, emit(PartNestedQuantMap, 0, floatBytes(doublequant.Map()[:]))
}

func emitFloats(emit func(Part, int64, []byte) error, part Part, x []float32) error {
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

func element(in []byte, f kernels.Float, i int) float32 {
	var v [1]float32
	cast.ToF32(v[:], in[i*f.Size():][:f.Size()], f)
	return v[0]
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

func tooLarge(in []byte, spec JobSpec, i int, first int64) error {
	v := element(in, spec.Read, i)
	return &ValueError{Index: first + int64(i), Found: formatFloat(v) + ", which " + spec.To.String() + " cannot hold"}
}
