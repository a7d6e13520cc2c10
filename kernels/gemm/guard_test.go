package gemm_test

import (
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
	"github.com/nf4conv/nf4conv/nf4"
)

// Nothing is read or written beyond the arguments: they end, or begin, where memory does.
func TestNothingBeyondTheEnds(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		for _, front := range []bool{false, true} {
			for _, s := range []struct{ m, n, k int }{{1, 1, 1}, {3, 7, 5}, {16, 8, 64}, {49, 17, 257}, {1, 16, 128}, {4, 33, 256}, {7, 48, 384}, {8, 15, 130}} {
				floats := func(n int) []float32 { return guardtest.Floats(t, n, front) }
				bytes := func(n int) []byte { return guardtest.Bytes(t, n, front) }
				nk := s.n * s.k
				for _, w := range []*gemm.Matrix{
					gemm.F32(floats(nk), s.n, s.k),
					gemm.Transposed(floats(nk), s.k, s.n),
					gemm.Stored(bytes(2*nk), kernels.BF16, s.n, s.k),
					gemm.Stored(bytes(2*nk), kernels.F16, s.n, s.k),
					gemm.Quant4(bytes((nk+1)/2), floats((nk+63)/64), 64, nf4.NF4.Codebook(), s.n, s.k),
				} {
					gemm.New(1).Mul(floats(s.m*s.n), s.n, floats(s.m*s.k), s.k, s.m, w, false)
				}
			}
		}
	})
}
