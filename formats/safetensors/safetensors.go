// Package safetensors reads and writes the safetensors container: an 8-byte
// little-endian header length, a JSON header of that many bytes, and the data of all
// tensors without gaps.
//
// Reading goes by ReadAt: opening a file reads its header and nothing else, and no
// allocation is made from a length that was not checked against the file. All rules
// of the reference reader (huggingface/safetensors, safetensors/src/tensor.rs) are
// enforced, and the one its README demands and few parsers keep: a name may stand
// only once.
//
// The streaming writer [Write] is that of github.com/nlpodyssey/safetensors wherever
// it knows the dtypes. Its reader wants the whole file in memory, knows no FP8 or FP4
// and takes duplicate names, so reading is done here; tests hold the two against each
// other.
package safetensors

import "github.com/nf4conv/nf4conv/kernels"

// DType is a dtype as the header spells it ("F32", "BF16", "F8_E4M3"...). The set is
// open: dtypes this package does not know are carried as bytes.
type DType string

// Tensor is one entry of a header.
type Tensor struct {
	Name  string
	DType DType
	Shape []int64 // row-major; empty for a scalar
	Begin int64   // first byte, relative to the data section
	End   int64   // one past the last byte
}

// Elems is the number of elements.
func (t *Tensor) Elems() int64 {
	n := int64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Bytes is the size of the tensor's data.
func (t *Tensor) Bytes() int64 { return t.End - t.Begin }

// Bits is the size of one element; known is false for dtypes that are carried as bytes.
func (d DType) Bits() (bits int, known bool) {
	switch d {
	case "F4":
		return 4, true
	case "F6_E2M3", "F6_E3M2":
		return 6, true
	case "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ":
		return 8, true
	case "I16", "U16", "F16", "BF16":
		return 16, true
	case "I32", "U32", "F32":
		return 32, true
	case "I64", "U64", "F64", "C64":
		return 64, true
	}
	return 0, false
}

// Float is the kernels' name of a dtype that they read and write.
func (d DType) Float() (kernels.Float, bool) {
	switch d {
	case "F32":
		return kernels.F32, true
	case "BF16":
		return kernels.BF16, true
	case "F16":
		return kernels.F16, true
	}
	return 0, false
}
