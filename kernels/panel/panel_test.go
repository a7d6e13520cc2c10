package panel_test

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/panel"
)

// A tier that is required and not there is a failure, so that a machine without it cannot
// pass for one on which it was tested.
func TestRequireTier(t *testing.T) {
	var have []string
	for _, kn := range panel.All() {
		have = append(have, kn.Tier)
	}
	for _, tier := range strings.FieldsFunc(os.Getenv("NF4CONV_TEST_REQUIRE"), func(r rune) bool { return r == ',' }) {
		if strings.HasPrefix(tier, "avx") && !slices.Contains(have, tier) {
			t.Errorf("tier %q is required and not here; here are %v", tier, have)
		}
	}
	t.Logf("tiers tested: %v", have)
}

// canary stands around and between what a kernel may read or write: it is a NaN, so that
// one element too many shows in the result too.
var canary = math.Float32frombits(0x7fc0dead)

func guarded(n, before int) (all, s []float32) {
	all = make([]float32, before+n+19)
	for i := range all {
		all[i] = canary
	}
	return all, all[before : before+n : before+n]
}

func intact(t *testing.T, what string, all, s []float32, before int) {
	t.Helper()
	for i, x := range all {
		if (i < before || i >= before+len(s)) && math.Float32bits(x) != math.Float32bits(canary) {
			t.Fatalf("%s: element %d beyond its range was written", what, i-before)
		}
	}
}

// TestMul goes through every shape of panel and both orders of a, with guards around all
// arguments at every alignment, and holds the results to the error bound of the sum.
func TestMul(t *testing.T) {
	for _, kn := range panel.All() {
		t.Run(kn.Tier, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			for vecs := 1; vecs <= panel.MaxVecs; vecs++ {
				for _, k := range []int{0, 1, 2, 3, 7, 64, 129} {
					for tiles := range 4 {
						for mode := panel.Store; mode <= panel.Rescale; mode++ {
							for _, byRow := range []bool{true, false} {
								checkMul(t, kn, r, vecs, k, tiles, mode, byRow)
							}
						}
					}
				}
			}
		})
	}
}

func checkMul(t *testing.T, kn *panel.Kernel, r *rand.Rand, vecs, k, tiles int, mode panel.Mode, byRow bool) {
	t.Helper()
	rows, w, shift := tiles*kn.Rows, vecs*kn.Lanes, r.IntN(17)
	aRow, aStep := k+r.IntN(3), 1
	size := max(0, (rows-1)*aRow+k)
	if !byRow {
		aRow, aStep = 1, rows+r.IntN(3)
		size = max(0, (k-1)*aStep+rows)
	}
	if k == 0 || rows == 0 {
		size = 0
	}
	_, a := guarded(size, shift)
	_, b := guarded(k*w, shift)
	_, scale := guarded(w, shift)
	all, c := guarded(rows*w, shift)
	for i := range rows {
		for j := range k {
			a[i*aRow+j*aStep] = float32(r.NormFloat64())
		}
	}
	for _, s := range [][]float32{b, scale, c} {
		for i := range s {
			s[i] = float32(r.NormFloat64())
		}
	}
	old := slices.Clone(c)
	if mode == panel.Store {
		for i := range c {
			c[i] = canary
		}
	}
	if mode != panel.Rescale {
		scale = nil
	}
	kn.Mul(c, b, a, aRow, aStep, tiles, k, vecs, mode, scale)
	intact(t, "c", all, c, shift)
	for i := range rows {
		for j := range w {
			var sum, size float64
			for s := range k {
				p := float64(a[i*aRow+s*aStep]) * float64(b[s*w+j])
				sum, size = sum+p, size+math.Abs(p)
			}
			was := float64(old[i*w+j])
			switch mode {
			case panel.Add:
				sum, size = sum+was, size+math.Abs(was)
			case panel.Rescale:
				p := was * float64(scale[j])
				sum, size = sum+p, size+math.Abs(p)
			}
			// Each of the k+2 roundings is off by 2^-24 of a partial sum at most.
			if got := float64(c[i*w+j]); !(math.Abs(got-sum) <= float64(k+2)*0x1p-24*size) {
				t.Fatalf("%d vectors, k %d, %d tiles, mode %d, by row %v: element (%d, %d) is %v, want %v", vecs, k, tiles, mode, byRow, i, j, got, sum)
			}
		}
	}
}

// The assembly tiers give the same bits where their panels hold the same columns.
func TestTiersAgree(t *testing.T) {
	all := panel.All()
	if len(all) < 3 {
		t.Skip("NOT RUN: needs AVX2 and AVX-512")
	}
	x, y := all[1], all[2]
	r := rand.New(rand.NewPCG(3, 4))
	const k, rows, w = 300, 16, 16
	a, b := make([]float32, rows*k), make([]float32, k*w)
	for _, s := range [][]float32{a, b} {
		for i := range s {
			s[i] = float32(r.NormFloat64())
		}
	}
	cx, cy := make([]float32, rows*w), make([]float32, rows*w)
	x.Mul(cx, b, a, k, 1, rows/x.Rows, k, w/x.Lanes, panel.Store, nil)
	y.Mul(cy, b, a, k, 1, rows/y.Rows, k, w/y.Lanes, panel.Store, nil)
	if !slices.Equal(cx, cy) {
		t.Errorf("%s and %s differ", x.Tier, y.Tier)
	}
}

func TestTranspose(t *testing.T) {
	for _, kn := range panel.All() {
		t.Run(kn.Tier, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 6))
			sizes := []int{1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 50}
			for _, rows := range sizes {
				for _, cols := range sizes {
					shift, lds, ldd := r.IntN(17), cols+r.IntN(4), rows+r.IntN(4)
					_, src := guarded((rows-1)*lds+cols, shift)
					all, dst := guarded((cols-1)*ldd+rows, shift)
					for i := range rows {
						for j := range cols {
							src[i*lds+j] = float32(i*1000 + j)
						}
					}
					kn.Transpose(dst, ldd, src, lds, rows, cols)
					intact(t, "dst", all, dst, shift)
					for p, x := range dst {
						j, i := p/ldd, p%ldd
						if i < rows && x != float32(i*1000+j) {
							t.Fatalf("%dx%d: column %d, row %d is %v", rows, cols, j, i, x)
						}
						if i >= rows && math.Float32bits(x) != math.Float32bits(canary) {
							t.Fatalf("%dx%d: wrote between the rows", rows, cols)
						}
					}
				}
			}
		})
	}
}

func TestWrongLengthsPanic(t *testing.T) {
	f := func(n int) []float32 { return make([]float32, n) }
	for _, kn := range panel.All() {
		w := kn.Lanes
		for name, call := range map[string]func(){
			"c":        func() { kn.Mul(f(kn.Rows*w-1), f(w), f(kn.Rows), 1, 1, 1, 1, 1, panel.Store, nil) },
			"b":        func() { kn.Mul(f(kn.Rows*w), f(2*w-1), f(2*kn.Rows), 1, kn.Rows, 1, 2, 1, panel.Store, nil) },
			"a":        func() { kn.Mul(f(kn.Rows*w), f(2*w), f(2*kn.Rows-1), 1, kn.Rows, 1, 2, 1, panel.Store, nil) },
			"scale":    func() { kn.Mul(f(kn.Rows*w), f(w), f(kn.Rows), 1, 1, 1, 1, 1, panel.Rescale, f(w-1)) },
			"vectors":  func() { kn.Mul(f(kn.Rows*w*4), f(4*w), f(kn.Rows), 1, 1, 1, 1, 4, panel.Store, nil) },
			"stride":   func() { kn.Mul(f(kn.Rows*w), f(w), f(kn.Rows), -1, 1, 1, 1, 1, panel.Store, nil) },
			"dst":      func() { kn.Transpose(f(15), 4, f(16), 4, 4, 4) },
			"src":      func() { kn.Transpose(f(16), 4, f(15), 4, 4, 4) },
			"dst rows": func() { kn.Transpose(f(16), 3, f(16), 4, 4, 4) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s, %s: no panic", kn.Tier, name)
					}
				}()
				call()
			}()
		}
	}
}
