package cuda

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/kernels/quant4/quant4test"
	"github.com/nf4conv/nf4conv/nf4"
)

var floats = []kernels.Float{kernels.F32, kernels.BF16, kernels.F16}

// orders are those in which threads run: the result must be the same.
const orders = 4

// lengths of tensors: around nothing, vectors, a block and several, a thread block's tile.
func lengths(bs int) []int {
	list := []int{0, 1, 2, 3, 7, 8, 9, bs - 1, bs, bs + 1, 2*bs - 3, 2 * bs, 2*bs + 5, 3*bs + bs/2 + 1, 5*bs + 7, 8192, 8192 + bs + 9}
	if bs == 32 {
		for n := range 2*bs + 4 {
			list = append(list, n)
		}
	}
	return list
}

func TestQuantize(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		cases := 0
		for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
			for _, c := range []struct{ from, as kernels.Float }{
				{kernels.BF16, kernels.BF16}, {kernels.F16, kernels.F16}, {kernels.F32, kernels.F32}, {kernels.F32, kernels.BF16}, {kernels.F32, kernels.F16},
			} {
				for bs := nf4.MinBlockSize; bs <= nf4.MaxBlockSize; bs *= 2 {
					if c.from != c.as && bs != 64 && bs != 2048 {
						continue // they differ from the plain ones in how they read an element
					}
					r := rand.New(rand.NewPCG(uint64(bs), uint64(c.from)))
					for i, n := range lengths(bs) {
						kind := quant4test.Kinds[(i+bs/32)%len(quant4test.Kinds)]
						src := kind.Make(r, n, c.from, bs, typ.Codebook())
						checkQuantize(t, e, typ, c.from, c.as, src, n, bs, uint32(cases%orders))
						if t.Failed() {
							t.Fatalf("%v %v as %v, %s, %d elements, block size %d", typ, c.from, c.as, kind.Name, n, bs)
						}
						cases++
					}
				}
			}
		}
	})
}

// Every kind of data at every block size, in every order of threads.
func TestQuantizeKinds(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
			for _, f := range floats {
				for bs := nf4.MinBlockSize; bs <= nf4.MaxBlockSize; bs *= 2 {
					r := rand.New(rand.NewPCG(uint64(bs), 9))
					n := 2*bs + bs/2 + 3
					for k, kind := range quant4test.Kinds {
						src := kind.Make(r, n, f, bs, typ.Codebook())
						for order := range uint32(orders) {
							if e.name != "sanitized" || int(order) == (k+bs/32)%orders {
								checkQuantize(t, e, typ, f, f, src, n, bs, order)
							}
						}
						if t.Failed() {
							t.Fatalf("%v %v, %s, %d elements, block size %d", typ, f, kind.Name, n, bs)
						}
					}
				}
			}
		}
	})
}

func checkQuantize(t *testing.T, e *emulator, typ nf4.Type, from, as kernels.Float, src []byte, n, bs int, order uint32) {
	t.Helper()
	rounded := make([]byte, n*as.Size())
	cast.Convert(rounded, as, src, from)
	book := typ.Codebook()
	wantPacked, wantAbsmax := make([]byte, (n+1)/2), make([]float32, (n+bs-1)/bs)
	quant4.Quantize(wantPacked, wantAbsmax, rounded, as, bs, book)

	l, ok := QuantizeLaunch(typ, from, as, int64(n))
	if !ok {
		t.Fatalf("no kernel quantizes %v as %v", from, as)
	}
	packed, absmax := make([]byte, len(wantPacked)), make([]byte, 4*len(wantAbsmax))
	e.launch(t, order, l, bytes.Clone(src), packed, absmax, uint64(n), uint32(bs))
	sameFloats(t, "absmax", absmax, wantAbsmax)
	if !bytes.Equal(packed, wantPacked) {
		for i := range packed {
			if packed[i] != wantPacked[i] {
				t.Errorf("packed byte %d of %d: got %02x, want %02x", i, len(packed), packed[i], wantPacked[i])
				return
			}
		}
	}
	if as != from {
		return
	}
	for _, to := range floats {
		wide, want := make([]float32, n), make([]byte, n*to.Size())
		quant4.DequantizeF32(wide, wantPacked, wantAbsmax, bs, book)
		cast.FromF32(want, wide, to)
		dst := make([]byte, len(want))
		e.launch(t, order, DequantizeLaunch(typ, to, int64(n)), wantPacked, absmax, dst, uint64(n), uint32(bs))
		sameUpToNaN(t, fmt.Sprintf("dequantized to %v", to), to, dst, want)
	}
}

// Scales may be negative, and huge, after double quantization.
func TestDequantizeSignedScales(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		r := rand.New(rand.NewPCG(3, 3))
		for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
			for _, to := range floats {
				for i, n := range []int{1, 31, 300, 8192*2 + 77} {
					const bs = 64
					packed, absmax := make([]byte, (n+1)/2), make([]float32, (n+bs-1)/bs)
					for i := range packed {
						packed[i] = byte(r.Uint32())
					}
					for i := range absmax {
						absmax[i] = math.Float32frombits(r.Uint32N(0xff000000)) // huge, tiny, infinite, of both signs
					}
					want, dst := make([]byte, n*to.Size()), make([]byte, n*to.Size())
					quant4.Dequantize(want, to, packed, absmax, n, bs, typ.Codebook())
					e.launch(t, uint32(i), DequantizeLaunch(typ, to, int64(n)), packed, floatBytes(absmax), dst, uint64(n), uint32(bs))
					sameUpToNaN(t, fmt.Sprintf("%v to %v, %d elements", typ, to, n), to, dst, want)
				}
			}
		}
	})
}

// Every value near a threshold, both tables: what one cell too far would get wrong.
func TestQuantizeAroundThresholds(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
			var x []float32
			put := func(v float32) {
				if len(x)%64 == 0 {
					x = append(x, 1) // so that the scale is 1 and values stay as they are
				}
				if v >= -1 && v <= 1 {
					x = append(x, v)
				}
			}
			for _, th := range typ.Codebook().Thresholds {
				for d := -3; d <= 3; d++ {
					put(math.Float32frombits(math.Float32bits(th) + uint32(d)))
				}
			}
			for c := -31; c <= 31; c++ { // cell borders, in units of 1/30 and 1/28
				for _, unit := range []float32{30, 28} {
					for d := -2; d <= 2; d++ {
						put(math.Float32frombits(math.Float32bits(float32(c)/unit) + uint32(d)))
					}
				}
			}
			for v := float32(-1); v <= 1; v += 1.0 / 4096 {
				put(v)
			}
			for len(x)%64 != 0 {
				x = append(x, 0)
			}
			checkQuantize(t, e, typ, kernels.F32, kernels.F32, floatBytes(x), len(x), 64, 0)
		}
	})
}

func TestConvert(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		r := rand.New(rand.NewPCG(5, 5))
		for _, from := range floats {
			for _, to := range floats {
				if from == to {
					continue
				}
				for i, n := range []int{0, 1, 2, 3, 4, 5, 1023, 4096, 4096 + 3, 1 << 16} {
					src := make([]byte, n*from.Size())
					for i := range n {
						if from == kernels.F32 {
							binary.LittleEndian.PutUint32(src[4*i:], aroundHalves(r))
						} else {
							binary.LittleEndian.PutUint16(src[2*i:], uint16(i)) // 1<<16: every value there is
						}
					}
					want, dst := make([]byte, n*to.Size()), make([]byte, n*to.Size())
					cast.Convert(want, to, src, from)
					e.launch(t, uint32(i%orders), ConvertLaunch(from, to, int64(n)), src, dst, uint64(n))
					if !bytes.Equal(dst, want) {
						for i := range dst {
							if dst[i] != want[i] {
								at := i / to.Size()
								t.Fatalf("%v to %v, %d elements: element %d (% x): got % x, want % x", from, to, n, at,
									src[at*from.Size():(at+1)*from.Size()], dst[at*to.Size():(at+1)*to.Size()], want[at*to.Size():(at+1)*to.Size()])
							}
						}
					}
				}
			}
		}
	})
}

// aroundHalves are float32 bits, half of them near a value or a tie of a half format.
func aroundHalves(r *rand.Rand) uint32 {
	b := r.Uint32()
	switch r.IntN(4) {
	case 0:
		return b&0xffff0000 + 0x7ffe + uint32(r.IntN(4))
	case 1: // binary16's range, with its ties and subnormals
		return b&0x80000000 | (0x33000000+b>>4&0x00ffffff+uint32(r.IntN(0x15))<<23)&^0x1fff + 0x1000*uint32(r.IntN(2)) + uint32(r.IntN(3)) - 1
	}
	return b
}

func TestFirstAbove(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		r := rand.New(rand.NewPCG(6, 6))
		for _, from := range floats {
			for _, to := range floats {
				for i, n := range []int{0, 1, 5, 8, 100, 8192, 3*8192 + 11} {
					for bad := range 4 {
						src := make([]byte, n*from.Size())
						x := make([]float32, n)
						for i := range x {
							x[i] = float32(r.NormFloat64() * 1000)
						}
						cast.FromF32(src, x, from)
						for range bad { // also the largest that is still finite
							if n > 0 {
								limit := FiniteLimit(from, to) - uint32(r.IntN(2)) + uint32(r.IntN(2))*uint32(r.IntN(50))
								putMagnitude(src, r.IntN(n), from, limit, r)
							}
						}
						out := make([]byte, n*to.Size())
						cast.Convert(out, to, src, from)
						want := uint64(math.MaxUint64)
						if at := cast.FirstNonFinite(out, to); at >= 0 {
							want = uint64(at)
						}
						first := bytes.Repeat([]byte{0xff}, 8)
						e.launch(t, uint32((i+bad)%orders), FiniteLaunch(from, int64(n)), src, uint64(n), FiniteLimit(from, to), first)
						if got := binary.LittleEndian.Uint64(first); got != want {
							t.Fatalf("%v to %v, %d elements: got %d, want %d", from, to, n, int64(got), int64(want))
						}
					}
				}
			}
		}
	})
}

func putMagnitude(b []byte, i int, f kernels.Float, magnitude uint32, r *rand.Rand) {
	if f == kernels.F32 {
		binary.LittleEndian.PutUint32(b[4*i:], magnitude|uint32(r.IntN(2))<<31)
	} else {
		binary.LittleEndian.PutUint16(b[2*i:], uint16(magnitude)|uint16(r.IntN(2))<<15)
	}
}

func TestDoubleQuant(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		r := rand.New(rand.NewPCG(7, 7))
		sizes := []int{1, 2, 3, 255, 256, 257, 511, 512, 2048, 2049, 4095, 4096, 4097, 8191, 30_000, 70*4096 + 5}
		for kind := range 6 {
			for i, n := range sizes {
				absmax := make([]float32, n)
				for i := range absmax {
					absmax[i] = absmaxOf(r, kind)
				}
				checkDoubleQuant(t, e, absmax, uint32((i+kind)%orders))
				if t.Failed() {
					t.Fatalf("kind %d, %d absmax", kind, n)
				}
			}
		}
	})
}

// More than 4096 partial sums are folded first.
func TestFold(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		n := 4096*3 + 100
		r := rand.New(rand.NewPCG(9, 1))
		sums := make([]float64, n)
		for i := range sums {
			sums[i] = r.Float64()
		}
		in, out := make([]byte, 8*n), make([]byte, 8*SumLen(int64(n)))
		if _, err := binary.Encode(in, binary.LittleEndian, sums); err != nil {
			t.Fatal(err)
		}
		e.launch(t, 2, AbsmaxFoldLaunch(int64(n)), in, out, uint64(n))
		for g := range SumLen(int64(n)) {
			var acc [64]float64
			for i, v := range sums[4096*g : min(4096*(g+1), int64(n))] {
				acc[i%64] += v
			}
			for half := 32; half > 0; half /= 2 {
				for j := range half {
					acc[j] += acc[j+half]
				}
			}
			if got := math.Float64frombits(binary.LittleEndian.Uint64(out[8*g:])); got != acc[0] {
				t.Errorf("sum %d: got %v, want %v", g, got, acc[0])
			}
		}
	})
}

func absmaxOf(r *rand.Rand, kind int) float32 {
	switch kind {
	case 0:
		return float32(math.Abs(r.NormFloat64())*0.01 + 0.05)
	case 1:
		return 0.125
	case 2:
		return math.Float32frombits(r.Uint32N(0x7f800000)) * 0x1p-30
	case 3:
		return float32(r.IntN(3)) * 1e-40
	case 4:
		return doublequant.Map()[r.IntN(256)]*0.5 + 0.5
	}
	return 0
}

func checkDoubleQuant(t *testing.T, e *emulator, absmax []float32, order uint32) {
	t.Helper()
	n := len(absmax)
	wantOffset := doublequant.Offset(absmax)
	wantCodes, wantNested := make([]byte, n), make([]float32, (n+255)/256)
	doublequant.Quantize(wantCodes, wantNested, absmax, wantOffset)

	in, partial := floatBytes(absmax), make([]byte, 8*SumLen(int64(n)))
	e.launch(t, order, AbsmaxSumLaunch(int64(n)), in, partial, uint64(n))
	count := SumLen(int64(n))
	if order == 1 { // one more step gives the same
		folded := make([]byte, 8*SumLen(count))
		e.launch(t, order, AbsmaxFoldLaunch(count), partial, folded, uint64(count))
		partial, count = folded, SumLen(count)
	}
	offset, codes, nestedBytes, table := make([]byte, 4), make([]byte, n), make([]byte, 4*len(wantNested)), floatBytes(doublequant.Map()[:])
	e.launch(t, order, QuantizeAbsmaxLaunch(int64(n)), in, partial, uint32(count), table, codes, nestedBytes, offset, uint64(n), uint64(n))
	sameFloats(t, "offset", offset, []float32{wantOffset})
	sameFloats(t, "nested absmax", nestedBytes, wantNested)
	if !bytes.Equal(codes, wantCodes) {
		t.Errorf("codes: got % x, want % x", codes[:min(n, 40)], wantCodes[:min(n, 40)])
	}
	for _, size := range []int{256, 64, 100} {
		scales := make([]float32, (n+size-1)/size)
		for i := range scales {
			scales[i] = wantNested[i%len(wantNested)]
		}
		want, got := make([]float32, n), make([]byte, 4*n)
		doublequant.Dequantize(want, wantCodes, scales, doublequant.Map(), wantOffset, size)
		e.launch(t, order, DequantizeAbsmaxLaunch(int64(n)), wantCodes, floatBytes(scales), table, wantOffset, got, uint64(n), uint32(size))
		sameFloats(t, "reconstructed absmax", got, want)
	}
}

func TestProbes(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		y, x := floatBytes([]float32{1, 2, 3}), floatBytes([]float32{10, 20, 30})
		e.launch(t, 0, Launch{Name: "probe_axpy", Grid: 2, Block: 32}, y, x, float32(0.5), uint32(3))
		sameFloats(t, "axpy", y, []float32{6, 12, 18})

		const n = 1000
		out := make([]byte, 4*n)
		e.launch(t, 3, Launch{Name: "probe_smem", Grid: 1, Block: 128, Shared: 4 * n}, out, uint32(n))
		for i := range uint32(n) {
			if got, want := binary.LittleEndian.Uint32(out[4*i:]), (n-1-i)*2654435761; got != want {
				t.Fatalf("shared word %d: got %08x, want %08x", i, got, want)
			}
		}

		s := [16]uint64{3, 1, 4, 15: 9}
		out = make([]byte, 8*21)
		e.launch(t, 0, Launch{Name: "probe_params", Grid: 1, Block: 1}, out, uint8(0x81), uint16(0x8002), uint32(0x80000003), uint64(1<<63|4), float32(1.5), s)
		want := append([]uint64{0x81, 0x8002, 0x80000003, 1<<63 | 4, 0x3fc00000}, s[:]...)
		for i, w := range want {
			if got := binary.LittleEndian.Uint64(out[8*i:]); got != w {
				t.Errorf("word %d: got %x, want %x", i, got, w)
			}
		}
	})
}

func floatBytes(x []float32) []byte {
	b := make([]byte, 4*len(x))
	cast.FromF32(b, x, kernels.F32)
	return b
}

// sameFloats compares bits; one NaN is as good as another.
func sameFloats(t *testing.T, what string, got []byte, want []float32) {
	t.Helper()
	sameUpToNaN(t, what, kernels.F32, got, floatBytes(want))
}

func sameUpToNaN(t *testing.T, what string, f kernels.Float, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	var g, w [1]float32
	for i := 0; i < len(want); i += f.Size() {
		a, b := got[i:i+f.Size()], want[i:i+f.Size()]
		cast.ToF32(g[:], a, f)
		cast.ToF32(w[:], b, f)
		if !bytes.Equal(a, b) && (g[0] == g[0] || w[0] == w[0]) {
			t.Errorf("%s: element %d: got %v (% x), want %v (% x)", what, i/f.Size(), g[0], a, w[0], b)
			return
		}
	}
}
