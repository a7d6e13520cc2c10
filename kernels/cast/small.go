package cast

import (
	"fmt"
	"math"
)

// The 8-bit formats of the OCP specification "8-bit Floating Point" 1.0 and the 4-bit
// and scale formats of "Microscaling Formats" 1.0, by table.
var (
	e4m3 = table8(func(b byte) float64 {
		if b&0x7f == 0x7f {
			return math.NaN() // E4M3 has NaN and no infinities
		}
		return small(b, 4, 3, 7)
	})
	e5m2 = table8(func(b byte) float64 {
		if b&0x7c == 0x7c {
			if b&3 != 0 {
				return math.NaN()
			}
			return math.Inf(1 - 2*int(b>>7))
		}
		return small(b, 5, 2, 15)
	})
	e8m0 = table8(func(b byte) float64 {
		if b == 0xff {
			return math.NaN()
		}
		return math.Ldexp(1, int(b)-127)
	})
	e2m1 = [16]float32{0, 0.5, 1, 1.5, 2, 3, 4, 6, float32(math.Copysign(0, -1)), -0.5, -1, -1.5, -2, -3, -4, -6}
)

// small is the value of a format with a sign, exponent and fraction bits and a bias.
func small(b byte, expBits, fracBits, bias int) float64 {
	frac := int(b) & (1<<fracBits - 1)
	exp := int(b) >> fracBits & (1<<expBits - 1)
	v := math.Ldexp(float64(frac), 1-bias-fracBits)
	if exp > 0 {
		v = math.Ldexp(float64(frac+1<<fracBits), exp-bias-fracBits)
	}
	if b&0x80 != 0 {
		v = -v
		if v == 0 {
			v = math.Copysign(0, -1)
		}
	}
	return v
}

func table8(f func(byte) float64) *[256]float32 {
	var t [256]float32
	for i := range t {
		t[i] = float32(f(byte(i)))
	}
	return &t
}

// E4M3ToF32 decodes float8_e4m3fn (bias 7, no infinities), one element a byte.
func E4M3ToF32(dst []float32, src []byte) { decode8(dst, src, e4m3) }

// E5M2ToF32 decodes float8_e5m2 (bias 15), one element a byte.
func E5M2ToF32(dst []float32, src []byte) { decode8(dst, src, e5m2) }

// E8M0ToF32 decodes the scales of the microscaling formats: 2^(b-127), 255 is NaN.
func E8M0ToF32(dst []float32, src []byte) { decode8(dst, src, e8m0) }

func decode8(dst []float32, src []byte, t *[256]float32) {
	if len(src) != len(dst) {
		panic(fmt.Sprintf("cast: internal error: %d elements do not take %d bytes", len(dst), len(src)))
	}
	for i, b := range src {
		dst[i] = t[b]
	}
}

// E2M1ToF32 decodes 4-bit floats, two a byte, the low nibble first (the order of
// gpt-oss MXFP4 blocks). len(dst) must be 2*len(src).
func E2M1ToF32(dst []float32, src []byte) {
	if len(dst) != 2*len(src) {
		panic(fmt.Sprintf("cast: internal error: %d elements do not take %d bytes", len(dst), len(src)))
	}
	for i, b := range src {
		dst[2*i], dst[2*i+1] = e2m1[b&15], e2m1[b>>4]
	}
}
