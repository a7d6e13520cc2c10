// Package quant4 is blockwise 4-bit quantization on plain slices, given a code book.
package quant4

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels"
)

// Codebook is a set of 16 levels, their decision thresholds and the 4-bit code of each.
type Codebook struct {
	Levels     [16]float32 // Levels[code]: what a code stands for, times the block's absmax
	Thresholds [15]float32 // ascending; rank(v) = #{i : v > Thresholds[i]}: ties go down
	ByRank     [16]uint8   // ByRank[rank]: the code of the rank-th smallest level
}

// Quantize packs.
func Quantize(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *Codebook) {
	quantizeGeneric(packed, absmax, src, from, blockSize, book)
}

// Dequantize unpacks.
func Dequantize(dst []byte, to kernels.Float, packed []byte, absmax []float32, n, blockSize int, book *Codebook) {
	dequantizeGeneric(dst, to, packed, absmax, n, blockSize, book)
}

// DequantizeF32 unpacks to float32.
func DequantizeF32(dst []float32, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	for i := range dst {
		dst[i] = book.Levels[packed[i/2]>>(4-i%2*4)&15] * absmax[i/blockSize]
	}
}

// Moments are sums over one block.
type Moments struct{ XX, XQ, QQ float64 }

// BlockMoments sums over one block.
func BlockMoments(src []byte, from kernels.Float, packed []byte, blockSize int, book *Codebook) Moments {
	return blockMomentsGeneric(src, from, packed, blockSize, book)
}

func internalError(format string, args ...any) {
	panic("quant4: internal error: " + fmt.Sprintf(format, args...))
}
