// Package nf4 holds the code books of 4-bit quantization: NF4, the levels of which are
// quantiles of the normal distribution (Dettmers et al., "QLoRA: Efficient Finetuning
// of Quantized LLMs", section 3 and appendix E; bitsandbytes functional.py,
// create_normal_map), and FP4, a float of one sign, two exponent and one fraction bit.
//
// A block of blockSize weights x is stored as absmax a = max|x| and the codes of the
// levels nearest to x/a. Blocks run over the flattened tensor.
package nf4

import (
	"math"
	"math/bits"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// Type is a kind of 4-bit quantization.
type Type uint8

// The types that bitsandbytes knows.
const (
	NF4 Type = iota
	FP4
)

// String is the name used in files.
func (t Type) String() string {
	if t == FP4 {
		return "fp4"
	}
	return "nf4"
}

// Parse reads a type's name.
func Parse(s string) (Type, error) {
	switch s {
	case "nf4":
		return NF4, nil
	case "fp4":
		return FP4, nil
	}
	return 0, fault.Usagef("%q is no 4-bit type; expected nf4 or fp4", s)
}

// Codebook is the type's code book.
func (t Type) Codebook() *quant4.Codebook {
	if t == FP4 {
		return fp4
	}
	return nf4
}

// Block sizes that bitsandbytes 0.50 can load.
const (
	MinBlockSize = 32
	MaxBlockSize = 4096
)

// CheckBlockSize refuses sizes that are no power of two from 32 to 4096.
func CheckBlockSize(n int) error {
	if n < MinBlockSize || n > MaxBlockSize || bits.OnesCount(uint(n)) != 1 {
		return fault.Usagef("block size %d: expected 32, 64, 128, 256, 512, 1024, 2048 or 4096", n)
	}
	return nil
}

// NumBlocks is the number of blocks of n elements.
func NumBlocks(n int64, blockSize int) int64 { return (n + int64(blockSize) - 1) / int64(blockSize) }

// PackedLen is the number of bytes of n codes.
func PackedLen(n int64) int64 { return (n + 1) / 2 }

var (
	nf4 = nf4Book()
	fp4 = fp4Book()
)

// offset is the probability that the outermost quantiles leave: the mean of
// 1 - 1/(2*15) and 1 - 1/(2*16), to the digits that bitsandbytes uses.
const offset = 0.9677083

// normalQuantile is the inverse of the normal distribution function.
func normalQuantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }

// probabilities is torch.linspace(offset, 0.5, n) without its last entry: float32,
// counted from the nearer end. The quantiles of the published table were taken at these
// rounded probabilities; taken at the exact ones, ten levels would differ in their last
// bits.
func probabilities(n int) []float64 {
	step := float32(float32(0.5)-float32(offset)) / float32(n-1)
	p := make([]float64, n-1)
	for i := range p {
		if i < n/2 {
			p[i] = float64(float32(offset) + float32(step*float32(i)))
		} else {
			p[i] = float64(float32(0.5) - float32(step*float32(n-1-i)))
		}
	}
	return p
}

// nf4Levels are the 16 levels, ascending: eight positive quantiles, zero, and seven
// negative ones, evenly spaced in probability on each side and scaled to [-1, 1].
// Quantiles are computed in float64 and rounded to float32 before the division, as
// torch does.
func nf4Levels() [16]float32 {
	var v [16]float32
	for i, p := range probabilities(9) {
		v[15-i] = float32(normalQuantile(p))
	}
	for i, p := range probabilities(8) {
		v[i] = -float32(normalQuantile(p))
	}
	top := v[15]
	for i := range v {
		v[i] /= top
	}
	return v
}

func nf4Book() *quant4.Codebook {
	b := &quant4.Codebook{Levels: nf4Levels()}
	for i := range b.ByRank {
		b.ByRank[i] = uint8(i)
	}
	setThresholds(b)
	return b
}

// fp4Book is the table of bitsandbytes (functional.py, get_4bit_type "fp4"): code bits
// s e e m, magnitudes over 12. Two codes stand for zero; which one a small value gets is
// a matter of its sign (0 for x <= 0, 8 above), as bitsandbytes sorts them.
func fp4Book() *quant4.Codebook {
	b := &quant4.Codebook{ByRank: [16]uint8{11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3}}
	for i, v := range [8]float32{0, 0.0625, 8, 12, 4, 6, 2, 3} {
		b.Levels[i] = v / 12
		b.Levels[i+8] = -v / 12
	}
	b.Levels[8] = 0
	setThresholds(b)
	return b
}

// setThresholds puts the decision thresholds at the float32 midpoints of neighbouring
// levels.
func setThresholds(b *quant4.Codebook) {
	for i := range b.Thresholds {
		lo, hi := b.Levels[b.ByRank[i]], b.Levels[b.ByRank[i+1]]
		b.Thresholds[i] = (lo + hi) / 2
	}
}
