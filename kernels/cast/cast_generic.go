package cast

import (
	"encoding/binary"
	"math"

	"github.com/nf4conv/nf4conv/kernels"
)

func toF32Generic(dst []float32, src []byte, from kernels.Float) {
	switch from {
	case kernels.F32:
		f32ToF32Generic(dst, src)
	case kernels.BF16:
		bf16ToF32Generic(dst, src)
	case kernels.F16:
		f16ToF32Generic(dst, src)
	}
}

func fromF32Generic(dst []byte, src []float32, to kernels.Float) {
	switch to {
	case kernels.F32:
		f32FromF32Generic(dst, src)
	case kernels.BF16:
		bf16FromF32Generic(dst, src)
	case kernels.F16:
		f16FromF32Generic(dst, src)
	}
}

func convertGeneric(dst []byte, to kernels.Float, src []byte, from kernels.Float) {
	if to == from {
		copy(dst, src)
		return
	}
	var buf [512]float32
	for n := len(src) / from.Size(); n > 0; {
		k := min(n, len(buf))
		toF32Generic(buf[:k], src[:k*from.Size()], from)
		fromF32Generic(dst[:k*to.Size()], buf[:k], to)
		src, dst, n = src[k*from.Size():], dst[k*to.Size():], n-k
	}
}

func firstNonFiniteGeneric(src []byte, f kernels.Float) int {
	if f == kernels.F32 {
		return firstNonFinite32Generic(src)
	}
	return firstNonFinite16Generic(src, exponent16(f))
}

func allFiniteGeneric(x []float32) bool {
	for _, v := range x {
		if v-v != 0 {
			return false
		}
	}
	return true
}

// exponent16 is the exponent field of a 16-bit format, all ones in what is not finite.
func exponent16(f kernels.Float) uint16 {
	if f == kernels.F16 {
		return 0x7c00
	}
	return 0x7f80
}

func f32ToBF16(v float32) uint16 {
	b := math.Float32bits(v)
	if v != v {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// f16ToF32 shifts exponent and fraction into place; the product with 2^112 then corrects
// the exponent's bias, and makes subnormals normal, exactly.
func f16ToF32(h uint16) float32 {
	sign, magnitude := uint32(h)&0x8000<<16, uint32(h)&0x7fff
	if magnitude >= 0x7c00 {
		b := sign | 0x7f800000 | magnitude<<13
		if magnitude > 0x7c00 {
			b |= 0x400000
		}
		return math.Float32frombits(b)
	}
	return math.Float32frombits(sign|magnitude<<13) * 0x1p112
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

func f32ToF32Generic(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[:4]))
		src = src[4:]
	}
}

func bf16ToF32Generic(dst []float32, src []byte) {
	for len(dst) >= 4 && len(src) >= 8 {
		v := binary.LittleEndian.Uint64(src)
		dst[0] = math.Float32frombits(uint32(v) << 16)
		dst[1] = math.Float32frombits(uint32(v) & 0xffff0000)
		dst[2] = math.Float32frombits(uint32(v>>32) << 16)
		dst[3] = math.Float32frombits(uint32(v>>32) & 0xffff0000)
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

func f16ToF32Generic(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = f16ToF32(binary.LittleEndian.Uint16(src[:2]))
		src = src[2:]
	}
}

func f32FromF32Generic(dst []byte, src []float32) {
	for _, v := range src {
		binary.LittleEndian.PutUint32(dst[:4], math.Float32bits(v))
		dst = dst[4:]
	}
}

func bf16FromF32Generic(dst []byte, src []float32) {
	for _, v := range src {
		binary.LittleEndian.PutUint16(dst[:2], f32ToBF16(v))
		dst = dst[2:]
	}
}

func f16FromF32Generic(dst []byte, src []float32) {
	for _, v := range src {
		binary.LittleEndian.PutUint16(dst[:2], f32ToF16(v))
		dst = dst[2:]
	}
}

// firstNonFinite16Generic finds the first element whose exponent bits are all ones. Four
// are looked at together: adding one to a full exponent field carries into the sign bit,
// which was cleared before.
func firstNonFinite16Generic(src []byte, exponent uint16) int {
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

func firstNonFinite32Generic(src []byte) int {
	const exponents, one, signs = 0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000
	i := 0
	for ; i+8 <= len(src); i += 8 {
		if (binary.LittleEndian.Uint64(src[i:])&exponents+one)&signs != 0 {
			break
		}
	}
	for ; i+4 <= len(src); i += 4 {
		if binary.LittleEndian.Uint32(src[i:])&0x7f800000 == 0x7f800000 {
			return i / 4
		}
	}
	return -1
}
