// Command lowrank writes the assembly of package kernels/lowrank.
package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

func main() {
	ConstraintExpr("!purego")
	row("rowAVX2", 32, func() reg.VecVirtual { return YMM() })
	row("rowAVX512", 64, func() reg.VecVirtual { return ZMM() })
	Generate()
}

// row computes groups of columns, at least one: four vectors of sums stay in registers while
// it goes down the rows of the matrix, of which there is at least one.
func row(name string, columns int, vector func() reg.VecVirtual) {
	TEXT(name, attr.NOSPLIT, "func(dst, l, r *float32, rank, stride, groups int, scale float32)")
	dst, l, r := Load(Param("dst"), GP64()), Load(Param("l"), GP64()), Load(Param("r"), GP64())
	rank, stride, groups := Load(Param("rank"), GP64()), Load(Param("stride"), GP64()), Load(Param("groups"), GP64())
	scale := vector()
	at, err := Param("scale").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(at.Addr, scale)
	SHLQ(Imm(2), stride)
	size := columns // bytes of a vector: a quarter of the columns, four bytes each
	emit.Repeat(groups, func() {
		var acc [4]reg.VecVirtual
		f := vector()
		VBROADCASTSS(Mem{Base: l}, f)
		for i := range acc {
			acc[i] = vector()
			VMULPS(Mem{Base: r, Disp: i * size}, f, acc[i])
		}
		p, k := GP64(), GP64()
		MOVQ(r, p)
		MOVQ(U32(1), k)
		top, end := emit.Label("rows"), emit.Label("done")
		Label(top)
		CMPQ(k, rank)
		JGE(LabelRef(end))
		ADDQ(stride, p)
		VBROADCASTSS(Mem{Base: l, Index: k, Scale: 4}, f)
		for i := range acc {
			t := vector()
			VMULPS(Mem{Base: p, Disp: i * size}, f, t)
			VADDPS(t, acc[i], acc[i])
		}
		INCQ(k)
		JMP(LabelRef(top))
		Label(end)
		for i := range acc {
			VMULPS(scale, acc[i], acc[i])
			VMOVUPS(acc[i], Mem{Base: dst, Disp: i * size})
		}
		ADDQ(U32(4*columns), dst)
		ADDQ(U32(4*columns), r)
	})
	VZEROUPPER()
	RET()
}
