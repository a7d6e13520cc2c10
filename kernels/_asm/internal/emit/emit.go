// Package emit holds what the generators of assembly share.
//
// Operands stand in the order of Go's assembler: sources first, destination last, so
// that VPSUBW(a, b, d) is d = b - a and VPCMPGTW(a, b, d) is d = b > a.
package emit

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Words is a constant of n 16-bit numbers.
func Words(name string, n int, f func(i int) int) operand.Mem {
	m := build.GLOBL(name, attr.RODATA|attr.NOPTR)
	for i := range n {
		build.DATA(2*i, operand.U16(uint16(f(i))))
	}
	return m
}

// Dwords is a constant of n 32-bit numbers.
func Dwords(name string, n int, f func(i int) uint32) operand.Mem {
	m := build.GLOBL(name, attr.RODATA|attr.NOPTR)
	for i := range n {
		build.DATA(4*i, operand.U32(f(i)))
	}
	return m
}

// Bytes is a constant of n bytes.
func Bytes(name string, n int, f func(i int) int) operand.Mem {
	m := build.GLOBL(name, attr.RODATA|attr.NOPTR)
	for i := range n {
		build.DATA(i, operand.U8(uint8(f(i))))
	}
	return m
}

var labels int

// Label is a name for a place that no other has.
func Label(stem string) string {
	labels++
	return fmt.Sprintf("%s%d", stem, labels)
}

// Repeat runs body n times; n, at least 1, is counted down to 0.
func Repeat(n reg.Register, body func()) {
	top := Label("loop")
	build.Label(top)
	body()
	build.DECQ(n)
	build.JNZ(operand.LabelRef(top))
}

// While runs body as long as n, which it is to count down, is at least k.
func While(n reg.Register, k int, body func()) {
	top, end := Label("while"), Label("end")
	build.Label(top)
	build.CMPQ(n, operand.Imm(uint64(k)))
	build.JL(operand.LabelRef(end))
	body()
	build.JMP(operand.LabelRef(top))
	build.Label(end)
}
