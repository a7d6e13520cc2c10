// Command vexp writes the assembly of package kernels/vexp.
package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"   //revive:disable-line:dot-imports avo programs read as assembly only so
	. "github.com/mmcloughlin/avo/operand" //revive:disable-line:dot-imports as above
	"github.com/mmcloughlin/avo/reg"

	"github.com/nf4conv/nf4conv/kernels/_asm/internal/emit"
)

// A tier is one width of vector registers. AVX-512 has enough of them for constants; AVX2
// reads those from memory.
type tier struct {
	name  string
	wide  bool
	lanes int // of float64
}

func (t tier) reg() reg.VecVirtual {
	if t.wide {
		return ZMM()
	}
	return YMM()
}

// half is a register of as many float32 as the tier has lanes.
func (t tier) half() reg.VecVirtual {
	if t.wide {
		return YMM()
	}
	return XMM()
}

var constants = map[uint64]Mem{}

// constant is a vector of the float64 or the 64-bit integer x.
func (t tier) constant(x any) Op {
	var bits uint64
	switch x := x.(type) {
	case float64:
		bits = math.Float64bits(x)
	case int:
		bits = uint64(x)
	}
	m, ok := constants[bits]
	if !ok {
		m = GLOBL(fmt.Sprintf("const%016x", bits), attr.RODATA|attr.NOPTR)
		for i := 0; i < 8; i++ {
			DATA(8*i, U64(bits))
		}
		constants[bits] = m
	}
	if !t.wide {
		return m
	}
	v := t.reg()
	VMOVUPD(m, v)
	return v
}

func (t tier) load(op Op) reg.VecVirtual {
	v := t.reg()
	VMOVUPD(op, v)
	return v
}

// broadcast is a vector of a float64 parameter.
func (t tier) broadcast(name string) reg.VecVirtual {
	at, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	v := t.reg()
	VBROADCASTSD(at.Addr, v)
	return v
}

// exp holds the constants of the exponential.
type exp struct {
	tier
	low, high, log2e, magic, ln2High, ln2Low, bias Op
	taylor                                         []Op
}

func (t tier) exp() exp {
	e := exp{
		tier: t, low: t.constant(-708.0), high: t.constant(709.0), log2e: t.constant(float64(math.Log2E)), magic: t.constant(float64(3 << 51)),
		ln2High: t.constant(6.93147180369123816490e-01), ln2Low: t.constant(1.90821492927058770002e-10), bias: t.constant(1023),
	}
	c := []float64{1}
	f := 1.0
	for k := 1; k <= 13; k++ {
		f *= float64(k)
		c = append([]float64{1 / f}, c...)
	}
	for _, v := range c {
		e.taylor = append(e.taylor, t.constant(v))
	}
	return e
}

// of overwrites x with its exponential. The operand that a minimum and a maximum give back
// where one is NaN is x.
func (e exp) of(x reg.VecVirtual) {
	limit := e.load(e.low)
	VMAXPD(x, limit, x)
	limit = e.load(e.high)
	VMINPD(x, limit, x)
	t, n, p := e.reg(), e.reg(), e.reg()
	VMOVUPD(e.log2e, t)
	VFMADD213PD(e.magic, x, t)
	VSUBPD(e.magic, t, n)
	VFNMADD231PD(e.ln2High, n, x)
	VFNMADD231PD(e.ln2Low, n, x)
	VMOVUPD(e.taylor[0], p)
	for _, c := range e.taylor[1:] {
		VFMADD213PD(c, x, p)
	}
	VPADDQ(e.bias, t, t)
	VPSLLQ(Imm(52), t, t)
	VMULPD(t, p, x)
}

func main() {
	ConstraintExpr("!purego")
	for _, t := range []tier{{"AVX2", false, 4}, {"AVX512", true, 8}} {
		t.gate()
		t.divergence()
		t.max()
	}
	Generate()
}

// halves calls do for the byte offsets, of float32, of the vectors of a group.
func (t tier) halves(do func(k, at int)) {
	for k := 0; k < 8/t.lanes; k++ {
		do(k, 4*k*t.lanes)
	}
}

func (t tier) gate() {
	TEXT("gate"+t.name, attr.NOSPLIT, "func(x *float32, groups int, c1, c3 float64)")
	x, groups := Load(Param("x"), GP64()), Load(Param("groups"), GP64())
	c1, c3 := t.broadcast("c1"), t.broadcast("c3")
	e, one, limit := t.exp(), t.constant(1.0), t.constant(1e300)
	emit.Repeat(groups, func() {
		t.halves(func(_, at int) {
			v, s := t.reg(), t.reg()
			VCVTPS2PD(Mem{Base: x, Disp: at}, v)
			VMULPD(v, v, s)
			VMINPD(s, t.load(limit), s)
			VFMADD213PD(c1, c3, s)
			VMULPD(v, s, s)
			e.of(s)
			VADDPD(one, s, s)
			VDIVPD(s, v, v)
			f := t.half()
			if t.wide {
				VCVTPD2PS(v, f)
			} else {
				VCVTPD2PSY(v, f)
			}
			VMOVUPS(f, Mem{Base: x, Disp: at})
		})
		ADDQ(Imm(32), x)
	})
	VZEROUPPER()
	RET()
}

func (t tier) divergence() {
	TEXT("divergence"+t.name, attr.NOSPLIT, "func(sums *float64, a, b *float32, groups int, ma, mb float64)")
	sums, a, b := Load(Param("sums"), GP64()), Load(Param("a"), GP64()), Load(Param("b"), GP64())
	groups := Load(Param("groups"), GP64())
	ma, mb := Mem{}, Mem{}
	var wideA, wideB reg.VecVirtual
	if t.wide {
		wideA, wideB = t.broadcast("ma"), t.broadcast("mb")
	} else {
		ma, mb = AllocLocal(32), AllocLocal(32)
		VMOVUPD(t.broadcast("ma"), ma)
		VMOVUPD(t.broadcast("mb"), mb)
	}
	minus := func(x, d reg.VecVirtual, wide reg.VecVirtual, m Mem) {
		if t.wide {
			VSUBPD(wide, x, d)
		} else {
			VSUBPD(m, x, d)
		}
	}
	e := t.exp()
	var acc [2][3]reg.VecVirtual
	place := func(k, i int) Mem { return Mem{Base: sums, Disp: 64*i + 8*k*t.lanes} }
	t.halves(func(k, _ int) {
		for i := range acc[k] {
			acc[k][i] = t.load(place(k, i))
		}
	})
	emit.Repeat(groups, func() {
		t.halves(func(k, at int) {
			x, y, d := t.reg(), t.reg(), t.reg()
			VCVTPS2PD(Mem{Base: a, Disp: at}, x)
			VCVTPS2PD(Mem{Base: b, Disp: at}, y)
			VSUBPD(y, x, d)
			minus(x, x, wideA, ma)
			minus(y, y, wideB, mb)
			e.of(x)
			VADDPD(x, acc[k][0], acc[k][0])
			VFMADD231PD(d, x, acc[k][2])
			e.of(y)
			VADDPD(y, acc[k][1], acc[k][1])
		})
		ADDQ(Imm(32), a)
		ADDQ(Imm(32), b)
	})
	t.halves(func(k, _ int) {
		for i := range acc[k] {
			VMOVUPD(acc[k][i], place(k, i))
		}
	})
	VZEROUPPER()
	RET()
}

// max keeps the accumulator where x is NaN: it is the operand that is then given back.
func (t tier) max() {
	TEXT("max"+t.name, attr.NOSPLIT, "func(lanes, x *float32, groups int)")
	lanes, x, groups := Load(Param("lanes"), GP64()), Load(Param("x"), GP64()), Load(Param("groups"), GP64())
	lowest := GLOBL("lowest"+t.name, attr.RODATA|attr.NOPTR)
	for i := 0; i < 2*t.lanes; i++ {
		DATA(4*i, U32(math.Float32bits(float32(math.Inf(-1)))))
	}
	var acc [4]reg.VecVirtual
	for i := range acc {
		acc[i] = t.reg()
		VMOVUPS(lowest, acc[i])
	}
	size := 8 * t.lanes
	emit.Repeat(groups, func() {
		for i := range acc {
			v := t.reg()
			VMOVUPS(Mem{Base: x, Disp: i * size}, v)
			VMAXPS(acc[i], v, acc[i])
		}
		ADDQ(U32(uint32(4*size)), x)
	})
	VMAXPS(acc[1], acc[0], acc[0])
	VMAXPS(acc[3], acc[2], acc[2])
	VMAXPS(acc[2], acc[0], acc[0])
	VMOVUPS(acc[0], Mem{Base: lanes})
	VZEROUPPER()
	RET()
}
