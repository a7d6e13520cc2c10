// Command panel writes the assembly of kernels/panel: the micro-kernels that multiply
// packed panels, and the transposition of whole vectors.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// A tier is one width of vector registers.
type tier struct {
	name  string
	lanes int
	rows  int // of a tile: with 3 vectors of columns, the accumulators leave room for b and one broadcast
	reg   func() VecVirtual
	move  func(...Op)
}

func main() {
	ConstraintExpr("!purego")
	avx512 := tier{"AVX512", 16, 8, func() VecVirtual { return ZMM() }, VMOVUPS}
	avx2 := tier{"AVX2", 8, 4, func() VecVirtual { return YMM() }, VMOVUPS}
	for _, t := range []tier{avx512, avx2} {
		for vecs := 1; vecs <= 3; vecs++ {
			t.mul(vecs)
		}
		t.transpose()
	}
	Generate()
}

// mul is the micro-kernel. A tile of c stays in registers for all of k; one element of a
// is broadcast and meets vecs vectors of b, so that for rows*vecs multiply-adds only
// rows+vecs values are loaded.
func (t tier) mul(vecs int) {
	name := fmt.Sprintf("mul%dx%s", vecs, t.name)
	TEXT(name, NOSPLIT, "func(c, b, a *float32, aRow, aStep, tiles, k, mode int, scale *float32)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s works like mulGeneric with %d*%d columns and %d rows a tile.", name, vecs, t.lanes, t.rows))
	c, b, a := Load(Param("c"), GP64()), Load(Param("b"), GP64()), Load(Param("a"), GP64())
	row, step := Load(Param("aRow"), GP64()), Load(Param("aStep"), GP64())
	tiles, k := Load(Param("tiles"), GP64()), Load(Param("k"), GP64())
	SHLQ(Imm(2), row)
	SHLQ(Imm(2), step)
	row3 := GP64()
	LEAQ(Mem{Base: row, Index: row, Scale: 2}, row3)
	width := vecs * t.lanes * 4

	Label("tile")
	acc := make([][]VecVirtual, t.rows)
	for r := range acc {
		for v := 0; v < vecs; v++ {
			x := t.reg()
			VXORPS(x, x, x)
			acc[r] = append(acc[r], x)
		}
	}
	bp, n := GP64(), GP64()
	MOVQ(b, bp)
	MOVQ(k, n)
	var ap []Register // of every fourth row
	for r := 0; r < t.rows; r += 4 {
		p := GP64()
		if r == 0 {
			MOVQ(a, p)
		} else {
			LEAQ(Mem{Base: ap[r/4-1], Index: row, Scale: 4}, p)
		}
		ap = append(ap, p)
	}
	TESTQ(n, n)
	JZ(LabelRef("done"))

	Label("loop")
	bv := make([]VecVirtual, vecs)
	for v := range bv {
		bv[v] = t.reg()
		t.move(Mem{Base: bp, Disp: v * t.lanes * 4}, bv[v])
	}
	for r := range acc {
		at := Mem{Base: ap[r/4]}
		switch r % 4 {
		case 1:
			at.Index, at.Scale = row, 1
		case 2:
			at.Index, at.Scale = row, 2
		case 3:
			at.Index, at.Scale = row3, 1
		}
		x := t.reg()
		VBROADCASTSS(at, x)
		for v := range bv {
			VFMADD231PS(bv[v], x, acc[r][v])
		}
	}
	for _, p := range ap {
		ADDQ(step, p)
	}
	ADDQ(U32(width), bp)
	DECQ(n)
	JNZ(LabelRef("loop"))

	Label("done")
	mode := Load(Param("mode"), GP64())
	CMPQ(mode, Imm(1))
	JEQ(LabelRef("add"))
	JGT(LabelRef("rescale"))
	cell := func(r, v int) Mem { return Mem{Base: c, Disp: r*width + v*t.lanes*4} }
	JMP(LabelRef("store"))

	Label("rescale")
	scale := Load(Param("scale"), GP64())
	for v := 0; v < vecs; v++ {
		s := t.reg()
		t.move(Mem{Base: scale, Disp: v * t.lanes * 4}, s)
		for r := range acc {
			VFMADD231PS(cell(r, v), s, acc[r][v])
		}
	}
	JMP(LabelRef("store"))

	Label("add")
	for r := range acc {
		for v := range acc[r] {
			VADDPS(cell(r, v), acc[r][v], acc[r][v])
		}
	}

	Label("store")
	for r := range acc {
		for v := range acc[r] {
			t.move(acc[r][v], cell(r, v))
		}
	}
	ADDQ(U32(t.rows*width), c)
	LEAQ(Mem{Base: a, Index: row, Scale: 4}, a)
	if t.rows == 8 {
		LEAQ(Mem{Base: a, Index: row, Scale: 4}, a)
	}
	DECQ(tiles)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

// transpose turns square blocks of lanes*lanes in registers.
func (t tier) transpose() {
	name := "transpose" + t.name
	TEXT(name, NOSPLIT, "func(dst *float32, ldd int, src *float32, lds, rows, cols int)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s works like transposeGeneric; rows and cols are positive multiples of %d.", name, t.lanes))
	dst, src := Load(Param("dst"), GP64()), Load(Param("src"), GP64())
	ldd, lds := Load(Param("ldd"), GP64()), Load(Param("lds"), GP64())
	rows, cols := Load(Param("rows"), GP64()), Load(Param("cols"), GP64())
	SHLQ(Imm(2), ldd)
	SHLQ(Imm(2), lds)

	Label("rows")
	from, to, n := GP64(), GP64(), GP64()
	MOVQ(src, from)
	MOVQ(dst, to)
	MOVQ(cols, n)

	Label("cols")
	x := make([]VecVirtual, t.lanes)
	p := GP64()
	MOVQ(from, p)
	for i := range x {
		x[i] = t.reg()
		t.move(Mem{Base: p}, x[i])
		ADDQ(lds, p)
	}
	for _, v := range t.turn(x) {
		t.move(v, Mem{Base: to})
		ADDQ(ldd, to)
	}
	ADDQ(Imm(uint64(4*t.lanes)), from)
	SUBQ(Imm(uint64(t.lanes)), n)
	JNZ(LabelRef("cols"))
	LEAQ(Mem{Base: dst, Disp: 4 * t.lanes}, dst)
	MOVQ(lds, p)
	shift := uint64(3)
	if t.lanes == 16 {
		shift = 4
	}
	SHLQ(Imm(shift), p)
	ADDQ(p, src)
	SUBQ(Imm(uint64(t.lanes)), rows)
	JNZ(LabelRef("rows"))
	VZEROUPPER()
	RET()
}

// turn transposes 4x4 blocks inside the 128-bit lanes, then the lanes themselves.
func (t tier) turn(x []VecVirtual) []VecVirtual {
	two := func(op func(...Op), a, b Op) VecVirtual {
		d := t.reg()
		op(b, a, d)
		return d
	}
	y := make([]VecVirtual, t.lanes) // y[4g+j], 128-bit lane q: rows 4g..4g+3 of column 4q+j
	for g := 0; g < t.lanes; g += 4 {
		a, b := two(VUNPCKLPS, x[g], x[g+1]), two(VUNPCKHPS, x[g], x[g+1])
		c, d := two(VUNPCKLPS, x[g+2], x[g+3]), two(VUNPCKHPS, x[g+2], x[g+3])
		y[g], y[g+1] = two(VUNPCKLPD, a, c), two(VUNPCKHPD, a, c)
		y[g+2], y[g+3] = two(VUNPCKLPD, b, d), two(VUNPCKHPD, b, d)
	}
	pick := func(op func(...Op), imm uint64, a, b Op) VecVirtual {
		d := t.reg()
		op(Imm(imm), b, a, d)
		return d
	}
	out := make([]VecVirtual, t.lanes)
	if t.lanes == 8 {
		perm := func(ops ...Op) { VPERM2F128(ops[0], ops[1], ops[2], ops[3]) }
		for j := 0; j < 4; j++ {
			out[j], out[4+j] = pick(perm, 0x20, y[j], y[4+j]), pick(perm, 0x31, y[j], y[4+j])
		}
		return out
	}
	for j := 0; j < 4; j++ {
		a, b := pick(VSHUFF32X4, 0x44, y[j], y[4+j]), pick(VSHUFF32X4, 0xee, y[j], y[4+j])       // columns 0-7, 8-15 of rows 0-7
		c, d := pick(VSHUFF32X4, 0x44, y[8+j], y[12+j]), pick(VSHUFF32X4, 0xee, y[8+j], y[12+j]) // of rows 8-15
		out[j], out[4+j] = pick(VSHUFF32X4, 0x88, a, c), pick(VSHUFF32X4, 0xdd, a, c)
		out[8+j], out[12+j] = pick(VSHUFF32X4, 0x88, b, d), pick(VSHUFF32X4, 0xdd, b, d)
	}
	return out
}
