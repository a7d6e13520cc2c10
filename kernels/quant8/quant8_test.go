package quant8_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
	"github.com/nf4conv/nf4conv/kernels/quant8"
)

// eachTier runs a test with every implementation that is there.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			f(t)
		})
	}
}

func withMidpoints(levels *[256]float32) *quant8.Codebook {
	b := &quant8.Codebook{Levels: *levels}
	for i := range b.Midpoints {
		b.Midpoints[i] = float32(b.Levels[i]+b.Levels[i+1]) / 2
	}
	return b
}

// books are the one of double quantization and two that defeat the lookup by cells: levels
// too near to each other, and levels that do not ascend.
func books() map[string]*quant8.Codebook {
	var even, odd [256]float32
	for i := range even {
		even[i] = float32(i)/128 - 1
		odd[i] = float32(i*37%256)/128 - 1
	}
	return map[string]*quant8.Codebook{"dynamic": withMidpoints(doublequant.Map()), "even": withMidpoints(&even), "disorder": withMidpoints(&odd)}
}

// sum is the order of quant8.Sum by its words.
func sum(x []float64) float64 {
	if len(x) > quant8.SumGroup {
		var partial []float64
		for i := 0; i < len(x); i += quant8.SumGroup {
			partial = append(partial, sum(x[i:min(len(x), i+quant8.SumGroup)]))
		}
		return sum(partial)
	}
	var acc [quant8.SumLanes]float64
	for i, v := range x {
		acc[i%len(acc)] += v
	}
	for n := len(acc) / 2; n > 0; n /= 2 {
		for i := range n {
			acc[i] += acc[n+i]
		}
	}
	return acc[0]
}

func TestSum(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 1))
		for _, n := range []int{0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, 3*4096 + 17, 100_000} {
			for shift := range 5 {
				x, wide := make([]float32, n+shift)[shift:], make([]float64, n)
				for i := range x {
					x[i] = float32(math.Abs(r.NormFloat64())) * float32(math.Exp2(float64(r.IntN(60)-30)))
					wide[i] = float64(x[i])
				}
				if got, want := quant8.Sum(x), sum(wide); got != want {
					t.Fatalf("%d values: %v, want %v", n, got, want)
				}
			}
		}
	})
}

// kinds of values: as models have them, and as nothing has them.
var kinds = []func(r *rand.Rand) float32{
	func(r *rand.Rand) float32 { return float32(math.Abs(r.NormFloat64())*0.01 + 0.05) },
	func(*rand.Rand) float32 { return 0.125 },
	func(r *rand.Rand) float32 { return float32(r.IntN(3)) * 1e-40 },
	func(r *rand.Rand) float32 { return math.Float32frombits(r.Uint32()) },
	func(r *rand.Rand) float32 { return math.Float32frombits(r.Uint32()&0x80ffffff | 0x3f000000) },
	func(r *rand.Rand) float32 { // the midpoints, scaled by one, and their neighbours
		i := r.IntN(255)
		m := float32(doublequant.Map()[i]+doublequant.Map()[i+1]) / 2
		if r.IntN(50) == 0 {
			return 1
		}
		return math.Float32frombits(math.Float32bits(m) + uint32(r.IntN(3)) - 1)
	},
}

// scaleAndCode is the definition.
func scaleAndCode(x []float32, offset float32, book *quant8.Codebook) (float32, []byte) {
	var a float32
	for _, v := range x {
		d := float32(math.Abs(float64(v - offset)))
		if d != d || a != a {
			a = float32(math.NaN())
		} else if d > a {
			a = d
		}
	}
	least := a
	if a < 1e-38 {
		least = 1e-38
	}
	codes := make([]byte, len(x))
	for i, v := range x {
		y := float32(v-offset) * (1 / least)
		// For levels that do not ascend, the result is what the search by halves finds.
		n := 0
		for step := 128; step > 0; step /= 2 {
			if book.Midpoints[n+step-1] < y {
				n += step
			}
		}
		codes[i] = byte(n)
	}
	return a, codes
}

func TestQuantizeAndDequantize(t *testing.T) {
	for name, book := range books() {
		eachTier(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(2, 2))
			for _, size := range []int{2, 32, 64, 100, 256} {
				for _, n := range []int{0, 1, size - 1, size, size + 1, 3 * size, 5*size + size/2 + 1} {
					for k, kind := range kinds {
						x := make([]float32, n+k)[k:]
						for i := range x {
							x[i] = kind(r)
						}
						offset := float32(0)
						if k%2 == 0 {
							offset = float32(sum([]float64{0.05}))
						}
						checkGroups(t, x, offset, size, book)
						if t.Failed() {
							t.Fatalf("book %s, %d values of kind %d in groups of %d", name, n, k, size)
						}
					}
				}
			}
		})
	}
}

func checkGroups(t *testing.T, x []float32, offset float32, size int, book *quant8.Codebook) {
	t.Helper()
	const guard = 40
	n, ng := len(x), (len(x)+size-1)/size
	codes, scales, back := bytes.Repeat([]byte{0xa5}, n+2*guard), make([]float32, ng+2*guard), make([]float32, n+2*guard)
	quant8.Quantize(codes[guard:guard+n], scales[guard:guard+ng], x, offset, size, book)
	quant8.Dequantize(back[guard:guard+n], codes[guard:guard+n], scales[guard:guard+ng], &book.Levels, offset, size)
	for i := range codes {
		if (i < guard || i >= guard+n) && (codes[i] != 0xa5 || back[i] != 0) {
			t.Errorf("written %d beyond the codes or values", i-guard)
		}
	}
	for i := range scales {
		if (i < guard || i >= guard+ng) && scales[i] != 0 {
			t.Errorf("written %d beyond the scales", i-guard)
		}
	}
	codes, scales, back = codes[guard:], scales[guard:], back[guard:]
	for g := range ng {
		lo, hi := g*size, min(g*size+size, n)
		a, want := scaleAndCode(x[lo:hi], offset, book)
		if math.Float32bits(scales[g]) != math.Float32bits(a) && !(a != a && scales[g] != scales[g]) {
			t.Errorf("scale %d: %v, want %v", g, scales[g], a)
			return
		}
		for i := lo; i < hi; i++ {
			if codes[i] != want[i-lo] {
				t.Errorf("value %v, scale %v: code %d, want %d", x[i], a, codes[i], want[i-lo])
				return
			}
			w := float32(book.Levels[codes[i]]*a) + offset
			if math.Float32bits(back[i]) != math.Float32bits(w) && !(w != w && back[i] != back[i]) {
				t.Errorf("code %d, scale %v: %v, want %v", codes[i], a, back[i], w)
				return
			}
		}
	}
}

// No tier reads or writes one byte beyond its arguments: they end, or begin, where memory
// does.
func TestNothingBeyondTheEnds(t *testing.T) {
	book := withMidpoints(doublequant.Map())
	eachTier(t, func(t *testing.T) {
		for _, front := range []bool{false, true} {
			for _, n := range []int{1, 31, 32, 33, 255, 256, 257, 511, 512, 4096, 4097} {
				for _, size := range []int{32, 64, 256} {
					x, codes, scales := guardtest.Floats(t, n, front), guardtest.Bytes(t, n, front), guardtest.Floats(t, (n+size-1)/size, front)
					for i := range x {
						x[i] = float32(i % 7)
					}
					quant8.Sum(x)
					quant8.Quantize(codes, scales, x, 0.5, size, book)
					quant8.Dequantize(x, codes, scales, &book.Levels, 0.5, size)
				}
			}
		}
	})
}

func FuzzQuantize(f *testing.F) {
	f.Add([]byte("scales of blocks, four bytes each"), uint32(0x3f800000), uint8(0))
	all := books()
	f.Fuzz(func(t *testing.T, b []byte, offset uint32, sizeLog uint8) {
		var x []float32
		for len(b) > 0 && len(b) < 2*128 {
			b = append(b, b...)
		}
		for ; len(b) >= 4; b = b[4:] {
			x = append(x, math.Float32frombits(uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24))
		}
		for name, book := range all {
			for _, tier := range kernels.Tiers() {
				restore := kernels.Use(tier)
				checkGroups(t, x, math.Float32frombits(offset), 32<<(sizeLog%4), book)
				restore()
				if t.Failed() {
					t.Fatalf("book %s, tier %s", name, tier)
				}
			}
		}
	})
}

func BenchmarkSecondLevel(b *testing.B) {
	const n, size = 1 << 14, 256
	r := rand.New(rand.NewPCG(1, 2))
	x, codes, scales := make([]float32, n), make([]byte, n), make([]float32, n/size)
	for i := range x {
		x[i] = kinds[0](r)
	}
	book := withMidpoints(doublequant.Map())
	for _, tier := range kernels.Tiers() {
		for _, op := range []struct {
			name string
			f    func()
		}{
			{"sum", func() { quant8.Sum(x) }},
			{"quantize", func() { quant8.Quantize(codes, scales, x, 0.058, size, book) }},
			{"dequantize", func() { quant8.Dequantize(x, codes, scales, &book.Levels, 0.058, size) }},
		} {
			b.Run(fmt.Sprintf("op=%s/tier=%s", op.name, tier), func(b *testing.B) {
				defer kernels.Use(tier)()
				b.SetBytes(4 * n)
				for b.Loop() {
					op.f()
				}
			})
		}
	}
}
