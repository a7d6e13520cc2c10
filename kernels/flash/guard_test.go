package flash_test

import (
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
)

// Nothing is read or written beyond the arguments: they end, or begin, where memory does.
func TestNothingBeyondTheEnds(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		for _, front := range []bool{false, true} {
			for _, s := range []struct{ sq, sk, heads, kvHeads, dim, vdim int }{
				{1, 1, 1, 1, 1, 1}, {1, 9, 4, 2, 40, 40}, {49, 131, 2, 2, 64, 64}, {33, 257, 3, 1, 33, 7}, {5, 129, 1, 1, 128, 128},
			} {
				floats := func(n int) []float32 { return guardtest.Floats(t, n, front) }
				half := func(n, row, head int) flash.Heads {
					return flash.Stored(guardtest.Bytes(t, 2*n, front), kernels.BF16, row, head)
				}
				wide := func(n, row, head int) flash.Heads { return flash.F32(floats(n), row, head) }
				for _, view := range []func(n, row, head int) flash.Heads{half, wide} {
					p := &flash.Params{
						Q: view(s.sq*s.heads*s.dim, s.heads*s.dim, s.dim), K: view(s.sk*s.kvHeads*s.dim, s.kvHeads*s.dim, s.dim),
						V:   view(s.sk*s.kvHeads*s.vdim, s.kvHeads*s.vdim, s.vdim),
						Out: floats(s.sq * s.heads * s.vdim), OutRow: s.heads * s.vdim, OutHead: s.vdim, LSE: floats(s.heads * s.sq),
						QHeads: s.heads, KVHeads: s.kvHeads, HeadDim: s.dim, ValueDim: s.vdim, QTokens: s.sq, KTokens: s.sk,
						Causal: true, Softcap: 30, Slopes: floats(s.heads), Sinks: floats(s.heads),
					}
					flash.New(1).Forward(p)
				}
			}
		}
	})
}
