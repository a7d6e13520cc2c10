// Package doublequant is the second level of QLoRA's double quantization (section 3 of
// the paper): the absmax of the blocks, less their mean, are quantized in groups of 256
// with an 8-bit dynamic map (bitsandbytes functional.py, quantize_4bit with
// compress_statistics, create_dynamic_map).
//
//	offset = mean(absmax)                     y = absmax - offset
//	nested = max|y| of each group             code = nearest entry of the map to y/nested
//	absmax' = map[code]*nested + offset       (two roundings)
package doublequant

import (
	"fmt"
	"math"
	"sort"

	"github.com/nf4conv/nf4conv/kernels/quant8"
)

// BlockSize is the number of absmax that share a nested absmax. bitsandbytes' kernels
// know no other.
const BlockSize = 256

// Groups is the number of nested absmax for n absmax.
func Groups(n int64) int64 { return (n + BlockSize - 1) / BlockSize }

var book = makeBook()

// Map is the signed 8-bit dynamic map, ascending. It must not be changed.
func Map() *[256]float32 { return &book.Levels }

// makeMap builds the map: for each decade 10^(i-6), 2^i intervals between 0.1 and 1 of
// which the midpoints count, with both signs; 0; and 1. linspace is computed as torch
// does on machines with FMA, from the nearer end.
func makeMap() *[256]float32 {
	var v []float32
	for i := range 7 {
		n := 1<<i + 1
		step := float32(1-float32(0.1)) / float32(n-1)
		at := func(k int) float32 {
			if k < n/2 {
				return fma(step, float32(k), 0.1)
			}
			return fma(-step, float32(n-1-k), 1)
		}
		scale := float32(math.Pow(10, float64(i-6)))
		for k := range n - 1 {
			m := float32(at(k)+at(k+1)) / 2 * scale
			v = append(v, m, -m)
		}
	}
	v = append(v, 0, 1)
	sort.Slice(v, func(i, j int) bool { return v[i] < v[j] })
	return (*[256]float32)(v)
}

// fma is a*b+c with one rounding. The product of two float32 is exact in float64; the
// sum is rounded to odd so that the second rounding does no harm.
func fma(a, b, c float32) float32 {
	p, q := float64(a)*float64(b), float64(c)
	s := p + q
	bb := s - p
	if err := (p - (s - bb)) + (q - bb); err != 0 && math.Float64bits(s)&1 == 0 {
		if (err > 0) == (s > 0) {
			s = math.Float64frombits(math.Float64bits(s) + 1)
		} else {
			s = math.Float64frombits(math.Float64bits(s) - 1)
		}
	}
	return float32(s)
}

func makeBook() *quant8.Codebook {
	b := &quant8.Codebook{Levels: *makeMap()}
	for i := range b.Midpoints {
		b.Midpoints[i] = float32(b.Levels[i]+b.Levels[i+1]) / 2
	}
	return b
}

// Offset is the mean of absmax: summed in float64 in the order of [quant8.Sum], rounded
// once to float32. It is 0 for no values.
func Offset(absmax []float32) float32 {
	if len(absmax) == 0 {
		return 0
	}
	return float32(quant8.Sum(absmax) / float64(len(absmax)))
}

// Quantize writes a code for every absmax and the nested absmax of every group of
// BlockSize; len(nested) is len(absmax)/BlockSize rounded up. Codes are the exact
// nearest entries, the lower one in a tie. A group without deviation gets nested absmax
// 0 and the code of 0. Other lengths are a panic.
func Quantize(codes []byte, nested []float32, absmax []float32, offset float32) {
	check(len(codes), len(nested), len(absmax), BlockSize)
	quant8.Quantize(codes, nested, absmax, offset, BlockSize, book)
}

// Dequantize reconstructs absmax from codes: m[code]*nested + offset, each operation
// rounded to float32. Group b of nestedBlockSize codes uses nested[b]. There are as many
// codes as absmax, and a nested absmax for every group; other lengths are a panic.
func Dequantize(absmax []float32, codes []byte, nested []float32, m *[256]float32, offset float32, nestedBlockSize int) {
	check(len(codes), len(nested), len(absmax), nestedBlockSize)
	quant8.Dequantize(absmax, codes, nested, m, offset, nestedBlockSize)
}

func check(codes, nested, absmax, blockSize int) {
	if blockSize <= 0 || codes != absmax || nested != absmax/blockSize+min(absmax%blockSize, 1) {
		panic(fmt.Sprintf("doublequant: internal error: %d codes and %d nested absmax for %d absmax in groups of %d", codes, nested, absmax, blockSize))
	}
}
