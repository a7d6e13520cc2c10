package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// quantizeCellsAVX512 looks codes up by the distance of a magnitude from the absmax, both
// as bfloat16 bits: 32 cells a sign, each of a quarter of a power of two and the last of all
// that is smaller, with one threshold each (makeCells in quant4's search_amd64.go). Of the
// search's four comparisons with masks, which are slow, one is left.
func quantizeCellsAVX512() {
	words := func(name string, v int) Mem { return emit.Words(name, 32, func(int) int { return v }) }
	lastMem, signMem := words("w_last", 31), words("w_sign", 32)
	TEXT("quantizeCellsAVX512", attr.NOSPLIT, "func(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, cells *[128][4][32]uint16) int")
	q := newQuantizer()
	cells := Load(Param("cells"), GP64())
	magnitude, last, sign, nibbles := load(ZMM, w.magnitude), load(ZMM, lastMem), load(ZMM, signMem), load(ZMM, w.nibbles)
	q.run(func() reg.Register { return q.maxWords512(bfloat16, magnitude) }, func() {
		row, absmax := GP64(), ZMM()
		MOVWLZX(Mem{Base: q.absmax, Disp: 2}, row.As32())
		VPBROADCASTW(row.As32(), absmax)
		ANDL(U8(0x7f), row.As32())
		SHLL(U8(8), row.As32())
		ADDQ(cells, row)
		var table [4]reg.VecVirtual // thresholds and codes, for positive and negative x
		for i := range table {
			table[i] = ZMM()
			VMOVDQU64(Mem{Base: row, Disp: 64 * i}, table[i])
		}
		// codes32 finds the codes of 32 elements, a byte each.
		codes32 := func(disp int) reg.VecVirtual {
			x, key, cell, t, c, k := ZMM(), ZMM(), ZMM(), ZMM(), ZMM(), K()
			VMOVDQU64(Mem{Base: q.src, Disp: disp}, x)
			VPANDD(magnitude, x, key)
			VPSUBW(key, absmax, key)
			VPSRLW(Imm(5), key, cell)
			VPMINUW(last, cell, cell)
			VPSRLW(Imm(10), x, x)
			VPTERNLOGD(Imm(0xf8), sign, x, cell) // cell | x & sign; VPERMI2W looks at six bits
			VMOVDQA64(cell, t)
			VPERMI2W(table[1], table[0], t)
			VMOVDQA64(cell, c)
			VPERMI2W(table[3], table[2], c)
			VPCMPUW(Imm(1), t, key, k) // key < t
			VPSRLW(Imm(8), c, k, c)
			bytes := YMM()
			VPMOVWB(c, bytes)
			return bytes
		}
		q.each64(func() {
			r0, r1 := codes32(0), codes32(64)
			r := r0.AsZ()
			VINSERTI64X4(Imm(1), r1, r, r)
			VPMADDUBSW(nibbles, r, r)
			VPMOVWB(r, Mem{Base: q.packed})
			q.prefetch(128)
			q.advance(64, 2)
		}, func() {
			r := codes32(0)
			VPMADDUBSW(nibbles.AsY(), r, r)
			VPMOVWB(r, Mem{Base: q.packed})
			q.advance(32, 2)
		})
	})
}
