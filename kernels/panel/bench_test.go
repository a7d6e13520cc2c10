package panel_test

import (
	"fmt"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/kernels/peak"
)

func BenchmarkMul(b *testing.B) {
	for _, kn := range panel.All() {
		for vecs := 1; vecs <= panel.MaxVecs; vecs++ {
			for _, k := range []int{64, 128, 256} {
				for _, order := range []string{"rows", "packed"} {
					b.Run(fmt.Sprintf("tier=%s/vecs=%d/k=%d/a=%s", kn.Tier, vecs, k, order), func(b *testing.B) {
						const rows = 128
						w := vecs * kn.Lanes
						c, bp, a := make([]float32, rows*w), make([]float32, k*w), make([]float32, rows*k)
						aRow, aStep := k, 1
						if order == "packed" {
							aRow, aStep = 1, rows
						}
						top := peak.FMA(kn.Tier, 1)
						for b.Loop() {
							kn.Mul(c, bp, a, aRow, aStep, rows/kn.Rows, k, vecs, panel.Add, nil)
						}
						rate := float64(2*rows*w*k) * float64(b.N) / b.Elapsed().Seconds()
						b.ReportMetric(rate/1e9, "GFLOP/s")
						if top > 0 {
							b.ReportMetric(100*rate/top, "%peak")
						}
					})
				}
			}
		}
	}
}

func BenchmarkTranspose(b *testing.B) {
	for _, kn := range panel.All() {
		b.Run("tier="+kn.Tier, func(b *testing.B) {
			const rows, cols = 48, 512
			dst, src := make([]float32, rows*cols), make([]float32, rows*cols)
			b.SetBytes(4 * rows * cols)
			for b.Loop() {
				kn.Transpose(dst, rows, src, cols, rows, cols)
			}
		})
	}
}
