//go:build !purego

package cast

// The functions of cast_amd64.s convert whole groups of 32 elements, at least one. They work
// like convertGeneric and return 0 if all results are finite.

//go:noescape
func convertF32ToBF16AVX2(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF32ToBF16AVX512(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF32ToF16AVX2(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF32ToF16AVX512(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertBF16ToF32AVX2(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertBF16ToF32AVX512(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertBF16ToF16AVX2(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertBF16ToF16AVX512(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF16ToF32AVX2(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF16ToF32AVX512(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF16ToBF16AVX2(dst, src *byte, groups int) (bad uint32)

//go:noescape
func convertF16ToBF16AVX512(dst, src *byte, groups int) (bad uint32)

// The following look through whole steps of 128 bytes, at least one, and return how many
// bytes lie before the first step with an element that has all bits of exponent set.
// firstNonFiniteGeneric is what they serve.

//go:noescape
func finite16AVX2(src *byte, steps int, exponent uint32) int

//go:noescape
func finite16AVX512(src *byte, steps int, exponent uint32) int

//go:noescape
func finite32AVX2(src *byte, steps int, exponent uint32) int

//go:noescape
func finite32AVX512(src *byte, steps int, exponent uint32) int
