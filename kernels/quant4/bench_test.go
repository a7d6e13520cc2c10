package quant4_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

const (
	// benchElems fits the second-level cache together with what is made of it.
	benchElems = 1 << 17
	// streamElems is far more than any cache holds.
	streamElems = 1 << 27
)

// benchSource is n elements in the manner of weights; n is a power of two.
func benchSource(f kernels.Float, n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, min(n, 1<<20))
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	src := make([]byte, n*f.Size())
	cast.FromF32(src[:len(x)*f.Size()], x, f)
	for done := len(x) * f.Size(); done < len(src); done *= 2 {
		copy(src[done:], src[:done])
	}
	return src
}

// bench measures in every tier.
func bench(b *testing.B, name string, n int, f kernels.Float, run func()) {
	for _, tier := range kernels.Tiers() {
		b.Run("tier="+tier+"/"+name, func(b *testing.B) {
			defer kernels.Use(tier)()
			measure(b, n, f, run)
		})
	}
}

// measure reports bytes of the 16- or 32-bit side and, in Melem/s, elements per second on the
// wall; and, in GB/cpu-s, bytes per second that the thread was computing.
func measure(b *testing.B, n int, f kernels.Float, run func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.SetBytes(int64(n * f.Size()))
	start := cpuSeconds(b)
	for b.Loop() {
		run()
	}
	cpu := cpuSeconds(b) - start
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Melem/s")
	if cpu > 0 {
		b.ReportMetric(float64(n*f.Size())*float64(b.N)/cpu/1e9, "GB/cpu-s")
	}
}

func BenchmarkQuantize(b *testing.B) {
	for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
		for _, f := range []kernels.Float{kernels.BF16, kernels.F16, kernels.F32} {
			for _, bs := range []int{64, 32, 4096} {
				if bs != 64 && (f != kernels.BF16 || typ != nf4.NF4) {
					continue
				}
				src, book := benchSource(f, benchElems), typ.Codebook()
				packed, absmax := make([]byte, benchElems/2), make([]float32, benchElems/bs)
				bench(b, fmt.Sprintf("type=%v/from=%v/block=%d", typ, f, bs), benchElems, f, func() {
					quant4.Quantize(packed, absmax, src, f, bs, book)
				})
			}
		}
	}
}

func BenchmarkDequantize(b *testing.B) {
	const bs = 64
	book := nf4.NF4.Codebook()
	packed, absmax := make([]byte, benchElems/2), make([]float32, benchElems/bs)
	quant4.Quantize(packed, absmax, benchSource(kernels.BF16, benchElems), kernels.BF16, bs, book)
	for _, f := range []kernels.Float{kernels.BF16, kernels.F16, kernels.F32} {
		dst := make([]byte, benchElems*f.Size())
		bench(b, fmt.Sprintf("to=%v/block=%d", f, bs), benchElems, f, func() {
			quant4.Dequantize(dst, f, packed, absmax, benchElems, bs, book)
		})
	}
}

func BenchmarkBlockMoments(b *testing.B) {
	const bs = 64
	book := nf4.NF4.Codebook()
	src := benchSource(kernels.BF16, benchElems)
	packed, absmax := make([]byte, benchElems/2), make([]float32, benchElems/bs)
	quant4.Quantize(packed, absmax, src, kernels.BF16, bs, book)
	var m quant4.Moments
	bench(b, fmt.Sprintf("from=%v/block=%d", kernels.BF16, bs), benchElems, kernels.BF16, func() {
		for i := range absmax {
			m = quant4.BlockMoments(src[i*2*bs:(i+1)*2*bs], kernels.BF16, packed[i*bs/2:(i+1)*bs/2], bs, book)
		}
	})
	if m.XX == 0 {
		b.Fatal("no moments")
	}
}

// BenchmarkStream is the work on data that comes from memory, beside what bounds it: reading
// alone (the search for NaN and infinities, which finds none and has time to spare), and
// copying. All rates are in bytes of the bfloat16 side, copies in bytes copied.
func BenchmarkStream(b *testing.B) {
	const bs = 64
	book := nf4.NF4.Codebook()
	src := benchSource(kernels.BF16, streamElems)
	packed, absmax, dst := make([]byte, streamElems/2), make([]float32, streamElems/bs), make([]byte, 2*streamElems)
	quant4.Quantize(packed, absmax, src, kernels.BF16, bs, book)
	quant4.Dequantize(dst, kernels.BF16, packed, absmax, streamElems, bs, book)
	bench(b, "op=read", streamElems, kernels.BF16, func() {
		if cast.FirstNonFinite(src, kernels.BF16) >= 0 {
			b.Fatal("not finite")
		}
	})
	b.Run("op=copy", func(b *testing.B) { measure(b, streamElems, kernels.BF16, func() { copy(dst, src) }) })
	bench(b, "op=quantize/from=bfloat16", streamElems, kernels.BF16, func() {
		quant4.Quantize(packed, absmax, src, kernels.BF16, bs, book)
	})
	bench(b, "op=dequantize/to=bfloat16", streamElems, kernels.BF16, func() {
		quant4.Dequantize(dst, kernels.BF16, packed, absmax, streamElems, bs, book)
	})
}
