// Package safetensors reads and writes the safetensors container.
package safetensors

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
