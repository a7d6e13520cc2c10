package driver

import "fmt"

// TensorMap is the opaque descriptor CUtensorMap, passed to kernels by value
// (Args.TensorMap).
type TensorMap [128]byte

// TensorMapSpec says what a descriptor describes, after cuTensorMapEncodeTiled. The
// numbers of the enumerations are those of cuda.h.
type TensorMapSpec struct {
	Type           uint32   // CUtensorMapDataType: 0 u8, 2 u32, 6 f16, 7 f32, 9 bf16
	Address        Ptr      // 16-byte aligned
	Dims           []uint64 // elements, fastest first; 1 to 5 of them
	Strides        []uint64 // bytes, of all dimensions but the first; multiples of 16
	Box            []uint32 // elements that one copy moves, per dimension, at most 256
	ElementStrides []uint32 // per dimension; nil for 1
	Interleave     uint32   // CUtensorMapInterleave
	Swizzle        uint32   // CUtensorMapSwizzle: 0 none, 1 32 B, 2 64 B, 3 128 B
	L2Promotion    uint32   // CUtensorMapL2promotion: 0 none, 1 64 B, 2 128 B, 3 256 B
	FillNaN        bool     // elements out of bounds read as NaN, not 0
}

// check compares the lengths, which the driver cannot.
func (t *TensorMapSpec) check() error {
	n := len(t.Dims)
	if n < 1 || n > 5 || len(t.Strides) != n-1 || len(t.Box) != n || t.ElementStrides != nil && len(t.ElementStrides) != n {
		return fmt.Errorf("tensor map: %d dimensions, %d strides, %d box sizes, %d element strides: want 1 to 5, one less, as many, as many or none",
			n, len(t.Strides), len(t.Box), len(t.ElementStrides))
	}
	return nil
}

func (t *TensorMapSpec) steps() []uint32 {
	if t.ElementStrides != nil {
		return t.ElementStrides
	}
	steps := make([]uint32, len(t.Dims))
	for i := range steps {
		steps[i] = 1
	}
	return steps
}
