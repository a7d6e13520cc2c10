// Command flash writes the assembly of kernels/flash: what happens to a panel of scores
// between the two products.
package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// A tier is one width of vector registers. AVX-512 has enough of them for constants; AVX2
// reads those from memory.
type tier struct {
	name  string
	lanes int
	wide  bool
}

func (t tier) reg() VecVirtual {
	if t.wide {
		return ZMM()
	}
	return YMM()
}

var constants = map[uint32]Mem{}

// constant is a vector of x, or of the bits of x.
func (t tier) constant(x any) Op {
	var bits uint32
	switch x := x.(type) {
	case float64:
		bits = math.Float32bits(float32(x))
	case uint32:
		bits = x
	}
	m, ok := constants[bits]
	if !ok {
		m = GLOBL(fmt.Sprintf("const%08x", bits), RODATA|NOPTR)
		for i := 0; i < 16; i++ {
			DATA(4*i, U32(bits))
		}
		constants[bits] = m
	}
	if !t.wide {
		return m
	}
	v := t.reg()
	VMOVUPS(m, v)
	return v
}

// exp2 holds the constants of 2^x = 2^n * 2^f, n the nearest integer and 2^f a polynomial
// with the smallest largest relative error on [-1/2, 1/2]: 1.9e-9, 7.9e-8 with roundings.
type exp2 struct {
	tier
	coef []Op // from the highest power down
}

func (t tier) exp2() exp2 {
	e := exp2{tier: t}
	for _, c := range []float64{0.0001534581242594868, 0.0013399930903688073, 0.009618489071726799, 0.05550328642129898, 0.24022646248340607, 0.6931471824645996, 1} {
		e.coef = append(e.coef, t.constant(c))
	}
	return e
}

// parts splits 2^x into p = 2^f and n.
func (e exp2) parts(x Op) (p, n VecVirtual) {
	n, p = e.reg(), e.reg()
	f := e.reg()
	if e.wide {
		VRNDSCALEPS(Imm(8), x, n)
	} else {
		VROUNDPS(Imm(8), x, n)
	}
	VSUBPS(n, x, f)
	VMOVUPS(e.coef[0], p)
	for _, c := range e.coef[1:] {
		VFMADD213PS(c, f, p)
	}
	return p, n
}

// join makes p*2^n of normal results.
func (e exp2) join(p, n VecVirtual) VecVirtual {
	d := e.reg()
	if e.wide {
		VSCALEFPS(n, p, d)
		return d
	}
	i := e.reg()
	VCVTPS2DQ(n, i)
	VPSLLD(Imm(23), i, i)
	VPADDD(i, p, d)
	return d
}

// tanhPoly is P of tanh(a) = a + a*z*P(z), z = a*a, with the smallest largest relative
// error of the whole on |a| < 1.25: 1.2e-9 before roundings. From the highest power down.
var tanhPoly = []float64{-1.812916343624238e-05, 0.0001851293636718765, -0.0009180578636005521, 0.00310219032689929, -0.008568896912038326,
	0.02175842598080635, -0.05394395813345909, 0.13333068788051605, -0.33333322405815125}

const notLess = 5 // a comparison that is true for NaN too

// negative is 2^x for x <= 0 or NaN, with 0 below 2^-126.
func (e exp2) negative(x VecVirtual, low Op) VecVirtual {
	if e.wide {
		keep := K()
		VCMPPS(Imm(notLess), low, x, keep)
		p, n := e.parts(x)
		d := e.reg()
		VSCALEFPS_Z(n, p, keep, d)
		return d
	}
	keep, limited := e.reg(), e.reg()
	VCMPPS(Imm(notLess), low, x, keep)
	lowReg := e.reg()
	VMOVUPS(low, lowReg)
	VMAXPS(x, lowReg, limited) // a NaN in x stays
	p, n := e.parts(limited)
	d := e.join(p, n)
	VANDPS(keep, d, d)
	return d
}

func main() {
	ConstraintExpr("!purego")
	for _, t := range []tier{{"AVX512", 16, true}, {"AVX2", 8, false}} {
		for vecs := 1; vecs <= 3; vecs++ {
			t.softmax(vecs)
			t.bias(vecs)
		}
		t.softcap()
	}
	Generate()
}

func (t tier) function(name, signature, doc string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(doc)
}

func (t tier) broadcast(param string) VecVirtual {
	v := t.reg()
	m, err := Param(param).Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(m.Addr, v)
	return v
}

// softmax is one step of the online softmax. Columns are independent, so nothing crosses
// the lanes.
func (t tier) softmax(vecs int) {
	name := fmt.Sprintf("softmax%dx%s", vecs, t.name)
	t.function(name, "func(s *float32, rows int, c, cLow float32, m, l, corr *float32)",
		fmt.Sprintf("%s works like softmaxGeneric with %d*%d columns; rows is positive.", name, vecs, t.lanes))
	s, rows := Load(Param("s"), GP64()), Load(Param("rows"), GP64())
	m, l, corr := Load(Param("m"), GP64()), Load(Param("l"), GP64()), Load(Param("corr"), GP64())
	c, cLow := t.broadcast("c"), t.broadcast("cLow")
	at := func(base Register, v int) Mem { return Mem{Base: base, Disp: 4 * t.lanes * v} }
	width := uint64(4 * t.lanes * vecs)

	top := make([]VecVirtual, vecs)
	for v := range top {
		top[v] = t.reg()
		VMOVUPS(at(m, v), top[v])
	}
	p, n := GP64(), GP64()
	MOVQ(s, p)
	MOVQ(rows, n)
	Label("max")
	for v := range top {
		VMAXPS(at(p, v), top[v], top[v])
	}
	ADDQ(U32(width), p)
	DECQ(n)
	JNZ(LabelRef("max"))

	e := t.exp2()
	low := t.constant(-126.0)
	// x = (s - m)*(c + cLow), from m - s because the operand in memory is subtracted.
	product := func(score Mem, top VecVirtual) VecVirtual {
		d, x := t.reg(), t.reg()
		VSUBPS(score, top, d)
		VMULPS(cLow, d, x)
		VFNMSUB231PS(c, d, x) // -(d*c) - x
		return x
	}
	sum := make([]VecVirtual, vecs)
	for v := range top {
		r := e.negative(product(at(m, v), top[v]), low)
		VMOVUPS(top[v], at(m, v))
		VMOVUPS(r, at(corr, v))
		sum[v] = t.reg()
		VXORPS(sum[v], sum[v], sum[v])
	}
	Label("exp")
	for v := range top {
		r := e.negative(product(at(s, v), top[v]), low)
		VMOVUPS(r, at(s, v))
		VADDPS(r, sum[v], sum[v])
	}
	ADDQ(U32(width), s)
	DECQ(rows)
	JNZ(LabelRef("exp"))
	for v := range top {
		x := t.reg()
		VMOVUPS(at(l, v), x)
		VFMADD132PS(at(corr, v), sum[v], x)
		VMOVUPS(x, at(l, v))
	}
	VZEROUPPER()
	RET()
}

// bias scales scores and subtracts what grows with the distance.
func (t tier) bias(vecs int) {
	name := fmt.Sprintf("bias%dx%s", vecs, t.name)
	t.function(name, "func(s *float32, rows int, scale float32, slope, pos *float32)",
		fmt.Sprintf("%s works like biasGeneric with %d*%d columns; rows is positive.", name, vecs, t.lanes))
	s, rows := Load(Param("s"), GP64()), Load(Param("rows"), GP64())
	slope, pos := Load(Param("slope"), GP64()), Load(Param("pos"), GP64())
	scale := t.broadcast("scale")
	sign, one := t.constant(uint32(0x7fffffff)), t.constant(1.0)
	var ss, ps []VecVirtual
	for v := 0; v < vecs; v++ {
		a, b := t.reg(), t.reg()
		VMOVUPS(Mem{Base: slope, Disp: 4 * t.lanes * v}, a)
		VMOVUPS(Mem{Base: pos, Disp: 4 * t.lanes * v}, b)
		ss, ps = append(ss, a), append(ps, b)
	}
	Label("row")
	for v := 0; v < vecs; v++ {
		x, d := t.reg(), t.reg()
		cell := Mem{Base: s, Disp: 4 * t.lanes * v}
		VMULPS(cell, scale, x)
		VANDPS(sign, ps[v], d)
		VFNMADD231PS(ss[v], d, x)
		VMOVUPS(x, cell)
		VSUBPS(one, ps[v], ps[v])
	}
	ADDQ(U32(4*t.lanes*vecs), s)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// softcap is limit*tanh(x*scale): an odd polynomial near zero, where 1 - 2/(e^2y + 1)
// would cancel, and the latter elsewhere.
func (t tier) softcap() {
	name := "softcap" + t.name
	t.function(name, "func(s *float32, vecs int, scale, limit float32)",
		fmt.Sprintf("%s works like softcapGeneric on vecs*%d elements; vecs is positive.", name, t.lanes))
	s, n := Load(Param("s"), GP64()), Load(Param("vecs"), GP64())
	scale, limit := t.broadcast("scale"), t.broadcast("limit")
	e := t.exp2()
	magnitude, signBit := t.constant(uint32(0x7fffffff)), t.constant(uint32(0x80000000))
	one, two, most, twice, near := t.constant(1.0), t.constant(2.0), t.constant(10.0), t.constant(2*math.Log2E), t.constant(1.25)
	var poly []Op
	for _, c := range tanhPoly {
		poly = append(poly, t.constant(c))
	}
	Label("next")
	y, a, sign := t.reg(), t.reg(), t.reg()
	VMULPS(Mem{Base: s}, scale, y)
	VANDPS(magnitude, y, a)
	VANDPS(signBit, y, sign)
	// Near: a + a*z*P(z), z = a*a.
	z, q := t.reg(), t.reg()
	VMULPS(a, a, z)
	VMOVUPS(poly[0], q)
	for _, c := range poly[1:] {
		VFMADD213PS(c, z, q)
	}
	VMULPS(z, q, q)
	VFMADD213PS(a, a, q)
	// Far: e^2a from a that is limited where tanh is 1 in float32. A NaN stays.
	far, mostReg := t.reg(), t.reg()
	VMOVUPS(most, mostReg)
	VMINPS(a, mostReg, far)
	VMULPS(twice, far, far)
	x := e.join(e.parts(far))
	VADDPS(one, x, x)
	d := t.reg()
	VMOVUPS(two, d)
	VDIVPS(x, d, d)
	oneReg := t.reg()
	VMOVUPS(one, oneReg)
	VSUBPS(d, oneReg, d)
	if t.wide {
		k := K()
		VCMPPS(Imm(1), near, a, k)
		VMOVAPS(q, k, d)
	} else {
		k := t.reg()
		VCMPPS(Imm(1), near, a, k)
		VBLENDVPS(k, q, d, d)
	}
	VORPS(sign, d, d)
	VMULPS(limit, d, d)
	VMOVUPS(d, Mem{Base: s})
	ADDQ(Imm(uint64(4*t.lanes)), s)
	DECQ(n)
	JNZ(LabelRef("next"))
	VZEROUPPER()
	RET()
}
