package lora

import (
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/nf4conv/nf4conv/kernels/gemm"
)

// Rank says how many singular values of a matrix are kept.
type Rank struct {
	N      int     // so many at most; 0: as many as Energy asks for
	Energy float64 // the least share of the sum of squares, in (0, 1]; 0: N alone counts
}

// Factors is a matrix of low rank close to another: L R, [Rows, Rank] times [Rank, Cols],
// in the order of falling singular values. Each singular value is split evenly, its
// square root on either side, so that both factors round equally well.
type Factors struct {
	Rows, Cols, Rank int
	L, R             []float32
	S                []float64 // singular values of L R
	Norm             float64   // of the matrix that was decomposed (Frobenius)
	Residual         float64   // norm of that matrix minus L R, as measured on the float32 factors
	Exact            bool      // by a full decomposition, not by random projection
	Passes           int       // over the matrix
}

// Energy is the share of the sum of squares that is kept: 1 - (Residual/Norm)^2.
func (f *Factors) Energy() float64 {
	if f.Norm == 0 {
		return 1
	}
	q := f.Residual / f.Norm
	return 1 - q*q
}

// Relative is Residual over Norm, 0 for a matrix of zeros.
func (f *Factors) Relative() float64 {
	if f.Norm == 0 {
		return 0
	}
	return f.Residual / f.Norm
}

const (
	oversample = 16   // more directions than asked for: with rank 32, a whole panel of package gemm
	settled    = 5e-3 // of the squared residual: what one more pass may win and the iteration still stops
	maxPasses  = 24   // over the matrix
	firstGuess = 32   // rank with which the search for an energy begins
	projection = 0x6e6634636f6e76
)

// Decomposer decomposes matrices one after the other on some threads.
type Decomposer struct{ g *gemm.Multiplier }

// NewDecomposer makes a Decomposer for so many threads.
func NewDecomposer(threads int) *Decomposer { return &Decomposer{gemm.New(threads)} }

// Decompose finds the factors that are closest to d [rows, cols], row-major, in the
// Frobenius norm. All elements must be finite.
//
// The best rank-r matrix is the truncated singular value decomposition (Eckart and Young
// 1936). It is found by subspace iteration from a random projection (Halko, Martinsson and
// Tropp 2011, arXiv 0909.4061, algorithm 4.4): r + 16 directions, multiplied with d and its
// transpose in turn, orthonormalized in between. After every double pass the energy in the
// first r directions is known; the iteration ends when it won less than 0.5 % of the
// squared residual. The start is a fixed function of the shape. Where more than half of
// all directions are wanted the decomposition is a full one in float64.
func (dc *Decomposer) Decompose(d []float32, rows, cols int, want Rank) *Factors {
	norm2 := sumSquares(d)
	f := &Factors{Rows: rows, Cols: cols, Norm: math.Sqrt(norm2)}
	if norm2 == 0 {
		return f
	}
	full := min(rows, cols)
	n := min(want.N, full)
	if want.N == 0 {
		n = full
	}
	guess := n
	if want.Energy > 0 {
		guess = min(n, firstGuess)
	}
	for {
		var s []float64
		var l, r []float32
		var m int
		if f.Exact = 2*(guess+oversample) > full; f.Exact {
			s, l, r = exactSVD(d, rows, cols)
			m, guess = full, n
			f.Passes = 0
		} else {
			s, l, r, m, f.Passes = dc.subspace(d, rows, cols, guess, norm2)
		}
		kept := keep(s[:min(m, guess)], norm2, want.Energy)
		if want.Energy > 0 && guess < n && share(s[:kept], norm2) < want.Energy {
			guess = min(n, 2*guess)
			continue
		}
		f.take(s, l, r, m, kept)
		f.Residual = dc.residual(d, f)
		return f
	}
}

// keep is how many singular values make the energy, at least 1.
func keep(s []float64, norm2, energy float64) int {
	n := len(s)
	for n > 1 && s[n-1] == 0 {
		n--
	}
	if energy == 0 {
		return n
	}
	var sum float64
	for i, v := range s[:n] {
		if sum += v * v; sum >= energy*norm2 {
			return i + 1
		}
	}
	return n
}

func share(s []float64, norm2 float64) float64 {
	var sum float64
	for _, v := range s {
		sum += v * v
	}
	return sum / norm2
}

// take keeps the first of m unit vectors, l [m, rows] and r [m, cols], and splits the
// singular values.
func (f *Factors) take(s []float64, l, r []float32, m, kept int) {
	f.Rank, f.S = kept, slices.Clone(s[:kept])
	f.L, f.R = make([]float32, f.Rows*kept), make([]float32, kept*f.Cols)
	for k := range kept {
		q := float32(math.Sqrt(s[k]))
		for i, v := range l[k*f.Rows:][:f.Rows] {
			f.L[i*kept+k] = q * v
		}
		for j, v := range r[k*f.Cols:][:f.Cols] {
			f.R[k*f.Cols+j] = q * v
		}
	}
}

// subspace returns m singular values with their vectors as rows.
func (dc *Decomposer) subspace(d []float32, rows, cols, rank int, norm2 float64) (s []float64, l, r []float32, m, passes int) {
	m = rank + oversample
	random := rand.New(rand.NewPCG(projection, uint64(rows)<<32^uint64(cols)))
	z := make([]float32, m*cols)
	for i := range z {
		z[i] = float32(random.NormFloat64())
	}
	y := make([]float32, m*rows)
	over, under := gemm.F32(d, rows, cols), gemm.Transposed(d, rows, cols)
	last := math.Inf(-1)
	for {
		dc.g.Mul(y, rows, z, cols, m, over, false) // Y^T = Z^T D^T
		y, m = dc.orthonormal(y, m, rows)
		y, m = dc.orthonormal(y, m, rows)
		z = z[:m*cols]
		dc.g.Mul(z, cols, y, rows, m, under, false) // Z^T = Q^T D
		passes += 2
		var vectors []float64
		s, vectors = eigen(gram(z, m, cols), m)
		kept := share(s[:min(rank, m)], norm2)
		if rest := max(0, 1-kept); kept-last <= settled*rest || rest < 1e-12 || m < rank || passes >= maxPasses {
			l, r = dc.rotate(vectors, y, m, rows), dc.rotate(vectors, z, m, cols)
			for k, v := range s {
				scale := float32(0)
				if v > 0 {
					scale = float32(1 / v)
				}
				for j := range r[k*cols:][:cols] {
					r[k*cols+j] *= scale
				}
			}
			return s, l, r, m, passes
		}
		last = kept
		z, m = dc.orthonormal(z, m, cols)
		y = y[:m*rows]
	}
}

// rotate returns V^T x for x [m, n].
func (dc *Decomposer) rotate(v []float64, x []float32, m, n int) []float32 {
	t := make([]float32, m*m)
	for i, e := range v {
		t[i] = float32(e)
	}
	out := make([]float32, m*n)
	dc.g.Mul(out, n, t, m, m, gemm.Transposed(x, m, n), false)
	return out
}

// orthonormal turns the m rows of x [m, n] into an orthonormal basis of the space they
// span, of no more rows, by a pivoted Cholesky factorization of their inner products: one
// application leaves an error of the condition of x times 2^-24, two leave none to speak of.
func (dc *Decomposer) orthonormal(x []float32, m, n int) ([]float32, int) {
	g := gram(x, m, n)
	order, c, k := cholesky(g, m)
	// Rows of the inverse of the lower triangle, in the order of the pivots.
	t := make([]float32, k*m)
	row := make([]float64, k)
	for i := range k {
		clear(row)
		row[i] = 1
		for j := i; j >= 0; j-- {
			row[j] /= c[j*m+j]
			for l := range j {
				row[l] -= row[j] * c[j*m+l]
			}
		}
		for j := range i + 1 {
			t[i*m+order[j]] = float32(row[j])
		}
	}
	out := make([]float32, k*n)
	dc.g.Mul(out, n, t, m, k, gemm.Transposed(x, m, n), false)
	return out, k
}

// cholesky factors P g P^T = C C^T with the largest pivot first and stops where what is
// left is rounding of float32 values: k rows of C, row i at c[i*m].
func cholesky(g []float64, m int) (order []int, c []float64, k int) {
	order, c = make([]int, m), make([]float64, m*m)
	diag := make([]float64, m)
	for i := range m {
		order[i], diag[i] = i, g[i*m+i]
	}
	limit := 1e-13 * slices.Max(diag)
	for ; k < m; k++ {
		p := k
		for i := k; i < m; i++ {
			if diag[order[i]] > diag[order[p]] {
				p = i
			}
		}
		if diag[order[p]] <= limit {
			break
		}
		order[k], order[p] = order[p], order[k]
		for j := range k { // rows are kept at their place, so those that change places change rows
			c[k*m+j], c[p*m+j] = c[p*m+j], c[k*m+j]
		}
		at := order[k]
		c[k*m+k] = math.Sqrt(diag[at])
		for i := k + 1; i < m; i++ {
			v := g[order[i]*m+at]
			for j := range k {
				v -= c[i*m+j] * c[k*m+j]
			}
			v /= c[k*m+k]
			c[i*m+k] = v
			diag[order[i]] -= v * v
		}
	}
	return order, c, k
}

// gram returns the inner products of the rows of x [m, n], in float64.
func gram(x []float32, m, n int) []float64 {
	g := make([]float64, m*m)
	wide := make([]float64, m*min(n, gramBlock))
	for at := 0; at < n; at += gramBlock {
		w := min(gramBlock, n-at)
		for i := range m {
			for j, v := range x[i*n+at:][:w] {
				wide[i*w+j] = float64(v)
			}
		}
		for i := range m {
			a := wide[i*w:][:w]
			for j := range i + 1 {
				g[i*m+j] += dot(a, wide[j*w:][:w])
			}
		}
	}
	for i := range m {
		for j := range i {
			g[j*m+i] = g[i*m+j]
		}
	}
	return g
}

const gramBlock = 256 // columns at a time, so that some dozen rows stay in cache

func dot(a, b []float64) float64 {
	var s0, s1, s2, s3 float64
	b = b[:len(a)]
	for len(a) >= 4 && len(b) >= 4 {
		s0 += float64(a[0] * b[0])
		s1 += float64(a[1] * b[1])
		s2 += float64(a[2] * b[2])
		s3 += float64(a[3] * b[3])
		a, b = a[4:], b[4:]
	}
	for i, v := range a {
		s0 += float64(v * b[i])
	}
	return s0 + s1 + (s2 + s3)
}

// eigen returns the square roots of the eigenvalues of a symmetric g [m, m], largest
// first, and the eigenvectors as rows.
func eigen(g []float64, m int) (roots, vectors []float64) {
	var e mat.EigenSym
	if !e.Factorize(mat.NewSymDense(m, g), true) {
		panic("lora: internal error: the eigenvalues of a small matrix were not found")
	}
	values := e.Values(nil)
	var v mat.Dense
	e.VectorsTo(&v)
	roots, vectors = make([]float64, m), make([]float64, m*m)
	for k := range m {
		from := m - 1 - k
		roots[k] = math.Sqrt(max(0, values[from]))
		for i := range m {
			vectors[k*m+i] = v.At(i, from)
		}
	}
	return roots, vectors
}

// exactSVD is the full decomposition, vectors as rows.
func exactSVD(d []float32, rows, cols int) (s []float64, l, r []float32) {
	wide := make([]float64, len(d))
	for i, v := range d {
		wide[i] = float64(v)
	}
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(rows, cols, wide), mat.SVDThin) {
		panic("lora: internal error: the singular values of a finite matrix were not found")
	}
	s = svd.Values(nil)
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	m := len(s)
	l, r = make([]float32, m*rows), make([]float32, m*cols)
	for k := range m {
		for i := range rows {
			l[k*rows+i] = float32(u.At(i, k))
		}
		for j := range cols {
			r[k*cols+j] = float32(v.At(j, k))
		}
	}
	return s, l, r
}

// residual measures d - L R on the factors as they are.
func (dc *Decomposer) residual(d []float32, f *Factors) float64 {
	const step = 480 // rows at a time: a multiple of the panels of package gemm
	right := gemm.Transposed(f.R, f.Rank, f.Cols)
	buf := make([]float32, min(step, f.Rows)*f.Cols)
	var sum float64
	for i := 0; i < f.Rows; i += step {
		n := min(step, f.Rows-i)
		dc.g.Mul(buf, f.Cols, f.L[i*f.Rank:], f.Rank, n, right, false)
		for j, v := range d[i*f.Cols:][:n*f.Cols] {
			e := float64(v - buf[j])
			sum += float64(e * e)
		}
	}
	return math.Sqrt(sum)
}

func sumSquares(x []float32) float64 {
	var s [4]float64
	for len(x) >= 4 {
		a, b, c, d := float64(x[0]), float64(x[1]), float64(x[2]), float64(x[3])
		s[0] += float64(a * a)
		s[1] += float64(b * b)
		s[2] += float64(c * c)
		s[3] += float64(d * d)
		x = x[4:]
	}
	for _, v := range x {
		s[0] += float64(float64(v) * float64(v))
	}
	return s[0] + s[1] + (s[2] + s[3])
}
