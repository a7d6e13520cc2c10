package cuda

import (
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

func TestGrid(t *testing.T) {
	for _, c := range []struct {
		f    kernels.Float
		n    int64
		want uint32
	}{
		{kernels.BF16, 0, 1}, {kernels.BF16, 1, 1}, {kernels.BF16, 8192, 1}, {kernels.BF16, 8193, 2},
		{kernels.F32, 4096, 1}, {kernels.F32, 4097, 2}, {kernels.F16, 1 << 34, 1 << 21},
	} {
		l, ok := QuantizeLaunch(nf4.NF4, c.f, c.f, c.n)
		if !ok || l.Grid != c.want || l.Block != 256 {
			t.Errorf("%v, %d elements: got %+v, want a grid of %d blocks of 256", c.f, c.n, l, c.want)
		}
	}
	for _, n := range []int64{-1, 1 << 50} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d elements: no panic", n)
				}
			}()
			DequantizeLaunch(nf4.NF4, kernels.F32, n)
		}()
	}
	if _, ok := QuantizeLaunch(nf4.NF4, kernels.BF16, kernels.F16, 1); ok {
		t.Error("a kernel that rounds bfloat16 to binary16")
	}
}
