// Package quant4test is the conformance suite of kernels/quant4: every implementation, on
// any device, must give the bits of the scalar definition here, which is written from
// the words of quant4's package comment and not from its code.
package quant4test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// Implementation is what is held against the definition; the functions are those of
// quant4. A nil one is not tested.
type Implementation struct {
	Quantize      func(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *quant4.Codebook)
	Dequantize    func(dst []byte, to kernels.Float, packed []byte, absmax []float32, n, blockSize int, book *quant4.Codebook)
	DequantizeF32 func(dst []float32, packed []byte, absmax []float32, blockSize int, book *quant4.Codebook)
	BlockMoments  func(src []byte, from kernels.Float, packed []byte, blockSize int, book *quant4.Codebook) quant4.Moments
}

var floats = []kernels.Float{kernels.F32, kernels.BF16, kernels.F16}

// Run holds an implementation against the definition for some code books.
func Run(t *testing.T, impl Implementation, books map[string]*quant4.Codebook) {
	for name, book := range books {
		for _, f := range floats {
			t.Run(fmt.Sprintf("%s/%v", name, f), func(t *testing.T) {
				for bs := 2; bs <= 4096; bs *= 2 {
					runLengths(t, impl, f, bs, book)
				}
				runLengths(t, impl, f, 6, book) // no power of two
			})
		}
	}
}

// runLengths goes through the lengths at which an implementation could go wrong: around
// nothing, around every number of whole vectors, around one block and several.
func runLengths(t *testing.T, impl Implementation, f kernels.Float, bs int, book *quant4.Codebook) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(bs), uint64(f)))
	lengths := []int{0, 1, 2, 3, bs - 1, bs, bs + 1, 2 * bs, 3*bs + bs/2 + 1, 4*bs - 2, 5*bs + 7}
	if bs <= 64 {
		for n := range 4*bs + 2 {
			lengths = append(lengths, n)
		}
	}
	for _, n := range lengths {
		for _, kind := range Kinds {
			if bs > 512 && kind.Slow {
				continue
			}
			src := kind.Make(r, n, f, bs, book)
			checkOne(t, impl, src, f, n, bs, book, r.IntN(8))
			if t.Failed() {
				t.Fatalf("kind %s, %d elements, block size %d", kind.Name, n, bs)
			}
		}
	}
}

// checkOne compares one tensor, with all slices shifted by some bytes from any alignment
// and guards around what is written.
func checkOne(t *testing.T, impl Implementation, source []byte, f kernels.Float, n, bs int, book *quant4.Codebook, shift int) {
	t.Helper()
	wantPacked, wantAbsmax := Quantize(source, f, bs, book)
	src := shifted(source, shift)
	if impl.Quantize != nil {
		packed, absmax := newGuarded(len(wantPacked), shift), make([]float32, len(wantAbsmax)+2)
		absmax[0], absmax[len(absmax)-1] = 12345, 12345
		impl.Quantize(packed.b, absmax[1:len(absmax)-1:len(absmax)-1], src, f, bs, book)
		for i, a := range wantAbsmax {
			if got := absmax[i+1]; math.Float32bits(got) != math.Float32bits(a) && !(got != got && a != a) {
				t.Errorf("absmax %d: got %08x, want %08x", i, math.Float32bits(got), math.Float32bits(a))
				return
			}
		}
		if absmax[0] != 12345 || absmax[len(absmax)-1] != 12345 {
			t.Error("absmax was written beyond its ends")
		}
		packed.compare(t, "packed", wantPacked)
		if !bytes.Equal(src, source) {
			t.Error("the source was written to")
		}
	}
	checkDequantize(t, impl, n, bs, book, wantPacked, wantAbsmax, shift)
	if impl.BlockMoments != nil && n > 0 && finite(source, f) {
		for b := range wantAbsmax {
			lo, hi := b*bs, min((b+1)*bs, n)
			x, p := source[lo*f.Size():hi*f.Size()], wantPacked[lo/2:(hi+1)/2]
			if got, want := impl.BlockMoments(x, f, p, bs, book), moments(x, f, p, book); got != want {
				t.Errorf("moments of block %d: got %v, want %v", b, got, want)
			}
		}
	}
}

func checkDequantize(t *testing.T, impl Implementation, n, bs int, book *quant4.Codebook, codes []byte, absmax []float32, shift int) {
	t.Helper()
	want := Dequantize(codes, absmax, n, bs, book)
	if impl.Dequantize != nil {
		for _, to := range floats {
			w := make([]byte, n*to.Size())
			cast.FromF32(w, want, to)
			dst := newGuarded(len(w), shift)
			impl.Dequantize(dst.b, to, shifted(codes, shift), absmax, n, bs, book)
			dst.compare(t, "dequantized to "+to.String(), w)
		}
	}
	if impl.DequantizeF32 != nil {
		dst := make([]float32, n+2)
		dst[0], dst[n+1] = 12345, 12345
		impl.DequantizeF32(dst[1:n+1:n+1], shifted(codes, shift), absmax, bs, book)
		for i, w := range want {
			if math.Float32bits(dst[i+1]) != math.Float32bits(w) && !(w != w && dst[i+1] != dst[i+1]) {
				t.Errorf("element %d: got %v, want %v", i, dst[i+1], w)
				return
			}
		}
		if dst[0] != 12345 || dst[n+1] != 12345 {
			t.Error("written beyond the ends")
		}
	}
}

// guarded is a slice between two rows of known bytes.
type guarded struct{ all, b []byte }

const guard = 64

func newGuarded(n, shift int) guarded {
	all := bytes.Repeat([]byte{0xa5}, n+2*guard+shift)
	return guarded{all, all[guard+shift : guard+shift+n : guard+shift+n]}
}

func (g guarded) compare(t *testing.T, what string, want []byte) {
	t.Helper()
	if !bytes.Equal(g.b, want) {
		for i := range want {
			if g.b[i] != want[i] {
				t.Errorf("%s: byte %d of %d: got %02x, want %02x", what, i, len(want), g.b[i], want[i])
				break
			}
		}
	}
	start := len(g.all) - guard - len(g.b)
	for i, b := range g.all {
		if (i < start || i >= start+len(g.b)) && b != 0xa5 {
			t.Errorf("%s: a byte was written %d before or %d behind the ends", what, start-i, i-start-len(g.b)+1)
			break
		}
	}
}

// shifted is a copy at an address that is off any alignment by so many bytes.
func shifted(b []byte, by int) []byte {
	out := make([]byte, by+len(b))[by:]
	copy(out, b)
	return out
}

func finite(b []byte, f kernels.Float) bool { return cast.FirstNonFinite(b, f) < 0 }

// Kind makes sources of one nature.
type Kind struct {
	Name string
	Slow bool // left out for large blocks
	Make func(r *rand.Rand, n int, f kernels.Float, bs int, book *quant4.Codebook) []byte
}

// Kinds are the natures that are tried.
var Kinds = []Kind{
	{"normal", false, func(r *rand.Rand, n int, f kernels.Float, _ int, _ *quant4.Codebook) []byte {
		return fill(n, f, func(int) float32 { return float32(r.NormFloat64() * 0.02) })
	}},
	{"zeros", true, func(r *rand.Rand, n int, f kernels.Float, bs int, _ *quant4.Codebook) []byte {
		return fill(n, f, func(i int) float32 { // blocks of zeros of both signs beside ordinary ones
			if i/bs%2 == 0 {
				return float32(math.Copysign(0, float64(r.IntN(2))-0.5))
			}
			return float32(r.NormFloat64())
		})
	}},
	{"bits", false, func(r *rand.Rand, n int, f kernels.Float, _ int, _ *quant4.Codebook) []byte {
		b := make([]byte, n*f.Size()) // any bits: subnormals, huge numbers, NaN and infinity
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}},
	{"subnormal", true, func(r *rand.Rand, n int, f kernels.Float, _ int, _ *quant4.Codebook) []byte {
		b := make([]byte, n*f.Size())
		for i := range n {
			switch f {
			case kernels.F32:
				binary.LittleEndian.PutUint32(b[4*i:], r.Uint32()&0x807fffff)
			case kernels.BF16:
				binary.LittleEndian.PutUint16(b[2*i:], uint16(r.Uint32())&0x807f)
			case kernels.F16:
				binary.LittleEndian.PutUint16(b[2*i:], uint16(r.Uint32())&0x83ff)
			}
		}
		return b
	}},
	{"ties", false, func(r *rand.Rand, n int, f kernels.Float, bs int, book *quant4.Codebook) []byte {
		return fill(n, f, func(i int) float32 { // thresholds and their neighbours, scaled by a power of two
			if i%bs == 0 {
				return 0x1p-5
			}
			v := math.Float32bits(book.Thresholds[r.IntN(15)])
			return math.Float32frombits(v+uint32(r.IntN(3))-1) * 0x1p-5
		})
	}},
	{"infinities", true, func(r *rand.Rand, n int, f kernels.Float, _ int, _ *quant4.Codebook) []byte {
		return fill(n, f, func(int) float32 {
			switch r.IntN(40) {
			case 0:
				return float32(math.Inf(1))
			case 1:
				return float32(math.Inf(-1))
			case 2:
				return float32(math.NaN())
			}
			return float32(r.NormFloat64())
		})
	}},
}

func fill(n int, f kernels.Float, value func(i int) float32) []byte {
	x := make([]float32, n)
	for i := range x {
		x[i] = value(i)
	}
	b := make([]byte, n*f.Size())
	cast.FromF32(b, x, f)
	return b
}
