//go:build !purego

package lowrank

import "github.com/nf4conv/nf4conv/kernels"

//go:generate go run -C ../_asm ./lowrank -out ../lowrank/lowrank_amd64.s

// Columns that the assembly computes at a time.
const (
	groupAVX2   = 32
	groupAVX512 = 64
)

// rowGroups does whole groups of columns, as far as there is assembly for them, and returns
// how many columns that are.
func rowGroups(dst, l, r []float32, stride int, scale float32) int {
	n := 0
	if !kernels.Features.AVX2 {
		return 0
	}
	if kernels.Features.AVX512 && len(dst) >= groupAVX512 {
		g := len(dst) / groupAVX512
		rowAVX512(&dst[0], &l[0], &r[0], len(l), stride, g, scale)
		n = g * groupAVX512
	}
	if len(dst)-n >= groupAVX2 {
		g := (len(dst) - n) / groupAVX2
		rowAVX2(&dst[n], &l[0], &r[n], len(l), stride, g, scale)
		n += g * groupAVX2
	}
	return n
}
