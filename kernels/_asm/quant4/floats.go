package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// Quantization of float32 and binary16 in float32: v = x*r as it stands in the definition,
// then a binary search. steps are the thresholds in 4 rows of 16, for the first to the
// last step of the search: entry 8*m1 + 4*m2 + 2*m3 of a row is the threshold to compare
// with after the outcomes m1, m2, m3; every entry is there twice, so that the state may also
// be one bit shorter.

const quantizeFloats = "func(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, steps *[4][16]float32, codes *[16]byte) int"

// f are the constants.
var f struct {
	magnitude, two, four, eight, one Mem
	halves                           Mem // an index: the even entries of a row
	order                            Mem
	tiny, unit                       Mem
}

func makeFloatConsts() {
	dwords := func(name string, v uint32) Mem { return emit.Dwords(name, 16, func(int) uint32 { return v }) }
	f.magnitude = dwords("f_magnitude", 0x7fffffff)
	f.one, f.two, f.four, f.eight = dwords("f_one", 1), dwords("f_two", 2), dwords("f_four", 4), dwords("f_eight", 8)
	f.halves = emit.Dwords("f_halves", 8, func(i int) uint32 { return uint32(2 * i) })
	f.order = emit.Dwords("f_order", 8, func(i int) uint32 { return []uint32{0, 4, 1, 5, 2, 6, 3, 7}[i] })
	f.tiny = emit.Dwords("f_tiny", 1, func(int) uint32 { return math.Float32bits(1e-38) })
	f.unit = emit.Dwords("f_unit", 1, func(int) uint32 { return math.Float32bits(1) })
}

// reader is how elements of a format come into float32 lanes.
type reader struct {
	name string
	size int
	load func(m Mem, dst reg.VecVirtual)
}

var float32Reader = reader{"F32", 4, func(m Mem, dst reg.VecVirtual) { VMOVUPS(m, dst) }}
var float16Reader = reader{"F16", 2, func(m Mem, dst reg.VecVirtual) { VCVTPH2PS(m, dst) }}

// maxFloat is the largest of the dwords of x as a number; it goes to "limit" when
// that is no finite float32.
func maxFloat(x reg.VecVirtual) reg.Register {
	t := XMM()
	VPSHUFD(Imm(0x4e), x, t)
	VPMAXUD(t, x, x)
	VPSHUFD(Imm(0xb1), x, t)
	VPMAXUD(t, x, x)
	a := GP32()
	VMOVD(x, a)
	CMPL(a, U32(0x7f800000))
	JAE(LabelRef("limit"))
	return a
}

// reciprocal puts 1/max(absmax, tiny) into all lanes of r.
func (q *quantizer) reciprocal(r reg.VecVirtual) {
	a, one := XMM(), XMM()
	VMOVSS(Mem{Base: q.absmax}, a)
	VMAXSS(f.tiny, a, a)
	VMOVSS(f.unit, one)
	VDIVSS(a, one, a)
	VBROADCASTSS(a, r)
}

func quantizeFloatAVX2(in reader) {
	TEXT("quantizeFloats"+in.name+"AVX2", attr.NOSPLIT, quantizeFloats)
	q := newQuantizer()
	steps := Load(Param("steps"), GP64())
	codes, halves := YMM(), load(YMM, f.halves)
	VBROADCASTI128(Mem{Base: Load(Param("codes"), GP64())}, codes)
	var table [4]reg.VecVirtual
	for i := range table {
		lo, hi := YMM(), YMM()
		VMOVUPS(Mem{Base: steps, Disp: 64 * i}, lo)
		VMOVUPS(Mem{Base: steps, Disp: 64*i + 32}, hi)
		VPERMPS(lo, halves, lo)
		VPERMPS(hi, halves, hi)
		VINSERTF128(Imm(1), hi.AsX(), lo, lo)
		table[i] = lo
	}
	four, two, one := load(YMM, f.four), load(YMM, f.two), load(YMM, f.one)
	q.run(func() reg.Register {
		m := YMM()
		VPXOR(m, m, m)
		MOVQ(q.size, q.n)
		emit.While(q.n, 1, func() {
			for i := range 4 {
				t := YMM()
				in.load(Mem{Base: q.at, Disp: 8 * in.size * i}, t)
				VPAND(f.magnitude, t, t)
				VPMAXUD(t, m, m)
			}
			ADDQ(U32(32*in.size), q.at)
			SUBQ(Imm(32), q.n)
		})
		x := XMM()
		VEXTRACTI128(Imm(1), m, x)
		VPMAXUD(m.AsX(), x, x)
		return maxFloat(x)
	}, func() {
		r := YMM()
		q.reciprocal(r)
		MOVQ(q.size, q.n)
		emit.While(q.n, 1, func() {
			var ranks [4]reg.VecVirtual
			for i := range ranks {
				v, idx, m, t := YMM(), YMM(), YMM(), YMM()
				in.load(Mem{Base: q.src, Disp: 8 * in.size * i}, v)
				VMULPS(r, v, v)
				VCMPPS(Imm(0x1e), table[0], v, m) // greater
				VPAND(four, m, idx)
				VPERMPS(table[1], idx, t)
				VCMPPS(Imm(0x1e), t, v, m)
				VPAND(two, m, m)
				VPOR(m, idx, idx)
				VPERMPS(table[2], idx, t)
				VCMPPS(Imm(0x1e), t, v, m)
				VPAND(one, m, m)
				VPOR(m, idx, idx)
				VPERMPS(table[3], idx, t)
				VCMPPS(Imm(0x1e), t, v, m)
				VPADDD(idx, idx, idx)
				VPSUBD(m, idx, idx)
				ranks[i] = idx
				if i%2 == 1 { // two at a time, to need fewer registers
					VPACKSSDW(ranks[i], ranks[i-1], ranks[i-1])
				}
			}
			b := ranks[0]
			VPACKUSWB(ranks[2], b, b) // dwords: a0 b0 c0 d0 a1 b1 c1 d1
			VPSHUFB(b, codes, b)
			VPERMD(b, load(YMM, f.order), b)
			VPMADDUBSW(w.nibbles, b, b)
			VPACKUSWB(b, b, b)
			VPERMQ(Imm(0x08), b, b)
			VMOVDQU(b.AsX(), Mem{Base: q.packed})
			q.prefetch(32 * in.size)
			q.advance(32, in.size)
			SUBQ(Imm(32), q.n)
		})
	})
}

func quantizeFloatAVX512(in reader) {
	TEXT("quantizeFloats"+in.name+"AVX512", attr.NOSPLIT, quantizeFloats)
	q := newQuantizer()
	steps := Load(Param("steps"), GP64())
	codes := YMM()
	VBROADCASTI128(Mem{Base: Load(Param("codes"), GP64())}, codes)
	var table [4]reg.VecVirtual
	for i := range table {
		table[i] = ZMM()
		VMOVUPS(Mem{Base: steps, Disp: 64 * i}, table[i])
	}
	magnitude, eight, four, two, one, nibbles := load(ZMM, f.magnitude), load(ZMM, f.eight), load(ZMM, f.four), load(ZMM, f.two), load(ZMM, f.one), load(YMM, w.nibbles)
	q.run(func() reg.Register {
		m := ZMM()
		VPXORD(m, m, m)
		MOVQ(q.size, q.n)
		emit.While(q.n, 1, func() {
			for i := range 2 {
				t := ZMM()
				in.load(Mem{Base: q.at, Disp: 16 * in.size * i}, t)
				VPANDD(magnitude, t, t)
				VPMAXUD(t, m, m)
			}
			ADDQ(U32(32*in.size), q.at)
			SUBQ(Imm(32), q.n)
		})
		y, x := YMM(), XMM()
		VEXTRACTI64X4(Imm(1), m, y)
		VPMAXUD(m.AsY(), y, y)
		VEXTRACTI32X4(Imm(1), y, x)
		VPMAXUD(y.AsX(), x, x)
		return maxFloat(x)
	}, func() {
		r := ZMM()
		q.reciprocal(r)
		MOVQ(q.size, q.n)
		emit.While(q.n, 1, func() {
			var ranks [2]reg.VecVirtual
			for i := range ranks {
				v, idx, t := ZMM(), ZMM(), ZMM()
				k1, k2, k3, k4 := K(), K(), K(), K()
				in.load(Mem{Base: q.src, Disp: 16 * in.size * i}, v)
				VMULPS(r, v, v)
				VCMPPS(Imm(0x1e), table[0], v, k1)
				VMOVDQA32_Z(eight, k1, idx)
				VPERMPS(table[1], idx, t)
				VCMPPS(Imm(0x1e), t, v, k2)
				VPADDD(four, idx, k2, idx)
				VPERMPS(table[2], idx, t)
				VCMPPS(Imm(0x1e), t, v, k3)
				VPADDD(two, idx, k3, idx)
				VPERMPS(table[3], idx, t)
				VCMPPS(Imm(0x1e), t, v, k4)
				VPADDD(one, idx, k4, idx)
				ranks[i] = XMM()
				VPMOVDB(idx, ranks[i])
			}
			b := ranks[0].AsY()
			VINSERTI32X4(Imm(1), ranks[1], b, b)
			VPSHUFB(b, codes, b)
			VPMADDUBSW(nibbles, b, b)
			VPMOVWB(b, Mem{Base: q.packed})
			q.prefetch(32 * in.size)
			q.advance(32, in.size)
			SUBQ(Imm(32), q.n)
		})
	})
}
