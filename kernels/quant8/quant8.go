// Package quant8 is blockwise 8-bit quantization of float32 on plain slices, given a code
// book of 256 levels: the second level of double quantization.
//
//	y = x - offset     a = max|y| of a group     v = y * (1 / max(a, 1e-38))
//	code = number of midpoints below v
//
// and back
//
//	x' = level[code]*a + offset
//
// with every operation rounded to float32 and none fused. A group without deviation
// has a = 0 and the code of 0. Groups with NaN or infinities give NaN or infinity as a;
// a v that is NaN has code 0.
//
// [Sum] adds in an order of its own, which vector units and GPUs can keep, so that every
// implementation gives the same bits.
package quant8

import (
	"fmt"
	"sync/atomic"
)

// Codebook is a set of levels, ascending, and the midpoints between neighbours, by which
// codes are decided: ties go to the lower level. It must not be changed or copied after
// its first use.
type Codebook struct {
	Levels    [256]float32
	Midpoints [255]float32

	cells atomic.Pointer[cellTable]   // made by the first Quantize
	steps atomic.Pointer[searchSteps] // the same, for assembly
}

// Sum is the sum of x in float64. It is taken per SumGroup values, in SumLanes strided
// accumulators that are folded by halves, and the sums of the groups in the same way.
func Sum(x []float32) float64 {
	if len(x) == 0 {
		return 0
	}
	partial := make([]float64, (len(x)+SumGroup-1)/SumGroup)
	sumGroups(partial, x)
	for len(partial) > 1 {
		next := partial[:0]
		for i := 0; i < len(partial); i += SumGroup {
			next = append(next, groupSum(partial[i:min(i+SumGroup, len(partial))]))
		}
		partial = next
	}
	return partial[0]
}

// The order of Sum.
const (
	SumGroup = 4096
	SumLanes = 64
)

// Quantize writes a code for every element of x and a scale for every group of
// groupSize; len(scales) is len(x)/groupSize rounded up.
func Quantize(codes []byte, scales, x []float32, offset float32, groupSize int, book *Codebook) {
	check(len(codes), len(scales), len(x), groupSize)
	quantize(codes, scales, x, offset, groupSize, book)
}

// Dequantize writes levels[code]*scale + offset for every code. Group g of groupSize
// codes uses scales[g].
func Dequantize(x []float32, codes []byte, scales []float32, levels *[256]float32, offset float32, groupSize int) {
	check(len(codes), len(scales), len(x), groupSize)
	dequantize(x, codes, scales, levels, offset, groupSize)
}

func check(codes, scales, n, groupSize int) {
	if groupSize <= 0 || codes != n || scales != n/groupSize+min(n%groupSize, 1) {
		panic(fmt.Sprintf("quant8: internal error: %d codes and %d scales for %d values in groups of %d", codes, scales, n, groupSize))
	}
}
