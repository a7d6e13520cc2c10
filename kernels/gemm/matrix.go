package gemm

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// A Matrix is a view of weights [N, K] in memory. It copies nothing; several products may
// read one at the same time.
type Matrix struct {
	rows, cols int

	wide      []float32 // element (n, k) at n*row + k*step
	row, step int

	stored []byte // row-major elements of the format
	format kernels.Float

	packed []byte // as quant4 stores the flattened matrix
	absmax []float32
	size   int
	book   *quant4.Codebook
}

// Rows is N, the number of outputs.
func (w *Matrix) Rows() int { return w.rows }

// Cols is K, the number of inputs.
func (w *Matrix) Cols() int { return w.cols }

// F32 is the row-major float32 matrix [n, k].
func F32(w []float32, n, k int) *Matrix {
	checkShape(n, k, len(w) >= n*k, "%d elements", len(w))
	return &Matrix{rows: n, cols: k, wide: w, row: k, step: 1}
}

// Transposed is the transpose of the row-major float32 matrix b [k, n]: with it,
// [Multiplier.Mul] computes A*b.
func Transposed(b []float32, k, n int) *Matrix {
	checkShape(n, k, len(b) >= n*k, "%d elements", len(b))
	return &Matrix{rows: n, cols: k, wide: b, row: 1, step: n}
}

// Stored is the row-major matrix [n, k] of little-endian elements, as it stands in a
// checkpoint. The bytes need no alignment.
func Stored(w []byte, format kernels.Float, n, k int) *Matrix {
	checkShape(n, k, len(w) == n*k*format.Size(), "%d bytes of %v", len(w), format)
	return &Matrix{rows: n, cols: k, stored: w, format: format}
}

// Quant4 is the matrix [n, k] whose n*k elements, flattened row by row, package quant4 cut
// into blocks of blockSize, with the float32 scale of every block: absmax that is itself
// quantized is reconstructed before.
func Quant4(packed []byte, absmax []float32, blockSize int, book *quant4.Codebook, n, k int) *Matrix {
	ok := blockSize > 0 && blockSize%2 == 0 && len(packed) == (n*k+1)/2 && len(absmax) == (n*k+blockSize-1)/blockSize
	checkShape(n, k, ok, "%d packed bytes, %d scales of blocks of %d", len(packed), len(absmax), blockSize)
	return &Matrix{rows: n, cols: k, packed: packed, absmax: absmax, size: blockSize, book: book}
}

func checkShape(n, k int, ok bool, format string, args ...any) {
	if n < 0 || k < 0 || !ok {
		panic(fmt.Sprintf("gemm: internal error: a matrix [%d %d] is not "+format, append([]any{n, k}, args...)...))
	}
}

// block is the part of the matrix from n0 to n1 and from k0 on for k columns, as Mul of
// package panel reads it: element (n0+i, k0+j) at i*row + j*step, for height >= n1-n0 rows.
func (w *Matrix) block(s *worker, n0, n1, k0, k, height int) (a []float32, row, step int) {
	if k == 0 {
		return nil, 0, 0
	}
	if w.wide != nil && height == n1-n0 {
		return w.wide[n0*w.row+k0*w.step:], w.row, w.step
	}
	s.w = grow(s.w, blockN*blockK)
	b := s.w[:height*k]
	clear(b[(n1-n0)*k:])
	w.widen(b, k, n0, n1, k0, k)
	return b, k, 1
}

// widen copies the part of the matrix from n0 to n1 and from k0 on for k columns to rows
// of dst that are stride apart.
func (w *Matrix) widen(dst []float32, stride, n0, n1, k0, k int) {
	for n := n0; n < n1; n++ {
		dst, at := dst[(n-n0)*stride:][:k], n*w.cols+k0
		switch {
		case w.stored != nil:
			size := w.format.Size()
			cast.ToF32(dst, w.stored[at*size:(at+k)*size], w.format)
		case w.packed != nil:
			w.dequantize(dst, at)
		case w.step == 1:
			copy(dst, w.wide[n*w.row+k0:])
		default:
			for j := range dst {
				dst[j] = w.wide[n*w.row+(k0+j)*w.step]
			}
		}
	}
}

// dequantize writes elements of the flattened matrix from at on. They may start and end
// inside a block of quant4, which takes a short block at the end but none at the start,
// and inside a byte.
func (w *Matrix) dequantize(dst []float32, at int) {
	if at%2 != 0 && len(dst) > 0 {
		b := at / w.size
		code := w.packed[at/2] & 15
		dst[0] = w.book.Levels[code] * w.absmax[b]
		dst, at = dst[1:], at+1
	}
	if first := at % w.size; first != 0 && len(dst) > 0 {
		n := min(len(dst), w.size-first)
		b := at / w.size
		quant4.DequantizeF32(dst[:n], w.packed[at/2:(at+n+1)/2], w.absmax[b:b+1], w.size, w.book)
		dst, at = dst[n:], at+n
	}
	if n := len(dst); n > 0 {
		b := at / w.size
		quant4.DequantizeF32(dst, w.packed[at/2:(at+n+1)/2], w.absmax[b:b+(n+w.size-1)/w.size], w.size, w.book)
	}
}
