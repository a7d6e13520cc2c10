package lora

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// spectrum makes a [rows, cols] matrix with about those singular values.
func spectrum(r *rand.Rand, rows, cols int, value func(k int) float64, rank int) []float32 {
	l, q := random(r, rows*rank), random(r, rank*cols)
	d := make([]float32, rows*cols)
	for i := range rows {
		for k := range rank {
			w := float32(value(k) / math.Sqrt(float64(rows)*float64(cols)))
			for j := range cols {
				d[i*cols+j] += float32(w*l[i*rank+k]) * q[k*cols+j]
			}
		}
	}
	return d
}

var spectra = map[string]func(k int) float64{
	"flat":  func(int) float64 { return 1 },
	"slow":  func(k int) float64 { return 1 / math.Sqrt(float64(k+1)) },
	"power": func(k int) float64 { return 1 / float64(k+1) },
	"steep": func(k int) float64 { return math.Exp(-float64(k) / 3) },
}

// The residual is that of the full decomposition, which gonum finds by another road, up to
// 1 %.
func TestDecomposeAgainstExactSVD(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	dc := NewDecomposer(2)
	for name, value := range spectra {
		for _, shape := range [][2]int{{150, 150}, {190, 120}, {120, 260}} {
			rows, cols := shape[0], shape[1]
			d := spectrum(r, rows, cols, value, min(rows, cols))
			s, _, _ := exactSVD(d, rows, cols)
			for _, rank := range []int{1, 4, 16, 32, 110} {
				f := dc.Decompose(d, rows, cols, Rank{N: rank})
				var rest float64
				for _, v := range s[rank:] {
					rest += v * v
				}
				if best := math.Sqrt(rest); f.Residual > 1.01*best+1e-6*f.Norm || f.Residual < best*(1-1e-3)-1e-6*f.Norm {
					t.Errorf("%s %v rank %d: residual %v, the best is %v (%d passes, exact %v)", name, shape, rank, f.Residual, best, f.Passes, f.Exact)
				}
				checkFactors(t, d, f)
			}
		}
	}
}

// checkFactors holds the report to what the factors are.
func checkFactors(t *testing.T, d []float32, f *Factors) {
	t.Helper()
	l, q := mat.NewDense(f.Rows, f.Rank, wide(f.L)), mat.NewDense(f.Rank, f.Cols, wide(f.R))
	var p mat.Dense
	p.Mul(l, q)
	p.Sub(mat.NewDense(f.Rows, f.Cols, wide(d)), &p)
	if got := mat.Norm(&p, 2); math.Abs(got-f.Residual) > 1e-6*f.Norm+1e-4*got {
		t.Errorf("%d x %d rank %d: residual %v, reported %v", f.Rows, f.Cols, f.Rank, got, f.Residual)
	}
}

func wide(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

func TestDecomposeSpecial(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	dc := NewDecomposer(1)
	// Of lower rank than asked for: nothing is left over.
	d := spectrum(r, 200, 300, spectra["power"], 5)
	if f := dc.Decompose(d, 200, 300, Rank{N: 16}); f.Relative() > 1e-5 || f.Exact {
		t.Errorf("rank 5 at 16: relative residual %v, exact %v", f.Relative(), f.Exact)
	}
	if f := dc.Decompose(make([]float32, 6), 2, 3, Rank{N: 1}); f.Rank != 0 || f.Residual != 0 || f.Energy() != 1 {
		t.Errorf("zeros: %+v", f)
	}
	// The same bits every time, and on any number of threads.
	d = spectrum(r, 300, 200, spectra["slow"], 200)
	a, b := dc.Decompose(d, 300, 200, Rank{N: 8}), NewDecomposer(3).Decompose(d, 300, 200, Rank{N: 8})
	if fmt.Sprint(a.L, a.R) != fmt.Sprint(b.L, b.R) {
		t.Error("factors depend on the number of threads")
	}
}

// The energy rule keeps as few as reach the share.
func TestDecomposeEnergy(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	dc := NewDecomposer(2)
	for name, value := range spectra {
		d := spectrum(r, 240, 200, value, 200)
		s, _, _ := exactSVD(d, 240, 200)
		norm2 := sumSquares(d)
		for _, energy := range []float64{0.1, 0.5, 0.9, 0.999, 0.999999} {
			f := dc.Decompose(d, 240, 200, Rank{Energy: energy})
			want := keep(s, norm2, energy)
			if f.Energy() < energy-1e-5 || f.Rank < want || f.Rank > want+1+want/50 {
				t.Errorf("%s, energy %v: rank %d with %v; the least is %d", name, energy, f.Rank, f.Energy(), want)
			}
		}
		if f := dc.Decompose(d, 240, 200, Rank{N: 3, Energy: 0.9999}); f.Rank > 3 {
			t.Errorf("%s: rank %d, at most 3 was asked for", name, f.Rank)
		}
	}
}

func BenchmarkDecompose(b *testing.B) {
	r := rand.New(rand.NewPCG(17, 18))
	for _, shape := range [][2]int{{2048, 2048}, {8192, 2048}} {
		for _, name := range []string{"flat", "slow", "power"} {
			d := spectrum(r, shape[0], shape[1], spectra[name], 64)
			for i, v := range random(r, len(d)) { // a training delta has a long tail
				d[i] += v * float32(0.3/math.Sqrt(float64(len(d))))
			}
			b.Run(fmt.Sprintf("%dx%d/%s", shape[0], shape[1], name), func(b *testing.B) {
				dc := NewDecomposer(2)
				for b.Loop() {
					f := dc.Decompose(d, shape[0], shape[1], Rank{N: 32})
					b.ReportMetric(float64(f.Passes), "passes")
					b.ReportMetric(f.Relative(), "residual")
				}
			})
		}
	}
}
