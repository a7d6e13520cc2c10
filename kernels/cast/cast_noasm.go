//go:build !amd64 || purego

package cast

import "github.com/nf4conv/nf4conv/kernels"

func toF32(dst []float32, src []byte, from kernels.Float) { toF32Generic(dst, src, from) }
func fromF32(dst []byte, src []float32, to kernels.Float) { fromF32Generic(dst, src, to) }
func firstNonFinite(src []byte, f kernels.Float) int      { return firstNonFiniteGeneric(src, f) }

func allFinite(x []float32) bool { return allFiniteGeneric(x) }

// convert returns false: that all results are finite is not known.
func convert(dst []byte, to kernels.Float, src []byte, from kernels.Float) bool {
	convertGeneric(dst, to, src, from)
	return false
}
