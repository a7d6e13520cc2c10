//go:build !purego

package lowrank

// The functions of lowrank_amd64.s work like rowGeneric on whole groups of columns, at least
// one. stride counts elements.

//go:noescape
func rowAVX2(dst, l, r *float32, rank, stride, groups int, scale float32)

//go:noescape
func rowAVX512(dst, l, r *float32, rank, stride, groups int, scale float32)
