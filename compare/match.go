package compare

import (
	"context"
	"slices"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/weights"
)

// Pairing says which tensors of two checkpoints belong together.
type Pairing struct {
	A, B         Side
	Pairs        []Pair   // in the order of a
	OnlyA, OnlyB []string // tensors that the other does not have
}

// Pair is a logical tensor that two checkpoints have under one name. Where one of them holds
// the transpose (Conv1D), the one that is not 4-bit is turned, so that blocks of the other
// stay runs of its elements; the shapes may differ for all that.
type Pair struct {
	A, B       weights.Tensor
	Transposed bool
}

// Match pairs the tensors of a and b by name, after taking fused experts apart where one
// form of the architecture has them so. It reads no weights. Errors are of class fault.Input.
func Match(a, b *hf.Checkpoint) (*Pairing, error) {
	sa, err := open(a)
	if err != nil {
		return nil, err
	}
	sb, err := open(b)
	if err != nil {
		return nil, err
	}
	p := &Pairing{
		OnlyA: []string{}, OnlyB: []string{},
		A: Side{a.Path(), sa.Scheme(), len(sa.Tensors())}, B: Side{b.Path(), sb.Scheme(), len(sb.Tensors())},
	}
	conv1d := conv1dNames(a, sa)
	for _, ta := range sa.Tensors() {
		tb, ok := sb.Lookup(ta.Name())
		if !ok {
			p.OnlyA = append(p.OnlyA, ta.Name())
			continue
		}
		p.Pairs = append(p.Pairs, newPair(ta, tb, conv1d[ta.Name()]))
	}
	for _, t := range sb.Tensors() {
		if _, ok := sa.Lookup(t.Name()); !ok {
			p.OnlyB = append(p.OnlyB, t.Name())
		}
	}
	return p, nil
}

func newPair(a, b weights.Tensor, conv1d bool) Pair {
	p := Pair{A: a, B: b}
	four := func(x weights.Tensor) bool { return x.Storage() == "nf4" || x.Storage() == "fp4" }
	if conv1d && four(a) != four(b) {
		p.Transposed = true
		if four(a) {
			p.B = transpose(b)
		} else {
			p.A = transpose(a)
		}
	}
	return p
}

// Compare measures how the tensors of the pair differ.
func (p *Pair) Compare(ctx context.Context) (*Tensor, error) {
	t := &Tensor{
		Name: p.A.Name(), StorageA: p.A.Storage(), StorageB: p.B.Storage(), ShapeA: p.A.Shape(), ShapeB: p.B.Shape(),
		Kind: "values", Transpose: p.Transposed,
	}
	if !slices.Equal(t.ShapeA, t.ShapeB) {
		t.Kind = "shape"
		return t, nil
	}
	if !isNumbers(p.A) || !isNumbers(p.B) {
		t.Kind = "bytes"
		return t, compareBytes(p.A, p.B, t)
	}
	return t, t.values(ctx, p.A, p.B)
}

// Equal tells that there is no difference.
func (t *Tensor) Equal() bool { return t.equal }

// Sums are sum (a-b)^2 and sum a^2, which add up over tensors.
func (t *Tensor) Sums() (diff2, norm2 float64) { return t.diff2, t.norm2 }

// conv1dNames are the weights that 16-bit checkpoints of this architecture store
// transposed.
func conv1dNames(c *hf.Checkpoint, s *weights.Set) map[string]bool {
	if c.Config() == nil {
		return nil
	}
	var infos []arch.TensorInfo
	for _, t := range s.Tensors() {
		infos = append(infos, arch.TensorInfo{Name: t.Name(), Shape: t.Shape(), Float: true})
	}
	m, err := arch.Describe(c.Config().Map(), infos, false)
	if err != nil {
		return nil // an incomplete model can be compared all the same
	}
	out := map[string]bool{}
	for i := range m.Tensors {
		if m.Tensors[i].Transposed {
			out[m.Tensors[i].Name] = true
		}
	}
	return out
}

// open groups the tensors of a checkpoint as its 4-bit form would name them.
func open(c *hf.Checkpoint) (*weights.Set, error) {
	set, err := weights.Open(c)
	if err == nil && c.Config() != nil && arch.Unfused(c.Config().Map()) {
		return weights.Unfuse(set)
	}
	return set, err
}
