// Package cast converts between floating-point storage formats, to nearest with ties
// to even. Data is little-endian bytes, as it stands in files; slices need no
// alignment. NaN stays NaN (made quiet where it is rounded), infinities stay infinite,
// subnormals are exact, what is too large becomes infinite. Lengths must match; a
// mismatch is a panic.
package cast

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels"
)

// ToF32 widens len(dst) elements of src. It is exact.
func ToF32(dst []float32, src []byte, from kernels.Float) {
	check(len(src), len(dst), from)
	toF32(dst, src, from)
}

// FromF32 rounds len(src) elements into dst.
func FromF32(dst []byte, src []float32, to kernels.Float) {
	check(len(dst), len(src), to)
	fromF32(dst, src, to)
}

// Convert turns elements of one format into another, with one rounding. Equal formats
// are copied bit for bit.
func Convert(dst []byte, to kernels.Float, src []byte, from kernels.Float) {
	checkConvert(dst, to, src, from)
	convert(dst, to, src, from)
}

// ConvertFinite is Convert and looks at the results on the way: it returns the index of the
// first that is not finite, or -1. That is one which is NaN or infinite in src already or
// too large for the format to. Behind it, dst need not be written.
func ConvertFinite(dst []byte, to kernels.Float, src []byte, from kernels.Float) int {
	checkConvert(dst, to, src, from)
	// Where the assembly has seen something, the index is looked for in a piece that is still
	// in the first-level cache.
	const piece = 1 << 13
	for i, n := 0, len(src)/from.Size(); i < n; i += piece {
		end := min(n, i+piece)
		d := dst[i*to.Size() : end*to.Size()]
		if !convert(d, to, src[i*from.Size():end*from.Size()], from) {
			if bad := FirstNonFinite(d, to); bad >= 0 {
				return i + bad
			}
		}
	}
	return -1
}

// FirstNonFinite is the index of the first NaN or infinity, or -1.
func FirstNonFinite(src []byte, f kernels.Float) int {
	check(len(src), len(src)/f.Size(), f)
	return firstNonFinite(src, f)
}

// AllFinite says whether no element of x is NaN or infinite.
func AllFinite(x []float32) bool { return allFinite(x) }

func checkConvert(dst []byte, to kernels.Float, src []byte, from kernels.Float) {
	check(len(src), len(src)/from.Size(), from)
	check(len(dst), len(src)/from.Size(), to)
}

func check(bytes, elems int, f kernels.Float) {
	if f > kernels.F16 {
		panic(fmt.Sprintf("cast: internal error: unknown format %d", uint8(f)))
	}
	if bytes != elems*f.Size() {
		panic(fmt.Sprintf("cast: internal error: %d elements of %v do not take %d bytes", elems, f, bytes))
	}
}
