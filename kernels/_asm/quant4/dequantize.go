package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// Dequantization by table: the 16 values of a block are computed once and stay in
// registers, where shuffles look them up.

const dequantizeSignature = "func(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int"

var d struct {
	nibble, bias, one, low Mem
	even                   Mem // dwords 0 2 4 6 1 3 5 7
}

func makeDequantizeConsts() {
	d.nibble = emit.Bytes("d_nibble", 32, func(int) int { return 15 })
	d.bias = emit.Dwords("d_bias", 16, func(int) uint32 { return 0x7fff })
	d.one = emit.Dwords("d_one", 16, func(int) uint32 { return 1 })
	d.even = emit.Dwords("d_even", 8, func(i int) uint32 { return []uint32{0, 2, 4, 6, 1, 3, 5, 7}[i] })
}

type dequantizer struct {
	dst, packed, absmax, blocks, size reg.Register
	left, n                           reg.Register
}

// run calls block for every block until one has no finite scale. block finds the scale
// at q.absmax and moves q.dst and q.packed on.
func (q *dequantizer) run(block func()) {
	Label("block")
	a := GP32()
	MOVL(Mem{Base: q.absmax}, a)
	ANDL(U32(0x7f800000), a)
	CMPL(a, U32(0x7f800000))
	JE(LabelRef("done"))
	block()
	ADDQ(Imm(4), q.absmax)
	DECQ(q.left)
	JNZ(LabelRef("block"))
	Label("done")
	VZEROUPPER()
	SUBQ(q.left, q.blocks)
	Store(q.blocks, ReturnIndex(0))
	RET()
}

func newDequantizer(name string) (*dequantizer, reg.Register) {
	TEXT(name, attr.NOSPLIT, dequantizeSignature)
	q := &dequantizer{
		dst: Load(Param("dst"), GP64()), packed: Load(Param("packed"), GP64()), absmax: Load(Param("absmax"), GP64()),
		blocks: Load(Param("blocks"), GP64()), size: Load(Param("blockSize"), GP64()),
	}
	q.left, q.n = GP64(), GP64()
	MOVQ(q.blocks, q.left)
	return q, Load(Param("levels"), GP64())
}

func (q *dequantizer) advance(elems, size int) {
	ADDQ(U32(elems*size), q.dst)
	ADDQ(Imm(uint64(elems/2)), q.packed)
	SUBQ(Imm(uint64(elems)), q.n)
}

// roundBF16 turns float32 that are not NaN into bfloat16, in dwords.
func roundBF16(v, t, one, bias Op) {
	VPSRLD(Imm(16), v, t)
	if v.(reg.Register).Size() == 64 {
		VPANDD(one, t, t)
	} else {
		VPAND(one, t, t)
	}
	VPADDD(bias, t, t)
	VPADDD(t, v, v)
	VPSRLD(Imm(16), v, v)
}

func dequantizeHalfAVX2(name string, brain bool) {
	q, levels := newDequantizer("dequantize" + name + "AVX2")
	levels0, levels1, nibble, even := YMM(), YMM(), load(YMM, d.nibble), load(YMM, d.even)
	VMOVUPS(Mem{Base: levels}, levels0)
	VMOVUPS(Mem{Base: levels, Disp: 32}, levels1)
	q.run(func() {
		a, v0, v1, t := YMM(), YMM(), YMM(), YMM()
		VBROADCASTSS(Mem{Base: q.absmax}, a)
		VMULPS(levels0, a, v0)
		VMULPS(levels1, a, v1)
		if brain {
			roundBF16(v0, t, d.one, d.bias)
			roundBF16(v1, t, d.one, d.bias)
			VPACKUSDW(v1, v0, v0)
			VPERMQ(Imm(0xd8), v0, v0)
		} else {
			VCVTPS2PH(Imm(0), v0, v0.AsX())
			VCVTPS2PH(Imm(0), v1, v1.AsX())
			VINSERTI128(Imm(1), v1.AsX(), v0, v0)
		}
		// The lower and the upper bytes of the 16 values, each in both halves of a register.
		VPSRLW(Imm(8), v0, v1)
		VPAND(w.low, v0, v0)
		VPACKUSWB(v1, v0, v0)
		VPERMQ(Imm(0xd8), v0, v0)
		lower, upper := YMM(), YMM()
		VPERMQ(Imm(0x44), v0, lower)
		VPERMQ(Imm(0xee), v0, upper)

		unit := func(width int, x reg.VecVirtual) {
			as := func(v reg.VecVirtual) reg.Register {
				if width == 16 {
					return v.AsX()
				}
				return v
			}
			hi, e0, e1, o0, o1 := as(YMM()), as(YMM()), as(YMM()), as(YMM()), as(YMM())
			lo, low, up := as(x), as(lower), as(upper)
			VPSRLW(Imm(4), lo, hi)
			VPAND(as(nibble), hi, hi)
			VPAND(as(nibble), lo, lo)
			VPSHUFB(hi, low, e0)
			VPSHUFB(hi, up, hi)
			VPUNPCKHBW(hi, e0, e1)
			VPUNPCKLBW(hi, e0, e0)
			VPSHUFB(lo, low, o0)
			VPSHUFB(lo, up, lo)
			VPUNPCKHBW(lo, o0, o1)
			VPUNPCKLBW(lo, o0, o0)
			for i, p := range [][2]reg.Register{{e0, o0}, {e1, o1}} {
				t := as(YMM())
				VPUNPCKLWD(p[1], p[0], t)
				VMOVDQU(t, Mem{Base: q.dst, Disp: 2 * i * width})
				VPUNPCKHWD(p[1], p[0], t)
				VMOVDQU(t, Mem{Base: q.dst, Disp: (2*i + 1) * width})
			}
			q.advance(2*width, 2)
		}
		MOVQ(q.size, q.n)
		emit.While(q.n, 64, func() {
			x := YMM()
			VPERMD(Mem{Base: q.packed}, even, x)
			unit(32, x)
		})
		emit.While(q.n, 32, func() {
			x := YMM()
			VMOVDQU(Mem{Base: q.packed}, x.AsX())
			unit(16, x)
		})
	})
}

func dequantizeHalfAVX512(name string, brain bool) {
	q, levels := newDequantizer("dequantize" + name + "AVX512")
	values, one, bias := ZMM(), load(ZMM, d.one), load(ZMM, d.bias)
	VMOVUPS(Mem{Base: levels}, values)
	q.run(func() {
		v, t := ZMM(), ZMM()
		VBROADCASTSS(Mem{Base: q.absmax}, v)
		VMULPS(values, v, v)
		if brain {
			roundBF16(v, t, one, bias)
			VPMOVDW(v, v.AsY())
		} else {
			VCVTPS2PH(Imm(0), v, v.AsY())
		}
		VINSERTI64X4(Imm(1), v.AsY(), v, v) // twice, as VPERMW looks at five bits
		MOVQ(q.size, q.n)
		emit.While(q.n, 32, func() {
			x, odd := ZMM(), ZMM()
			VPMOVZXBD(Mem{Base: q.packed}, x)
			VPSLLD(Imm(16), x, odd)
			VPSRLD(Imm(4), x, x)
			VPORD(odd, x, x)
			VPERMW(v, x, x)
			VMOVDQU64(x, Mem{Base: q.dst})
			q.advance(32, 2)
		})
	})
}

func dequantizeF32AVX2() {
	q, levels := newDequantizer("dequantizeF32AVX2")
	levels0, levels1 := YMM(), YMM()
	VMOVUPS(Mem{Base: levels}, levels0)
	VMOVUPS(Mem{Base: levels, Disp: 32}, levels1)
	q.run(func() {
		v0, v1 := YMM(), YMM()
		VBROADCASTSS(Mem{Base: q.absmax}, v1)
		VMULPS(levels0, v1, v0)
		VMULPS(levels1, v1, v1)
		MOVQ(q.size, q.n)
		emit.While(q.n, 16, func() {
			x, hi := YMM(), YMM()
			VPMOVZXBD(Mem{Base: q.packed}, x)
			VPERMQ(Imm(0xd8), x, x)
			VPSRLD(Imm(4), x, hi)
			lookup := func(i reg.VecVirtual) reg.VecVirtual { // VPERMPS looks at three bits of the index
				t0, t1 := YMM(), YMM()
				VPERMPS(v0, i, t0)
				VPERMPS(v1, i, t1)
				VPSLLD(Imm(28), i, i)
				VBLENDVPS(i, t1, t0, t0)
				return t0
			}
			e, o, t := lookup(hi), lookup(x), YMM()
			VUNPCKLPS(o, e, t)
			VMOVUPS(t, Mem{Base: q.dst})
			VUNPCKHPS(o, e, t)
			VMOVUPS(t, Mem{Base: q.dst, Disp: 32})
			q.advance(16, 4)
		})
	})
}

func dequantizeF32AVX512() {
	q, levels := newDequantizer("dequantizeF32AVX512")
	values := ZMM()
	VMOVUPS(Mem{Base: levels}, values)
	q.run(func() {
		v := ZMM()
		VBROADCASTSS(Mem{Base: q.absmax}, v)
		VMULPS(values, v, v)
		MOVQ(q.size, q.n)
		emit.While(q.n, 16, func() {
			x, odd := ZMM(), ZMM()
			VPMOVZXBQ(Mem{Base: q.packed}, x)
			VPSLLQ(Imm(32), x, odd)
			VPSRLQ(Imm(4), x, x)
			VPORQ(odd, x, x)
			VPERMPS(v, x, x)
			VMOVUPS(x, Mem{Base: q.dst})
			q.advance(16, 4)
		})
	})
}
