package flash_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/kernels/peak"
)

// bench times one call on tensors [1, heads, s, d], as torch keeps them, and reports the
// rate and its part of the roof, measured in turns with as many threads. Causal attention counts half of the
// operations, a block mask its density.
func bench(b *testing.B, s, d, heads, threads int, causal bool, mask *flash.BlockMask) {
	r := rand.New(rand.NewPCG(1, 1))
	x := func() []float32 {
		x := make([]float32, heads*s*d)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	p := &flash.Params{Q: flash.F32(x(), d, s*d), K: flash.F32(x(), d, s*d), V: flash.F32(x(), d, s*d), Out: make([]float32, heads*s*d), OutRow: d, OutHead: s * d,
		QHeads: heads, KVHeads: heads, HeadDim: d, QTokens: s, KTokens: s, Causal: causal, Mask: mask}
	a := flash.New(threads)
	tier := panel.Best().Tier
	for b.Loop() {
		a.Forward(p)
	}
	work := 4 * float64(heads) * float64(s) * float64(s) * float64(d)
	if causal {
		work /= 2
	}
	if mask != nil {
		work *= mask.Density()
	}
	b.ReportMetric(work*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	share, best := peak.Share(tier, threads, 21, work, func() { a.Forward(p) })
	b.ReportMetric(best/1e9, "best-GFLOP/s")
	b.ReportMetric(100*share, "%peak")
}

func BenchmarkForward(b *testing.B) {
	threads := []int{1}
	if n := runtime.GOMAXPROCS(0); n > 1 {
		threads = append(threads, n)
	}
	for _, d := range []int{64, 128} {
		for _, s := range []int{512, 1024, 2048, 4096, 8192} {
			for _, causal := range []bool{false, true} {
				for _, t := range threads {
					b.Run(fmt.Sprintf("tier=%s/d=%d/s=%d/causal=%v/threads=%d", panel.Best().Tier, d, s, causal, t), func(b *testing.B) {
						bench(b, s, d, 8*512/s+1, t, causal, nil)
					})
				}
			}
		}
	}
}

// BenchmarkBlockSparse shows that time follows the number of blocks that exist.
func BenchmarkBlockSparse(b *testing.B) {
	const s = 4096
	for _, d := range []int{64, 128} {
		for _, block := range []int{64, 128} {
			for _, percent := range []int{100, 50, 20, 10, 5} {
				r := rand.New(rand.NewPCG(2, 2))
				mask := flash.FromFunc(block, block, s, s, func(i, j int) bool { return r.IntN(100) < percent })
				b.Run(fmt.Sprintf("tier=%s/d=%d/s=%d/block=%d/density=%.3f", panel.Best().Tier, d, s, block, mask.Density()), func(b *testing.B) {
					bench(b, s, d, 1, 1, false, mask)
				})
			}
		}
	}
}
