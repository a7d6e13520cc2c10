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

func TestFlashSM80(t *testing.T) {
	for _, c := range []struct {
		image  string
		dim    int32
		name   string
		rows   uint32
		block  uint32
		shared uint32
	}{
		{"flash_sm_80.cubin", 8, "flash_sm80_bf16_64", 3, 128, 81920},
		{"flash_sm_90.cubin", 72, "flash_sm80_bf16_96", 3, 128, 73728},
		{"flash_sm_100.cubin", 128, "flash_sm80_bf16_128", 3, 128, 65536},
		{"flash_sm_80.cubin", 192, "flash_sm80_bf16_256", 3, 256, 131072},
		{"flash_sm_90.cubin", 192, "flash_sm80_bf16_256", 5, 128, 98304},
		{"flash_sm_89.cubin", 64, "flash_sm80_bf16_64", 3, 128, 49152},
		{"flash_compute_80.ptx", 96, "flash_sm80_bf16_96", 3, 128, 49152},
		{"flash_sm_86.cubin", 128, "flash_sm80_bf16_128", 3, 128, 49152},
		{"flash_sm_120.cubin", 136, "flash_sm80_bf16_256", 5, 128, 98304},
	} {
		p := &FlashParams{Dim: c.dim, MaxQ: 257, QHeads: 6, Sequences: 4}
		want := FlashLaunch{Name: c.name, Grid: [3]uint32{c.rows, 6, 4}, Block: c.block, Shared: c.shared}
		if l, ok := FlashSM80(c.image, kernels.BF16, p); !ok || l != want {
			t.Errorf("%s, dimension %d: got %+v, %v; want %+v", c.image, c.dim, l, ok, want)
		}
	}
	for _, dim := range []int32{0, 4, 12, 257, 264} {
		if l, ok := FlashSM80("flash_sm_80.cubin", kernels.F16, &FlashParams{Dim: dim}); ok {
			t.Errorf("dimension %d: got %+v", dim, l)
		}
	}
	if l, ok := FlashSM80("flash_sm_80.cubin", kernels.F32, &FlashParams{Dim: 64}); ok {
		t.Errorf("float32: got %+v", l)
	}
}
