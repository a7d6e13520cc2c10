package quant4_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

// benchElems fits the second-level cache together with what is made of it.
const benchElems = 1 << 17

func benchSource(f kernels.Float) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, benchElems)
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	src := make([]byte, benchElems*f.Size())
	cast.FromF32(src, x, f)
	return src
}

// Rates are in bytes of the 16- or 32-bit side; Melem/s is the number to compare.
func bench(b *testing.B, f kernels.Float, run func()) {
	b.SetBytes(int64(benchElems * f.Size()))
	for b.Loop() {
		run()
	}
	b.ReportMetric(float64(benchElems)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Melem/s")
}

func BenchmarkQuantize(b *testing.B) {
	for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
		for _, f := range []kernels.Float{kernels.BF16, kernels.F16, kernels.F32} {
			for _, bs := range []int{64, 32, 4096} {
				if bs != 64 && (f != kernels.BF16 || typ != nf4.NF4) {
					continue
				}
				b.Run(fmt.Sprintf("tier=%s/type=%v/from=%v/block=%d", kernels.Tier(), typ, f, bs), func(b *testing.B) {
					src, book := benchSource(f), typ.Codebook()
					packed, absmax := make([]byte, benchElems/2), make([]float32, benchElems/bs)
					bench(b, f, func() { quant4.Quantize(packed, absmax, src, f, bs, book) })
				})
			}
		}
	}
}

func BenchmarkDequantize(b *testing.B) {
	const bs = 64
	book := nf4.NF4.Codebook()
	packed, absmax := make([]byte, benchElems/2), make([]float32, benchElems/bs)
	quant4.Quantize(packed, absmax, benchSource(kernels.BF16), kernels.BF16, bs, book)
	for _, f := range []kernels.Float{kernels.BF16, kernels.F16, kernels.F32} {
		b.Run(fmt.Sprintf("tier=%s/to=%v/block=%d", kernels.Tier(), f, bs), func(b *testing.B) {
			dst := make([]byte, benchElems*f.Size())
			bench(b, f, func() { quant4.Dequantize(dst, f, packed, absmax, benchElems, bs, book) })
		})
	}
}

func BenchmarkBlockMoments(b *testing.B) {
	const bs = 64
	book := nf4.NF4.Codebook()
	src := benchSource(kernels.BF16)
	packed, absmax := make([]byte, benchElems/2), make([]float32, benchElems/bs)
	quant4.Quantize(packed, absmax, src, kernels.BF16, bs, book)
	var m quant4.Moments
	b.Run(fmt.Sprintf("tier=%s/from=%v/block=%d", kernels.Tier(), kernels.BF16, bs), func(b *testing.B) {
		bench(b, kernels.BF16, func() {
			for i := range absmax {
				m = quant4.BlockMoments(src[i*2*bs:(i+1)*2*bs], kernels.BF16, packed[i*bs/2:(i+1)*bs/2], bs, book)
			}
		})
	})
	if m.XX == 0 {
		b.Fatal("no moments")
	}
}
