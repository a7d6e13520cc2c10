package attention

import (
	"encoding/binary"
	"fmt"

	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// Sequences says where sequences begin and end, in device memory.
type Sequences struct {
	dev     driver.Device
	at      driver.Ptr // starts of queries, then of keys, then lengths of keys
	k, lens uint64     // their offsets; 0: no lengths

	count, maxQ, maxK, totalQ int
}

// NewSequences lays sequences out as package flash does: the first token of each and the
// total at the end ("cu_seqlens"), and, unless nil, how many keys each has, the rest up to
// the next start being padding. It waits until that is in device memory.
func (k *Kernels) NewSequences(qStarts, kStarts, kLens []int) (*Sequences, error) {
	n := len(qStarts) - 1
	if n < 0 || len(kStarts) != n+1 || kLens != nil && len(kLens) != n || n > most {
		return nil, fmt.Errorf("attention: %d starts of queries, %d of keys, %d lengths, expected equally many up to %d, or no lengths", len(qStarts), len(kStarts), len(kLens), most)
	}
	s := &Sequences{dev: k.dev, count: n, totalQ: qStarts[n]}
	for b := range n {
		q, keys := qStarts[b+1]-qStarts[b], kStarts[b+1]-kStarts[b]
		if qStarts[b] < 0 || kStarts[b] < 0 || q < 0 || keys < 0 || q > limit || keys > limit || qStarts[b+1] > limit || kStarts[b+1] > limit {
			return nil, fmt.Errorf("attention: sequence %d has queries %d to %d and keys %d to %d, expected ascending numbers up to %d", b, qStarts[b], qStarts[b+1], kStarts[b], kStarts[b+1], limit)
		}
		if kLens != nil {
			if kLens[b] < 0 || kLens[b] > keys {
				return nil, fmt.Errorf("attention: sequence %d has %d of %d keys", b, kLens[b], keys)
			}
			keys = kLens[b]
		}
		s.maxQ, s.maxK = max(s.maxQ, q), max(s.maxK, keys)
	}
	raw := words(words(nil, qStarts), kStarts)
	s.k = uint64(4 * (n + 1))
	if kLens != nil && n > 0 {
		s.lens = uint64(len(raw))
		raw = words(raw, kLens)
	}
	var err error
	s.at, err = upload(k.dev, raw)
	return s, err
}

// Close frees the memory. It waits for work that may use it.
func (s *Sequences) Close() error { return s.dev.Free(s.at) }

// Mask is a flash.BlockMask in device memory.
type Mask struct {
	dev  driver.Device
	at   driver.Ptr // offsets of the rows, then columns of the blocks
	list uint64     // offset of the columns

	rows, columns, blockQ, blockK int
}

// NewMask copies a mask. The error is [ErrUnsupported] unless its blocks are multiples of
// 128 queries and keys. It waits until the mask is in device memory.
func (k *Kernels) NewMask(m *flash.BlockMask) (*Mask, error) {
	o := &Mask{dev: k.dev}
	o.blockQ, o.blockK = m.BlockSize()
	o.rows, o.columns = m.Blocks()
	if o.blockQ%cuda.FlashMaskBlock != 0 || o.blockK%cuda.FlashMaskBlock != 0 {
		return nil, fmt.Errorf("attention: a mask of blocks of %dx%d, expected multiples of %d: %w", o.blockQ, o.blockK, cuda.FlashMaskBlock, ErrUnsupported)
	}
	offsets, columns := []int{0}, []int(nil)
	for i := range o.rows {
		columns = m.AppendRow(columns, i)
		offsets = append(offsets, len(columns))
	}
	o.list = uint64(4 * len(offsets))
	var err error
	o.at, err = upload(k.dev, words(words(nil, offsets), columns))
	return o, err
}

// Close frees the memory. It waits for work that may use it.
func (m *Mask) Close() error { return m.dev.Free(m.at) }

func words(raw []byte, x []int) []byte {
	for _, v := range x {
		raw = binary.NativeEndian.AppendUint32(raw, uint32(v))
	}
	return raw
}

// upload puts raw, which is not empty, into device memory.
func upload(dev driver.Device, raw []byte) (driver.Ptr, error) {
	at, err := dev.Alloc(uint64(len(raw)))
	if err != nil {
		return 0, fmt.Errorf("attention: %w", err)
	}
	s, err := dev.NewStream()
	if err == nil {
		err = s.CopyIn(at, raw) // not page-locked, so done on return
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		_ = dev.Free(at)
		return 0, fmt.Errorf("attention: %w", err)
	}
	return at, nil
}
