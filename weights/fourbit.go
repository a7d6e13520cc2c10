package weights

import (
	"slices"
	"sync"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// fourBit is a bitsandbytes weight.
type fourBit struct {
	w         *bnb.Weight
	nestedMap *[256]float32
}

func newFourBit(w *bnb.Weight) (Tensor, error) {
	f := &fourBit{w: w}
	if w.QuantState.Nested {
		b, err := readAll(w.NestedQuantMap)
		if err != nil {
			return nil, err
		}
		f.nestedMap = new([256]float32)
		cast.ToF32(f.nestedMap[:], b, kernels.F32)
	}
	return f, nil
}

func (f *fourBit) Name() string          { return f.w.Name }
func (f *fourBit) Shape() []int64        { return f.w.QuantState.Shape }
func (f *fourBit) Storage() string       { return f.w.QuantState.Type.String() }
func (f *fourBit) Format() kernels.Float { return f.w.QuantState.DType }
func (f *fourBit) Sources() []hf.Tensor  { return f.w.Parts() }

func (f *fourBit) ReadF32(dst []float32, off int64) error {
	if len(dst) == 0 {
		return nil
	}
	q := &f.w.QuantState
	bs := int64(q.BlockSize)
	b := blocks.Get().(*blockBuffers)
	defer blocks.Put(b)
	packed, scales, err := f.readBlocks(b, int64(len(dst)), off)
	if err != nil {
		return err
	}
	book := q.Type.Codebook()
	if off%bs == 0 {
		quant4.DequantizeF32(dst, packed, scales, q.BlockSize, book)
		roundTo(dst, q.DType)
		return nil
	}
	b0, lead := off/bs, off%2
	for i := range dst {
		at := off + int64(i)
		k := lead + int64(i)
		c := packed[k/2] >> (4 - k%2*4) & 15
		dst[i] = book.Levels[c] * scales[at/bs-b0]
	}
	roundTo(dst, q.DType)
	return nil
}

// blockBuffers are what a read of blocks needs besides its result. They are kept: a layer is
// some hundred reads, and what they would leave behind half a model.
type blockBuffers struct {
	packed, codes, raw []byte
	scales, nested     []float32
}

var blocks = sync.Pool{New: func() any { return new(blockBuffers) }}

// sized is a slice of n elements, with anything in it, that stays in *s.
func sized[T any](s *[]T, n int64) []T {
	*s = slices.Grow((*s)[:0], int(n))[:n]
	return *s
}

// readBlocks reads what n elements from off on need: whole bytes, and the scales of whole
// blocks. Both are valid as long as b is not used again.
func (f *fourBit) readBlocks(b *blockBuffers, n, off int64) (packed []byte, scales []float32, err error) {
	bs := int64(f.w.QuantState.BlockSize)
	b0, b1 := off/bs, (off+n-1)/bs+1
	scales = sized(&b.scales, b1-b0)
	if err := f.readScales(b, scales, b0); err != nil {
		return nil, nil, err
	}
	packed = sized(&b.packed, (off%2+n+1)/2)
	return packed, scales, f.w.Packed.ReadAt(packed, off/2)
}

// read is Read of values from the start of a block on.
func (f *fourBit) read(dst []byte, n, off int64) error {
	b := blocks.Get().(*blockBuffers)
	defer blocks.Put(b)
	packed, scales, err := f.readBlocks(b, n, off)
	if err != nil {
		return err
	}
	q := &f.w.QuantState
	quant4.Dequantize(dst, q.DType, packed, scales, int(n), q.BlockSize, q.Type.Codebook())
	return nil
}

// readScales reconstructs the absmax of len(dst) blocks from block on.
func (f *fourBit) readScales(b *blockBuffers, dst []float32, block int64) error {
	q := &f.w.QuantState
	if !q.Nested {
		buf := sized(&b.raw, 4*int64(len(dst)))
		if err := f.w.Absmax.ReadAt(buf, 4*block); err != nil {
			return err
		}
		cast.ToF32(dst, buf, kernels.F32)
		return nil
	}
	g0, g1 := block/doublequant.BlockSize, (block+int64(len(dst))-1)/doublequant.BlockSize+1
	buf := sized(&b.raw, 4*(g1-g0))
	if err := f.w.NestedAbsmax.ReadAt(buf, 4*g0); err != nil {
		return err
	}
	nested := sized(&b.nested, g1-g0)
	cast.ToF32(nested, buf, kernels.F32)
	codes := sized(&b.codes, int64(len(dst)))
	if err := f.w.Absmax.ReadAt(codes, block); err != nil {
		return err
	}
	for i := 0; i < len(dst); { // group by group: the first may start in its middle
		g := (block + int64(i)) / doublequant.BlockSize
		n := min(int64(len(dst)-i), (g+1)*doublequant.BlockSize-block-int64(i))
		doublequant.Dequantize(dst[i:i+int(n)], codes[i:i+int(n)], nested[g-g0:][:1], f.nestedMap, q.NestedOffset, doublequant.BlockSize)
		i += int(n)
	}
	return nil
}

// roundTo rounds values to a 16-bit format.
func roundTo(v []float32, f kernels.Float) {
	if f == kernels.F32 {
		return
	}
	var buf [1024]byte
	for len(v) > 0 {
		n := min(len(v), len(buf)/2)
		cast.FromF32(buf[:2*n], v[:n], f)
		cast.ToF32(v[:n], buf[:2*n], f)
		v = v[n:]
	}
}
