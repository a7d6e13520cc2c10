// Package cast converts between floating-point storage formats, to nearest with ties
// to even. Data is little-endian bytes, as it stands in files; slices need no
// alignment. NaN stays NaN (made quiet), infinities stay infinite, subnormals are
// exact. Lengths must match; a mismatch is a panic.
package cast

import (
	"encoding/binary"
	"math"

	"github.com/nf4conv/nf4conv/kernels"
)

// ToF32 widens len(dst) elements of src. It is exact.
func ToF32(dst []float32, src []byte, from kernels.Float) {
	check(len(src), len(dst), from)
	switch from {
	case kernels.F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case kernels.BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	case kernels.F16:
		for i := range dst {
			dst[i] = f16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
}

// FromF32 rounds len(src) elements into dst.
func FromF32(dst []byte, src []float32, to kernels.Float) {
	check(len(dst), len(src), to)
	switch to {
	case kernels.F32:
		for i, v := range src {
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
		}
	case kernels.BF16:
		for i, v := range src {
			binary.LittleEndian.PutUint16(dst[2*i:], f32ToBF16(v))
		}
	case kernels.F16:
		for i, v := range src {
			binary.LittleEndian.PutUint16(dst[2*i:], f32ToF16(v))
		}
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
	case kernels.F32:
		for i := 0; i+4 <= len(src); i += 4 {
			if binary.LittleEndian.Uint32(src[i:])&0x7f800000 == 0x7f800000 {
				return i / 4
			}
		}
	case kernels.BF16:
		return firstHalf(src, 0x7f80)
	case kernels.F16:
		return firstHalf(src, 0x7c00)
	}
	return -1
}

// firstHalf finds the first 16-bit element whose exponent bits are all ones. Four are
// looked at together: adding one to a full exponent field carries into the sign bit,
// which was cleared before.
func firstHalf(src []byte, exponent uint16) int {
	mask := uint64(exponent) * 0x0001000100010001
	one := uint64(exponent&-exponent) * 0x0001000100010001
	const signs = 0x8000800080008000
	i := 0
	for ; i+8 <= len(src); i += 8 {
		if (binary.LittleEndian.Uint64(src[i:])&mask+one)&signs != 0 {
			break
		}
	}
	for ; i+2 <= len(src); i += 2 {
		if binary.LittleEndian.Uint16(src[i:])&exponent == exponent {
			return i / 2
		}
	}
	return -1
}

func check(bytes, elems int, f kernels.Float) {
	if bytes != elems*f.Size() {
		panic("cast: internal error: lengths do not match")
	}
}

func f32ToBF16(v float32) uint16 {
	b := math.Float32bits(v)
	if v != v {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func f16ToF32(h uint16) float32 {
	sign := uint32(h>>15) << 31
	exp, frac := uint32(h>>10&0x1f), uint32(h&0x3ff)
	switch exp {
	case 0: // zero or subnormal: frac * 2^-24
		return math.Float32frombits(sign | math.Float32bits(float32(frac)*0x1p-24))
	case 0x1f:
		if frac != 0 {
			frac |= 0x200
		}
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

func f32ToF16(v float32) uint16 {
	b := math.Float32bits(v)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7e00 | uint16(b>>13&0x3ff)
	case b >= 0x477ff000: // 65520 and above round to infinity
		return sign | 0x7c00
	case b < 0x38800000: // subnormal in binary16: the sum is rounded to a multiple of 2^-24
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
	}
	return sign | uint16((b-0x38000000+0xfff+b>>13&1)>>13)
}
