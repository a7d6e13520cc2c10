package lora

import (
	"math"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// Pair is what one adapter has for one layer: the delta Scale B A, which counts Weight
// times in a combination.
type Pair struct {
	Rank   int
	A      []float32 // [Rank, in]
	B      []float32 // [out, Rank]
	Scale  float64   // alpha/r, or alpha/sqrt(r)
	Weight float64
}

// Cat stacks the pairs: A = [w s A of each], B = [B of each]. Its product is the weighted
// sum of the deltas, but for one rounding of every element of A. S stays empty.
func Cat(out, in int, pairs []Pair) *Factors {
	f := &Factors{Rows: out, Cols: in, Exact: true}
	for i := range pairs {
		f.Rank += pairs[i].Rank
	}
	f.L, f.R = make([]float32, out*f.Rank), make([]float32, f.Rank*in)
	at := 0
	for i := range pairs {
		p := &pairs[i]
		c := p.Scale * p.Weight
		for j, v := range p.A {
			f.R[at*in+j] = float32(c * float64(v))
		}
		for row := range out {
			copy(f.L[row*f.Rank+at:][:p.Rank], p.B[row*p.Rank:][:p.Rank])
		}
		at += p.Rank
	}
	return f
}

// lost is where a sum of products ends and the rounding of float64 begins, relative to
// the norms of what is multiplied: terms that cancel each other leave no more.
const lost = 1e-13

// Truncate finds the factors that are closest to the weighted sum of the deltas in the
// Frobenius norm, without that sum itself: with
//
//	sum of w s B A = L R,  L = [w s B of each] [out, k],  R = [A of each] [k, in],  k the sum of ranks
//	L = Q1 T1,  R^T = Q2 T2          (thin QR by Householder reflections)
//	T1 T2^T = U S V^T                (at most k by k)
//
// the singular value decomposition of the sum is (Q1 U) S (Q2 V)^T. All of it is float64
// and exact up to its rounding; the factors are rounded to float32 once. At least one
// direction is kept, also of a sum that is zero.
func Truncate(out, in int, pairs []Pair, want Rank) *Factors {
	l, r := stack(out, in, pairs)
	t1, q1 := thinQR(l, true)
	t2, q2 := thinQR(r, true)
	f := &Factors{Rows: out, Cols: in, Exact: true}
	core, floor := inner(t1, t2)
	f.Norm = mat.Norm(core, 2)
	var svd mat.SVD
	if !svd.Factorize(core, mat.SVDThin) {
		panic("lora: internal error: the singular values of a small matrix were not found")
	}
	s := svd.Values(nil)
	for i, v := range s {
		if v <= floor {
			s[i] = 0
		}
	}
	n := len(s)
	if want.N > 0 {
		n = min(n, want.N)
	}
	kept := keep(s[:n], f.Norm*f.Norm, want.Energy)
	f.Rank, f.S = kept, s[:kept]
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	f.L, f.R = make([]float32, out*kept), make([]float32, kept*in)
	spread(q1, &u, s[:kept], func(i, k int, x float64) { f.L[i*kept+k] = float32(x) })
	spread(q2, &v, s[:kept], func(j, k int, x float64) { f.R[k*in+j] = float32(x) })
	f.Residual = Distance(out, in, pairs, f)
	return f
}

// spread computes (q u) times the square roots of s, column by column.
func spread(q mat.Matrix, u *mat.Dense, s []float64, set func(row, k int, x float64)) {
	var w mat.Dense
	rows, _ := u.Dims()
	w.Mul(q, u.Slice(0, rows, 0, len(s)))
	n, _ := w.Dims()
	for k, v := range s {
		root := math.Sqrt(v)
		for i := range n {
			set(i, k, root*w.At(i, k))
		}
	}
}

// Norm is the Frobenius norm of the weighted sum of the deltas, from the factors alone.
func Norm(out, in int, pairs []Pair) float64 {
	l, r := stack(out, in, pairs)
	t1, _ := thinQR(l, false)
	t2, _ := thinQR(r, false)
	core, _ := inner(t1, t2)
	return mat.Norm(core, 2)
}

// inner is t1 t2^T, and below what of it is rounding: it is zero when all of it is.
func inner(t1, t2 mat.Matrix) (core *mat.Dense, floor float64) {
	core = new(mat.Dense)
	core.Mul(t1, t2.T())
	floor = lost * mat.Norm(t1, 2) * mat.Norm(t2, 2)
	if mat.Norm(core, 2) <= floor {
		core.Zero()
	}
	return core, floor
}

// Distance is the Frobenius norm of the weighted sum of the deltas minus L R of f, with
// the float32 values that f has.
func Distance(out, in int, pairs []Pair, f *Factors) float64 {
	all := append(append([]Pair{}, pairs...), Pair{Rank: f.Rank, A: f.R, B: f.L, Scale: 1, Weight: -1})
	return Norm(out, in, all)
}

// stack returns [w s B of each] and the transpose of [A of each].
func stack(out, in int, pairs []Pair) (l, r *mat.Dense) {
	k := 0
	for i := range pairs {
		k += pairs[i].Rank
	}
	l, r = mat.NewDense(out, k, nil), mat.NewDense(in, k, nil)
	at := 0
	for i := range pairs {
		p := &pairs[i]
		c := p.Scale * p.Weight
		for row := range out {
			for j, v := range p.B[row*p.Rank:][:p.Rank] {
				l.Set(row, at+j, c*float64(v))
			}
		}
		for j := range p.Rank {
			for col, v := range p.A[j*in:][:in] {
				r.Set(col, at+j, float64(v))
			}
		}
		at += p.Rank
	}
	return l, r
}

// thinQR returns T and, when it is asked for, Q of x = Q T. A matrix that is no taller than
// wide is its own T.
func thinQR(x *mat.Dense, vectors bool) (t, q mat.Matrix) {
	m, k := x.Dims()
	if m <= k {
		if vectors {
			one := make([]float64, m)
			for i := range one {
				one[i] = 1
			}
			q = mat.NewDiagDense(m, one)
		}
		return x, q
	}
	a := x.RawMatrix()
	tau, work := make([]float64, k), make([]float64, 1)
	lapack64.Geqrf(a, tau, work, -1)
	work = make([]float64, int(work[0]))
	lapack64.Geqrf(a, tau, work, len(work))
	top := mat.NewDense(k, k, nil)
	for i := range k {
		for j := i; j < k; j++ {
			top.Set(i, j, x.At(i, j))
		}
	}
	if vectors {
		formQ(a, tau)
	}
	return top, x
}

// formQ turns reflections into the orthonormal columns that they stand for.
func formQ(a blas64.General, tau []float64) {
	work := make([]float64, 1)
	lapack64.Orgqr(a, tau, work, -1)
	work = make([]float64, int(work[0]))
	lapack64.Orgqr(a, tau, work, len(work))
}
