package quant4_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/kernels/quant4/quant4test"
	"github.com/nf4conv/nf4conv/nf4"
)

// crowded is a book whose thresholds are too near to each other for the lookup table.
func crowded() *quant4.Codebook {
	b := &quant4.Codebook{}
	for i := range b.Levels {
		b.Levels[i] = float32(i) / 15
		b.ByRank[i] = uint8(15 - i)
	}
	for i := range b.Thresholds {
		b.Thresholds[i] = 0.5 + float32(i)/1e5
	}
	return b
}

func TestConformance(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		quant4test.Run(t, quant4test.Implementation{
			Quantize: quant4.Quantize, Dequantize: quant4.Dequantize, DequantizeF32: quant4.DequantizeF32, BlockMoments: quant4.BlockMoments,
		}, map[string]*quant4.Codebook{"nf4": nf4.NF4.Codebook(), "fp4": nf4.FP4.Codebook(), "crowded": crowded()})
	})
}

// A tensor in pieces gives the bytes of the whole, wherever between blocks it is cut.
func TestPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
		for _, bs := range []int{32, 64, 256} {
			n := bs*9 + r.IntN(bs)
			src := quant4test.Kinds[0].Make(r, n, f, bs, nf4.NF4.Codebook())
			want, wantMax := quant4test.Quantize(src, f, bs, nf4.NF4.Codebook())
			for cut := 0; cut <= n; cut += bs {
				packed, absmax := make([]byte, len(want)), make([]float32, len(wantMax))
				quant4.Quantize(packed[:cut/2], absmax[:cut/bs], src[:cut*f.Size()], f, bs, nf4.NF4.Codebook())
				quant4.Quantize(packed[cut/2:], absmax[cut/bs:], src[cut*f.Size():], f, bs, nf4.NF4.Codebook())
				if !bytes.Equal(packed, want) {
					t.Fatalf("%v, block size %d, cut at %d: other codes", f, bs, cut)
				}
				for i := range absmax {
					if absmax[i] != wantMax[i] {
						t.Fatalf("%v, block size %d, cut at %d: absmax %d is %v, want %v", f, bs, cut, i, absmax[i], wantMax[i])
					}
				}
			}
		}
	}
}

func TestWrongLengthsPanic(t *testing.T) {
	book := nf4.NF4.Codebook()
	for name, f := range map[string]func(){
		"packed": func() {
			quant4.Quantize(make([]byte, 31), make([]float32, 1), make([]byte, 128), kernels.BF16, 64, book)
		},
		"absmax": func() {
			quant4.Quantize(make([]byte, 32), make([]float32, 2), make([]byte, 128), kernels.BF16, 64, book)
		},
		"half an element": func() {
			quant4.Quantize(make([]byte, 32), make([]float32, 1), make([]byte, 127), kernels.BF16, 64, book)
		},
		"odd block": func() {
			quant4.Quantize(make([]byte, 32), make([]float32, 1), make([]byte, 128), kernels.BF16, 63, book)
		},
		"no block": func() {
			quant4.Quantize(make([]byte, 32), make([]float32, 1), make([]byte, 128), kernels.BF16, 0, book)
		},
		"destination": func() {
			quant4.Dequantize(make([]byte, 126), kernels.BF16, make([]byte, 32), make([]float32, 1), 64, 64, book)
		},
		"scales":  func() { quant4.DequantizeF32(make([]float32, 65), make([]byte, 33), make([]float32, 1), 64, book) },
		"moments": func() { quant4.BlockMoments(make([]byte, 130), kernels.BF16, make([]byte, 33), 64, book) },
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

func FuzzQuantize(f *testing.F) {
	f.Add([]byte("a few bytes of weights, and some more of them"), uint8(1), uint8(5), false)
	f.Add(bytes.Repeat([]byte{0xc0, 0x7f, 0x80, 0xff}, 40), uint8(0), uint8(0), true)
	f.Fuzz(func(t *testing.T, src []byte, format, size uint8, fp4 bool) {
		fl := []kernels.Float{kernels.F32, kernels.BF16, kernels.F16}[format%3]
		bs := 2 << (size % 12)
		book := nf4.NF4.Codebook()
		if fp4 {
			book = nf4.FP4.Codebook()
		}
		for len(src) > 0 && len(src) < 3*64*fl.Size() { // enough for the vectors of any tier
			src = append(src, src...)
		}
		src = src[:len(src)/fl.Size()*fl.Size()]
		n := len(src) / fl.Size()
		want, wantMax := quant4test.Quantize(src, fl, bs, book)
		wantBack := quant4test.Dequantize(want, wantMax, n, bs, book)
		var packed []byte
		var absmax []float32
		back := make([]float32, n)
		for _, tier := range kernels.Tiers() {
			restore := kernels.Use(tier)
			packed, absmax = quantized(src, fl, bs, book)
			quant4.DequantizeF32(back, packed, absmax, bs, book)
			restore()
			if !bytes.Equal(packed, want) {
				t.Fatalf("%s: codes %x, want %x", tier, packed, want)
			}
			for i := range back {
				if math.Float32bits(back[i]) != math.Float32bits(wantBack[i]) && back[i] == back[i] {
					t.Fatalf("%s: element %d: %v, want %v", tier, i, back[i], wantBack[i])
				}
			}
		}
		// Quantizing what was dequantized gives the same codes: levels are fixed points. Not
		// with scales so small or large that the products are rounded to nothing or infinity.
		if cast.FirstNonFinite(src, fl) >= 0 || fp4 {
			return
		}
		for _, a := range absmax {
			if a < 0x1p-100 || a > 0x1p100 {
				return
			}
		}
		again, againMax := make([]byte, len(packed)), make([]float32, len(absmax))
		b := make([]byte, 4*n)
		cast.FromF32(b, back, kernels.F32)
		quant4.Quantize(again, againMax, b, kernels.F32, bs, book)
		if !bytes.Equal(again, packed) {
			t.Fatalf("quantized again: %x, want %x", again, packed)
		}
	})
}
