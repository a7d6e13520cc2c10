// Package panel multiplies packed panels of float32 matrices: the inner loop that
// kernels/gemm and kernels/flash share.
//
// A panel holds a few columns of a matrix, row after row without gaps:
//
//	panel[t*w + j]   row t, column j < w,   w = vecs*Lanes, vecs = 1, 2 or 3
//
// so that a row is a whole number of vector registers. [Kernel.Mul] multiplies a matrix a,
// which is read one element at a time and may lie in any regular order, with a panel b and
// writes a panel c. Per element, with a sum that starts at zero and takes t in ascending
// order:
//
//	s[i][j] = sum over t < k of a[i*aRow + t*aStep] * b[t*w + j]
//	Store:   c[i*w+j] = s[i][j]
//	Add:     c[i*w+j] = c[i*w+j] + s[i][j]
//	Rescale: c[i*w+j] = c[i*w+j]*scale[j] + s[i][j]
//
// The assembly tiers fuse every product with its addition and give the same bits as each
// other; generic Go rounds the product first, because a fused float32 multiply-add is slow
// without the instruction. Tests hold each to the error bound of a sum of k products.
//
// The tile of c that stays in registers is Rows x w. With three vectors, AVX-512 keeps
// 8x48 in 24 of 32 registers and AVX2 4x24 in 12 of 16, and Rows divides the head
// dimensions of attention, for which nothing is then padded. See Goto and van de Geijn,
// "Anatomy of High-Performance Matrix Multiplication" (2008), for the blocking around it.
package panel

import (
	"fmt"
	"unsafe"

	"github.com/nf4conv/nf4conv/kernels"
)

// MaxVecs is the largest number of vectors in the row of a panel.
const MaxVecs = 3

// Mode says what becomes of the former content of c; see the package comment.
type Mode int

// The modes of [Kernel.Mul].
const (
	Store Mode = iota
	Add
	Rescale
)

// Kernel is one tier's implementation.
type Kernel struct {
	Tier  string // as in kernels.Tiers
	Rows  int    // rows of a are taken in tiles of so many
	Lanes int    // float32 elements in a vector

	mul       [MaxVecs + 1]mulFunc
	few       [formats][MaxFew + 1]fewFunc
	transpose func(dst *float32, ldd int, src *float32, lds, rows, cols int)
}

type mulFunc func(c, b, a *float32, aRow, aStep, tiles, k, mode int, scale, next *float32, line int)

var generic = Kernel{Tier: "generic", Rows: 4, Lanes: 8}

// Best is the kernel of the best tier in kernels.Features.
func Best() *Kernel {
	all := All()
	return all[len(all)-1]
}

// All lists the kernels that this process can run, best last.
func All() []*Kernel {
	list := []*Kernel{&generic}
	if avx2 != nil && kernels.Features.AVX2 {
		list = append(list, avx2)
	}
	if avx512 != nil && kernels.Features.AVX512 {
		list = append(list, avx512)
	}
	return list
}

// maxCall bounds the multiply-adds of one call of assembly, which cannot be preempted:
// below 0.1 ms at 90 GFLOP/s.
const maxCall = 1 << 22

// lineLen is the number of float32 elements in a line of the caches.
const lineLen = 16

// Mul multiplies tiles*Rows rows of a with the panel b of k rows and vecs vectors; the
// package comment defines the result. scale is used by Rescale only. Strides must not be
// negative and slices must reach to the last element used; otherwise Mul panics.
func (kn *Kernel) Mul(c, b, a []float32, aRow, aStep, tiles, k, vecs int, mode Mode, scale []float32) {
	kn.MulNext(c, b, a, aRow, aStep, tiles, k, vecs, mode, scale, nil)
}

// MulNext is Mul, which meanwhile asks memory for next, the panel that the caller comes to
// after this one.
func (kn *Kernel) MulNext(c, b, a []float32, aRow, aStep, tiles, k, vecs int, mode Mode, scale, next []float32) {
	if tiles == 0 {
		return
	}
	w, rows := vecs*kn.Lanes, tiles*kn.Rows
	switch {
	case vecs < 1 || vecs > MaxVecs || tiles < 0 || k < 0 || aRow < 0 || aStep < 0 || mode < Store || mode > Rescale:
		panic(fmt.Sprintf("panel: internal error: %d tiles, k %d, %d vectors, strides %d and %d, mode %d", tiles, k, vecs, aRow, aStep, mode))
	case len(c) < rows*w:
		panic(fmt.Sprintf("panel: internal error: c has %d elements, want %d*%d", len(c), rows, w))
	case len(b) < k*w:
		panic(fmt.Sprintf("panel: internal error: b has %d elements, want %d*%d", len(b), k, w))
	case k > 0 && len(a) <= (rows-1)*aRow+(k-1)*aStep:
		panic(fmt.Sprintf("panel: internal error: a has %d elements, want %d", len(a), (rows-1)*aRow+(k-1)*aStep+1))
	case mode == Rescale && len(scale) < w:
		panic(fmt.Sprintf("panel: internal error: %d scales, want %d", len(scale), w))
	}
	if kn.mul[vecs] == nil {
		mulGeneric(c, b, a, aRow, aStep, rows, k, w, mode, scale)
		return
	}
	most := max(1, maxCall/(kn.Rows*w*max(1, k)))
	for at := 0; at < tiles; {
		n, row := min(most, tiles-at), at*kn.Rows
		var ap *float32 // a may be empty when k is 0
		if k > 0 {
			ap = &a[row*aRow]
		}
		ahead, line := &c[row*w], 0 // what is needed anyway, again and again
		if asked := k / 4 * lineLen; asked > 0 && len(next) > 0 {
			ahead, line = &next[0], 4*lineLen
			n = min(n, (len(next)+asked-1)/asked)
			next = next[min(len(next), n*asked):]
		}
		kn.mul[vecs](&c[row*w], unsafe.SliceData(b), ap, aRow, aStep, n, k, int(mode), unsafe.SliceData(scale), ahead, line)
		at += n
	}
}

// Transpose writes dst[j*ldd+i] = src[i*lds+j] for i < rows and j < cols.
func (kn *Kernel) Transpose(dst []float32, ldd int, src []float32, lds, rows, cols int) {
	if rows <= 0 || cols <= 0 {
		return
	}
	if ldd < rows || lds < cols || len(dst) < (cols-1)*ldd+rows || len(src) < (rows-1)*lds+cols {
		panic(fmt.Sprintf("panel: internal error: transposing %dx%d: strides %d and %d, %d elements from %d", rows, cols, ldd, lds, len(dst), len(src)))
	}
	r, c := 0, 0 // the part in whole vectors
	if kn.transpose != nil {
		r, c = rows/kn.Lanes*kn.Lanes, cols/kn.Lanes*kn.Lanes
		if r > 0 && c > 0 {
			kn.transpose(&dst[0], ldd, &src[0], lds, r, c)
		}
	}
	transposeGeneric(dst, ldd, src, lds, 0, r, c, cols)
	transposeGeneric(dst, ldd, src, lds, r, rows, 0, cols)
}
