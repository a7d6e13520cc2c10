// Package gemmtest is the conformance suite of kernels/gemm: any implementation, on any
// device, must come as near to the exact product as float32 sums can, whatever the format
// of the weights, and give the same bits in any number of threads.
package gemmtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// Mul is (*gemm.Multiplier).Mul in so many threads.
type Mul func(threads int, c []float32, ldc int, a []float32, lda, m int, w *gemm.Matrix, add bool)

// A Source makes weights of its format from float32 values and says which values they
// then stand for.
type Source struct {
	Name string
	Make func(w []float32, n, k int) (m *gemm.Matrix, exact []float32)
}

// Sources are all formats; blocks of quant4 may end anywhere in a row.
func Sources(book *quant4.Codebook) []Source {
	list := []Source{
		{"float32", func(w []float32, n, k int) (*gemm.Matrix, []float32) { return gemm.F32(w, n, k), w }},
		{"transposed", func(w []float32, n, k int) (*gemm.Matrix, []float32) {
			b := make([]float32, len(w))
			for i := range n {
				for j := range k {
					b[j*n+i] = w[i*k+j]
				}
			}
			return gemm.Transposed(b, k, n), w
		}},
	}
	for _, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
		list = append(list, Source{"stored " + f.String(), func(w []float32, n, k int) (*gemm.Matrix, []float32) {
			raw := make([]byte, 1+len(w)*f.Size())[1:] // at an odd address
			cast.FromF32(raw, w, f)
			exact := make([]float32, len(w))
			cast.ToF32(exact, raw, f)
			return gemm.Stored(raw, f, n, k), exact
		}})
	}
	for _, size := range []int{64, 6, 4096} {
		list = append(list, Source{fmt.Sprintf("quant4 in blocks of %d", size), func(w []float32, n, k int) (*gemm.Matrix, []float32) {
			raw := make([]byte, 4*len(w))
			cast.FromF32(raw, w, kernels.F32)
			packed, absmax := make([]byte, (len(w)+1)/2), make([]float32, (len(w)+size-1)/size)
			quant4.Quantize(packed, absmax, raw, kernels.F32, size, book)
			exact := make([]float32, len(w))
			quant4.DequantizeF32(exact, packed, absmax, size, book)
			return gemm.Quant4(packed, absmax, size, book, n, k), exact
		}})
	}
	return list
}

// kinds are distributions of A and W: sums that cancel, terms of very different size and
// large scales tell implementations apart, a normal distribution hardly does.
var kinds = []struct {
	name string
	draw func(r *rand.Rand, i int) float64
}{
	{"normal", func(r *rand.Rand, _ int) float64 { return r.NormFloat64() }},
	{"outliers", func(r *rand.Rand, _ int) float64 {
		if r.IntN(200) == 0 {
			return 100 * r.NormFloat64()
		}
		return r.NormFloat64()
	}},
	{"large", func(r *rand.Rand, _ int) float64 { return 1e4 * r.NormFloat64() }},
	{"one sign", func(r *rand.Rand, _ int) float64 { return r.Float64() }},
	{"zero", func(*rand.Rand, int) float64 { return 0 }},
}

// Run holds mul against exact products.
func Run(t *testing.T, mul Mul, book *quant4.Codebook) {
	for _, src := range Sources(book) {
		t.Run(src.Name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 1))
			for _, k := range []int{0, 1, 2, 63, 64, 255, 257, 515} {
				for _, n := range []int{0, 1, 7, 8, 33, 131} {
					m := []int{1, 2, 15, 16, 17, 47, 48, 49, 97}[r.IntN(9)]
					check(t, mul, src, r, m, n, k)
				}
			}
			for _, m := range []int{0, 1, 3, 16, 24, 25, 32, 48, 100} {
				check(t, mul, src, r, m, 40, 100)
			}
		})
	}
	t.Run("non-finite", func(t *testing.T) { nonFinite(t, mul) })
	t.Run("bits", func(t *testing.T) { bits(t, mul, book) })
	t.Run("few rows", func(t *testing.T) { fewRows(t, mul, book) })
}

// Random checks one product of random shape, weights and options.
func Random(t *testing.T, mul Mul, book *quant4.Codebook, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	list := Sources(book)
	check(t, mul, list[r.IntN(len(list))], r, r.IntN(60), r.IntN(100), r.IntN(400))
}

const canary = 12345.5

func check(t *testing.T, mul Mul, src Source, r *rand.Rand, m, n, k int) {
	t.Helper()
	kind := kinds[r.IntN(len(kinds))]
	draw := func(s []float32) {
		for i := range s {
			s[i] = float32(kind.draw(r, i))
		}
	}
	lda, ldc, shift, add := k+r.IntN(5), n+r.IntN(5), r.IntN(9), r.IntN(2) == 0
	size := max(0, (m-1)*ldc+n)
	if m == 0 {
		size = 0
	}
	ws := make([]float32, n*k)
	draw(ws)
	w, exact := src.Make(ws, n, k)
	a := make([]float32, m*lda)
	for i := range a {
		a[i] = float32(math.NaN()) // between the rows
	}
	for i := range m {
		draw(a[i*lda:][:k])
	}
	all := make([]float32, size+32)
	for i := range all {
		all[i] = canary
	}
	c := all[shift : shift+size : shift+size]
	for i := range m {
		draw(c[i*ldc:][:n])
	}
	old := append([]float32(nil), c...)
	mul(1+r.IntN(3), c, ldc, a[:max(0, m*lda-(lda-k))], lda, m, w, add)
	for i, x := range all {
		at := i - shift
		if outside := at < 0 || at >= size || at%ldc >= n; outside && x != canary {
			t.Fatalf("%dx%dx%d: element %d outside C was written", m, n, k, at)
		}
	}
	var err2, naive2 float64
	for i := range m {
		for j := range n {
			var sum, size float64
			var naive float32
			if add {
				naive = old[i*ldc+j]
				sum, size = float64(naive), math.Abs(float64(naive))
			}
			for x := range k {
				p := float64(a[i*lda+x]) * float64(exact[j*k+x])
				sum, size = sum+p, size+math.Abs(p)
				naive += float32(a[i*lda+x] * exact[j*k+x])
			}
			got := float64(c[i*ldc+j])
			// The bound of any order of summation: k products, k additions.
			if !(math.Abs(got-sum) <= float64(k+1)*0x1p-24*size*1.001) {
				t.Fatalf("%dx%dx%d, %s, add %v: C[%d][%d] is %v, want %v", m, n, k, kind.name, add, i, j, got, sum)
			}
			err2 += (got - sum) * (got - sum)
			naive2 += (float64(naive) - sum) * (float64(naive) - sum)
		}
	}
	// No worse than twice a plain float32 sum, as FlashAttention is tested. With outliers,
	// all hangs on the rounding of the one or two largest elements.
	limit := 2.0
	if kind.name == "outliers" {
		limit = math.Inf(1)
	}
	if m*n >= 64 && math.Sqrt(err2) > limit*math.Sqrt(naive2) {
		t.Fatalf("%dx%dx%d, %s, add %v: the root mean square error is %.3g, of a plain float32 sum %.3g",
			m, n, k, kind.name, add, math.Sqrt(err2/float64(m*n)), math.Sqrt(naive2/float64(m*n)))
	}
}

// nonFinite: a NaN or an infinity in a row of A or of W reaches the elements it takes part
// in and no other.
func nonFinite(t *testing.T, mul Mul) {
	const m, n, k = 50, 20, 300
	a, w, c := make([]float32, m*k), make([]float32, n*k), make([]float32, m*n)
	for i := range a {
		a[i] = 1
	}
	for i := range w {
		w[i] = 1
	}
	a[49*k+299] = float32(math.NaN())
	w[19*k+7] = float32(math.Inf(1))
	a[3*k+7] = 0 // 0 * Inf
	mul(2, c, n, a, k, m, gemm.F32(w, n, k), false)
	for i := range m {
		for j := range n {
			got := float64(c[i*n+j])
			want := float64(k)
			if i == 3 {
				want--
			}
			if j == 19 {
				want = math.Inf(1)
			}
			if i == 49 || i == 3 && j == 19 {
				want = math.NaN()
			}
			if got != want && !(got != got && want != want) {
				t.Fatalf("C[%d][%d] is %v, want %v", i, j, got, want)
			}
		}
	}
}

// bits: the same in any number of threads, on every repeat, and for a row on its own.
func bits(t *testing.T, mul Mul, book *quant4.Codebook) {
	const m, n, k = 101, 300, 700
	r := rand.New(rand.NewPCG(9, 9))
	a, ws := make([]float32, m*k), make([]float32, n*k)
	for _, s := range [][]float32{a, ws} {
		for i := range s {
			s[i] = float32(r.NormFloat64())
		}
	}
	for _, src := range Sources(book) {
		w, _ := src.Make(ws, n, k)
		want := make([]float32, m*n)
		mul(1, want, n, a, k, m, w, false)
		for _, threads := range []int{1, 2, 3, 8, 2, 8} {
			got := make([]float32, m*n)
			mul(threads, got, n, a, k, m, w, false)
			same(t, fmt.Sprintf("%s, %d threads", src.Name, threads), got, want)
		}
		for _, i := range []int{0, 48, 100} {
			got := make([]float32, n)
			mul(2, got, n, a[i*k:], k, 1, w, false)
			same(t, fmt.Sprintf("%s, row %d on its own", src.Name, i), got, want[i*n:][:n])
		}
	}
}

// fewRows: up to ten rows on their own, added or not, have the bits that they have among
// many; in widths that weights are read in as they lie, and in others.
func fewRows(t *testing.T, mul Mul, book *quant4.Codebook) {
	const m, n = 60, 75
	for _, k := range []int{1, 3, 16, 128, 130, 256, 384, 500, 1152} {
		r := rand.New(rand.NewPCG(uint64(k), 9))
		a, ws, old := make([]float32, m*k), make([]float32, n*k), make([]float32, m*n)
		for _, s := range [][]float32{a, ws, old} {
			for i := range s {
				s[i] = float32(r.NormFloat64())
			}
		}
		for i := range k { // products that are rounded to -0
			a[20*k+i], ws[i] = -0x1p-140, 0x1p-120
		}
		for _, src := range Sources(book) {
			w, _ := src.Make(ws, n, k)
			for _, add := range []bool{false, true} {
				want := append([]float32(nil), old...)
				mul(1, want, n, a, k, m, w, add)
				for rows := 1; rows <= 10; rows++ {
					first := r.IntN(m - rows)
					if rows == 1 {
						first = 20
					}
					got := append([]float32(nil), old[first*n:][:rows*n]...)
					mul(1+r.IntN(3), got, n, a[first*k:], k, rows, w, add)
					same(t, fmt.Sprintf("%s, k %d, add %v, %d rows from %d", src.Name, k, add, rows, first), got, want[first*n:][:rows*n])
				}
			}
		}
	}
}

func same(t *testing.T, what string, got, want []float32) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d is %v, want the bits of %v", what, i, got[i], want[i])
		}
	}
}
