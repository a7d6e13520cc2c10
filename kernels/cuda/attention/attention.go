package attention

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// ErrUnsupported says that parameters are right and there is no kernel for them; package
// flash computes them on the CPU.
var ErrUnsupported = errors.New("no attention kernel for this")

// Heads is a view of [tokens, heads, dim] in device memory: element x of head h of token t
// is number t*Row + h*Head + x from At. At is a multiple of 16, Row and Head of 8.
type Heads struct {
	At        driver.Ptr
	Row, Head int // in elements
}

// Params is one call of [Kernels.Forward]. The zero value of an option leaves it out.
//
// With Sequences nil there are Batch sequences (0 counts as 1) of QTokens queries and
// KTokens keys each, one after the other: a batch [B, S, H, D]. A batch [B, H, S, D] is one
// sequence with B*H heads.
type Params struct {
	Format       kernels.Float // of all four: BF16 or F16
	Q, K, V, Out Heads         // Out does not overlap the others
	LSE          driver.Ptr    // float32 [QHeads, query tokens], natural logarithm; 0: not wanted
	QHeads       int
	KVHeads      int // divides QHeads
	HeadDim      int

	Batch, QTokens, KTokens int
	Sequences               *Sequences

	Scale   float32 // positive; 0: 1/sqrt(HeadDim)
	Causal  bool
	Window  *flash.Window
	Softcap float32
	Mask    *Mask
}

// Kernels are the attention kernels of a device. They serve any number of goroutines.
type Kernels struct {
	dev    driver.Device
	image  string
	module driver.Module

	mu        sync.Mutex
	functions map[string]driver.Function
	args      *driver.Args
	packed    []byte
}

// New loads the kernels. The error is cuda.ErrUnsupported for a device older than 8.0,
// cuda.ErrNotBuilt, or the driver's.
func New(dev driver.Device) (*Kernels, error) {
	info := dev.Info()
	image, name, err := cuda.FlashImage(info.Major, info.Minor)
	if err != nil {
		return nil, err
	}
	m, err := dev.LoadModule(image)
	if err != nil {
		return nil, fmt.Errorf("loading %s: %w", name, err)
	}
	return &Kernels{dev: dev, image: name, module: m, functions: map[string]driver.Function{}, args: driver.NewArgs()}, nil
}

// Close unloads the kernels.
func (k *Kernels) Close() error { return k.module.Close() }

// Forward queues attention on a stream of the device. The error is [ErrUnsupported] (with
// errors.Is), says what does not fit, or is the driver's; nothing is queued then.
func (k *Kernels) Forward(s driver.Stream, p *Params) error {
	fp, err := p.pack()
	if err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	if p.Sequences != nil && p.Sequences.dev != k.dev || p.Mask != nil && p.Mask.dev != k.dev {
		return errors.New("attention: sequences or a mask of another device")
	}
	if fp.MaxQ == 0 || fp.Sequences == 0 {
		return nil
	}
	l, ok := cuda.FlashSM80(k.image, p.Format, fp)
	if !ok {
		return fmt.Errorf("attention: format %v, head dimension %d, expected bfloat16 or binary16 and a multiple of 8 up to 256: %w", p.Format, p.HeadDim, ErrUnsupported)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	f, err := k.function(&l)
	if err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	if k.packed, err = binary.Append(k.packed[:0], binary.NativeEndian, fp); err != nil {
		return fmt.Errorf("attention: internal error: %w", err)
	}
	grid := driver.Dim{X: l.Grid[0], Y: l.Grid[1], Z: l.Grid[2]}
	if err := s.Launch(f, grid, driver.D1(l.Block), l.Shared, k.args.Reset().Bytes(k.packed, 8)); err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	return nil
}

// function finds a kernel and allows it the shared memory it needs.
func (k *Kernels) function(l *cuda.FlashLaunch) (driver.Function, error) {
	if f := k.functions[l.Name]; f != nil {
		return f, nil
	}
	f, err := k.module.Function(l.Name)
	if err != nil {
		return nil, err
	}
	if err := f.SetAttribute(driver.MaxDynamicShared, int(l.Shared)); err != nil {
		return nil, err
	}
	// All of it, so that two blocks fit.
	if err := f.SetAttribute(driver.PreferredSharedShare, 100); err != nil {
		return nil, err
	}
	k.functions[l.Name] = f
	return f, nil
}

// most is the largest extent of a grid beside its first.
const most = 65535

// pack checks the parameters and writes them down as the kernels take them.
func (p *Params) pack() (*cuda.FlashParams, error) {
	switch {
	case p.QHeads < 1 || p.KVHeads < 1 || p.QHeads%p.KVHeads != 0 || p.QHeads > most:
		return nil, fmt.Errorf("%d query heads and %d key heads, expected a multiple of the key heads up to %d", p.QHeads, p.KVHeads, most)
	case p.HeadDim < 1:
		return nil, fmt.Errorf("head dimension %d, expected 1 or more", p.HeadDim)
	case !(p.Scale >= 0) || math.IsInf(float64(p.Scale), 0):
		return nil, fmt.Errorf("scale %v, expected a positive number", p.Scale)
	case !(p.Softcap >= 0) || math.IsInf(float64(p.Softcap), 0):
		return nil, fmt.Errorf("softcap %v, expected a positive number", p.Softcap)
	}
	f := &cuda.FlashParams{QHeads: int32(p.QHeads), KVHeads: int32(p.KVHeads), Dim: int32(p.HeadDim), Scale: p.Scale, Softcap: p.Softcap, LSE: uint64(p.LSE)}
	if p.Scale == 0 {
		f.Scale = float32(1 / math.Sqrt(float64(p.HeadDim)))
	}
	if err := p.tokens(f); err != nil {
		return nil, err
	}
	for _, t := range []struct {
		name      string
		h         Heads
		heads     int
		empty     bool
		at        *uint64
		row, head *int64
	}{
		{"Q", p.Q, p.QHeads, f.MaxQ == 0, &f.Q, &f.QToken, &f.QHead},
		{"K", p.K, p.KVHeads, f.MaxK == 0, &f.K, &f.KToken, &f.KHead},
		{"V", p.V, p.KVHeads, f.MaxK == 0, &f.V, &f.VToken, &f.VHead},
		{"Out", p.Out, p.QHeads, f.MaxQ == 0, &f.Out, &f.OutToken, &f.OutHead},
	} {
		*t.at, *t.row, *t.head = uint64(t.h.At), int64(t.h.Row), int64(t.h.Head)
		if t.h.At%16 != 0 || t.h.At == 0 && !t.empty {
			return nil, fmt.Errorf("%s at %#x, expected a multiple of 16", t.name, uint64(t.h.At))
		}
		if t.h.Row%8 != 0 || t.h.Head%8 != 0 || t.h.Row < p.HeadDim || t.h.Head < 0 || t.heads > 1 && t.h.Head < p.HeadDim {
			return nil, fmt.Errorf("%s with strides %d and %d, expected multiples of 8 of at least the head dimension %d", t.name, t.h.Row, t.h.Head, p.HeadDim)
		}
	}
	if p.LSE%4 != 0 {
		return nil, fmt.Errorf("LSE at %#x, expected a multiple of 4", uint64(p.LSE))
	}
	f.WindowLeft, f.WindowRight = -1, -1
	if far := f.MaxQ + f.MaxK; p.Window != nil { // what reaches that far is no limit
		if p.Window.Left >= 0 && p.Window.Left < int(far) {
			f.WindowLeft = int32(p.Window.Left)
		}
		if p.Window.Right >= 0 && p.Window.Right < int(far) {
			f.WindowRight = int32(p.Window.Right)
		}
	}
	if p.Causal {
		f.WindowRight = 0
	}
	if m := p.Mask; m != nil {
		if int64(m.rows)*int64(m.blockQ) < int64(f.MaxQ) || int64(m.columns)*int64(m.blockK) < int64(f.MaxK) {
			return nil, fmt.Errorf("a mask of %dx%d blocks of %dx%d for %d queries and %d keys", m.rows, m.columns, m.blockQ, m.blockK, f.MaxQ, f.MaxK)
		}
		f.MaskOffsets, f.MaskColumns = uint64(m.at), uint64(m.at)+m.list
		f.MaskBlockQ, f.MaskBlockK = int32(m.blockQ), int32(m.blockK)
	}
	return f, nil
}

// tokens fills in the sequences.
func (p *Params) tokens(f *cuda.FlashParams) error {
	if s := p.Sequences; s != nil {
		if p.Batch != 0 || p.QTokens != 0 || p.KTokens != 0 {
			return fmt.Errorf("a batch of %d times %d queries and %d keys beside sequences, expected one of both", p.Batch, p.QTokens, p.KTokens)
		}
		f.Sequences, f.MaxQ, f.MaxK, f.TotalQ = int32(s.count), int32(s.maxQ), int32(s.maxK), int64(s.totalQ)
		f.QStarts, f.KStarts = uint64(s.at), uint64(s.at)+s.k
		if s.lens != 0 {
			f.KLens = uint64(s.at) + s.lens
		}
		return nil
	}
	batch := max(1, p.Batch)
	// Positions of keys and queries and what a window adds stay below 2^31.
	if p.Batch < 0 || batch > most || p.QTokens < 0 || p.KTokens < 0 || p.QTokens > limit || p.KTokens > limit {
		return fmt.Errorf("a batch of %d times %d queries and %d keys, expected up to %d times %d", p.Batch, p.QTokens, p.KTokens, most, limit)
	}
	f.Sequences, f.MaxQ, f.MaxK, f.TotalQ = int32(batch), int32(p.QTokens), int32(p.KTokens), int64(batch)*int64(p.QTokens)
	return nil
}

// limit is the greatest number of tokens of a sequence.
const limit = 1 << 29
