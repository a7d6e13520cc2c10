// Package enginetest is the conformance suite of convert.Engine: any engine must give the
// bytes that the definitions in kernels and doublequant give, whatever the chunks, their
// order, and the workers that take them.
package enginetest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

var formats = []kernels.Float{kernels.F32, kernels.BF16, kernels.F16}

// Run holds an engine with that many devices (1 for the CPU) to the definitions.
func Run(t *testing.T, e convert.Engine, devices int) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, read := range formats {
		for _, to := range formats {
			for _, elems := range []int64{1, 7, 8191, 70001} {
				t.Run(fmt.Sprintf("%v to %v/%d", read, to, elems), func(t *testing.T) {
					check(t, e, devices, r, convert.JobSpec{Elems: elems, Read: read, To: to, Check: true})
				})
			}
			for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
				for _, bs := range []int{32, 64, 128, 1024, 4096} {
					elems := int64(max(bs, 256))*30 + int64(r.IntN(2*bs))
					t.Run(fmt.Sprintf("%v to %v/%v %d/%d", read, to, typ, bs, elems), func(t *testing.T) {
						check(t, e, devices, r, convert.JobSpec{Elems: elems, Read: read, To: to, Check: true, Quantize: true, Type: typ, BlockSize: bs, DoubleQuant: elems%2 == 0})
					})
				}
			}
		}
	}
	t.Run("more scales than a sum takes at once", func(t *testing.T) {
		check(t, e, devices, r, convert.JobSpec{Elems: 32*(2*4096*3+77) + 5, Read: kernels.BF16, To: kernels.BF16, Quantize: true, Type: nf4.NF4, BlockSize: 32, DoubleQuant: true})
	})
	t.Run("refused values", func(t *testing.T) { refused(t, e, r) })
}

// values are weights with what is special in them: blocks of zeros, equal magnitudes,
// subnormals, negative zeros, values on and beside the thresholds.
func values(r *rand.Rand, n int64) []float32 {
	x := make([]float32, n)
	levels := nf4.NF4.Codebook()
	for i := int64(0); i < n; {
		run := min(n-i, 1+r.Int64N(200))
		kind := r.IntN(8)
		for k := range run {
			v := float32(r.NormFloat64() * 0.02)
			switch kind {
			case 0:
				v = 0
			case 1:
				v = float32(math.Copysign(0.25, float64(v)))
			case 2:
				v *= 1e-38
			case 3:
				v = float32(math.Copysign(0, float64(v)))
			case 4:
				v = levels.Thresholds[r.IntN(15)]
			}
			x[i+k] = v
		}
		i += run
	}
	return x
}

func check(t *testing.T, e convert.Engine, devices int, r *rand.Rand, spec convert.JobSpec) {
	in := make([]byte, spec.Elems*int64(spec.Read.Size()))
	cast.FromF32(in, values(r, spec.Elems), spec.Read)
	parts := map[convert.Part][]byte{}
	report := run(t, e, devices, r, spec, in, parts)
	x := make([]byte, spec.Elems*int64(spec.To.Size()))
	cast.Convert(x, spec.To, in, spec.Read)
	if !spec.Quantize {
		same(t, convert.PartWeight, parts[convert.PartWeight], x)
		return
	}
	packed, absmax := make([]byte, nf4.PackedLen(spec.Elems)), make([]float32, nf4.NumBlocks(spec.Elems, spec.BlockSize))
	quant4.Quantize(packed, absmax, x, spec.To, spec.BlockSize, spec.Type.Codebook())
	same(t, convert.PartWeight, parts[convert.PartWeight], packed)
	same(t, convert.PartQuantMap, parts[convert.PartQuantMap], floats(spec.Type.Codebook().Levels[:]))
	if !spec.DoubleQuant {
		same(t, convert.PartAbsmax, parts[convert.PartAbsmax], floats(absmax))
		return
	}
	codes, nested := make([]byte, len(absmax)), make([]float32, doublequant.Groups(int64(len(absmax))))
	offset := doublequant.Offset(absmax)
	doublequant.Quantize(codes, nested, absmax, offset)
	same(t, convert.PartAbsmax, parts[convert.PartAbsmax], codes)
	same(t, convert.PartNestedAbsmax, parts[convert.PartNestedAbsmax], floats(nested))
	same(t, convert.PartNestedQuantMap, parts[convert.PartNestedQuantMap], floats(doublequant.Map()[:]))
	if math.Float32bits(report.NestedOffset) != math.Float32bits(offset) {
		t.Errorf("offset %v, want %v", report.NestedOffset, offset)
	}
}

func same(t *testing.T, part convert.Part, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", part, len(got), len(want))
		return
	}
	n, first := 0, -1
	for i := range got {
		if got[i] != want[i] {
			if n++; first < 0 {
				first = i
			}
		}
	}
	t.Errorf("%s: %d of %d bytes differ, the first at %d: %#02x, want %#02x", part, n, len(want), first, got[first], want[first])
}

func floats(v []float32) []byte {
	b := make([]byte, 4*len(v))
	cast.FromF32(b, v, kernels.F32)
	return b
}

// run does a job in chunks of random order on several workers.
func run(t *testing.T, e convert.Engine, devices int, r *rand.Rand, spec convert.JobSpec, in []byte, parts map[convert.Part][]byte) convert.Report {
	t.Helper()
	const align = 4096 // a multiple of every block size
	step := align * (1 + r.Int64N(4))
	need := convert.ScratchSpec{
		In: step * int64(spec.Read.Size()), Cast: step * int64(spec.To.Size()), Packed: nf4.PackedLen(step), Blocks: step / 32, JobBlocks: spec.Elems/32 + 1,
	}
	tr, err := e.Begin(spec)
	if err != nil {
		t.Fatal(err)
	}
	size, bits := int64(spec.Read.Size()), int64(8*spec.To.Size())
	if spec.Quantize {
		bits = 4
	}
	out := make([]byte, (spec.Elems*bits+7)/8)
	todo := make(chan int64, spec.Elems/step+1)
	for _, k := range r.Perm(int((spec.Elems + step - 1) / step)) {
		todo <- int64(k) * step
	}
	close(todo)
	var wg sync.WaitGroup
	last := make(chan convert.Scratch, 3*devices)
	for w := range 3 * devices {
		wg.Go(func() {
			s, err := e.NewScratch(w%devices, need)
			if err != nil {
				t.Error(err)
				return
			}
			last <- s
			for first := range todo {
				p := s.Input()[:min(step, spec.Elems-first)*size]
				copy(p, in[first*size:])
				b, err := tr.Chunk(s, first, p)
				if err != nil {
					t.Error(err)
					return
				}
				copy(out[first*bits/8:], b)
			}
		})
	}
	wg.Wait()
	close(last)
	var report convert.Report
	finished := !spec.Quantize
	for s := range last {
		if !finished {
			report, err = tr.Finish(s, func(part convert.Part, offset int64, p []byte) error {
				if int64(len(parts[part])) != offset {
					return fmt.Errorf("a piece of %s at %d, after %d bytes", part, offset, len(parts[part]))
				}
				parts[part] = append(parts[part], p...)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			finished = true
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	parts[convert.PartWeight] = out
	return report
}

// refused plants a value that a check must find, alone and with others behind it.
func refused(t *testing.T, e convert.Engine, r *rand.Rand) {
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		read, to kernels.Float
		v        float32
	}{
		{kernels.F32, kernels.F32, inf}, {kernels.BF16, kernels.BF16, -inf}, {kernels.F16, kernels.F16, float32(math.NaN())},
		{kernels.F32, kernels.F16, 65520}, {kernels.F32, kernels.F16, -1e30}, {kernels.BF16, kernels.F16, 65536}, {kernels.F32, kernels.BF16, 3.4e38},
	} {
		for _, quantize := range []bool{false, true} {
			for _, n := range []int64{1, 63, 64, 5000} {
				spec := convert.JobSpec{Elems: 3 * 8192, Read: c.read, To: c.to, Check: true, Quantize: quantize, Type: nf4.NF4, BlockSize: 64}
				tr, err := e.Begin(spec)
				if err != nil {
					t.Fatal(err)
				}
				s, err := e.NewScratch(0, convert.ScratchSpec{In: 8192 * 4, Cast: 8192 * 4, Packed: 4096, Blocks: 256, JobBlocks: 768})
				if err != nil {
					t.Fatal(err)
				}
				x := values(r, n)
				at := r.Int64N(n)
				x[at] = c.v
				if math.IsInf(float64(c.v), 0) && at+1 < n { // the first of them is named
					x[at+1+r.Int64N(n-at-1)] = inf
				}
				p := s.Input()[:n*int64(c.read.Size())]
				cast.FromF32(p, x, c.read)
				_, err = tr.Chunk(s, 8192, p)
				var v *convert.ValueError
				if !errors.As(err, &v) || v.Index != 8192+at {
					t.Errorf("%v to %v, quantize %v: %v at %d of %d: %v", c.read, c.to, quantize, c.v, 8192+at, n, err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}
