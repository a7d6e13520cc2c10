package cast

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/x448/float16"

	"github.com/nf4conv/nf4conv/kernels"
)

func one(v float32, to kernels.Float) uint16 {
	var b [2]byte
	FromF32(b[:], []float32{v}, to)
	return binary.LittleEndian.Uint16(b[:])
}

func widen(h uint16, from kernels.Float) float32 {
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], h)
	var v [1]float32
	ToF32(v[:], b[:], from)
	return v[0]
}

// Every half-precision value survives widening and rounding back.
func TestHalvesRoundTrip(t *testing.T) {
	for _, f := range []kernels.Float{kernels.BF16, kernels.F16} {
		for h := range 1 << 16 {
			v := widen(uint16(h), f)
			got := one(v, f)
			if v != v {
				if w := widen(got, f); w == w {
					t.Fatalf("%v %04x: NaN became %04x", f, h, got)
				}
				continue
			}
			if got != uint16(h) {
				t.Fatalf("%v %04x: widened to %v, rounded back to %04x", f, h, v, got)
			}
		}
	}
}

// interesting yields float32 values around everything that matters for rounding.
func interesting(yield func(float32)) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 300_000 {
		yield(math.Float32frombits(r.Uint32()))
	}
	for h := range 1 << 16 {
		base := math.Float32bits(float16.Frombits(uint16(h)).Float32())
		for _, d := range []uint32{0xfff, 0x1000, 0x1001, 0x7ff, 0x800, 0x801, 1, ^uint32(0)} {
			yield(math.Float32frombits(base + d))
		}
		b := uint32(h) << 16
		for _, d := range []uint32{0x7fff, 0x8000, 0x8001} {
			yield(math.Float32frombits(b + d))
		}
	}
}

func TestF16AgainstOracle(t *testing.T) {
	interesting(func(v float32) {
		if v != v {
			if w := widen(one(v, kernels.F16), kernels.F16); w == w {
				t.Fatalf("NaN %08x became %v", math.Float32bits(v), w)
			}
			return
		}
		if got, want := one(v, kernels.F16), float16.Fromfloat32(v).Bits(); got != want {
			t.Fatalf("%v (%08x): got %04x, want %04x", v, math.Float32bits(v), got, want)
		}
	})
}

// bfloat16 by definition: of the two neighbours the nearer one, the even one in a tie.
func TestBF16ByDefinition(t *testing.T) {
	interesting(func(v float32) {
		got := one(v, kernels.BF16)
		if v != v {
			if w := widen(got, kernels.BF16); w == w {
				t.Fatalf("NaN %08x became %v", math.Float32bits(v), w)
			}
			return
		}
		b := math.Float32bits(v)
		lo := uint16(b >> 16)
		want := lo
		if rest := b & 0xffff; rest > 0x8000 || rest == 0x8000 && lo&1 == 1 {
			want++
		}
		if got != want {
			t.Fatalf("%08x: got %04x, want %04x", b, got, want)
		}
	})
}

func TestConvertLengths(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, 2, 511, 512, 513, 1500} {
		src := make([]byte, 2*n)
		for i := range n {
			binary.LittleEndian.PutUint16(src[2*i:], f32ToF16(r.Float32()-0.5))
		}
		dst := make([]byte, 2*n)
		Convert(dst, kernels.BF16, src, kernels.F16)
		for i := range n {
			v := widen(binary.LittleEndian.Uint16(src[2*i:]), kernels.F16)
			if got, want := binary.LittleEndian.Uint16(dst[2*i:]), f32ToBF16(v); got != want {
				t.Fatalf("n %d element %d: got %04x, want %04x", n, i, got, want)
			}
		}
	}
}

func TestFirstNonFinite(t *testing.T) {
	bad := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))}
	for _, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
		for n := range 20 {
			x := make([]float32, n)
			for i := range x {
				x[i] = []float32{0, -65504, 1e-7, 3}[i%4]
			}
			buf := make([]byte, n*f.Size())
			FromF32(buf, x, f)
			if got := FirstNonFinite(buf, f); got != -1 {
				t.Fatalf("%v, %d finite values: got %d", f, n, got)
			}
			for at := range n {
				y := append([]float32(nil), x...)
				y[at] = bad[at%3]
				FromF32(buf, y, f)
				if got := FirstNonFinite(buf, f); got != at {
					t.Fatalf("%v, %v at %d of %d: got %d", f, y[at], at, n, got)
				}
			}
		}
	}
}

// Values from the tables of the OCP specifications.
func TestSmallFormats(t *testing.T) {
	var v [1]float32
	for _, c := range []struct {
		name string
		f    func([]float32, []byte)
		b    byte
		want float64
	}{
		{"e4m3 max", E4M3ToF32, 0x7e, 448}, {"e4m3 one", E4M3ToF32, 0x38, 1}, {"e4m3 least normal", E4M3ToF32, 0x08, 0x1p-6},
		{"e4m3 least", E4M3ToF32, 0x01, 0x1p-9}, {"e4m3 negative", E4M3ToF32, 0xb8, -1},
		{"e5m2 max", E5M2ToF32, 0x7b, 57344}, {"e5m2 least", E5M2ToF32, 0x01, 0x1p-16}, {"e5m2 inf", E5M2ToF32, 0xfc, math.Inf(-1)},
		{"e8m0 one", E8M0ToF32, 127, 1}, {"e8m0 least", E8M0ToF32, 0, 0x1p-127}, {"e8m0 max", E8M0ToF32, 254, 0x1p127},
	} {
		c.f(v[:], []byte{c.b})
		if float64(v[0]) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, v[0], c.want)
		}
	}
	for _, b := range []byte{0x7f, 0xff} {
		if E4M3ToF32(v[:], []byte{b}); v[0] == v[0] {
			t.Errorf("e4m3 %02x is not NaN", b)
		}
	}
	if E8M0ToF32(v[:], []byte{255}); v[0] == v[0] {
		t.Error("e8m0 255 is not NaN")
	}
	var two [2]float32
	if E2M1ToF32(two[:], []byte{0xf7}); two != [2]float32{6, -6} {
		t.Errorf("e2m1 f7: got %v, want [6 -6]", two)
	}
}

// Every code of the two 8-bit formats, read by another implementation as a binary16.
func TestEveryE4M3AndE5M2(t *testing.T) {
	var v [1]float32
	for c := range 256 {
		E5M2ToF32(v[:], []byte{byte(c)}) // E5M2 is the upper byte of binary16
		if want := float16.Frombits(uint16(c) << 8).Float32(); v[0] != want && (v[0] == v[0] || want == want) {
			t.Errorf("e5m2 %02x: got %v, want %v", c, v[0], want)
		}
		E4M3ToF32(v[:], []byte{byte(c)})
		if c&0x7f == 0x7f {
			continue
		}
		// E4M3's exponent and fraction, put one bit lower in a binary16: 2^8 too small.
		h := float16.Frombits(uint16(c)&0x80<<8 | uint16(c)&0x7f<<7)
		if want := h.Float32() * 0x1p8; math.Float32bits(v[0]) != math.Float32bits(want) {
			t.Errorf("e4m3 %02x: got %v, want %v", c, v[0], want)
		}
	}
}

func TestLengthMismatchPanics(t *testing.T) {
	for name, f := range map[string]func(){
		"ToF32":          func() { ToF32(make([]float32, 2), make([]byte, 3), kernels.BF16) },
		"FromF32":        func() { FromF32(make([]byte, 9), make([]float32, 2), kernels.F32) },
		"Convert":        func() { Convert(make([]byte, 4), kernels.F16, make([]byte, 4), kernels.F32) },
		"FirstNonFinite": func() { FirstNonFinite(make([]byte, 3), kernels.F16) },
		"E4M3ToF32":      func() { E4M3ToF32(make([]float32, 2), make([]byte, 3)) },
		"E2M1ToF32":      func() { E2M1ToF32(make([]float32, 2), make([]byte, 2)) },
		"format":         func() { ToF32(make([]float32, 2), make([]byte, 4), kernels.F16+1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

// FuzzCast narrows two float32 and checks against another implementation (binary16), the
// definition (bfloat16), and that Convert in one piece is the same as by element.
func FuzzCast(f *testing.F) {
	f.Fuzz(func(t *testing.T, a, b uint32) {
		src := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, a), b)
		var halves, brains [4]byte
		Convert(halves[:], kernels.F16, src, kernels.F32)
		Convert(brains[:], kernels.BF16, src, kernels.F32)
		for i, bits := range []uint32{a, b} {
			v := math.Float32frombits(bits)
			h, g := binary.LittleEndian.Uint16(halves[2*i:]), binary.LittleEndian.Uint16(brains[2*i:])
			if v != v {
				if h&0x7e00 != 0x7e00 || g&0x7fc0 != 0x7fc0 {
					t.Fatalf("NaN %08x became %04x and %04x", bits, h, g)
				}
				continue
			}
			if want := float16.Fromfloat32(v).Bits(); h != want {
				t.Fatalf("%08x: binary16 %04x, want %04x", bits, h, want)
			}
			// The bfloat16 is at most half a unit away, and even when exactly half.
			d := int64(bits) - int64(g)<<16
			if d < -0x8000 || d > 0x8000 || (d == 0x8000 || d == -0x8000) && g&1 != 0 {
				t.Fatalf("%08x: bfloat16 %04x", bits, g)
			}
		}
		infinite := func(x uint32) bool { return x&0x7f800000 == 0x7f800000 }
		want := -1
		if infinite(a) {
			want = 0
		} else if infinite(b) {
			want = 1
		}
		if got := FirstNonFinite(src, kernels.F32); got != want {
			t.Fatalf("%08x %08x: first non-finite %d, want %d", a, b, got, want)
		}
	})
}

func BenchmarkConvert(b *testing.B) {
	const n = 1 << 16
	x := make([]float32, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	for _, from := range floats {
		for _, to := range floats {
			if from == to {
				continue
			}
			src, dst := make([]byte, n*from.Size()), make([]byte, n*to.Size())
			FromF32(src, x, from)
			for _, tier := range kernels.Tiers() {
				b.Run(fmt.Sprintf("from=%v/to=%v/tier=%s", from, to, tier), func(b *testing.B) {
					defer kernels.Use(tier)()
					b.SetBytes(int64(len(src)))
					for b.Loop() {
						if ConvertFinite(dst, to, src, from) >= 0 {
							b.Fatal("not finite")
						}
					}
				})
			}
		}
	}
}

func BenchmarkFirstNonFinite(b *testing.B) {
	for _, f := range []kernels.Float{kernels.BF16, kernels.F32} {
		src := make([]byte, 1<<17)
		for _, tier := range kernels.Tiers() {
			b.Run(fmt.Sprintf("from=%v/tier=%s", f, tier), func(b *testing.B) {
				defer kernels.Use(tier)()
				b.SetBytes(int64(len(src)))
				for b.Loop() {
					FirstNonFinite(src, f)
				}
			})
		}
	}
}
