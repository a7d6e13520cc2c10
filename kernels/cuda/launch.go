package cuda

import (
	"fmt"
	"math"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// Alignment of every device buffer, in bytes.
const Alignment = 16

// The sizes of src/common.h and src/doublequant.cu.
const (
	threads   = 256
	unroll    = 4 // accesses of a thread
	tile      = threads * unroll
	sumLanes  = 64
	nested    = 256 // absmax of a group, quantized by a warp
	sumGroup  = 4096
	warpLanes = 32
)

// SumGroup is how many values absmax_sum and absmax_fold add into one.
const SumGroup = sumGroup

// FoldAbove is the number of sums from which on folding them first is cheaper than to let
// every block of quantize_absmax add them. It may be given up to SumGroup.
const FoldAbove = 512

// Launch is a kernel with the one-dimensional grid and block that its arguments need, and
// its bytes of dynamic shared memory. A launch for no elements is allowed and does nothing.
type Launch struct {
	Name                string
	Grid, Block, Shared uint32
}

// QuantizeLaunch quantizes n elements of the format from, rounded to the format as
// before. There is no kernel, and false is returned, for a half format that is to be
// rounded: convert it first.
func QuantizeLaunch(t nf4.Type, from, as kernels.Float, n int64) (Launch, bool) {
	name := "quantize_" + t.String() + "_" + short(from)
	if as != from {
		if from != kernels.F32 {
			return Launch{}, false
		}
		name += "_as_" + short(as)
	}
	return Launch{Name: name, Grid: grid(n, tile*elems(from)), Block: threads}, true
}

// DequantizeLaunch writes n elements in the format to.
func DequantizeLaunch(t nf4.Type, to kernels.Float, n int64) Launch {
	return Launch{Name: "dequantize_" + t.String() + "_" + short(to), Grid: grid(n, tile*elems(to)), Block: threads}
}

// ConvertLaunch converts n elements; the formats must differ.
func ConvertLaunch(from, to kernels.Float, n int64) Launch {
	if from == to {
		panic(fmt.Sprintf("cuda: internal error: conversion from %v to itself", from))
	}
	return Launch{Name: "convert_" + short(from) + "_" + short(to), Grid: grid(n, 4*tile), Block: threads}
}

// FiniteLaunch looks for the first of n elements of the format f that is at least
// FiniteLimit. The host sets the result to all ones before; it stays so when there is none.
func FiniteLaunch(f kernels.Float, n int64) Launch {
	return Launch{Name: fmt.Sprintf("first_above_%d", 8*f.Size()), Grid: grid(n, tile*elems(f)), Block: threads}
}

// FiniteLimit is the least magnitude, as the bits of the format from without the sign,
// that is NaN or infinite after conversion to the format to.
func FiniteLimit(from, to kernels.Float) uint32 {
	switch {
	case from == kernels.F32 && to == kernels.BF16:
		return 0x7f7f8000
	case from == kernels.F32 && to == kernels.F16:
		return 0x477ff000 // 65520
	case from == kernels.BF16 && to == kernels.F16:
		return 0x4780 // 65536; the value before it rounds to 65280
	case from == kernels.F32:
		return 0x7f800000
	case from == kernels.BF16:
		return 0x7f80
	}
	return 0x7c00
}

// AbsmaxSumLaunch sums n absmax into SumLen(n) float64. A piece of a tensor that starts
// at a multiple of SumGroup is summed on its own.
func AbsmaxSumLaunch(n int64) Launch {
	return Launch{Name: "absmax_sum", Grid: grid(n, sumGroup), Block: sumLanes}
}

// AbsmaxFoldLaunch sums n float64 into SumLen(n); repeated while there are more than
// FoldAbove.
func AbsmaxFoldLaunch(n int64) Launch {
	return Launch{Name: "absmax_fold", Grid: grid(n, sumGroup), Block: sumLanes}
}

// SumLen is how many sums n values make; at least one.
func SumLen(n int64) int64 { return max(1, ceilDiv(n, sumGroup)) }

// QuantizeAbsmaxLaunch writes the mean of n absmax from their sums, a code of each and
// the nested absmax of every 256 of them.
func QuantizeAbsmaxLaunch(n int64) Launch {
	return Launch{Name: "quantize_absmax", Grid: grid(n, nested*threads/warpLanes), Block: threads}
}

// DequantizeAbsmaxLaunch reconstructs n absmax.
func DequantizeAbsmaxLaunch(n int64) Launch {
	return Launch{Name: "dequantize_absmax", Grid: grid(n, threads), Block: threads}
}

// elems is the number of elements of a 16-byte access.
func elems(f kernels.Float) int64 { return int64(16 / f.Size()) }

func short(f kernels.Float) string {
	switch f {
	case kernels.BF16:
		return "bf16"
	case kernels.F16:
		return "f16"
	case kernels.F32:
		return "f32"
	}
	panic(fmt.Sprintf("cuda: internal error: unknown format %d", uint8(f)))
}

func grid(n, each int64) uint32 {
	g := ceilDiv(n, each)
	if n < 0 || g > math.MaxInt32 {
		panic(fmt.Sprintf("cuda: internal error: a launch for %d elements", n))
	}
	return uint32(max(1, g))
}

func ceilDiv(n, d int64) int64 {
	q := n / d
	if n%d > 0 {
		q++
	}
	return q
}
