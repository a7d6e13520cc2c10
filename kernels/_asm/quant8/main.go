// Command quant8 writes the assembly of package kernels/quant8.
package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// As in quant8_generic.go.
const (
	sumGroup     = 4096
	sumLanes     = 64
	cellShift    = 17
	firstCell    = (127 - 24) << (23 - cellShift)
	cellsPerSign = 25 << (23 - cellShift)
)

var c struct{ magnitude, one, lastCell, firstCell, perSign, b32, b64, tiny, unit, order Mem }

func main() {
	ConstraintExpr("!purego")
	dwords := func(name string, v uint32) Mem { return emit.Dwords(name, 16, func(int) uint32 { return v }) }
	c.magnitude, c.one = dwords("c_magnitude", 0x7fffffff), dwords("c_one", 1)
	c.firstCell, c.lastCell, c.perSign = dwords("c_first", firstCell), dwords("c_last", firstCell+cellsPerSign-1), dwords("c_sign", cellsPerSign)
	c.order = emit.Dwords("c_order", 8, func(i int) uint32 { return []uint32{0, 4, 1, 5, 2, 6, 3, 7}[i] })
	c.b32, c.b64 = dwords("c_b32", 32), dwords("c_b64", 64)
	c.tiny, c.unit = emit.Dwords("c_tiny", 1, func(int) uint32 { return math.Float32bits(1e-38) }), emit.Dwords("c_unit", 1, func(int) uint32 { return math.Float32bits(1) })
	sumAVX2()
	sumAVX512()
	quantizeAVX2()
	quantizeAVX512()
	dequantizeAVX2()
	dequantizeAVX512()
	Generate()
}

const sumSignature = "func(partial *float64, x *float32, groups int)"

// fold adds the upper half of 4 lanes to the lower, twice, and stores the sum.
func fold(a reg.VecVirtual, to Mem) {
	x := XMM()
	VEXTRACTF128(Imm(1), a.AsY(), x)
	VADDPD(x, a.AsX(), x)
	VPERMILPD(Imm(1), x, a.AsX())
	VADDSD(a.AsX(), x, x)
	VMOVSD(x, to)
}

// sumAVX2 has registers for half of the accumulators: it goes through a group twice.
func sumAVX2() {
	TEXT("sumAVX2", attr.NOSPLIT, sumSignature)
	partial, x, groups := Load(Param("partial"), GP64()), Load(Param("x"), GP64()), Load(Param("groups"), GP64())
	at, n := GP64(), GP64()
	lower := AllocLocal(32 * 8)
	emit.Repeat(groups, func() {
		var acc [8]reg.VecVirtual
		for i := range acc {
			acc[i] = YMM()
		}
		for half := range 2 {
			for i := range acc {
				VXORPD(acc[i], acc[i], acc[i])
			}
			MOVQ(x, at)
			MOVQ(U32(sumGroup/sumLanes), n)
			emit.Repeat(n, func() {
				for i := range acc {
					t := YMM()
					VCVTPS2PD(Mem{Base: at, Disp: 16*i + 128*half}, t)
					VADDPD(t, acc[i], acc[i])
				}
				ADDQ(U32(4*sumLanes), at)
			})
			if half == 0 {
				for i := range acc {
					VMOVUPD(acc[i], lower.Offset(32*i))
				}
			}
		}
		for i := range acc {
			VADDPD(lower.Offset(32*i), acc[i], acc[i])
		}
		for n := 4; n > 0; n /= 2 {
			for i := range n {
				VADDPD(acc[i+n], acc[i], acc[i])
			}
		}
		fold(acc[0], Mem{Base: partial})
		ADDQ(Imm(8), partial)
		ADDQ(U32(4*sumGroup), x)
	})
	VZEROUPPER()
	RET()
}

func sumAVX512() {
	TEXT("sumAVX512", attr.NOSPLIT, sumSignature)
	partial, x, groups := Load(Param("partial"), GP64()), Load(Param("x"), GP64()), Load(Param("groups"), GP64())
	n := GP64()
	emit.Repeat(groups, func() {
		var acc [8]reg.VecVirtual
		for i := range acc {
			acc[i] = ZMM()
			VPXORD(acc[i], acc[i], acc[i])
		}
		MOVQ(U32(sumGroup/sumLanes), n)
		emit.Repeat(n, func() {
			for i := range acc {
				t := ZMM()
				VCVTPS2PD(Mem{Base: x, Disp: 32 * i}, t)
				VADDPD(t, acc[i], acc[i])
			}
			ADDQ(U32(4*sumLanes), x)
		})
		for n := 4; n > 0; n /= 2 {
			for i := range n {
				VADDPD(acc[i+n], acc[i], acc[i])
			}
		}
		upper := YMM()
		VEXTRACTF64X4(Imm(1), acc[0], upper)
		VADDPD(upper, acc[0].AsY(), acc[0].AsY())
		fold(acc[0], Mem{Base: partial})
		ADDQ(Imm(8), partial)
	})
	VZEROUPPER()
	RET()
}

type args struct{ codes, scales, x, groups, size, left, n, at reg.Register }

func newArgs() args {
	a := args{
		codes: Load(Param("codes"), GP64()), scales: Load(Param("scales"), GP64()), x: Load(Param("x"), GP64()),
		groups: Load(Param("groups"), GP64()), size: Load(Param("groupSize"), GP64()),
	}
	a.left, a.n, a.at = GP64(), GP64(), GP64()
	MOVQ(a.groups, a.left)
	return a
}

// scale stores the largest dword of x as the scale and leaves its reciprocal in r; for
// what is not finite it ends the function.
func (a args) scale(x, r reg.VecVirtual) {
	t, bits := XMM(), GP32()
	VPSHUFD(Imm(0x4e), x, t)
	VPMAXUD(t, x, x)
	VPSHUFD(Imm(0xb1), x, t)
	VPMAXUD(t, x, x)
	VMOVD(x, bits)
	CMPL(bits, U32(0x7f800000))
	JAE(LabelRef("done"))
	MOVL(bits, Mem{Base: a.scales})
	one := XMM()
	VMAXSS(c.tiny, x, x)
	VMOVSS(c.unit, one)
	VDIVSS(x, one, x)
	VBROADCASTSS(x, r)
}

func (a args) finish() {
	ADDQ(Imm(4), a.scales)
	DECQ(a.left)
	JNZ(LabelRef("group"))
	Label("done")
	VZEROUPPER()
	SUBQ(a.left, a.groups)
	Store(a.groups, ReturnIndex(0))
	RET()
}

// quantizeAVX2 looks cells up in the table of the generic code.
func quantizeAVX2() {
	TEXT("quantizeAVX2", attr.NOSPLIT, "func(codes *byte, scales, x *float32, groups, groupSize int, offset float32, midpoint *[3200]float32, below *[3200]uint32) int")
	a := newArgs()
	midpoint, below := Load(Param("midpoint"), GP64()), Load(Param("below"), GP64())
	offset, magnitude := YMM(), YMM()
	o, err := Param("offset").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(o.Addr, offset)
	VMOVDQU(c.magnitude, magnitude)
	Label("group")
	m := YMM()
	VPXOR(m, m, m)
	MOVQ(a.x, a.at)
	MOVQ(a.size, a.n)
	emit.While(a.n, 1, func() {
		for i := range 4 {
			t := YMM()
			VMOVUPS(Mem{Base: a.at, Disp: 32 * i}, t)
			VSUBPS(offset, t, t)
			VPAND(magnitude, t, t)
			VPMAXUD(t, m, m)
		}
		ADDQ(U32(128), a.at)
		SUBQ(Imm(32), a.n)
	})
	x, r := XMM(), YMM()
	VEXTRACTI128(Imm(1), m, x)
	VPMAXUD(m.AsX(), x, x)
	a.scale(x, r)
	MOVQ(a.size, a.n)
	emit.While(a.n, 1, func() {
		var code [4]reg.VecVirtual
		for i := range code {
			v, cell, sign, t, all := YMM(), YMM(), YMM(), YMM(), YMM()
			code[i] = YMM()
			VMOVUPS(Mem{Base: a.x, Disp: 32 * i}, v)
			VSUBPS(offset, v, v)
			VMULPS(r, v, v)
			VPSRAD(Imm(31), v, sign)
			VPANDN(c.perSign, sign, sign)
			VPAND(magnitude, v, cell)
			VPSRLD(Imm(cellShift), cell, cell)
			VPMAXUD(c.firstCell, cell, cell)
			VPMINUD(c.lastCell, cell, cell)
			VPSUBD(c.firstCell, cell, cell)
			VPADDD(sign, cell, cell)
			VPCMPEQD(all, all, all)
			VGATHERDPS(all, Mem{Base: midpoint, Index: cell, Scale: 4}, t)
			VCMPPS(Imm(0x1e), t, v, v) // greater
			VPCMPEQD(all, all, all)
			VPGATHERDD(all, Mem{Base: below, Index: cell, Scale: 4}, code[i])
			VPSUBD(v, code[i], code[i])
			if i%2 == 1 {
				VPACKUSDW(code[i], code[i-1], code[i-1])
			}
		}
		VPACKUSWB(code[2], code[0], code[0])
		order := YMM()
		VMOVDQU(c.order, order)
		VPERMD(code[0], order, code[0])
		VMOVDQU(code[0], Mem{Base: a.codes})
		ADDQ(U32(128), a.x)
		ADDQ(Imm(32), a.codes)
		SUBQ(Imm(32), a.n)
	})
	a.finish()
}

// quantizeAVX512 searches by halves in registers: step s compares with entry state of the
// 2^s midpoints that it may have to compare with, the state being the outcomes so far.
// steps holds those of the eight steps, each row of at least 16 entries.
func quantizeAVX512() {
	TEXT("quantizeAVX512", attr.NOSPLIT, "func(codes *byte, scales, x *float32, groups, groupSize int, offset float32, steps *[304]float32) int")
	a := newArgs()
	steps := Load(Param("steps"), GP64())
	var rows [19]reg.VecVirtual
	for i := range rows {
		rows[i] = ZMM()
		VMOVUPS(Mem{Base: steps, Disp: 64 * i}, rows[i])
	}
	offset, magnitude, one := ZMM(), ZMM(), ZMM()
	o, err := Param("offset").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(o.Addr, offset)
	VMOVDQU64(c.magnitude, magnitude)
	VMOVDQU64(c.one, one)
	Label("group")
	m := ZMM()
	VPXORD(m, m, m)
	MOVQ(a.x, a.at)
	MOVQ(a.size, a.n)
	emit.While(a.n, 1, func() {
		for i := range 2 {
			t := ZMM()
			VMOVUPS(Mem{Base: a.at, Disp: 64 * i}, t)
			VSUBPS(offset, t, t)
			VPANDD(magnitude, t, t)
			VPMAXUD(t, m, m)
		}
		ADDQ(U32(128), a.at)
		SUBQ(Imm(32), a.n)
	})
	y, x, r := YMM(), XMM(), ZMM()
	VEXTRACTI64X4(Imm(1), m, y)
	VPMAXUD(m.AsY(), y, y)
	VEXTRACTI32X4(Imm(1), y, x)
	VPMAXUD(y.AsX(), x, x)
	a.scale(x, r)
	MOVQ(a.size, a.n)
	emit.While(a.n, 1, func() {
		v, s, t := ZMM(), ZMM(), ZMM()
		VMOVUPS(Mem{Base: a.x}, v)
		VSUBPS(offset, v, v)
		VMULPS(r, v, v)
		k := K()
		VCMPPS(Imm(0x1e), rows[0], v, k)
		VMOVDQA32_Z(one, k, s)
		step := func(t reg.VecVirtual) {
			k := K()
			VCMPPS(Imm(0x1e), t, v, k)
			VPADDD(s, s, s)
			VPADDD(one, s, k, s)
		}
		for i := 1; i < 5; i++ {
			VPERMPS(rows[i], s, t)
			step(t)
		}
		// pair looks an entry up in two rows: VPERMI2PS looks at five bits.
		pair := func(i int) reg.VecVirtual {
			t := ZMM()
			VMOVDQA32(s, t)
			VPERMI2PS(rows[i+1], rows[i], t)
			return t
		}
		choose := func(bit Mem, k reg.OpmaskVirtual, lo, hi reg.VecVirtual) {
			VPTESTMD(bit, s, k)
			VMOVAPS(hi, k, lo)
		}
		step(pair(5))
		t0, t1 := pair(7), pair(9)
		choose(c.b32, K(), t0, t1)
		step(t0)
		t0, t1 = pair(11), pair(13)
		choose(c.b32, K(), t0, t1)
		t2, t3 := pair(15), pair(17)
		choose(c.b32, K(), t2, t3)
		choose(c.b64, K(), t0, t2)
		step(t0)
		VPMOVDB(s, Mem{Base: a.codes})
		ADDQ(U32(64), a.x)
		ADDQ(Imm(16), a.codes)
		SUBQ(Imm(16), a.n)
	})
	a.finish()
}

const dequantizeSignature = "func(x *float32, codes *byte, scales *float32, groups, groupSize int, levels *[256]float32, offset float32)"

func dequantize(tier string, kind func() reg.VecVirtual, gather func(index, t reg.VecVirtual, levels reg.Register)) {
	TEXT("dequantize"+tier, attr.NOSPLIT, dequantizeSignature)
	x, codes, scales, groups, size := Load(Param("x"), GP64()), Load(Param("codes"), GP64()), Load(Param("scales"), GP64()), Load(Param("groups"), GP64()), Load(Param("groupSize"), GP64())
	levels, n := Load(Param("levels"), GP64()), GP64()
	o, err := Param("offset").Resolve()
	if err != nil {
		panic(err)
	}
	offset, scale := kind(), kind()
	lanes := int(offset.Size() / 4)
	VBROADCASTSS(o.Addr, offset)
	emit.Repeat(groups, func() {
		VBROADCASTSS(Mem{Base: scales}, scale)
		ADDQ(Imm(4), scales)
		MOVQ(size, n)
		emit.While(n, 1, func() {
			for i := 0; i < 32; i += lanes {
				index, t := kind(), kind()
				VPMOVZXBD(Mem{Base: codes, Disp: i}, index)
				gather(index, t, levels)
				VMULPS(scale, t, t)
				VADDPS(offset, t, t)
				VMOVUPS(t, Mem{Base: x, Disp: 4 * i})
			}
			ADDQ(Imm(32), codes)
			ADDQ(U32(128), x)
			SUBQ(Imm(32), n)
		})
	})
	VZEROUPPER()
	RET()
}

func dequantizeAVX2() {
	dequantize("AVX2", YMM, func(index, t reg.VecVirtual, levels reg.Register) {
		all := YMM()
		VPCMPEQD(all, all, all)
		VGATHERDPS(all, Mem{Base: levels, Index: index, Scale: 4}, t)
	})
}

func dequantizeAVX512() {
	dequantize("AVX512", ZMM, func(index, t reg.VecVirtual, levels reg.Register) {
		k := K()
		KXNORW(k, k, k)
		VGATHERDPS(Mem{Base: levels, Index: index, Scale: 4}, k, t)
	})
}
