package gemm_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/kernels/peak"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

func normal(seed uint64, n int) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// BenchmarkMul reports the rate and its part of the roof, measured in turns with as many
// threads.
func BenchmarkMul(b *testing.B) {
	tier := panel.Best().Tier
	threads := []int{1}
	if n := runtime.GOMAXPROCS(0); n > 1 {
		threads = append(threads, n)
	}
	for _, s := range []struct{ m, n, k int }{{2048, 2048, 2048}, {512, 2048, 2048}, {512, 8192, 2048}, {16, 2048, 2048}, {1, 2048, 2048}} {
		a, w, c := normal(1, s.m*s.k), normal(2, s.n*s.k), make([]float32, s.m*s.n)
		sources := map[string]*gemm.Matrix{"float32": gemm.F32(w, s.n, s.k)}
		raw := make([]byte, 2*len(w))
		cast.FromF32(raw, w, kernels.BF16)
		sources["bfloat16"] = gemm.Stored(raw, kernels.BF16, s.n, s.k)
		packed, absmax := make([]byte, len(w)/2), make([]float32, len(w)/64)
		quant4.Quantize(packed, absmax, raw, kernels.BF16, 64, nf4.NF4.Codebook())
		sources["nf4"] = gemm.Quant4(packed, absmax, 64, nf4.NF4.Codebook(), s.n, s.k)
		for _, from := range []string{"float32", "bfloat16", "nf4"} {
			for _, t := range threads {
				b.Run(fmt.Sprintf("tier=%s/w=%s/m=%d/n=%d/k=%d/threads=%d", tier, from, s.m, s.n, s.k, t), func(b *testing.B) {
					g := gemm.New(t)
					for b.Loop() {
						g.Mul(c, s.n, a, s.k, s.m, sources[from], false)
					}
					flop := 2 * float64(s.m) * float64(s.n) * float64(s.k)
					b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
					share, best := peak.Share(tier, t, 21, flop, func() { g.Mul(c, s.n, a, s.k, s.m, sources[from], false) })
					b.ReportMetric(best/1e9, "best-GFLOP/s")
					b.ReportMetric(100*share, "%peak")
				})
			}
		}
	}
}
