// Package lora is the algebra of low-rank adapters on plain slices: what a trained pair
// of factors adds to a weight, and how much of that is left after rounding. It knows no
// files and no tensor names.
//
// # The delta
//
// LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1) adds to a weight W of shape
// [out, in] the product s B A, with A [r, in], B [out, r] and s = alpha/r, or alpha/sqrt(r)
// with rsLoRA (Kalajdzievski 2023). Here every delta is a [Product] of a left factor
// [rows, r] and a right factor [r, cols] in the layout of the stored tensor:
//
//	Linear [out, in]             left = B, right = A
//	Conv1D [in, out]             left = A^T, right = B^T
//	embedding [rows, dim]        left = A^T, right = B^T     (A [r, rows], B [dim, r])
//	convolution [out, in, k...]  left = B, right = A with [in, k...] flattened
//	expert e of a stack          left, right = columns and rows that belong to e
//
// # Arithmetic
//
// Everything is float32 and every element is computed by itself, in this order:
//
//	d = s * (((b0*a0 + b1*a1) + b2*a2) + ...)     k ascending, no fused multiply-add
//	D = (d of adapter 1 + d of adapter 2) + ...   s includes the adapter's weight
//	V = W + D                                     W widened exactly
//	result = V rounded once to the dtype of the tensor
//
// PEFT computes the same with a matrix product that sums in an order of its own: V may
// differ in its last bit, and after rounding to 16 bits rarely does. With [Merge.Safe] D
// is rounded before the sum, adapter by adapter, as PEFT's safe_merge does (and always
// for embeddings and experts):
//
//	V = round(... round(W + round(d of adapter 1)) + round(d of adapter 2) ...)
//
// A product with a factor that is all zero adds nothing, not even +0 to -0.
//
// DoRA (Liu et al. 2024, arXiv 2402.09353) scales V by a trained magnitude over its norm,
// per output of a linear layer, per dimension of an embedding: V = m / ||W + D|| * (W + D).
// Norms are summed in float64 and rounded to float32; the factor and the product are
// float32. There is one rounding in every mode, as in PEFT.
//
// # Combinations
//
// Several pairs become one: [Cat] stacks their factors, [Truncate] finds the closest pair
// of a lower rank by QR of the factors and the singular values of a small matrix, [Blend]
// prunes, elects signs (TIES, DARE) and sums element by element, of factors or of whole
// deltas. docs/lora.md has the table.
package lora

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels/lowrank"
)

// Product is Scale times L R, of shape [Rows, Cols].
type Product struct {
	Rows, Cols, Rank int
	L                []float32 // [Rows, Rank]
	R                []float32 // [Rank, Cols]
	Scale            float32
	zero             bool
}

// NewProduct checks the factors' sizes and whether one is all zero.
func NewProduct(rows, cols, rank int, l, r []float32, scale float32) Product {
	if len(l) != rows*rank || len(r) != rank*cols {
		panic(fmt.Sprintf("lora: internal error: factors of %d and %d elements for [%d, %d] of rank %d", len(l), len(r), rows, cols, rank))
	}
	return Product{Rows: rows, Cols: cols, Rank: rank, L: l, R: r, Scale: scale, zero: scale == 0 || allZero(l) || allZero(r)}
}

// Zero tells whether the product is zero because a factor is.
func (p *Product) Zero() bool { return p.zero }

func allZero(x []float32) bool {
	for _, v := range x {
		if v != 0 {
			return false
		}
	}
	return true
}

// Fill sets dst to the elements from flat index first on.
func (p *Product) Fill(dst []float32, first int) {
	if p.zero {
		clear(dst)
		return
	}
	for len(dst) > 0 {
		row, col := first/p.Cols, first%p.Cols
		n := min(len(dst), p.Cols-col)
		lowrank.Row(dst[:n], p.L[row*p.Rank:][:p.Rank], p.R[col:], p.Cols, p.Scale)
		dst, first = dst[n:], first+n
	}
}

// Transpose returns the [cols, rows] transpose of x [rows, cols].
func Transpose(x []float32, rows, cols int) []float32 {
	out := make([]float32, len(x))
	for i := range rows {
		for j, v := range x[i*cols:][:cols] {
			out[j*rows+i] = v
		}
	}
	return out
}

// Term is what one adapter adds to a stack of matrices: one product for each, or one for
// all of a single matrix.
type Term []Product

// Zero tells whether every product is.
func (t Term) Zero() bool {
	for i := range t {
		if !t[i].zero {
			return false
		}
	}
	return true
}

// fill sets dst to elements of the term, from flat index first of the stack on.
func (t Term) fill(dst []float32, first int64) {
	size := int64(t[0].Rows) * int64(t[0].Cols)
	for len(dst) > 0 {
		k, at := first/size, first%size
		n := min(int64(len(dst)), size-at)
		t[k].Fill(dst[:n], int(at))
		dst, first = dst[n:], first+n
	}
}

// Merge is what becomes of one tensor.
type Merge struct {
	Terms   []Term
	Safe    bool            // round every adapter's delta before it is added, with Round
	Round   func([]float32) // to the dtype of the tensor, in place
	Scaling *Scaling        // DoRA, with a single term
}

// Apply adds the deltas to v, which holds the weight from flat index first on, in place.
// delta, of the same length, receives what was meant to be added in total. Calls for
// different ranges may run at the same time.
func (m *Merge) Apply(v, delta []float32, first int64) {
	if m.Scaling == nil {
		m.add(v, delta, first)
		return
	}
	copy(delta, v)
	m.add(v, make([]float32, min(len(v), piece)), first)
	m.Scaling.apply(v, first)
	for i, w := range delta {
		delta[i] = v[i] - w
	}
}

// piece is how many elements are kept in the first cache between two passes over them.
const piece = 4096

// add adds the terms to v and leaves their sum in total: all of it when total is as long
// as v, else that of the last piece.
func (m *Merge) add(v, total []float32, first int64) {
	var live []Term
	for _, t := range m.Terms {
		if !t.Zero() {
			live = append(live, t)
		}
	}
	if len(live) == 0 {
		clear(total)
		return
	}
	safe := m.Safe && m.Scaling == nil
	var next []float32
	if len(live) > 1 || safe {
		next = make([]float32, min(len(v), piece))
	}
	for at := 0; at < len(v); at += piece {
		w := v[at:min(at+piece, len(v))]
		sum := total[:len(w)]
		if len(total) == len(v) {
			sum = total[at:][:len(w)]
		}
		live[0].fill(sum, first+int64(at))
		if safe {
			m.addSafe(w, sum, next[:len(w)], live, first+int64(at))
			continue
		}
		for _, t := range live[1:] {
			t.fill(next[:len(w)], first+int64(at))
			accumulate(sum, next[:len(w)])
		}
		accumulate(w, sum)
	}
}

// addSafe adds term by term, each rounded, and rounds between. sum holds the first.
func (m *Merge) addSafe(w, sum, d []float32, live []Term, first int64) {
	for k, t := range live {
		if k == 0 {
			copy(d, sum)
		} else {
			t.fill(d, first)
			accumulate(sum, d)
			m.Round(w)
		}
		m.Round(d)
		accumulate(w, d)
	}
}

func accumulate(dst, x []float32) {
	x = x[:len(dst)]
	for i := range dst {
		dst[i] += x[i]
	}
}

// Zero tells whether nothing is added and nothing scaled.
func (m *Merge) Zero() bool {
	for _, t := range m.Terms {
		if !t.Zero() {
			return false
		}
	}
	return m.Scaling == nil
}
