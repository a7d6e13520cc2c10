// Package lowrank multiplies a row by a thin matrix: the inner step of writing out the
// product of two factors of small rank, row by row.
//
// With l of r elements and R of r rows,
//
//	dst[j] = scale * (l[0]*R[0,j] + l[1]*R[1,j] + ... + l[r-1]*R[r-1,j])
//
// in float32, from left to right, every product and every sum rounded by itself (no
// fused multiply-add), the scale last. Each element is a sum of its own, so the result
// does not depend on how a row is cut into pieces or on the width of a vector.
package lowrank

import "fmt"

// Row sets dst to scale times l R. Row k of R begins at r[k*stride]; of every row the first
// len(dst) elements are used. l must not be empty.
func Row(dst, l, r []float32, stride int, scale float32) {
	if len(l) == 0 || stride < len(dst) || len(r) < (len(l)-1)*stride+len(dst) {
		panic(fmt.Sprintf("lowrank: internal error: %d elements of %d rows at a stride of %d do not fit in %d", len(dst), len(l), stride, len(r)))
	}
	n := rowGroups(dst, l, r, stride, scale)
	if n < len(dst) {
		rowGeneric(dst[n:], l, r[n:], stride, scale)
	}
}
