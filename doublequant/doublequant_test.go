package doublequant

import (
	"bufio"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
)

// The derived map is that of bitsandbytes, bit for bit.
func TestMapIsThePublishedOne(t *testing.T) {
	f, err := os.Open("testdata/dynamic_map.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		want, err := strconv.ParseUint(lines.Text(), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		if got := math.Float32bits(Map()[i]); got != uint32(want) {
			t.Errorf("entry %d: %08x, published %08x", i, got, want)
		}
		if i > 0 && Map()[i-1] >= Map()[i] {
			t.Errorf("entry %d is not above the one before", i)
		}
		i++
	}
	if i != 256 {
		t.Errorf("%d entries, want 256", i)
	}
}

// eachTier runs a test with every implementation that is there.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			f(t)
		})
	}
}

// values are absmax as models have them, and as nothing has them.
func values(r *rand.Rand, n, kind int) []float32 {
	x := make([]float32, n)
	for i := range x {
		switch kind % 5 {
		case 0:
			x[i] = float32(math.Abs(r.NormFloat64())*0.01 + 0.05)
		case 1:
			x[i] = 0.125
		case 2:
			x[i] = math.Float32frombits(r.Uint32N(0x7f800000)) * 0x1p-30
		case 3:
			x[i] = float32(r.IntN(3)) * 1e-40 // subnormal
		case 4:
			x[i] = Map()[r.IntN(256)]*0.5 + 0.5 // near the entries
		}
	}
	return x
}

// The offset is within half a unit in the last place, and a little, of the exact mean.
func TestOffset(t *testing.T) { eachTier(t, testOffset) }

func testOffset(t *testing.T) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	for k := range 300 {
		n := 1 + r.IntN(20_000)
		x := values(r, n, k)
		sum := new(big.Float).SetPrec(2000)
		for _, v := range x {
			sum.Add(sum, big.NewFloat(float64(v)))
		}
		want, _ := sum.Quo(sum, big.NewFloat(float64(n))).Float32()
		got := Offset(x)
		if d := int64(math.Float32bits(got)) - int64(math.Float32bits(want)); d < -1 || d > 1 {
			t.Errorf("%d values: offset %v, exact %v", n, got, want)
		}
	}
	if Offset(nil) != 0 {
		t.Error("the offset of nothing is not 0")
	}
}

// Codes are the nearest entries in exact arithmetic on the scaled value, the lower one in
// a tie between two.
func TestQuantizeIsNearest(t *testing.T) { eachTier(t, testQuantizeIsNearest) }

func testQuantizeIsNearest(t *testing.T) {
	t.Helper()
	r := rand.New(rand.NewPCG(2, 2))
	for k := range 60 {
		n := 1 + r.IntN(1500)
		x := values(r, n, k)
		offset := Offset(x)
		codes, nested := make([]byte, n), make([]float32, (n+255)/256)
		Quantize(codes, nested, x, offset)
		for g := range nested {
			lo, hi := g*256, min(g*256+256, n)
			var a float64
			for _, v := range x[lo:hi] {
				a = max(a, math.Abs(float64(v-offset)))
			}
			if float64(nested[g]) != a {
				t.Fatalf("nested absmax %v, want %v", nested[g], a)
			}
			for i := lo; i < hi; i++ {
				v := float32(x[i]-offset) * (1 / max(nested[g], 1e-38))
				if want := nearestEntry(v); codes[i] != want {
					t.Fatalf("value %v: code %d (%v), want %d (%v)", v, codes[i], Map()[codes[i]], want, Map()[want])
				}
			}
		}
	}
}

// nearestEntry tries all entries, with midpoints in float32 as the format has them.
func nearestEntry(v float32) byte {
	best := 255
	for i := 254; i >= 0; i-- {
		if mid := float32(Map()[i]+Map()[i+1]) / 2; !(v > mid) {
			best = i
		}
	}
	return byte(best)
}

// What is read back is m[code]*nested + offset with a rounding after each.
func TestDequantize(t *testing.T) { eachTier(t, testDequantize) }

func testDequantize(t *testing.T) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 3))
	for k := range 40 {
		n := 1 + r.IntN(1200)
		x := values(r, n, k)
		offset := Offset(x)
		codes, nested, back := make([]byte, n), make([]float32, (n+255)/256), make([]float32, n)
		Quantize(codes, nested, x, offset)
		Dequantize(back, codes, nested, Map(), offset, BlockSize)
		for i, b := range back {
			product, _ := new(big.Float).Mul(big.NewFloat(float64(Map()[codes[i]])), big.NewFloat(float64(nested[i/256]))).Float32()
			want, _ := new(big.Float).SetPrec(400).Add(big.NewFloat(float64(product)), big.NewFloat(float64(offset))).Float32()
			if b != want {
				t.Fatalf("element %d: %v, want %v", i, b, want)
			}
		}
	}
}

func TestWrongLengthsPanic(t *testing.T) {
	for name, f := range map[string]func(){
		"codes":      func() { Quantize(make([]byte, 3), make([]float32, 1), make([]float32, 4), 0) },
		"nested":     func() { Quantize(make([]byte, 257), make([]float32, 1), make([]float32, 257), 0) },
		"too many":   func() { Quantize(make([]byte, 256), make([]float32, 2), make([]float32, 256), 0) },
		"read codes": func() { Dequantize(make([]float32, 4), make([]byte, 5), make([]float32, 1), Map(), 0, 256) },
		"block size": func() { Dequantize(make([]float32, 4), make([]byte, 4), make([]float32, 1), Map(), 0, 0) },
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

func FuzzDoubleQuant(f *testing.F) {
	f.Add([]byte("scales of blocks, four bytes each"), uint32(0x3f800000))
	f.Fuzz(func(t *testing.T, b []byte, offsetBits uint32) {
		offset := math.Float32frombits(offsetBits)
		var x []float32
		for ; len(b) >= 4; b = b[4:] {
			x = append(x, math.Float32frombits(uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24))
		}
		codes, nested := make([]byte, len(x)), make([]float32, (len(x)+255)/256)
		Quantize(codes, nested, x, offset)
		for g := range nested {
			if nested[g] != nested[g] || math.IsInf(float64(nested[g]), 0) {
				return // not of finite scales
			}
			for i := g * 256; i < min(g*256+256, len(x)); i++ {
				v := float32(x[i]-offset) * (1 / max(nested[g], 1e-38))
				if v == v && codes[i] != nearestEntry(v) {
					t.Fatalf("value %v: code %d, want %d", v, codes[i], nearestEntry(v))
				}
			}
		}
	})
}
