// Command panel writes the assembly of kernels/panel: the micro-kernels that multiply
// packed panels, those for a few rows, and the transposition of whole vectors.
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
		for _, f := range []format{wide, bf16, quant4} {
			for _, m := range []int{1, 2, 4} {
				t.few(m, f)
			}
		}
		t.transpose()
	}
	Generate()
}

// mul is the micro-kernel. A tile of c stays in registers for all of k; one element of a
// is broadcast and meets vecs vectors of b, so that for rows*vecs multiply-adds only
// rows+vecs values are loaded. The tile of c is asked for when its sums begin, and next,
// which a later call reads, a line of 64 bytes every four steps, so that memory has much
// longer for it than the loads of the first tile that meets it would leave.
func (t tier) mul(vecs int) {
	name := fmt.Sprintf("mul%dx%s", vecs, t.name)
	TEXT(name, NOSPLIT, "func(c, b, a *float32, aRow, aStep, tiles, k, mode int, scale, next *float32, line int)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s works like mulGeneric with %d*%d columns and %d rows a tile.", name, vecs, t.lanes, t.rows))
	c, b, a := Load(Param("c"), GP64()), Load(Param("b"), GP64()), Load(Param("a"), GP64())
	row, step := Load(Param("aRow"), GP64()), Load(Param("aStep"), GP64())
	tiles := Load(Param("tiles"), GP64())
	next, line := Load(Param("next"), GP64()), Load(Param("line"), GP64())
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
	for at := 0; at < t.rows*width; at += 64 {
		PREFETCHT0(Mem{Base: c, Disp: at})
	}
	bp, n := GP64(), GP64()
	MOVQ(b, bp)
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
	do := func(steps int) {
		for s := 0; s < steps; s++ {
			bv := make([]VecVirtual, vecs)
			for v := range bv {
				bv[v] = t.reg()
				t.move(Mem{Base: bp, Disp: s*width + v*t.lanes*4}, bv[v])
			}
			if s == 1 {
				PREFETCHT1(Mem{Base: next})
				ADDQ(line, next)
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
		}
		ADDQ(U32(steps*width), bp)
		DECQ(n)
	}
	Load(Param("k"), n)
	SHRQ(Imm(2), n)
	JZ(LabelRef("few"))

	Label("four")
	do(4)
	JNZ(LabelRef("four"))

	Label("few")
	Load(Param("k"), n)
	ANDQ(Imm(3), n)
	JZ(LabelRef("done"))

	Label("one")
	do(1)
	JNZ(LabelRef("one"))

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

// fewRows is the number of rows of w in a call of few.
const fewRows = 16

// A format is what w of few is stored in.
type format struct {
	name string
	per  int // elements in 32 bits
}

var wide, bf16, quant4 = format{"", 1}, format{"BF16", 2}, format{"Quant4", 8}

// few multiplies m rows with 16 rows of w in the order of k that mul has. Blocks of
// lanes*lanes words of 32 bits are turned in registers and then unpacked. A whole line of
// 64 bytes of each row is used at once: rows are often a multiple of the pages apart, and
// then their lines push each other out of the first-level cache. The rows of the next call
// are asked for, as many lines as are used.
func (t tier) few(m int, f format) {
	name := fmt.Sprintf("few%s%d%s", f.name, m, t.name)
	TEXT(name, NOSPLIT, "func(c *float32, cRow int, a *float32, w *byte, wRow, k, add int, scales, levels *float32, next *byte, line int)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s works like fewGeneric with %d rows of a.", name, m))
	a, w := Load(Param("a"), GP64()), Load(Param("w"), GP64())
	row := Load(Param("wRow"), GP64())
	next, line := Load(Param("next"), GP64()), Load(Param("line"), GP64())
	row3 := GP64()
	LEAQ(Mem{Base: row, Index: row, Scale: 2}, row3)
	// Both groups of AVX2 together, where registers suffice: a sum waits for the one before.
	passes, words := [][]int{{0, 1}}, 16
	switch {
	case t.lanes == fewRows:
		passes = [][]int{{0}}
	case m > 2 || f == quant4:
		passes = [][]int{{0}, {1}}
	}
	if f == quant4 {
		words = t.lanes // it is long enough
	}
	base := make([]Register, fewRows/4) // of every fourth row
	for i := range base {
		base[i] = GP64()
	}
	at := func(r int) Mem {
		m := Mem{Base: base[r/4]}
		switch r % 4 {
		case 1:
			m.Index, m.Scale = row, 1
		case 2:
			m.Index, m.Scale = row, 2
		case 3:
			m.Index, m.Scale = row3, 1
		}
		return m
	}
	for pass, list := range passes {
		loop, store := fmt.Sprintf("loop%d", pass), fmt.Sprintf("store%d", pass)
		ap, steps, sp := GP64(), GP64(), GP64()
		MOVQ(a, ap)
		Load(Param("k"), steps)
		u := t.unpacker(f, sp, list[0])
		first, last := list[0]*t.lanes/4, (list[len(list)-1]+1)*t.lanes/4
		for i := first; i < last; i++ {
			if i == first {
				MOVQ(w, base[i])
			} else {
				LEAQ(Mem{Base: base[i-1], Index: row, Scale: 4}, base[i])
			}
		}
		acc := make([][]VecVirtual, m)
		for i := range acc {
			for range list {
				x := t.reg()
				VXORPS(x, x, x)
				acc[i] = append(acc[i], x)
			}
		}

		Label(loop)
		if pass == 0 {
			for i := 0; i < words*fewRows/16; i++ {
				PREFETCHT1(Mem{Base: next})
				ADDQ(line, next)
			}
		}
		for j, g := range list {
			for part := 0; part < words; part += t.lanes {
				x := make([]VecVirtual, t.lanes)
				for r := range x {
					x[r] = t.reg()
					t.move(at(g*t.lanes+r).Offset(4*part), x[r])
				}
				for s, v := range t.turn(x) {
					for e := 0; e < f.per; e++ {
						y := u(v, (part+s)*f.per+e, e)
						for i := range acc {
							at := Mem{Base: ap, Disp: 4 * (((part+s)*f.per+e)*m + i)}
							if t.lanes == 16 {
								VFMADD231PS_BCST(at, y, acc[i][j])
								continue
							}
							b := t.reg()
							VBROADCASTSS(at, b)
							VFMADD231PS(b, y, acc[i][j])
						}
					}
				}
			}
		}
		for i := first; i < last; i++ {
			ADDQ(Imm(uint64(4*words)), base[i])
		}
		ADDQ(U32(4*words*f.per*m), ap)
		if f == quant4 {
			ADDQ(U32(4*fewRows*words*f.per/64), sp)
		}
		SUBQ(U32(words*f.per), steps)
		JNZ(LabelRef(loop))
		LEAQ(Mem{Base: w, Index: row, Scale: 8}, w) // of the next pass

		p, c, cRow, add := GP64(), Load(Param("c"), GP64()), Load(Param("cRow"), GP64()), Load(Param("add"), GP64())
		SHLQ(Imm(2), cRow)
		cell := func(j int) Mem { return Mem{Base: p, Disp: list[j] * t.lanes * 4} }
		MOVQ(c, p)
		TESTQ(add, add)
		JZ(LabelRef(store))
		for i := range acc {
			for j := range acc[i] {
				VADDPS(cell(j), acc[i][j], acc[i][j])
			}
			ADDQ(cRow, p)
		}
		MOVQ(c, p)

		Label(store)
		for i := range acc {
			for j := range acc[i] {
				t.move(acc[i][j], cell(j))
			}
			ADDQ(cRow, p)
		}
	}
	VZEROUPPER()
	RET()
}

// unpacker prepares a function that gives element e of the words v, the n-th of a step.
// sp becomes the pointer to the scales of the rows, 16 for every 64 elements.
func (t tier) unpacker(f format, sp Register, group int) func(v VecVirtual, n, e int) VecVirtual {
	switch f {
	case bf16: // the upper half of a float32
		upper := t.reg()
		ones(t, upper)
		VPSLLD(Imm(16), upper, upper)
		return func(v VecVirtual, _, e int) VecVirtual {
			y := t.reg()
			switch {
			case e == 0:
				VPSLLD(Imm(16), v, y)
			case t.lanes == 16:
				VPANDD(upper, v, y)
			default:
				VPAND(upper, v, y)
			}
			return y
		}
	case quant4: // the upper half of a byte comes first
		levels := Load(Param("levels"), GP64())
		Load(Param("scales"), sp)
		if group > 0 {
			ADDQ(Imm(uint64(4*t.lanes*group)), sp)
		}
		var table VecVirtual
		if t.lanes == 16 {
			table = t.reg()
			t.move(Mem{Base: levels}, table)
		}
		return func(v VecVirtual, n, e int) VecVirtual {
			code, y := t.reg(), t.reg()
			shift := 8*(e/2) + 4*(1-e%2)
			scale := Mem{Base: sp, Disp: n / 64 * 4 * fewRows}
			if shift > 0 {
				VPSRLD(Imm(uint64(shift)), v, code)
			} else {
				code = v
			}
			if t.lanes == 16 { // which looks at four bits and no more
				VPERMPS(table, code, y)
				VMULPS(scale, y, y)
				return y
			}
			high := t.reg()
			VPERMPS(Mem{Base: levels}, code, y)
			VPERMPS(Mem{Base: levels, Disp: 32}, code, high)
			which := t.reg()
			VPSLLD(Imm(uint64(28-shift)), v, which)
			VBLENDVPS(which, high, y, y)
			VMULPS(scale, y, y)
			return y
		}
	}
	return func(v VecVirtual, _, _ int) VecVirtual { return v }
}

// ones sets all bits.
func ones(t tier, x VecVirtual) {
	VXORPS(x, x, x)
	if t.lanes == 16 {
		VPTERNLOGD(U8(255), x, x, x)
		return
	}
	VPCMPEQD(x, x, x)
}
