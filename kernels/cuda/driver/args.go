package driver

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
)

const (
	maxArgs     = 64
	maxArgBytes = 4096 // of parameters that a kernel can have
)

// Args is the argument block of a launch: values in the order of the kernel's
// parameters, each at its natural alignment. Make it once with NewArgs and use it
// again after Reset; building and launching do not allocate. A block serves one
// goroutine at a time.
//
// Every method returns the block, so that a call reads like the parameter list:
//
//	a.Reset().Ptr(out).Ptr(in).U32(n)
type Args struct {
	// buf and ptr never grow: the addresses in ptr are into buf.
	buf   []byte
	ptr   []unsafe.Pointer // one for each argument, nil behind them
	size  []int
	off   int
	err   error
	words []byte // 8 bytes of little-endian scratch
}

// NewArgs returns an empty block.
func NewArgs() *Args {
	raw := make([]byte, maxArgBytes+64+8)
	// The largest alignment is that of a tensor map, 64. The heap does not move.
	skip := int(-uintptr(unsafe.Pointer(&raw[0])) & 63)
	return &Args{
		buf:   raw[skip : skip+maxArgBytes+8 : skip+maxArgBytes+8],
		ptr:   make([]unsafe.Pointer, maxArgs+1),
		size:  make([]int, 0, maxArgs),
		words: make([]byte, 8),
	}
}

// Reset empties the block.
func (a *Args) Reset() *Args {
	clear(a.ptr[:len(a.size)])
	a.size, a.off, a.err = a.size[:0], 0, nil
	return a
}

// Len is the number of arguments.
func (a *Args) Len() int { return len(a.size) }

// Ptr adds a device pointer.
func (a *Args) Ptr(p Ptr) *Args { return a.U64(uint64(p)) }

// U8 adds an unsigned 8-bit integer (or a bool).
func (a *Args) U8(v uint8) *Args { a.words[0] = v; return a.add(a.words[:1], 1) }

// U16 adds an unsigned 16-bit integer or the bits of a 16-bit float.
func (a *Args) U16(v uint16) *Args {
	binary.NativeEndian.PutUint16(a.words, v)
	return a.add(a.words[:2], 2)
}

// U32 adds an unsigned 32-bit integer.
func (a *Args) U32(v uint32) *Args {
	binary.NativeEndian.PutUint32(a.words, v)
	return a.add(a.words[:4], 4)
}

// I32 adds a signed 32-bit integer.
func (a *Args) I32(v int32) *Args { return a.U32(uint32(v)) }

// U64 adds an unsigned 64-bit integer.
func (a *Args) U64(v uint64) *Args {
	binary.NativeEndian.PutUint64(a.words, v)
	return a.add(a.words, 8)
}

// I64 adds a signed 64-bit integer.
func (a *Args) I64(v int64) *Args { return a.U64(uint64(v)) }

// F32 adds a binary32 number, bit for bit.
func (a *Args) F32(v float32) *Args { return a.U32(math.Float32bits(v)) }

// Bytes adds a structure passed by value, as it lies in memory, at an alignment that
// is a power of two up to 64.
func (a *Args) Bytes(b []byte, align int) *Args { return a.add(b, align) }

// TensorMap adds a tensor map by value, at its alignment of 64.
func (a *Args) TensorMap(m *TensorMap) *Args { return a.add(m[:], 64) }

func (a *Args) add(b []byte, align int) *Args {
	if a.err != nil {
		return a
	}
	n := len(a.size)
	if align < 1 || align > 64 || align&(align-1) != 0 || len(b) == 0 {
		a.err = fmt.Errorf("kernel argument %d: %d bytes at alignment %d: want 1 byte or more at 1, 2, 4 ... 64", n, len(b), align)
		return a
	}
	at := (a.off + align - 1) &^ (align - 1)
	if n == maxArgs || at+len(b) > maxArgBytes {
		a.err = fmt.Errorf("kernel argument %d at offset %d with %d bytes: want at most %d arguments in %d bytes", n, at, len(b), maxArgs, maxArgBytes)
		return a
	}
	copy(a.buf[at:], b)
	a.ptr[n] = unsafe.Pointer(&a.buf[at])
	a.size = append(a.size, len(b))
	a.off = at + len(b)
	return a
}

// check compares the block with what the kernel takes; sizes is nil where the driver
// does not tell (before 12.4).
func (a *Args) check(kernel string, sizes []int) error {
	if a.err != nil {
		return fmt.Errorf("launching %s: %w", kernel, a.err)
	}
	if sizes == nil {
		return nil
	}
	same := len(sizes) == len(a.size)
	for i := 0; same && i < len(sizes); i++ {
		same = sizes[i] == a.size[i]
	}
	if !same {
		return fmt.Errorf("launching %s: arguments of %v bytes: want %v", kernel, a.size, sizes)
	}
	return nil
}
