package quant4_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/kernels/quant4/quant4test"
	"github.com/nf4conv/nf4conv/nf4"
)

// eachTier runs a test with every implementation that is there. Which these are is in
// the log; those that must be there are named in NF4CONV_TEST_REQUIRE (kernels.TestRequireTier).
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			f(t)
		})
	}
}

func quantized(src []byte, f kernels.Float, bs int, book *quant4.Codebook) ([]byte, []float32) {
	n := len(src) / f.Size()
	packed, absmax := make([]byte, (n+1)/2), make([]float32, (n+bs-1)/bs)
	quant4.Quantize(packed, absmax, src, f, bs, book)
	return packed, absmax
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// Every element of a 16-bit format in a block with every absmax of some powers of two: the
// least and the largest that assembly takes, those next to them that it leaves alone,
// and an ordinary one. This is every case of its tables.
func TestEveryBF16(t *testing.T) {
	for _, exponent := range []int{0, 1, 26, 27, 121, 142, 143, 254} {
		everyElement(t, kernels.BF16, 7, exponent, 1)
	}
}

func TestEveryF16(t *testing.T) {
	everyElement(t, kernels.F16, 10, 10, 1)
	for _, exponent := range []int{0, 1, 5, 6, 7, 9, 11, 15, 30} {
		everyElement(t, kernels.F16, 10, exponent, 41)
	}
}

// everyElement goes through every step-th fraction of absmax.
func everyElement(t *testing.T, format kernels.Float, bits, exponent, step int) {
	t.Helper()
	const bs = 256
	books := []*quant4.Codebook{nf4.NF4.Codebook(), nf4.FP4.Codebook()}
	for fraction := 0; fraction < 1<<bits; fraction += step {
		a := exponent<<bits | fraction
		var src []byte
		for x := 0; x <= a; {
			src = binary.LittleEndian.AppendUint16(src, uint16(a|x<<15)) // of either sign
			for i := 0; i < bs-1; i++ {
				src = binary.LittleEndian.AppendUint16(src, uint16(min(x/2*2, a)|x<<15)) // both signs in turn
				x++
			}
		}
		// x runs over magnitudes two steps at a time; once more for the odd ones.
		odd := slices.Clone(src)
		for i := range len(odd) / 2 {
			if v := binary.LittleEndian.Uint16(odd[2*i:]); i%bs != 0 && int(v&0x7fff) < a {
				binary.LittleEndian.PutUint16(odd[2*i:], v+1)
			}
		}
		src = append(src, odd...)
		for b, book := range books {
			restore := kernels.Use("generic")
			want, wantMax := quantized(src, format, bs, book)
			restore()
			for _, tier := range kernels.Tiers()[1:] {
				restore := kernels.Use(tier)
				got, gotMax := quantized(src, format, bs, book)
				restore()
				if !sameBits(gotMax, wantMax) {
					t.Fatalf("%v, %s, book %d, absmax %04x: other scales", format, tier, b, a)
				}
				for i := range want {
					if got[i] != want[i] {
						t.Fatalf("%v, %s, book %d, absmax %04x, elements % x: codes %02x, want %02x", format, tier, b, a, src[4*i:4*i+4], got[i], want[i])
					}
				}
			}
		}
	}
}

// No tier reads or writes one byte beyond its arguments: they end, or begin, where memory
// does.
func TestNothingBeyondTheEnds(t *testing.T) {
	const bs = 64
	eachTier(t, func(t *testing.T) {
		book := nf4.NF4.Codebook()
		r := rand.New(rand.NewPCG(5, 6))
		for _, front := range []bool{false, true} {
			for _, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
				for _, n := range []int{1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 191, 256, 320, 1000, 1024} {
					for _, bs := range []int{32, bs, 96} {
						src := guardtest.Bytes(t, n*f.Size(), front)
						copy(src, quant4test.Kinds[0].Make(r, n, f, bs, book))
						packed, absmax := guardtest.Bytes(t, (n+1)/2, front), guardtest.Floats(t, (n+bs-1)/bs, front)
						quant4.Quantize(packed, absmax, src, f, bs, book)
						want, wantMax := quant4test.Quantize(src, f, bs, book)
						if !bytes.Equal(packed, want) || !sameBits(absmax, wantMax) {
							t.Fatalf("%v, %d elements: other codes or scales", f, n)
						}
						quant4.Dequantize(guardtest.Bytes(t, n*f.Size(), front), f, packed, absmax, n, bs, book)
						quant4.DequantizeF32(guardtest.Floats(t, n, front), packed, absmax, bs, book)
						if n <= bs {
							quant4.BlockMoments(src, f, packed, bs, book)
						}
					}
				}
			}
		}
	})
}

// Slices at every offset from the alignment of the widest vectors.
func TestEveryOffset(t *testing.T) {
	const bs, n = 64, 3*64 + 5
	book := nf4.NF4.Codebook()
	r := rand.New(rand.NewPCG(7, 7))
	for _, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
		source := quant4test.Kinds[0].Make(r, n, f, bs, book)
		want, wantMax := quant4test.Quantize(source, f, bs, book)
		wantBack := make([]byte, n*f.Size())
		cast.FromF32(wantBack, quant4test.Dequantize(want, wantMax, n, bs, book), f)
		eachTier(t, func(t *testing.T) {
			for shift := range 64 {
				src := make([]byte, 128+len(source))[shift:][:len(source)]
				copy(src, source)
				packed, absmax, back := make([]byte, 128+n)[63-shift:][:len(want)], make([]float32, 64)[shift%16:][:len(wantMax)], make([]byte, 128+4*n)[shift/2:][:len(source)]
				quant4.Quantize(packed, absmax, src, f, bs, book)
				quant4.Dequantize(back, f, packed, absmax, n, bs, book)
				if !bytes.Equal(packed, want) || !sameBits(absmax, wantMax) || !bytes.Equal(back, wantBack) {
					t.Fatalf("%v, %d bytes from alignment: other results", f, shift)
				}
			}
		})
	}
}

// Blocks that a tier leaves to generic Go, at every place among others.
func TestBlocksOutOfRange(t *testing.T) {
	const bs, blocks = 64, 40
	r := rand.New(rand.NewPCG(9, 9))
	odd := []uint16{0x7fc0, 0xff80, 0x7f81, 0x4780, 0x7f7f, 0x0d7f, 0x0001, 0x0000, 0x8000}
	book := nf4.FP4.Codebook()
	for range 200 {
		src := quant4test.Kinds[0].Make(r, bs*blocks+r.IntN(bs), kernels.BF16, bs, book)
		for b := range blocks {
			if r.IntN(4) != 0 {
				continue
			}
			v := odd[r.IntN(len(odd))]
			if v&0x7fff <= 0x0d7f { // the largest of a block: clear the others
				clear(src[2*b*bs : 2*(b+1)*bs])
			}
			binary.LittleEndian.PutUint16(src[2*(b*bs+r.IntN(bs)):], v)
		}
		want, wantMax := quant4test.Quantize(src, kernels.BF16, bs, book)
		for _, tier := range kernels.Tiers() {
			restore := kernels.Use(tier)
			got, gotMax := quantized(src, kernels.BF16, bs, book)
			restore()
			for i := range gotMax {
				if math.Float32bits(gotMax[i]) != math.Float32bits(wantMax[i]) && gotMax[i] == gotMax[i] {
					t.Fatalf("%s: scale %d: %v, want %v", tier, i, gotMax[i], wantMax[i])
				}
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: other codes", tier)
			}
		}
	}
}

// FuzzDequantize takes any codes and scales, NaN and negative ones too, to every format.
// All tiers give the bits of generic Go.
func FuzzDequantize(f *testing.F) {
	f.Add([]byte("codes, two a byte; there should be some blocks of them"), []byte{0, 0, 0x80, 0x3f, 0, 0, 0xc0, 0x7f, 1, 0, 0, 0x80}, uint8(1), uint8(0), false)
	f.Fuzz(func(t *testing.T, codes, scales []byte, format, size uint8, fp4 bool) {
		to, bs, book := []kernels.Float{kernels.F32, kernels.BF16, kernels.F16}[format%3], 32<<(size%3), nf4.NF4.Codebook()
		if fp4 {
			book = nf4.FP4.Codebook()
		}
		for len(codes) > 0 && len(codes) < 100 {
			codes = append(codes, codes...)
		}
		n := 2 * len(codes)
		absmax := make([]float32, (n+bs-1)/bs)
		for i := range absmax {
			var b [4]byte
			copy(b[:], scales[min(4*i, len(scales)):])
			absmax[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[:]))
		}
		var want []byte
		for _, tier := range kernels.Tiers() {
			restore := kernels.Use(tier)
			got := make([]byte, n*to.Size())
			quant4.Dequantize(got, to, codes, absmax, n, bs, book)
			restore()
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: % x, want % x", tier, got, want)
			}
		}
	})
}
