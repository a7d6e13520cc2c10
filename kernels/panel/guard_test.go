package panel_test

import (
	"testing"

	"github.com/nf4conv/nf4conv/kernels/guardtest"
	"github.com/nf4conv/nf4conv/kernels/panel"
)

// No tier reads or writes beyond its arguments: they end, or begin, where memory does.
func TestNothingBeyondTheEnds(t *testing.T) {
	for _, kn := range panel.All() {
		t.Run(kn.Tier, func(t *testing.T) {
			for _, front := range []bool{false, true} {
				mem := func(n int) []float32 { return guardtest.Floats(t, n, front) }
				for vecs := 1; vecs <= panel.MaxVecs; vecs++ {
					for _, k := range []int{0, 1, 2, 5} {
						for tiles := 1; tiles <= 2; tiles++ {
							rows, w := tiles*kn.Rows, vecs*kn.Lanes
							for mode := panel.Store; mode <= panel.Rescale; mode++ {
								kn.Mul(mem(rows*w), mem(k*w), mem(rows*k), k, 1, tiles, k, vecs, mode, mem(w))
								kn.Mul(mem(rows*w), mem(k*w), mem(rows*k), 1, rows, tiles, k, vecs, mode, mem(w))
							}
						}
					}
				}
				for _, rows := range []int{1, 7, 16, 17, 32, 33} {
					for _, cols := range []int{1, 8, 16, 23, 48} {
						kn.Transpose(mem(rows*cols), rows, mem(rows*cols), cols, rows, cols)
					}
				}
			}
		})
	}
}
