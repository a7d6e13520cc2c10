package convert

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/nf4"
)

// Whatever is fused: the first NaN or infinity of a chunk is named, or else the first value
// that the cast made infinite, in every kind of job and tier.
func TestChunkNamesWhatIsNotFinite(t *testing.T) {
	const n, first = 3*64 + 10, 640
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		name     string
		read, to kernels.Float
		put      map[int]float32
		index    int64
		found    string
	}{
		{"nothing", kernels.F32, kernels.F16, nil, 0, ""},
		{"NaN in the short block", kernels.BF16, kernels.BF16, map[int]float32{200: nan}, first + 200, "NaN"},
		{"two", kernels.BF16, kernels.BF16, map[int]float32{130: inf, 70: -inf}, first + 70, "-infinity"},
		{"first element", kernels.F16, kernels.F16, map[int]float32{0: inf}, first, "infinity"},
		{"too large", kernels.F32, kernels.F16, map[int]float32{64: 70000, 65: -1e9}, first + 64, "70000, which float16 cannot hold"},
		{"NaN behind too large", kernels.F32, kernels.F16, map[int]float32{3: 70000, 190: nan}, first + 190, "NaN"},
		{"cast", kernels.F32, kernels.BF16, map[int]float32{191: nan}, first + 191, "NaN"},
		{"widened", kernels.BF16, kernels.F16, map[int]float32{5: -1e6}, first + 5, "-999424, which float16 cannot hold"},
	} {
		r := rand.New(rand.NewPCG(1, 2))
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		for i, v := range c.put {
			x[i] = v
		}
		in := make([]byte, n*c.read.Size())
		cast.FromF32(in, x, c.read)
		for _, quantize := range []bool{false, true} {
			for _, tier := range kernels.Tiers() {
				restore := kernels.Use(tier)
				tr, err := CPU{}.Begin(JobSpec{Elems: first + n, Read: c.read, To: c.to, Check: true, Quantize: quantize, Type: nf4.NF4, BlockSize: 64})
				if err != nil {
					t.Fatal(err)
				}
				s, err := CPU{}.NewScratch(0, ScratchSpec{})
				if err != nil {
					t.Fatal(err)
				}
				_, err = tr.Chunk(s, first, in)
				restore()
				var v *ValueError
				switch {
				case c.found == "" && err == nil:
				case !errors.As(err, &v) || v.Index != c.index || v.Found != c.found:
					t.Errorf("%s, quantize %v, %s: got %v, want %q at %d", c.name, quantize, tier, err, c.found, c.index)
				}
			}
		}
	}
}

// BenchmarkChunk is what a worker computes for a chunk: quantization with the check and
// the sample of the error, and a cast with the check.
func BenchmarkChunk(b *testing.B) {
	const n = maxChunkElems
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	for _, c := range []struct {
		name     string
		read, to kernels.Float
		quantize bool
	}{
		{"quantize", kernels.BF16, kernels.BF16, true},
		{"castquantize", kernels.F32, kernels.BF16, true},
		{"cast", kernels.F32, kernels.BF16, false},
	} {
		in := make([]byte, n*c.read.Size())
		cast.FromF32(in, x, c.read)
		for _, tier := range kernels.Tiers() {
			b.Run("op="+c.name+"/from="+c.read.String()+"/tier="+tier, func(b *testing.B) {
				defer kernels.Use(tier)()
				tr, err := CPU{}.Begin(JobSpec{Elems: 32 * n, Read: c.read, To: c.to, Check: true, Quantize: c.quantize, Type: nf4.NF4, BlockSize: 64})
				if err != nil {
					b.Fatal(err)
				}
				s, err := CPU{}.NewScratch(0, ScratchSpec{})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(in)))
				chunk := int64(0)
				for b.Loop() {
					if _, err := tr.Chunk(s, chunk%32*n, in); err != nil {
						b.Fatal(err)
					}
					chunk++
				}
			})
		}
	}
}
