package cast

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
)

var floats = []kernels.Float{kernels.F32, kernels.BF16, kernels.F16}

// eachTier runs a test with every implementation that is there.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			f(t)
		})
	}
}

// everything is all 16-bit elements, or float32 values around everything that matters.
func everything(f kernels.Float) []byte {
	var b []byte
	if f == kernels.F32 {
		interesting(func(v float32) {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		})
		return b
	}
	for h := range 1 << 16 {
		b = binary.LittleEndian.AppendUint16(b, uint16(h))
	}
	return b
}

// Every tier gives the bits of generic Go, NaN and its payload included.
func TestTiersAreBitEqual(t *testing.T) {
	for _, from := range floats {
		src := everything(from)
		n := len(src) / from.Size()
		for _, to := range floats {
			want := make([]byte, n*to.Size())
			convertGeneric(want, to, src, from)
			eachTier(t, func(t *testing.T) {
				got := make([]byte, len(want))
				Convert(got, to, src, from)
				same(t, from, to, src, got, want)
				if from != kernels.F32 && to == kernels.F32 {
					x := make([]float32, n)
					ToF32(x, src, from)
					for i, v := range x {
						if math.Float32bits(v) != binary.LittleEndian.Uint32(want[4*i:]) {
							t.Fatalf("ToF32 from %v, element %d: %08x", from, i, math.Float32bits(v))
						}
					}
				}
				if from == kernels.F32 {
					x := make([]float32, n)
					f32ToF32Generic(x, src)
					clear(got)
					FromF32(got, x, to)
					same(t, from, to, src, got, want)
				}
			})
		}
	}
}

func same(t *testing.T, from, to kernels.Float, src, got, want []byte) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	for i := range len(want) / to.Size() {
		a, b := got[i*to.Size():][:to.Size()], want[i*to.Size():][:to.Size()]
		if !slices.Equal(a, b) {
			t.Fatalf("%v to %v, element %d (% x): got % x, want % x", from, to, i, src[i*from.Size():][:from.Size()], a, b)
		}
	}
}

// Every length around the vectors, at every offset from alignment: nothing is written
// beyond the ends, and what is not finite is found at every place.
func TestLengthsAndOffsets(t *testing.T) {
	const guard = 64
	r := rand.New(rand.NewPCG(3, 4))
	infinity := map[kernels.Float][]byte{kernels.F32: {0, 0, 0x80, 0xff}, kernels.BF16: {0x80, 0x7f}, kernels.F16: {1, 0xfc}}
	eachTier(t, func(t *testing.T) {
		for _, from := range floats {
			for _, to := range floats {
				for n := range 4*32 + 3 {
					shift := r.IntN(64)
					x := make([]float32, n)
					for i := range x {
						x[i] = float32(r.NormFloat64())
					}
					src := make([]byte, shift+n*from.Size())[shift:]
					fromF32Generic(src, x, from)
					want := make([]byte, n*to.Size())
					convertGeneric(want, to, src, from)
					all := make([]byte, n*to.Size()+shift+2*guard)
					for i := range all {
						all[i] = 0xa5
					}
					dst := all[guard+shift:][:len(want):len(want)]
					if bad := ConvertFinite(dst, to, src, from); bad != -1 {
						t.Fatalf("%v to %v, %d elements: %d is not finite", from, to, n, bad)
					}
					same(t, from, to, src, dst, want)
					for i, b := range all {
						if (i < guard+shift || i >= guard+shift+len(dst)) && b != 0xa5 {
							t.Fatalf("%v to %v, %d elements: byte %d was written", from, to, n, i-guard-shift)
						}
					}
					if n == 0 {
						continue
					}
					at := r.IntN(n)
					copy(src[at*from.Size():], infinity[from])
					if bad := ConvertFinite(dst, to, src, from); bad != at {
						t.Fatalf("%v to %v, %d elements, infinity at %d: found %d", from, to, n, at, bad)
					}
					if bad := FirstNonFinite(src, from); bad != at {
						t.Fatalf("%v, %d elements, infinity at %d: found %d", from, n, at, bad)
					}
				}
			}
		}
	})
}

// No tier reads or writes one byte beyond its arguments: they end, or begin, where memory
// does.
func TestNothingBeyondTheEnds(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		for _, front := range []bool{false, true} {
			for _, from := range floats {
				for _, to := range floats {
					for _, n := range []int{1, 16, 31, 32, 33, 63, 64, 65, 127, 128, 130, 512, 513} {
						src := guardtest.Bytes(t, n*from.Size(), front)
						Convert(guardtest.Bytes(t, n*to.Size(), front), to, src, from)
						FirstNonFinite(src, from)
					}
				}
			}
		}
	})
}

// The first of several is found, in a later piece too, and what only the rounding makes
// infinite.
func TestConvertFinite(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		const n = 20_000
		x := make([]float32, n)
		x[n-1], x[12_345], x[3] = 7e4, 65520, 65519
		src, dst := make([]byte, 4*n), make([]byte, 2*n)
		FromF32(src, x, kernels.F32)
		if got := ConvertFinite(dst, kernels.F16, src, kernels.F32); got != 12_345 {
			t.Errorf("to float16: got %d, want 12345", got)
		}
		if got := ConvertFinite(dst, kernels.BF16, src, kernels.F32); got != -1 {
			t.Errorf("to bfloat16: got %d, want -1", got)
		}
	})
}

func TestAllFinite(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		for n := range 150 {
			x := make([]float32, n)
			if !AllFinite(x) || !allFiniteGeneric(x) {
				t.Fatalf("%d zeros are not finite", n)
			}
			for i := range x {
				for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
					x[i] = float32(bad)
					if AllFinite(x) || allFiniteGeneric(x) {
						t.Fatalf("%v at %d of %d is taken for finite", bad, i, n)
					}
				}
				x[i] = 0
			}
		}
	})
}

// FuzzTiers converts any bytes from any format to any other, with all tiers.
func FuzzTiers(f *testing.F) {
	f.Add([]byte("as many bytes as it takes to fill a vector or two, and then some more of them"), uint8(1), uint8(2))
	f.Fuzz(func(t *testing.T, src []byte, a, b uint8) {
		from, to := floats[a%3], floats[b%3]
		for len(src) > 0 && len(src) < 2*32*from.Size() {
			src = append(src, src...)
		}
		n := len(src) / from.Size()
		src = src[:n*from.Size()]
		want, got := make([]byte, n*to.Size()), make([]byte, n*to.Size())
		convertGeneric(want, to, src, from)
		for _, tier := range kernels.Tiers() {
			restore := kernels.Use(tier)
			bad, first := ConvertFinite(got, to, src, from), firstNonFiniteGeneric(want, to)
			if bad != first {
				t.Errorf("%s: not finite: %d, want %d", tier, bad, first)
			}
			Convert(got, to, src, from)
			same(t, from, to, src, got, want)
			if i, w := FirstNonFinite(src, from), firstNonFiniteGeneric(src, from); i != w {
				t.Errorf("%s: not finite in the source: %d, want %d", tier, i, w)
			}
			restore()
		}
	})
}
