package cuda

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// A short block divides, a full one multiplies by the reciprocal: on values between which
// the two fall on different sides of a threshold.
func TestQuantizeDividesShortBlocks(t *testing.T) {
	eachEmulator(t, func(t *testing.T, e *emulator) {
		const bs = 64
		r := rand.New(rand.NewPCG(8, 8))
		for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
			values := 0
			for range 50 {
				a := 0.5 + r.Float32()
				block := []float32{a}
				for _, th := range typ.Codebook().Thresholds {
					for d := -2; d <= 2; d++ {
						x := math.Float32frombits(math.Float32bits(th*a) + uint32(d))
						if (x/a > th) != (x*(1/a) > th) && len(block) < bs-1 {
							block = append(block, x)
						}
					}
				}
				if len(block) == 1 {
					continue
				}
				values += len(block) - 1
				checkQuantize(t, e, typ, kernels.F32, kernels.F32, floatBytes(block), len(block), bs, 0)
				full := append(block, make([]float32, bs-len(block))...)
				checkQuantize(t, e, typ, kernels.F32, kernels.F32, floatBytes(full), len(full), bs, 0)
			}
			if values < 20 {
				t.Errorf("%v: %d values tell division and reciprocal apart, expected more", typ, values)
			}
		}
	})
}
