package gemm_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/kernels/gemm/gemmtest"
	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/nf4"
)

// eachTier runs f with every tier that this machine has. One that is required and not here
// is a failure: a machine without it must not pass for one on which it was tested.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			if got := panel.Best().Tier; got != tier {
				t.Fatalf("the tier in use is %s", got)
			}
			f(t)
		})
	}
	for _, tier := range strings.FieldsFunc(os.Getenv("NF4CONV_TEST_REQUIRE"), func(r rune) bool { return r == ',' }) {
		if strings.HasPrefix(tier, "avx") && !slices.Contains(kernels.Tiers(), tier) {
			t.Errorf("tier %q is required and not here; here are %v", tier, kernels.Tiers())
		}
	}
}

// mul reuses scratch from call to call, so that stale contents show.
func mul() gemmtest.Mul {
	shared := map[int]*gemm.Multiplier{}
	return func(threads int, c []float32, ldc int, a []float32, lda, m int, w *gemm.Matrix, add bool) {
		if shared[threads] == nil {
			shared[threads] = gemm.New(threads)
		}
		shared[threads].Mul(c, ldc, a, lda, m, w, add)
	}
}

func TestConformance(t *testing.T) {
	eachTier(t, func(t *testing.T) { gemmtest.Run(t, mul(), nf4.NF4.Codebook()) })
}

func FuzzMul(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	run := mul()
	f.Fuzz(func(t *testing.T, seed uint64) { gemmtest.Random(t, run, nf4.NF4.Codebook(), seed) })
}

// More rows of A than one task, or one packed block, holds, against the same rows in two calls.
func TestManyRows(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		for _, s := range []struct{ m, n, k, part int }{{3003, 9, 20, 77}, {120, 2, 90000, 31}} {
			a, w := normal(1, s.m*s.k), gemm.F32(normal(2, s.n*s.k), s.n, s.k)
			whole, parts := make([]float32, s.m*s.n), make([]float32, s.m*s.n)
			g := gemm.New(2)
			g.Mul(whole, s.n, a, s.k, s.m, w, false)
			g.Mul(parts, s.n, a, s.k, s.part, w, false)
			g.Mul(parts[s.part*s.n:], s.n, a[s.part*s.k:], s.k, s.m-s.part, w, false)
			if !slices.Equal(whole, parts) {
				t.Errorf("%d rows at once and in two parts differ", s.m)
			}
		}
	})
}

func TestWrongLengthsPanic(t *testing.T) {
	f := func(n int) []float32 { return make([]float32, n) }
	w := gemm.F32(f(6), 2, 3)
	for name, call := range map[string]func(){
		"a":          func() { gemm.New(1).Mul(f(8), 2, f(11), 3, 4, w, false) },
		"c":          func() { gemm.New(1).Mul(f(7), 2, f(12), 3, 4, w, false) },
		"lda":        func() { gemm.New(1).Mul(f(8), 2, f(12), 2, 4, w, false) },
		"ldc":        func() { gemm.New(1).Mul(f(8), 1, f(12), 3, 4, w, false) },
		"rows":       func() { gemm.New(1).Mul(f(8), 2, f(12), 3, -1, w, false) },
		"float32":    func() { gemm.F32(f(5), 2, 3) },
		"transposed": func() { gemm.Transposed(f(5), 2, 3) },
		"stored":     func() { gemm.Stored(make([]byte, 13), kernels.BF16, 2, 3) },
		"packed":     func() { gemm.Quant4(make([]byte, 4), f(1), 64, nf4.NF4.Codebook(), 2, 3) },
		"absmax":     func() { gemm.Quant4(make([]byte, 3), f(2), 64, nf4.NF4.Codebook(), 2, 3) },
		"block size": func() { gemm.Quant4(make([]byte, 3), f(1), 0, nf4.NF4.Codebook(), 2, 3) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}
