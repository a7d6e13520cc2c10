package flash

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/panel"
)

func eachScores(t *testing.T, f func(t *testing.T, fn scores, lanes int)) {
	for _, kn := range panel.All() {
		t.Run(kn.Tier, func(t *testing.T) { f(t, scores{tiers[kn.Tier]}, kn.Lanes) })
	}
}

const canary = 4321.5

// guarded is n elements at some alignment between canaries.
func guarded(r *rand.Rand, n int) (all, s []float32) {
	all = make([]float32, n+40)
	for i := range all {
		all[i] = canary
	}
	at := 1 + r.IntN(17)
	return all, all[at : at+n : at+n]
}

func intact(t *testing.T, all []float32, n int) {
	t.Helper()
	count := 0
	for _, x := range all {
		if x == canary {
			count++
		}
	}
	if count != len(all)-n {
		t.Fatalf("%d canaries are left of %d", count, len(all)-n)
	}
}

// ratio is a factor in two parts as Forward makes them.
func ratio(exact float64) (c, low float32) {
	if c = float32(exact); float64(c) > exact {
		c = math.Nextafter32(c, 0)
	}
	return c, max(float32(exact-float64(c)), 1e-30)
}

// TestSoftmax holds one step to its definition in float64. The exponent is rounded once, so
// an exponential is off by half of its last place, and by 1e-7 of the polynomial; a factor
// in one float32 alone would be off by up to four times as much.
func TestSoftmax(t *testing.T) {
	eachScores(t, func(t *testing.T, fn scores, lanes int) {
		r := rand.New(rand.NewPCG(1, 1))
		for vecs := 1; vecs <= panel.MaxVecs; vecs++ {
			for _, rows := range []int{1, 2, 7, 130} {
				for _, exact := range []float64{1, math.Log2E / 8, math.Log2E / math.Sqrt(80), 1 + 0x1.fp-24} {
					for _, size := range []float64{1, 20, 100} {
						checkSoftmax(t, fn, r, vecs, vecs*lanes, rows, exact, size)
					}
				}
			}
		}
	})
}

func checkSoftmax(t *testing.T, fn scores, r *rand.Rand, vecs, w, rows int, exact, size float64) {
	t.Helper()
	c, low := ratio(exact)
	allS, s := guarded(r, rows*w)
	allM, m := guarded(r, w)
	allL, l := guarded(r, w)
	allC, corr := guarded(r, w)
	for i := range s {
		if s[i] = float32(size * r.NormFloat64()); r.IntN(9) == 0 {
			s[i] = float32(math.Inf(-1))
		}
	}
	for j := range m {
		m[j], l[j] = float32(size*r.NormFloat64()), 1+r.Float32()
		if r.IntN(4) == 0 {
			m[j], l[j] = -math.MaxFloat32, 0
		}
	}
	s0, m0, l0 := append([]float32(nil), s...), append([]float32(nil), m...), append([]float32(nil), l...)
	fn.softmax(s, rows, w, vecs, c, low, m, l, corr)
	intact(t, allS, len(s))
	for _, all := range [][]float32{allM, allL, allC} {
		intact(t, all, w)
	}
	near := func(what string, got float32, d float64) float64 {
		x := d * exact
		want := math.Exp2(x)
		// The difference of two scores is rounded, its product with the factor is rounded.
		off := math.Abs(x) * math.Ln2 * (0x1p-24 + 0x1p-24) * 1.01
		if x < -126 {
			want, off = 0, 0
		}
		if d == 0 && got != 1 || !(math.Abs(float64(got)-want) <= want*(off+1.2e-7)+0x1p-126) {
			t.Fatalf("%d columns, %d rows, factor %v: %s is %v, want %v", w, rows, exact, what, got, want)
		}
		return float64(got)
	}
	for j := range w {
		top := m0[j]
		for i := range rows {
			top = max(top, s0[i*w+j])
		}
		if m[j] != top {
			t.Fatalf("the maximum is %v, want %v", m[j], top)
		}
		sum := float64(l0[j]) * near("the correction", corr[j], float64(m0[j])-float64(top))
		for i := range rows {
			sum += near("an exponential", s[i*w+j], float64(s0[i*w+j])-float64(top))
		}
		if math.Abs(float64(l[j])-sum) > sum*float64(rows+2)*0x1p-24 {
			t.Fatalf("the sum is %v, want %v", l[j], sum)
		}
	}
}

// The polynomial on its own: exponents that are exact.
func TestExp2(t *testing.T) {
	eachScores(t, func(t *testing.T, fn scores, lanes int) {
		const rows = 4096
		s, m, l, corr := make([]float32, rows*lanes), make([]float32, lanes), make([]float32, lanes), make([]float32, lanes)
		for i := range s {
			s[i] = -float32(i) * 0x1p-9 // down to -128
		}
		fn.softmax(s, rows, lanes, 1, 1, 1e-30, m, l, corr)
		worst := 0.0
		for i, got := range s {
			x := -float64(i) * 0x1p-9
			if x < -126 {
				if got != 0 {
					t.Fatalf("2^%v is %v, want 0", x, got)
				}
				continue
			}
			worst = max(worst, math.Abs(float64(got)/math.Exp2(x)-1))
		}
		if worst > 1e-7 {
			t.Errorf("the largest relative error of 2^x is %.3g, want 1e-7", worst)
		}
	})
}

func TestSoftmaxNotFinite(t *testing.T) {
	eachScores(t, func(t *testing.T, fn scores, lanes int) {
		none, bad := float32(math.Inf(-1)), float32(math.NaN())
		s := make([]float32, 3*lanes)
		m, l, corr := make([]float32, lanes), make([]float32, lanes), make([]float32, lanes)
		for j := range lanes {
			m[j] = -math.MaxFloat32
			s[j], s[lanes+j], s[2*lanes+j] = none, none, none
		}
		s[1], s[lanes+2], s[2*lanes+3] = bad, float32(math.Inf(1)), 0
		s[4], s[2*lanes+4] = bad, 7
		fn.softmax(s, 3, lanes, 1, 1, 1e-30, m, l, corr)
		if l[0] != 0 || m[0] != -math.MaxFloat32 {
			t.Errorf("nothing is seen: sum %v, maximum %v", l[0], m[0])
		}
		for _, j := range []int{1, 2, 4} {
			if l[j] == l[j] {
				t.Errorf("column %d: the sum is %v, want NaN", j, l[j])
			}
		}
		if l[3] != 1 || corr[3] != 0 {
			t.Errorf("one is seen: sum %v, correction %v", l[3], corr[3])
		}
	})
}

func TestBias(t *testing.T) {
	eachScores(t, func(t *testing.T, fn scores, lanes int) {
		r := rand.New(rand.NewPCG(2, 2))
		for vecs := 1; vecs <= panel.MaxVecs; vecs++ {
			for _, rows := range []int{1, 5, 33} {
				w := vecs * lanes
				all, s := guarded(r, rows*w)
				slope, pos := make([]float32, w), make([]float32, w)
				for i := range s {
					s[i] = float32(r.NormFloat64())
				}
				for j := range w {
					slope[j], pos[j] = r.Float32(), float32(r.IntN(60)-20)
				}
				old := append([]float32(nil), s...)
				fn.bias(s, rows, w, vecs, 0.3, slope, pos)
				intact(t, all, len(s))
				for i := range rows {
					for j := range w {
						a, b := float64(old[i*w+j])*float64(float32(0.3)), float64(slope[j])*math.Abs(float64(pos[j])-float64(i))
						if d := math.Abs(float64(s[i*w+j]) - (a - b)); d > (math.Abs(a)+b)*0x1p-23 {
							t.Fatalf("row %d, column %d: %v, want %v", i, j, s[i*w+j], a-b)
						}
					}
				}
			}
		}
	})
}

func TestSoftcap(t *testing.T) {
	eachScores(t, func(t *testing.T, fn scores, lanes int) {
		r := rand.New(rand.NewPCG(3, 3))
		const vecs = 2000
		all, s := guarded(r, vecs*lanes)
		for i := range s {
			s[i] = float32(i-len(s)/2) * 0x1p-9
		}
		s[0], s[1], s[2], s[3], s[4] = float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 1e30, -1e-30
		old := append([]float32(nil), s...)
		fn.softcap(s, vecs, 0.5, 8)
		intact(t, all, len(s))
		worst := 0.0
		for i, got := range s {
			want := 8 * math.Tanh(float64(old[i])/2)
			if i == 2 {
				if got == got {
					t.Errorf("the cap of NaN is %v", got)
				}
				continue
			}
			if want == 0 {
				if got != 0 {
					t.Errorf("the cap of 0 is %v", got)
				}
				continue
			}
			worst = max(worst, math.Abs(float64(got)/want-1))
		}
		if worst > 2e-7 {
			t.Errorf("the largest relative error is %.3g, want 2e-7", worst)
		}
	})
}
