// Package quant4 is blockwise 4-bit quantization on plain slices, given a code book.
//
// n elements in flat order are cut into blocks of blockSize; the last block may be
// shorter. A block x is stored as its scale a = max|x| ("absmax", float32) and one code
// per element, two to a byte, blocks one after the other:
//
//	byte j   bits 7..4: element 2j   bits 3..0: element 2j+1
//
// With an odd n, the low nibble of the last byte is the code of 0.0.
//
// # Quantization
//
// All arithmetic is float32, every operation rounded to nearest even, none fused:
//
//	full block:        r = 1 / max(a, 1e-38)   v = x*r                  absmax = a
//	short last block:                          v = x / max(a, 1e-38)    absmax = max(a, 1e-38)
//	code = ByRank[number of thresholds that v is above]
//
// A tie goes to the lower level. An all-zero full block stores absmax 0 and the code of
// 0.0. The rule is that of bitsandbytes 0.50.2 on the CPU (backends/default/ops.py,
// quantize_4bit); see there for the short block. Subnormals count, none are flushed.
//
// Callers refuse NaN and infinities before. Here they are harmless and defined, alike in
// all tiers: a NaN counts as larger than infinity, so a block that has one gets a NaN as
// absmax; a v that is NaN gets the code of the highest rank.
//
// # Dequantization
//
// An element is Levels[code]*absmax, rounded to float32 and then to its own format.
package quant4

import (
	"fmt"
	"sync/atomic"

	"github.com/nf4conv/nf4conv/kernels"
)

// Codebook is a set of 16 levels, their decision thresholds and the 4-bit code of each.
// It must not be changed or copied after its first use.
type Codebook struct {
	Levels     [16]float32 // Levels[code]: what a code stands for, times the block's absmax
	Thresholds [15]float32 // ascending; rank(v) = #{i : v > Thresholds[i]}: ties go down
	ByRank     [16]uint8   // ByRank[rank]: the code of the rank-th smallest level

	cells  atomic.Pointer[cellTable]   // made by the first Quantize
	search atomic.Pointer[searchTable] // the same, for assembly
}

// Moments are sums over the elements of one block, of x and of the level q that stands
// for it: x*x, x*q and q*q. The squared error under any scale s, the one stored or one
// reconstructed after double quantization, is XX - 2*s*XQ + s*s*QQ.
type Moments struct{ XX, XQ, QQ float64 }

// Quantize writes the codes of the elements of src to packed and the scale of every
// block to absmax. With n elements, len(src) is n*from.Size(), len(packed) n/2 and
// len(absmax) n/blockSize, both rounded up. blockSize must be even. A tensor can be
// quantized in pieces that start at multiples of blockSize; only the last piece may
// end in a short block.
func Quantize(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *Codebook) {
	n := elements(src, from)
	check(n, blockSize, len(packed), len(absmax))
	quantize(packed, absmax, src, from, blockSize, book)
}

// Dequantize writes n elements to dst, in the format to; len(dst) is n*to.Size(). The
// lengths of packed and absmax are those of Quantize. absmax may be negative, as scales
// reconstructed after double quantization can be.
func Dequantize(dst []byte, to kernels.Float, packed []byte, absmax []float32, n, blockSize int, book *Codebook) {
	if m := elements(dst, to); m != n {
		panic(fmt.Sprintf("quant4: internal error: destination holds %d elements, expected %d", m, n))
	}
	check(n, blockSize, len(packed), len(absmax))
	dequantize(dst, to, packed, absmax, blockSize, book)
}

// DequantizeF32 is Dequantize to len(dst) float32 values.
func DequantizeF32(dst []float32, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	check(len(dst), blockSize, len(packed), len(absmax))
	dequantizeF32(dst, packed, absmax, blockSize, book)
}

// BlockMoments sums over one block: src holds its elements, at most blockSize of them,
// packed their codes. Element i is added to the (i mod 8)-th of eight accumulators;
// then, three times, the upper half of them is added to the lower half. The products
// are exact, so the result is the same everywhere.
func BlockMoments(src []byte, from kernels.Float, packed []byte, blockSize int, book *Codebook) Moments {
	n := elements(src, from)
	if n > blockSize || len(packed) != n/2+n%2 {
		panic(fmt.Sprintf("quant4: internal error: moments of %d elements: block size %d, %d packed bytes", n, blockSize, len(packed)))
	}
	return blockMoments(src, from, packed, book)
}

// elements is the number of elements in b.
func elements(b []byte, f kernels.Float) int {
	n := len(b) / f.Size()
	if len(b) != n*f.Size() {
		panic(fmt.Sprintf("quant4: internal error: %d bytes are not whole %v elements", len(b), f))
	}
	return n
}

func check(n, blockSize, packed, absmax int) {
	if blockSize <= 0 || blockSize%2 != 0 {
		panic(fmt.Sprintf("quant4: internal error: block size %d", blockSize))
	}
	if p, b := n/2+n%2, n/blockSize+min(n%blockSize, 1); packed != p || absmax != b {
		panic(fmt.Sprintf("quant4: internal error: %d elements in blocks of %d need %d packed bytes and %d scales, got %d and %d",
			n, blockSize, p, b, packed, absmax))
	}
}
