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
	switch from {
	case kernels.F32:
		f32ToF32Generic(dst, src)
	case kernels.BF16:
		bf16ToF32Generic(dst, src)
	case kernels.F16:
		f16ToF32Generic(dst, src)
	}
}

// FromF32 rounds len(src) elements into dst.
func FromF32(dst []byte, src []float32, to kernels.Float) {
	check(len(dst), len(src), to)
	switch to {
	case kernels.F32:
		f32FromF32Generic(dst, src)
	case kernels.BF16:
		bf16FromF32Generic(dst, src)
	case kernels.F16:
		f16FromF32Generic(dst, src)
	}
}

// Convert turns elements of one format into another, with one rounding. Equal formats
// are copied bit for bit.
func Convert(dst []byte, to kernels.Float, src []byte, from kernels.Float) {
	n := len(src) / from.Size()
	check(len(src), n, from)
	check(len(dst), n, to)
	if to == from {
		copy(dst, src)
		return
	}
	var buf [512]float32
	for n > 0 {
		k := min(n, len(buf))
		ToF32(buf[:k], src[:k*from.Size()], from)
		FromF32(dst[:k*to.Size()], buf[:k], to)
		src, dst, n = src[k*from.Size():], dst[k*to.Size():], n-k
	}
}

// FirstNonFinite is the index of the first NaN or infinity, or -1.
func FirstNonFinite(src []byte, f kernels.Float) int {
	check(len(src), len(src)/f.Size(), f)
	switch f {
	case kernels.BF16:
		return firstNonFinite16Generic(src, 0x7f80)
	case kernels.F16:
		return firstNonFinite16Generic(src, 0x7c00)
	}
	return firstNonFinite32Generic(src)
}

func check(bytes, elems int, f kernels.Float) {
	if f > kernels.F16 {
		panic(fmt.Sprintf("cast: internal error: unknown format %d", uint8(f)))
	}
	if bytes != elems*f.Size() {
		panic(fmt.Sprintf("cast: internal error: %d elements of %v do not take %d bytes", elems, f, bytes))
	}
}
