package vexp

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
)

// eachTier runs a test with every implementation that is there.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			f(t)
		})
	}
}

// edges are values at which something changes.
var edges = []float32{0, float32(math.Copysign(0, -1)), 1, -1, 0x1p-149, -0x1p-130, 0x1p127, -0x1.fffffep127, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()),
	708, -708, 709, -709, 710, -745, 88, -88, 0.34657359, -0.3465736, 20, -20}

func fill(r *rand.Rand, x []float32, share float64) {
	for i := range x {
		x[i] = float32(r.NormFloat64() * 8)
		if r.Float64() < share {
			x[i] = edges[r.IntN(len(edges))]
		}
	}
}

// same compares bits, but for which NaN it is.
func same(a, b float64) bool {
	return math.Float64bits(a) == math.Float64bits(b) || math.IsNaN(a) && math.IsNaN(b)
}

var gates = [][2]float64{{1, 0}, {1.702, 0}, {2 * math.Sqrt(2/math.Pi), 2 * math.Sqrt(2/math.Pi) * 0.044715}}

// Every tier and length gives the bits of the generic definition, with memory that ends, or
// begins, where the slices do.
func TestTiersAreTheDefinition(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for n := range 140 {
			for _, share := range []float64{0, 0.1} {
				front := n%2 == 0
				a, b := guardtest.Floats(t, n, front), guardtest.Floats(t, n, front)
				fill(r, a, share)
				fill(r, b, share/4)
				ma, mb := r.NormFloat64(), r.NormFloat64()
				var p partial
				divergenceGeneric(&p, a, b, ma, mb)
				got, want := Divergence(a, b, ma, mb), Sums{p.sum(0), p.sum(1), p.sum(2)}
				if !same(got.A, want.A) || !same(got.B, want.B) || !same(got.D, want.D) {
					t.Fatalf("divergence of %d elements: %v, want %v", n, got, want)
				}
				if got, want := Max(a), maxGeneric(a); got != want {
					t.Fatalf("largest of %d elements: %v, want %v", n, got, want)
				}
				for _, c := range gates {
					got, want := guardtest.Floats(t, n, front), make([]float32, n)
					copy(got, a)
					copy(want, a)
					Gate(got, c[0], c[1])
					gateGeneric(want, -c[0], -c[1])
					for i := range want {
						if !same(float64(got[i]), float64(want[i])) {
							t.Fatalf("gate %v of %v, element %d of %d: %v, want %v", c, a[i], i, n, got[i], want[i])
						}
					}
				}
			}
		}
	})
}

// The exponential against that of the standard library, whose error is below one unit.
func TestExponential(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	worst := 0.0
	for range 1 << 18 {
		x := -708 + 1417*r.Float64()
		if r.IntN(2) == 0 {
			x = r.NormFloat64()
		}
		want := math.Exp(x)
		worst = max(worst, math.Abs(exp(x)-want)/want)
	}
	if worst > 4.5e-16 { // two units of the larger of the two
		t.Errorf("relative difference %.3g", worst)
	}
	for _, c := range [][2]float64{{0, 1}, {-1e4, math.Exp(-708)}, {math.Inf(-1), math.Exp(-708)}, {math.Inf(1), math.Exp(709)}, {math.NaN(), math.NaN()}} {
		if got := exp(c[0]); !same(got, c[1]) && math.Abs(got-c[1]) > 4e-16*c[1] {
			t.Errorf("exp(%v) = %v, want %v", c[0], got, c[1])
		}
	}
}

// The gates against the formulas of the activations, over the whole range of float32.
func TestGatesAreTheActivations(t *testing.T) {
	formulas := []func(float64) float64{
		func(x float64) float64 { return x / (1 + math.Exp(-x)) },
		func(x float64) float64 { return x / (1 + math.Exp(-1.702*x)) },
		func(x float64) float64 { return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x))) },
	}
	eachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for k, c := range gates {
			x := make([]float32, 1<<14)
			for i := range x {
				x[i] = float32(math.Exp(r.NormFloat64()*4) * float64(1-2*r.IntN(2)))
			}
			y := append([]float32(nil), x...)
			Gate(y, c[0], c[1])
			for i, v := range x {
				want := formulas[k](float64(v))
				// half a unit in the last place of float32; where the tanh comes near -1 the formula loses 2^-53 of |x|
				if d := math.Abs(float64(y[i]) - want); d > 0x1.01p-24*math.Abs(want)+0x1p-52*math.Abs(float64(v))+0x1p-149 {
					t.Fatalf("gate %v of %v: %v, want %v", c, v, y[i], want)
				}
			}
			inf := []float32{float32(math.Inf(1)), float32(math.Inf(-1))}
			Gate(inf, c[0], c[1])
			if !math.IsInf(float64(inf[0]), 1) || !math.IsInf(float64(inf[1]), -1) {
				t.Errorf("gate %v of infinities: %v", c, inf)
			}
		}
	})
}

// The sums of two small distributions, by hand.
func TestDivergence(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		a, b := make([]float32, 100), make([]float32, 100)
		a[7], b[93] = 2, 3
		got := Divergence(a, b, 2, 1)
		want := Sums{A: 1 + 99*math.Exp(-2), B: math.Exp(2) + 99*math.Exp(-1), D: 2 - 3*math.Exp(-2)}
		for _, c := range [][2]float64{{got.A, want.A}, {got.B, want.B}, {got.D, want.D}} {
			if math.Abs(c[0]-c[1]) > 1e-13*math.Abs(c[1]) {
				t.Errorf("%v, want %v", got, want)
			}
		}
	})
}

func TestDivergenceRefusesTwoLengths(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("vectors of 3 and 4 elements were accepted")
		}
	}()
	Divergence(make([]float32, 3), make([]float32, 4), 0, 0)
}

func BenchmarkVexp(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	const n = 4096
	x, y := make([]float32, n), make([]float32, n)
	fill(r, x, 0)
	fill(r, y, 0)
	for _, tier := range kernels.Tiers() {
		for _, f := range []struct {
			name string
			do   func()
		}{
			{"gate", func() { Gate(x, 1, 0) }},
			{"divergence", func() { Divergence(x, y, 20, 20) }},
			{"max", func() { Max(x) }},
		} {
			b.Run(fmt.Sprintf("%s/%s", f.name, tier), func(b *testing.B) {
				defer kernels.Use(tier)()
				fill(r, x, 0)
				for b.Loop() {
					f.do()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/element")
			})
		}
	}
}
