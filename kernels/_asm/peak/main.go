// Command peak writes the assembly of kernels/peak.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// chains is enough independent sums for two units of up to seven cycles of latency.
const chains = 14

func main() {
	ConstraintExpr("!purego")
	loop("fmaAVX2", func() VecVirtual { return YMM() })
	loop("fmaAVX512", func() VecVirtual { return ZMM() })
	Generate()
}

func loop(name string, reg func() VecVirtual) {
	TEXT(name, NOSPLIT, "func(n int)")
	Doc(name + " runs n rounds of 14 independent multiply-adds in registers.")
	n := Load(Param("n"), GP64())
	var acc []VecVirtual
	for i := 0; i < chains; i++ {
		x := reg()
		VXORPS(x, x, x)
		acc = append(acc, x)
	}
	one := reg()
	VXORPS(one, one, one)
	Label("loop")
	for _, x := range acc {
		VFMADD231PS(one, one, x)
	}
	DECQ(n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}
