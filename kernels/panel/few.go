package panel

import (
	"fmt"
	"unsafe"
)

// MaxFew is the largest number of rows of a, and FewRows the number of rows of w, that
// [Kernel.Few] multiplies.
const (
	MaxFew  = 4
	FewRows = 16
)

// Rows are the FewRows rows of w that [Kernel.Few] reads, in one of three formats. A slice
// begins with the first of them and may go on behind the last.
type Rows struct {
	Wide   []float32 // float32; k is a multiple of 16
	BF16   []byte    // little-endian bfloat16; k is a multiple of 32
	Packed []byte    // two codes of package quant4 a byte, the first in the upper half; k is a multiple of 128

	Stride int // elements from row to row, an even number of Packed
	Next   int // elements from here to what the next call reads, which is asked for; 0: nothing is

	// Of Packed: an element of row j in column t is Levels[code] * Scales[t/64*16 + j], rounded.
	Levels *[16]float32
	Scales []float32
}

const formats = 3

type fewFunc func(c *float32, cRow int, a *float32, w *byte, wRow, k, add int, scales, levels *float32, next *byte, line int)

// Direct says whether Few reads formats other than float32.
func (kn *Kernel) Direct() bool { return kn.few[1][1] != nil }

// Few multiplies m rows of a, 1, 2 or 4, with the rows of w, which are read once and as
// they lie, in the order in which Mul takes them, so that the bits are Mul's:
//
//	s[i][j] = sum over t < k of a[t*m + i] * w[j][t]
//	Store:   c[i*cRow+j] = s[i][j]
//	Add:     c[i*cRow+j] = c[i*cRow+j] + s[i][j]
//
// k is at most 4096, as a call of assembly cannot be preempted. Slices must reach to the
// last element used; otherwise Few panics.
func (kn *Kernel) Few(c []float32, cRow int, a []float32, w *Rows, k, m int, mode Mode) {
	var data unsafe.Pointer
	format, have, step, bits := 0, len(w.Wide), 16, 32
	switch {
	case w.BF16 != nil:
		format, have, step, bits = 1, len(w.BF16)/2, 32, 16
		data = unsafe.Pointer(unsafe.SliceData(w.BF16))
	case w.Packed != nil:
		format, have, step, bits = 2, len(w.Packed)*2, 128, 4
		data = unsafe.Pointer(unsafe.SliceData(w.Packed))
	default:
		data = unsafe.Pointer(unsafe.SliceData(w.Wide))
	}
	switch {
	case m != 1 && m != 2 && m != MaxFew || k < step || k%step != 0 || k > 4096 || w.Stride < k || w.Stride*bits%8 != 0 || cRow < FewRows || mode != Store && mode != Add:
		panic(fmt.Sprintf("panel: internal error: %d rows, k %d, strides %d and %d, mode %d", m, k, w.Stride, cRow, mode))
	case len(c) < (m-1)*cRow+FewRows || len(a) < m*k || have < (FewRows-1)*w.Stride+k:
		panic(fmt.Sprintf("panel: internal error: %d rows, k %d: strides %d and %d, %d, %d and %d elements", m, k, w.Stride, cRow, len(c), len(a), have))
	case format == 2 && (len(w.Scales) < (k+63)/64*FewRows || w.Levels == nil):
		panic(fmt.Sprintf("panel: internal error: %d scales for k %d", len(w.Scales), k))
	case format != 0 && !kn.Direct():
		panic("panel: internal error: this tier reads float32 only")
	}
	if kn.few[format][m] == nil {
		fewGeneric(c, cRow, a, w.Wide, w.Stride, k, m, mode)
		return
	}
	next, line := (*byte)(unsafe.Pointer(&a[0])), 0 // what is needed anyway, again and again
	if w.Next > 0 && w.Next < have {
		next, line = (*byte)(unsafe.Add(data, w.Next*bits/8)), 4*lineLen
	}
	var levels *float32
	if w.Levels != nil {
		levels = &w.Levels[0]
	}
	kn.few[format][m](&c[0], cRow, &a[0], (*byte)(data), w.Stride*bits/8, k, int(mode), unsafe.SliceData(w.Scales), levels, next, line)
}
