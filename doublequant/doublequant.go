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
)

// BlockSize is the number of absmax that share a nested absmax. bitsandbytes' kernels
// know no other.
const BlockSize = 256

// Groups is the number of nested absmax for n absmax.
func Groups(n int64) int64 { return (n + BlockSize - 1) / BlockSize }

// tiny keeps the reciprocal of a group that is all zero finite.
const tiny = float32(1e-38)

var (
	dynamicMap = makeMap()
	midpoints  = makeMidpoints()
)

// Map is the signed 8-bit dynamic map, ascending. It must not be changed.
func Map() *[256]float32 { return dynamicMap }

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

func makeMidpoints() *[255]float32 {
	var m [255]float32
	for i := range m {
		m[i] = float32(dynamicMap[i]+dynamicMap[i+1]) / 2
	}
	return &m
}

// Sums are taken per sumGroup values, in sumLanes strided accumulators that are folded
// by halves, and the sums of the groups in the same way: an order that vector units and
// GPUs can keep, so that every implementation gives the same bits.
const (
	sumGroup = 4096
	sumLanes = 64
)

// Offset is the mean of absmax: summed in float64 in a fixed order, rounded once to
// float32. It is 0 for no values.
func Offset(absmax []float32) float32 {
	if len(absmax) == 0 {
		return 0
	}
	partial := make([]float64, 0, (len(absmax)+sumGroup-1)/sumGroup)
	var buf [sumGroup]float64
	for i := 0; i < len(absmax); i += sumGroup {
		g := absmax[i:min(i+sumGroup, len(absmax))]
		for k, a := range g {
			buf[k] = float64(a)
		}
		partial = append(partial, groupSum(buf[:len(g)]))
	}
	for len(partial) > 1 {
		next := partial[:0]
		for i := 0; i < len(partial); i += sumGroup {
			next = append(next, groupSum(partial[i:min(i+sumGroup, len(partial))]))
		}
		partial = next
	}
	return float32(partial[0] / float64(len(absmax)))
}

// groupSum adds up to sumGroup values.
func groupSum(v []float64) float64 {
	var acc [sumLanes]float64
	for i, x := range v {
		acc[i%sumLanes] += x
	}
	for n := sumLanes / 2; n > 0; n /= 2 {
		for j := range n {
			acc[j] += acc[j+n]
		}
	}
	return acc[0]
}

// Quantize writes a code for every absmax and the nested absmax of every group of
// BlockSize; len(nested) is len(absmax)/BlockSize rounded up. Codes are the exact
// nearest entries, the lower one in a tie. A group without deviation gets nested absmax
// 0 and the code of 0. Other lengths are a panic.
func Quantize(codes []byte, nested []float32, absmax []float32, offset float32) {
	check(len(codes), len(nested), len(absmax), BlockSize)
	for g := range nested {
		lo, hi := g*BlockSize, min((g+1)*BlockSize, len(absmax))
		var a float32
		for _, x := range absmax[lo:hi] {
			a = max(a, float32(math.Abs(float64(x-offset))))
		}
		nested[g] = a
		r := 1 / max(a, tiny)
		for i, x := range absmax[lo:hi] {
			codes[lo+i] = nearest(float32(x-offset) * r)
		}
	}
}

// nearest is the number of midpoints below v. The search has eight steps, each a
// compare.
func nearest(v float32) byte {
	n := 0
	for step := 128; step > 0; step /= 2 {
		if k := n + step; k <= len(midpoints) && midpoints[k-1] < v {
			n = k
		}
	}
	return byte(n)
}

// Dequantize reconstructs absmax from codes: m[code]*nested + offset, each operation
// rounded to float32. Group b of nestedBlockSize codes uses nested[b]. There are as many
// codes as absmax, and a nested absmax for every group; other lengths are a panic.
func Dequantize(absmax []float32, codes []byte, nested []float32, m *[256]float32, offset float32, nestedBlockSize int) {
	check(len(codes), len(nested), len(absmax), nestedBlockSize)
	for i, c := range codes {
		absmax[i] = float32(m[c]*nested[i/nestedBlockSize]) + offset
	}
}

func check(codes, nested, absmax, blockSize int) {
	if blockSize <= 0 || codes != absmax || nested != absmax/blockSize+min(absmax%blockSize, 1) {
		panic(fmt.Sprintf("doublequant: internal error: %d codes and %d nested absmax for %d absmax in groups of %d", codes, nested, absmax, blockSize))
	}
}
