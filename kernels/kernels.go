// Package kernels holds what every kernel package shares: the floating-point
// storage formats of their arguments and the CPU features found at start-up.
// Kernels work on plain slices and know no files and no tensor names. Every
// tier of a conversion or a quantizer gives the same bits as its generic Go
// definition. Sums of products (panel, gemm, flash) differ between tiers in the
// last places, within bounds that their packages state; each tier gives the same
// bits every time, in any number of threads.
package kernels

// Float names a floating-point storage format, little endian in memory.
type Float uint8

// The formats that kernels read and write.
const (
	F32  Float = iota // IEEE 754 binary32
	BF16              // the upper half of binary32
	F16               // IEEE 754 binary16
)

// Size is the number of bytes of one element.
func (f Float) Size() int {
	if f == F32 {
		return 4
	}
	return 2
}

// String is the name that torch, config.json and the quant state use.
func (f Float) String() string {
	switch f {
	case F32:
		return "float32"
	case BF16:
		return "bfloat16"
	case F16:
		return "float16"
	}
	return "float(?)"
}
