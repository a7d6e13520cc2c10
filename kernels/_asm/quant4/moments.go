package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

var bfloat16Reader = reader{"BF16", 2, func(m Mem, dst reg.VecVirtual) {
	VPMOVZXWD(m, dst)
	VPSLLD(Imm(16), dst, dst)
}}

// momentsAVX2 keeps the eight accumulators of each sum in two registers. The products are
// exact in float64, so that a fused multiply-add is the multiplication and the addition of
// the definition. The chain of additions is what takes the time; wider registers
// would not help.
func momentsAVX2(in reader) {
	TEXT("moments"+in.name+"AVX2", attr.NOSPLIT, "func(src, packed *byte, groups int, levels *[16]float32, sums *[3]float64)")
	src, packed, groups, levels, sums := Load(Param("src"), GP64()), Load(Param("packed"), GP64()), Load(Param("groups"), GP64()), Load(Param("levels"), GP64()), Load(Param("sums"), GP64())
	levels0, levels1 := YMM(), YMM()
	VMOVUPS(Mem{Base: levels}, levels0)
	VMOVUPS(Mem{Base: levels, Disp: 32}, levels1)
	var acc [3][2]reg.VecVirtual
	for i := range acc {
		for k := range acc[i] {
			acc[i][k] = YMM()
			VXORPD(acc[i][k], acc[i][k], acc[i][k])
		}
	}
	emit.Repeat(groups, func() {
		e, o := YMM(), YMM()
		VPMOVZXBD(Mem{Base: packed}, o)
		VPERMQ(Imm(0xd8), o, o)
		VPSRLD(Imm(4), o, e)
		for _, i := range []reg.VecVirtual{e, o} { // to the level; VPERMPS looks at three bits of the index
			t0, t1 := YMM(), YMM()
			VPERMPS(levels0, i, t0)
			VPERMPS(levels1, i, t1)
			VPSLLD(Imm(28), i, i)
			VBLENDVPS(i, t1, t0, i)
		}
		for half := range 2 {
			x, q := YMM(), YMM()
			in.load(Mem{Base: src, Disp: 8 * half * in.size}, x)
			if half == 0 {
				VUNPCKLPS(o, e, q)
			} else {
				VUNPCKHPS(o, e, q)
			}
			for k := range 2 {
				xd, qd := YMM(), YMM()
				if k == 0 {
					VCVTPS2PD(x.AsX(), xd)
					VCVTPS2PD(q.AsX(), qd)
				} else {
					VEXTRACTF128(Imm(1), x, x.AsX())
					VEXTRACTF128(Imm(1), q, q.AsX())
					VCVTPS2PD(x.AsX(), xd)
					VCVTPS2PD(q.AsX(), qd)
				}
				VFMADD231PD(xd, xd, acc[0][k])
				VFMADD231PD(xd, qd, acc[1][k])
				VFMADD231PD(qd, qd, acc[2][k])
			}
		}
		ADDQ(Imm(uint64(16*in.size)), src)
		ADDQ(Imm(8), packed)
	})
	for i, a := range acc {
		x := XMM()
		VADDPD(a[1], a[0], a[0])
		VEXTRACTF128(Imm(1), a[0], x)
		VADDPD(x, a[0].AsX(), x)
		VPERMILPD(Imm(1), x, a[0].AsX())
		VADDSD(a[0].AsX(), x, x)
		VMOVSD(x, Mem{Base: sums, Disp: 8 * i})
	}
	VZEROUPPER()
	RET()
}
