//go:build !purego

package vexp

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels"
)

//go:generate go run -C ../_asm ./vexp -out ../vexp/vexp_amd64.s

// gateGroups does whole groups, as far as there is assembly for them, and returns how many
// elements that are.
func gateGroups(x []float32, c1, c3 float64) int {
	n := len(x) / group
	if n == 0 || !kernels.Features.AVX2 {
		return 0
	}
	if kernels.Features.AVX512 {
		gateAVX512(&x[0], n, c1, c3)
	} else {
		gateAVX2(&x[0], n, c1, c3)
	}
	return n * group
}

func divergenceGroups(p *partial, a, b []float32, ma, mb float64) int {
	n := len(a) / group
	if n == 0 || !kernels.Features.AVX2 {
		return 0
	}
	if kernels.Features.AVX512 {
		divergenceAVX512(&p[0], &a[0], &b[0], n, ma, mb)
	} else {
		divergenceAVX2(&p[0], &a[0], &b[0], n, ma, mb)
	}
	return n * group
}

// maxGroups takes groups of four vectors.
func maxGroups(x []float32) (largest float32, n int) {
	if !kernels.Features.AVX2 || len(x) < 32 {
		return float32(math.Inf(-1)), 0
	}
	var m [16]float32
	if kernels.Features.AVX512 && len(x) >= 64 {
		n = len(x) / 64
		maxAVX512(&m[0], &x[0], n)
		return maxGeneric(m[:]), 64 * n
	}
	n = len(x) / 32
	maxAVX2(&m[0], &x[0], n)
	return maxGeneric(m[:8]), 32 * n
}
