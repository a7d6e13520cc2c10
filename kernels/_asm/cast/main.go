// Command cast writes the assembly of package kernels/cast.
package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// c are the constants.
var c struct {
	one, bias, quiet       Mem
	exp32, expBF16, expF16 Mem
}

func main() {
	ConstraintExpr("!purego")
	dwords := func(name string, v uint32) Mem { return emit.Dwords(name, 16, func(int) uint32 { return v }) }
	c.one, c.bias, c.quiet = dwords("c_one", 1), dwords("c_bias", 0x7fff), dwords("c_quiet", 0x40)
	c.exp32, c.expBF16, c.expF16 = dwords("c_exp32", 0x7f800000), dwords("c_expbf16", 0x7f807f80), dwords("c_expf16", 0x7c007c00)
	for _, from := range formats() {
		for _, to := range formats() {
			if from.name != to.name {
				convertAVX2(from, to)
				convertAVX512(from, to)
			}
		}
	}
	for _, words := range []bool{true, false} {
		finiteAVX2(words)
		finiteAVX512(words)
	}
	Generate()
}

type format struct {
	name     string
	size     int
	exponent Mem
}

func formats() []format {
	return []format{{"F32", 4, c.exp32}, {"BF16", 2, c.expBF16}, {"F16", 2, c.expF16}}
}

// widen loads a vector of float32 from elements of a format.
func (f format) widen(m Mem, v reg.VecVirtual) {
	switch f.name {
	case "F32":
		VMOVUPS(m, v)
	case "BF16":
		VPMOVZXWD(m, v)
		VPSLLD(Imm(16), v, v)
	case "F16":
		VCVTPH2PS(m, v)
	}
}

// kernel begins a conversion of groups of 32 elements, at least one.
func kernel(name string) (dst, src, groups reg.Register) {
	TEXT(name, attr.NOSPLIT, "func(dst, src *byte, groups int) (bad uint32)")
	return Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("groups"), GP64())
}

// convertAVX2 goes through 32 elements at a time. What is not finite in the result is
// gathered in bad.
func convertAVX2(from, to format) {
	dst, src, groups := kernel("convert" + from.name + "To" + to.name + "AVX2")
	exponent, bad := YMM(), YMM()
	VMOVDQU(to.exponent, exponent)
	VPXOR(bad, bad, bad)
	check := func(v reg.VecVirtual) {
		t := YMM()
		VPAND(exponent, v, t)
		if to.size == 2 {
			VPCMPEQW(exponent, t, t)
		} else {
			VPCMPEQD(exponent, t, t)
		}
		VPOR(t, bad, bad)
	}
	emit.Repeat(groups, func() {
		for i := 0; i < 32; i += 16 {
			var v [2]reg.VecVirtual
			for k := range v {
				v[k] = YMM()
				from.widen(Mem{Base: src, Disp: (i + 8*k) * from.size}, v[k])
				switch to.name {
				case "F32":
					check(v[k])
					VMOVUPS(v[k], Mem{Base: dst, Disp: (i + 8*k) * 4})
				case "BF16":
					nan, high, t := YMM(), YMM(), YMM()
					VCMPPS(Imm(3), v[k], v[k], nan)
					VPSRLD(Imm(16), v[k], high)
					VPAND(c.one, high, t)
					VPADDD(c.bias, t, t)
					VPADDD(t, v[k], v[k])
					VPSRLD(Imm(16), v[k], v[k])
					VPOR(c.quiet, high, high)
					VPBLENDVB(nan, high, v[k], v[k])
				case "F16":
					VCVTPS2PH(Imm(0), v[k], v[k].AsX())
				}
			}
			switch to.name {
			case "BF16":
				VPACKUSDW(v[1], v[0], v[0])
				VPERMQ(Imm(0xd8), v[0], v[0])
			case "F16":
				VINSERTI128(Imm(1), v[1].AsX(), v[0], v[0])
			default:
				continue
			}
			check(v[0])
			VMOVDQU(v[0], Mem{Base: dst, Disp: 2 * i})
		}
		ADDQ(U32(32*from.size), src)
		ADDQ(U32(32*to.size), dst)
	})
	mask := GP32()
	VPMOVMSKB(bad, mask)
	VZEROUPPER()
	Store(mask, ReturnIndex(0))
	RET()
}

func convertAVX512(from, to format) {
	dst, src, groups := kernel("convert" + from.name + "To" + to.name + "AVX512")
	exponent, one, bias, quiet := ZMM(), ZMM(), ZMM(), ZMM()
	VMOVDQU64(to.exponent, exponent)
	if to.name == "BF16" {
		VMOVDQU64(c.one, one)
		VMOVDQU64(c.bias, bias)
		VMOVDQU64(c.quiet, quiet)
	}
	bad := K()
	KXORD(bad, bad, bad)
	emit.Repeat(groups, func() {
		for i := 0; i < 32; i += 16 {
			v, t, k := ZMM(), ZMM(), K()
			from.widen(Mem{Base: src, Disp: i * from.size}, v)
			switch to.name {
			case "F32":
				VPANDD(exponent, v, t)
				VPCMPEQD(exponent, t, k)
				KORW(k, bad, bad)
				VMOVUPS(v, Mem{Base: dst, Disp: 4 * i})
				continue
			case "BF16":
				high := ZMM()
				nan := K()
				VCMPPS(Imm(3), v, v, nan)
				VPSRLD(Imm(16), v, high)
				VPANDD(one, high, t)
				VPADDD(bias, t, t)
				VPADDD(t, v, v)
				VPSRLD(Imm(16), v, v)
				VPORD(quiet, high, nan, v)
				VPMOVDW(v, v.AsY())
			case "F16":
				VCVTPS2PH(Imm(0), v, v.AsY())
			}
			VPANDD(exponent.AsY(), v.AsY(), t.AsY())
			VPCMPEQW(exponent.AsY(), t.AsY(), k)
			KORW(k, bad, bad)
			VMOVDQU(v.AsY(), Mem{Base: dst, Disp: 2 * i})
		}
		ADDQ(U32(32*from.size), src)
		ADDQ(U32(32*to.size), dst)
	})
	mask := GP32()
	KMOVD(bad, mask)
	VZEROUPPER()
	Store(mask, ReturnIndex(0))
	RET()
}

// finiteKernel begins a function that looks through steps of 128 bytes, at least one, and
// returns how many bytes there are before the first that holds something not finite.
func finiteKernel(words bool, tier string) (src, steps, exponent reg.Register) {
	name := "finite32"
	if words {
		name = "finite16"
	}
	TEXT(name+tier, attr.NOSPLIT, "func(src *byte, steps int, exponent uint32) int")
	return Load(Param("src"), GP64()), Load(Param("steps"), GP64()), Load(Param("exponent"), GP32())
}

func finiteAVX2(words bool) {
	src, steps, e := finiteKernel(words, "AVX2")
	exponent, begin := YMM(), GP64()
	VMOVD(e, exponent.AsX())
	VPBROADCASTD(exponent.AsX(), exponent)
	MOVQ(src, begin)
	emit.Repeat(steps, func() {
		var v [4]reg.VecVirtual
		for i := range v {
			v[i] = YMM()
			VPAND(Mem{Base: src, Disp: 32 * i}, exponent, v[i])
			if words {
				VPCMPEQW(exponent, v[i], v[i])
			} else {
				VPCMPEQD(exponent, v[i], v[i])
			}
		}
		VPOR(v[1], v[0], v[0])
		VPOR(v[3], v[2], v[2])
		VPOR(v[2], v[0], v[0])
		VPTEST(v[0], v[0])
		JNZ(LabelRef("done"))
		ADDQ(U32(128), src)
	})
	Label("done")
	finiteEnd(src, begin)
}

func finiteAVX512(words bool) {
	src, steps, e := finiteKernel(words, "AVX512")
	exponent, begin := ZMM(), GP64()
	VPBROADCASTD(e, exponent)
	MOVQ(src, begin)
	emit.Repeat(steps, func() {
		var k [2]reg.OpmaskVirtual
		for i := range k {
			v := ZMM()
			k[i] = K()
			VPANDD(Mem{Base: src, Disp: 64 * i}, exponent, v)
			if words {
				VPCMPEQW(exponent, v, k[i])
			} else {
				VPCMPEQD(exponent, v, k[i])
			}
		}
		KORTESTD(k[0], k[1])
		JNZ(LabelRef("done"))
		ADDQ(U32(128), src)
	})
	Label("done")
	finiteEnd(src, begin)
}

func finiteEnd(src, begin reg.Register) {
	VZEROUPPER()
	SUBQ(begin, src)
	Store(src, ReturnIndex(0))
	RET()
}
