package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// Quantization of 16-bit formats in integers. The thresholds of a block, as signed
// magnitudes of the source format, come from a row of the table that the fraction of its
// absmax selects, moved by its exponent (makeRows in quant4's search_amd64.go). A row has
// the thresholds in the order in which a binary search wants them:
//
//	T0 T2 T4 T6 T8 T10 T12 T14  T1 T5 T9 T13  T3 T11  T7  -
//
// The search keeps 8*m1 + 4*m2 + 2*m3, the outcomes so far, in the low byte of a word and
// one more in the high byte: the index with which VPSHUFB fetches the next threshold.

// halfFormat is a 16-bit format.
type halfFormat struct {
	name     string
	fraction int // bits
}

var bfloat16, float16 = halfFormat{"BF16", 7}, halfFormat{"F16", 10}

// exponent is the mask of the exponent field.
func (f halfFormat) exponent() Mem {
	if f == float16 {
		return w.exponentF16
	}
	return w.exponentBF16
}

// w are the constants. The pick ones are indices for VPSHUFB that put the thresholds of a
// row's upper half where the search looks for them.
var w struct {
	magnitude, ones                       Mem
	exponentBF16, exponentF16             Mem
	pick3, pick2, pick1, pick2lo, pick2hi Mem
	start, first, four, two, one, low     Mem
	nibbles                               Mem // the weights of two codes in a byte
	order                                 Mem
}

func makeWordConsts() {
	words := func(name string, v int) Mem { return emit.Words(name, 32, func(int) int { return v }) }
	w.magnitude, w.ones = words("w_magnitude", 0x7fff), words("w_ones", 0xffff)
	w.exponentBF16, w.exponentF16 = words("w_exponentbf16", 0x7f80), words("w_exponentf16", 0x7c00)
	w.start, w.first = words("w_start", 0x0100), words("w_first", 0x0908)
	w.four, w.two, w.one, w.low = words("w_four", 0x0404), words("w_two", 0x0202), words("w_one", 1), words("w_low", 0xff)
	w.nibbles = words("w_nibbles", 0x0110)
	pick := func(name string, from [8]int) Mem {
		return emit.Bytes(name, 64, func(i int) int { return 2*from[i%16/2] + i%2 })
	}
	w.pick3 = pick("w_pick3", [8]int{0, 0, 1, 1, 2, 2, 3, 3})
	w.pick2lo = pick("w_pick2lo", [8]int{4, 4, 4, 4, 4, 4, 4, 4})
	w.pick2hi = pick("w_pick2hi", [8]int{5, 5, 5, 5, 5, 5, 5, 5})
	w.pick2 = pick("w_pick2", [8]int{4, 4, 4, 4, 5, 5, 5, 5})
	w.pick1 = pick("w_pick1", [8]int{6, 6, 6, 6, 6, 6, 6, 6})
	w.order = emit.Dwords("w_order", 8, func(i int) uint32 { return []uint32{0, 4, 1, 5, 2, 6, 3, 7}[i] })
}

// quantizer holds the registers of a quantizing function.
type quantizer struct {
	packed, absmax, src, batch reg.Register // arguments; the pointers move on
	size, pairs                reg.Register // of a block, in elements and in 64 elements
	left, done                 reg.Register // blocks
	want, count                reg.Register // blocks of the batch: at most, found in range
	at, n                      reg.Register
}

func newQuantizer() *quantizer {
	q := &quantizer{
		packed: Load(Param("packed"), GP64()), absmax: Load(Param("absmax"), GP64()), src: Load(Param("src"), GP64()),
		left: Load(Param("blocks"), GP64()), size: Load(Param("blockSize"), GP64()), batch: Load(Param("batch"), GP64()),
	}
	q.done, q.want, q.count, q.at, q.n, q.pairs = GP64(), GP64(), GP64(), GP64(), GP64(), GP64()
	MOVQ(q.size, q.pairs)
	SHRQ(U8(6), q.pairs)
	XORQ(q.done, q.done)
	return q
}

// run goes through the blocks in batches that fit the first-level cache: maximum for every
// block of the batch, then codes for every block. From the first load of a block to
// its first code it is a long way, some forty cycles; so the one half of it does not hold up
// the other.
//
// maximum returns the absmax of the block at q.at as float32 bits and moves q.at on; it jumps
// to "limit" when the block is not one for this function. codes writes the codes of the block
// at q.src, the absmax of which is at q.absmax, and moves q.src and q.packed on.
func (q *quantizer) run(maximum func() reg.Register, codes func()) {
	Label("batch")
	MOVQ(q.left, q.want)
	CMPQ(q.want, q.batch)
	CMOVQGT(q.batch, q.want)
	XORQ(q.count, q.count)
	MOVQ(q.src, q.at)
	Label("maximum")
	MOVL(maximum(), Mem{Base: q.absmax, Index: q.count, Scale: 4})
	INCQ(q.count)
	CMPQ(q.count, q.want)
	JL(LabelRef("maximum"))
	Label("limit")
	ADDQ(q.count, q.done)
	SUBQ(q.count, q.left)
	SUBQ(q.count, q.want) // not 0: the end
	TESTQ(q.count, q.count)
	JZ(LabelRef("return"))
	Label("codes")
	codes()
	ADDQ(Imm(4), q.absmax)
	DECQ(q.count)
	JNZ(LabelRef("codes"))
	TESTQ(q.want, q.want)
	JNZ(LabelRef("return"))
	TESTQ(q.left, q.left)
	JNZ(LabelRef("batch"))
	Label("return")
	VZEROUPPER()
	Store(q.done, ReturnIndex(0))
	RET()
}

// each64 goes through a block: body64 does 64 elements at a time, body32 the 32 that may be
// left.
func (q *quantizer) each64(body64, body32 func()) {
	rest, none := emit.Label("rest"), emit.Label("none")
	MOVQ(q.pairs, q.n)
	TESTQ(q.n, q.n)
	JZ(LabelRef(rest))
	emit.Repeat(q.n, body64)
	Label(rest)
	TESTQ(U32(32), q.size)
	JZ(LabelRef(none))
	body32()
	Label(none)
}

// each32 runs first once and body for every 32 elements; two in a turn, as most blocks are
// of 64.
func (q *quantizer) each32(first, body func()) {
	rest, none := emit.Label("rest"), emit.Label("none")
	first()
	MOVQ(q.pairs, q.n)
	TESTQ(q.n, q.n)
	JZ(LabelRef(rest))
	emit.Repeat(q.n, func() { body(); body() })
	Label(rest)
	TESTQ(U32(32), q.size)
	JZ(LabelRef(none))
	body()
	Label(none)
}

func (q *quantizer) advance(elems, size int) {
	ADDQ(U32(elems*size), q.src)
	ADDQ(Imm(uint64(elems/2)), q.packed)
}

// prefetch asks for bytes of the source some batches ahead: while codes are found, nothing
// else is read from memory.
func (q *quantizer) prefetch(bytes int) {
	const ahead = 8192
	for i := 0; i < bytes; i += 64 {
		PREFETCHT0(Mem{Base: q.src, Disp: ahead + i})
	}
}

// maxWord is the absmax, as float32 bits, of which the complements of magnitudes are in x.
// It goes to "limit" when absmax is not among the limits of the rows.
func (f halfFormat) maxWord(x Op) reg.Register {
	VPHMINPOSUW(x, x)
	a, t := GP32(), GP32()
	VMOVD(x, a)
	NOTL(a)
	MOVWLZX(a.As16(), a)
	MOVL(a, t)
	SUBL(param("least"), t)
	CMPL(t, param("span"))
	JAE(LabelRef("limit"))
	if f == float16 {
		VMOVD(a, x)
		VCVTPH2PS(x, x)
		VMOVD(x, a)
	} else {
		SHLL(U8(16), a)
	}
	return a
}

// param is the place of an argument.
func param(name string) Op {
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return p.Addr
}

const quantizeWords = "func(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, rows *[16]int16, codes *[16]byte) int"

// rowOf is the place of the row for the block's absmax: float32 has the same fraction, and
// zeros behind it.
func (q *quantizer) rowOf(rows reg.Register, f halfFormat) reg.Register {
	row := GP64()
	MOVL(Mem{Base: q.absmax}, row.As32())
	SHRL(U8(23-f.fraction), row.As32())
	ANDL(U32(1<<f.fraction-1), row.As32())
	SHLL(U8(5), row.As32())
	ADDQ(rows, row)
	return row
}

// signRow is where the directions are: after the rows of all fractions.
func (f halfFormat) signRow() int { return 32 << f.fraction }

// exponentOf puts the exponent of the block's absmax, as it stands in the format, into all
// words of e.
func (q *quantizer) exponentOf(f halfFormat, e reg.VecVirtual) {
	if f == bfloat16 {
		VPBROADCASTW(Mem{Base: q.absmax, Disp: 2}, e)
		return
	}
	x := XMM()
	VMOVSS(Mem{Base: q.absmax}, x)
	VCVTPS2PH(Imm(0), x, x) // exact
	VPBROADCASTW(x, e)
}

func quantizeWordsAVX2(f halfFormat) {
	TEXT("quantize"+f.name+"AVX2", attr.NOSPLIT, quantizeWords)
	q := newQuantizer()
	rows := Load(Param("rows"), GP64())
	start, first, codes := load(YMM, w.start), load(YMM, w.first), YMM()
	VBROADCASTI128(Mem{Base: Load(Param("codes"), GP64())}, codes)
	q.run(func() reg.Register {
		m, magnitude := YMM(), load(YMM, w.magnitude)
		piece := func(at int) reg.VecVirtual {
			t := YMM()
			VPAND(Mem{Base: q.at, Disp: at}, magnitude, t)
			return t
		}
		q.each32(func() {
			VPXOR(m, m, m)
		}, func() {
			t, u := piece(0), piece(32)
			VPMAXUW(u, t, t)
			VPMAXUW(t, m, m)
			ADDQ(Imm(64), q.at)
		})
		x := XMM()
		VEXTRACTI128(Imm(1), m, x)
		VPMAXUW(m.AsX(), x, x)
		VPXOR(w.ones, x, x)
		return f.maxWord(x)
	}, func() {
		row := q.rowOf(rows, f)
		moved := YMM()
		q.exponentOf(f, moved)
		VPAND(f.exponent(), moved, moved)
		VPSIGNW(Mem{Base: rows, Disp: f.signRow()}, moved, moved)
		VPADDW(Mem{Base: row}, moved, moved)
		t4, t3, t2lo, t2hi, t1, upper := YMM(), YMM(), YMM(), YMM(), YMM(), YMM()
		VPERMQ(Imm(0x44), moved, t4)
		VPERMQ(Imm(0xee), moved, upper)
		VPSHUFB(w.pick3, upper, t3)
		VPSHUFB(w.pick2lo, upper, t2lo)
		VPSHUFB(w.pick2hi, upper, t2hi)
		VPSHUFB(w.pick1, upper, t1)
		// rank32 finds the ranks of 32 elements and makes them codes: a word for two.
		rank32 := func(disp int) reg.VecVirtual {
			var r [2]reg.VecVirtual
			for i := range r {
				s, idx, m, t := YMM(), YMM(), YMM(), YMM()
				VMOVDQU(Mem{Base: q.src, Disp: disp + 32*i}, m)
				VPAND(w.magnitude, m, s)
				VPSIGNW(m, s, s)
				VPCMPGTW(t1, s, m)
				VPBLENDVB(m, t2hi, t2lo, t)
				VPBLENDVB(m, first, start, idx)
				VPCMPGTW(t, s, m)
				VPOR(w.four, idx, t) // before the outcome is there
				VPBLENDVB(m, t, idx, idx)
				VPSHUFB(idx, t3, t)
				VPCMPGTW(t, s, m)
				VPOR(w.two, idx, t)
				VPBLENDVB(m, t, idx, idx)
				VPSHUFB(idx, t4, t)
				VPCMPGTW(t, s, m)
				VPSUBW(m, idx, idx)
				VPAND(w.low, idx, idx)
				r[i] = idx
			}
			VPACKUSWB(r[1], r[0], r[0])
			VPSHUFB(r[0], codes, r[0])
			VPMADDUBSW(w.nibbles, r[0], r[0])
			return r[0]
		}
		q.each64(func() {
			r0, r1 := rank32(0), rank32(64)
			VPACKUSWB(r1, r0, r0)
			VPERMD(r0, load(YMM, w.order), r0)
			VMOVDQU(r0, Mem{Base: q.packed})
			q.prefetch(128)
			q.advance(64, 2)
		}, func() {
			r := rank32(0)
			VPACKUSWB(r, r, r)
			VPERMD(r, load(YMM, w.order), r)
			VMOVDQU(r.AsX(), Mem{Base: q.packed})
			q.advance(32, 2)
		})
	})
}

func quantizeWordsAVX512(f halfFormat) {
	TEXT("quantize"+f.name+"AVX512", attr.NOSPLIT, quantizeWords)
	q := newQuantizer()
	rows := Load(Param("rows"), GP64())
	magnitude, start, first, four, two, one, nibbles, codes := load(ZMM, w.magnitude), load(ZMM, w.start), load(ZMM, w.first),
		load(ZMM, w.four), load(ZMM, w.two), load(ZMM, w.one), load(ZMM, w.nibbles), ZMM()
	exponent, pick3, pick2, pick1, zero := load(ZMM, f.exponent()), load(ZMM, w.pick3), load(ZMM, w.pick2), load(ZMM, w.pick1), ZMM()
	VPXORD(zero, zero, zero)
	VBROADCASTI32X4(Mem{Base: Load(Param("codes"), GP64())}, codes)
	signs, signsU := ZMM(), ZMM()
	VBROADCASTI32X4(Mem{Base: rows, Disp: f.signRow()}, signs)
	VBROADCASTI32X4(Mem{Base: rows, Disp: f.signRow() + 16}, signsU)
	q.run(func() reg.Register { return q.maxWords512(f, magnitude) }, func() {
		row := q.rowOf(rows, f)
		e, e4, t4, t3, t2, t1, upper := ZMM(), ZMM(), ZMM(), ZMM(), ZMM(), ZMM(), ZMM()
		q.exponentOf(f, e)
		VPANDD(exponent, e, e)
		VPMULLW(signs, e, e4)
		VPMULLW(signsU, e, e)
		VBROADCASTI32X4(Mem{Base: row}, t4)
		VBROADCASTI32X4(Mem{Base: row, Disp: 16}, upper)
		VPADDW(e4, t4, t4)
		VPADDW(e, upper, upper)
		VPSHUFB(pick3, upper, t3)
		VPSHUFB(pick2, upper, t2)
		VPSHUFB(pick1, upper, t1)
		rank32 := func(disp int) reg.VecVirtual {
			x, s, idx, t := ZMM(), ZMM(), ZMM(), ZMM()
			negative, k1, k2, k3, k4 := K(), K(), K(), K(), K()
			VMOVDQU64(Mem{Base: q.src, Disp: disp}, x)
			VPANDD(magnitude, x, s)
			VPMOVW2M(x, negative)
			VPSUBW(s, zero, negative, s)
			VPCMPGTW(t1, s, k1)
			VPBLENDMW(first, start, k1, idx)
			VPSHUFB(idx, t2, t)
			VPCMPGTW(t, s, k2)
			VPADDW(four, idx, k2, idx)
			VPSHUFB(idx, t3, t)
			VPCMPGTW(t, s, k3)
			VPADDW(two, idx, k3, idx)
			VPSHUFB(idx, t4, t)
			VPCMPGTW(t, s, k4)
			VPADDW(one, idx, k4, idx)
			bytes := YMM()
			VPMOVWB(idx, bytes)
			return bytes
		}
		q.each64(func() {
			r0, r1 := rank32(0), rank32(64)
			r := r0.AsZ()
			VINSERTI64X4(Imm(1), r1, r, r)
			VPSHUFB(r, codes, r)
			VPMADDUBSW(nibbles, r, r)
			VPMOVWB(r, Mem{Base: q.packed})
			q.prefetch(128)
			q.advance(64, 2)
		}, func() {
			r := rank32(0)
			VPSHUFB(r, codes.AsY(), r)
			VPMADDUBSW(nibbles.AsY(), r, r)
			VPMOVWB(r, Mem{Base: q.packed})
			q.advance(32, 2)
		})
	})
}

// maxWords512 is the absmax of the block at q.at.
func (q *quantizer) maxWords512(f halfFormat, magnitude reg.VecVirtual) reg.Register {
	m := ZMM()
	q.each32(func() {
		VPXORD(m, m, m)
	}, func() {
		t := ZMM()
		VPANDD(Mem{Base: q.at}, magnitude, t)
		VPMAXUW(t, m, m)
		ADDQ(Imm(64), q.at)
	})
	y, x := YMM(), reg.X15 // VPHMINPOSUW knows the first 16 registers only
	VEXTRACTI64X4(Imm(1), m, y)
	VPMAXUW(m.AsY(), y, y)
	VEXTRACTI32X4(Imm(1), y, x)
	VPMAXUW(y.AsX(), x, x)
	VPXORD(w.ones, x, x)
	return f.maxWord(x)
}

// load puts a constant into a register.
func load(kind func() reg.VecVirtual, m Mem) reg.VecVirtual {
	r := kind()
	if r.Size() == 64 {
		VMOVDQU64(m, r)
	} else {
		VMOVDQU(m, r)
	}
	return r
}
