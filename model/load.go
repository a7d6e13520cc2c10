package model

import (
	"math"
	"slices"
	"strconv"
	"sync"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/gemm"
	"github.com/nf4conv/nf4conv/weights"
)

// loader reads the tensors of a spec. What it reads into its arena is valid until reset.
type loader struct {
	set    *weights.Set
	prefix string // what "@" stands for
	engine *engine
	lowRank
	*room
}

// room is the memory of a loader; another one may use it after a reset.
type room struct {
	arena []byte
	used  int
	need  int    // bytes asked for since the last reset, or expected
	turn  []byte // a matrix before it is transposed
}

// lowRank finds the adapter of a weight.
type lowRank func(weight string) *LowRank

// LowRank is an adapter that is not merged: Scale * B A is added to the weight [Out, In] of
// a linear layer (Hu et al. 2021, LoRA, arXiv 2106.09685).
type LowRank struct {
	A     []float32 // [rank, In]
	B     []float32 // [Out, rank]
	Rank  int
	Scale float32
}

// linear is a Linear with its weights.
type linear struct {
	*Linear
	w    *gemm.Matrix
	bias []float32
	a, b *gemm.Matrix // of the adapter, scaled; nil: none
}

func (l *loader) reset() {
	if l.need > len(l.arena) {
		l.arena = nil // before the larger one is made
		l.arena = make([]byte, l.need)
	}
	l.used, l.need = 0, 0
}

// expect makes room for the largest of the layers, which would otherwise be known after it.
func (l *loader) expect(layers []Layer) {
	for i := range layers {
		n := 0
		walk{linear: func(s *Linear) {
			if t, _, _, err := l.find(s); err == nil {
				n += align(s.In * s.Out * t.Format().Size())
			}
		}, vector: func(string, int) {}}.layer(&layers[i])
		l.need = max(l.need, n)
	}
}

func align(n int) int { return (n + 63) / 64 * 64 }

// bytes are n bytes of the arena, or, until it has grown, of the heap.
func (l *loader) bytes(n int) []byte {
	l.need += align(n)
	if l.used+align(n) > len(l.arena) {
		return make([]byte, n)
	}
	b := l.arena[l.used:][:n:n]
	l.used += align(n)
	return b
}

// name is the name in the checkpoint of a name in the spec.
func (l *loader) name(name string) string {
	if len(name) > 0 && name[0] == '@' {
		return l.prefix + name[1:]
	}
	if _, ok := l.set.Lookup(name); !ok { // composite models of transformers 4 hold the head one level deeper
		if _, ok := l.set.Lookup("language_model." + name); ok {
			return "language_model." + name
		}
	}
	return name
}

// lookup finds a tensor that must have the shape.
func (l *loader) lookup(name string, shape ...int) (weights.Tensor, error) {
	t, ok := l.set.Lookup(l.name(name))
	if !ok {
		return nil, fault.Inputf("tensor %q is missing", l.name(name))
	}
	have := t.Shape()
	same := len(have) == len(shape)
	for i := 0; same && i < len(shape); i++ {
		same = have[i] == int64(shape[i])
	}
	if !same {
		return nil, fault.Inputf("tensor %q: shape %v; expected %v", t.Name(), have, shape)
	}
	return t, nil
}

// find is the tensor of a linear layer and where its matrix begins; turned tells that it is
// [in, out].
func (l *loader) find(s *Linear) (t weights.Tensor, off int64, turned bool, err error) {
	rows, cols := s.Out, s.In
	if s.Transposed {
		turned = true
		if t, ok := l.set.Lookup(l.name(s.Weight)); ok && s.Stack == 0 && isFourBit(t) {
			turned = false
		}
	}
	if turned {
		rows, cols = cols, rows
	}
	if s.Stack == 0 {
		t, err = l.lookup(s.Weight, rows, cols)
		return t, 0, turned, err
	}
	t, err = l.lookup(s.Weight, s.Stack, rows, cols)
	return t, int64(s.Index) * int64(s.In) * int64(s.Out), turned, err
}

func isFourBit(t weights.Tensor) bool { return t.Storage() == "nf4" || t.Storage() == "fp4" }

func (l *loader) linear(s *Linear) (*linear, error) { return l.slice(s, 0, s.Out) }

// slice is the part of a layer that makes the outputs from o0 to o1.
func (l *loader) slice(s *Linear, o0, o1 int) (*linear, error) {
	t, off, turned, err := l.find(s)
	if err != nil {
		return nil, err
	}
	f, out := t.Format(), o1-o0
	if n := int64(s.In) * int64(s.Out) * int64(f.Size()); n > math.MaxInt {
		return nil, fault.Inputf("tensor %q: %d bytes are too many for a machine with addresses of %d bits", t.Name(), n, strconv.IntSize)
	}
	stored := l.bytes(s.In * out * f.Size())
	if turned {
		l.turn = slices.Grow(l.turn[:0], s.In*s.Out*f.Size())
		raw := l.turn[:s.In*s.Out*f.Size()]
		if err := l.read(raw, t, off, f.Size()); err != nil {
			return nil, err
		}
		transpose(l.engine, stored, raw, s.In, s.Out, f.Size(), o0, o1)
	} else if err := l.read(stored, t, off+int64(o0)*int64(s.In), f.Size()); err != nil {
		return nil, err
	}
	r := &linear{Linear: s, w: gemm.Stored(stored, f, out, s.In)}
	if s.Bias != "" {
		if r.bias, err = l.bias(s); err != nil {
			return nil, err
		}
		r.bias = r.bias[o0:o1]
	}
	return r, l.adapt(r, t.Name(), o0, o1)
}

func (l *loader) bias(s *Linear) ([]float32, error) {
	if s.Stack == 0 {
		return l.vector(s.Bias, s.Out)
	}
	t, err := l.lookup(s.Bias, s.Stack, s.Out)
	if err != nil {
		return nil, err
	}
	v := make([]float32, s.Out)
	return v, t.ReadF32(v, int64(s.Index*s.Out))
}

// adapt adds the adapter of a layer, its factor multiplied into B, for the outputs from o0 to
// o1.
func (l *loader) adapt(r *linear, weight string, o0, o1 int) error {
	if l.lowRank == nil {
		return nil
	}
	low := l.lowRank(weight)
	if low == nil {
		return nil
	}
	if r.Stack > 0 || len(low.A) != low.Rank*r.In || len(low.B) != low.Rank*r.Out {
		return fault.Inputf("adapter of %q: rank %d, %d and %d elements for a layer of %d inputs and %d outputs", weight, low.Rank, len(low.A), len(low.B), r.In, r.Out)
	}
	b := make([]float32, (o1-o0)*low.Rank)
	for i, v := range low.B[o0*low.Rank : o1*low.Rank] {
		b[i] = v * low.Scale
	}
	r.a, r.b = gemm.F32(low.A, low.Rank, r.In), gemm.F32(b, o1-o0, low.Rank)
	return nil
}

// chunk is how many bytes a thread reads at a time.
const chunk = 1 << 20

// read fills raw with elements of size bytes of t from flat index off on, on all threads.
func (l *loader) read(raw []byte, t weights.Tensor, off int64, size int) error {
	var first error
	var mu sync.Mutex
	n := (len(raw) + chunk - 1) / chunk
	l.engine.tasks(n, func(i int) {
		part := raw[i*chunk : min(len(raw), (i+1)*chunk)]
		at := off + int64(i*chunk/size)
		if err := weights.Read(t, part, at); err != nil {
			mu.Lock()
			first = err
			mu.Unlock()
		}
	})
	return first
}

// transpose turns the columns from c0 to c1 of [rows, cols] into [c1-c0, rows], elements of
// size bytes.
func transpose(e *engine, dst, src []byte, rows, cols, size, c0, c1 int) {
	e.rows(c1-c0, func(d0, d1 int) {
		for r := range rows {
			for d := d0; d < d1; d++ {
				copy(dst[(d*rows+r)*size:][:size], src[(r*cols+c0+d)*size:][:size])
			}
		}
	})
}

// vector reads a small tensor of n elements, in one dimension or more.
func (l *loader) vector(name string, n int) ([]float32, error) {
	t, ok := l.set.Lookup(l.name(name))
	if !ok {
		return nil, fault.Inputf("tensor %q is missing", l.name(name))
	}
	have := int64(1)
	for _, d := range t.Shape() {
		have *= d
	}
	if have != int64(n) {
		return nil, fault.Inputf("tensor %q: shape %v; expected %d elements", t.Name(), t.Shape(), n)
	}
	v := make([]float32, n)
	return v, t.ReadF32(v, 0)
}

func (l *loader) norm(s *Norm) (*norm, error) {
	if s == nil {
		return nil, nil
	}
	r := &norm{Norm: s}
	var err error
	if s.Weight != "" {
		if r.weight, err = l.vector(s.Weight, s.Groups*s.Dim); err != nil {
			return nil, err
		}
		if s.PlusOne {
			for i := range r.weight {
				r.weight[i]++
			}
		}
	}
	if s.Bias != "" {
		if r.bias, err = l.vector(s.Bias, s.Groups*s.Dim); err != nil {
			return nil, err
		}
	}
	return r, nil
}
