package verify

import (
	"fmt"
	"math"
	"path/filepath"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/model"
)

// Adapter is an adapter that a model runs with, unmerged, and what it counts.
type Adapter struct {
	Adapter *peft.Adapter
	Weight  float64
}

// Unmerged finds the linear layer of every pair of factors and reads them, so that the
// layer computes W x + s B A x; several adapters add up. What is not a pair of factors of a
// linear layer is refused by its name: DoRA, lora_bias, embeddings, experts of a stack,
// replaced tensors and rows. Errors are of class fault.Input.
func Unmerged(c *hf.Checkpoint, list []Adapter) (func(weight string) *model.LowRank, error) {
	m, err := model.Open(c, model.Options{})
	if err != nil {
		return nil, fmt.Errorf("running %q with an adapter: %w", c.Path(), err)
	}
	layers := m.Linears()
	found := map[string]*model.LowRank{}
	for _, a := range list {
		if err := unmerged(found, layers, a); err != nil {
			return nil, fmt.Errorf("running %q with %q, not merged: %w", c.Path(), a.Adapter.Path(), err)
		}
	}
	return func(weight string) *model.LowRank { return found[weight] }, nil
}

// mergeFirst is the hint for what only merge can apply.
func mergeFirst(format string, a ...any) error {
	return fault.WithHint(fault.Inputf(format, a...), "only pairs of factors of linear layers run unmerged; merge the adapter and verify the result against what it should be")
}

func unmerged(found map[string]*model.LowRank, layers map[string][2]int, a Adapter) error {
	for _, r := range a.Adapter.Replacements() {
		return mergeFirst("tensor %q replaces one of the base", r.Tensor.Name)
	}
	for _, r := range a.Adapter.TokenRows() {
		return mergeFirst("tensor %q replaces rows of the base", r.Tensor.Name)
	}
	if len(a.Adapter.Targets()) == 0 {
		return fault.Inputf("the adapter has no factors")
	}
	for _, t := range a.Adapter.Targets() {
		switch {
		case t.Magnitude != nil:
			return mergeFirst("tensor %q is a magnitude of DoRA", t.Magnitude.Name)
		case t.Bias != nil:
			return mergeFirst("tensor %q is a bias of a factor", t.Bias.Name)
		case t.Embedding:
			return mergeFirst("tensor %q is a factor of an embedding", t.A.Name)
		}
		layer, ok := layers[t.Module+".weight"]
		if !ok || t.Nested > 0 {
			return mergeFirst("tensor %q: the model has no linear layer %q of its own", t.A.Name, t.Module)
		}
		if err := addPair(found, layer, t, a); err != nil {
			return err
		}
	}
	return nil
}

// addPair appends the factors to those that the layer has already: [A; A'] and [s B, s' B'].
func addPair(found map[string]*model.LowRank, layer [2]int, t peft.Target, a Adapter) error {
	in, out := layer[0], layer[1]
	sa, sb := t.A.Shape, t.B.Shape
	if len(sa) != 2 || len(sb) != 2 || sa[1] != int64(in) || sb[0] != int64(out) || sa[0] != sb[1] || sa[0] < 1 {
		return fault.Inputf("module %q: factors A %v and B %v do not go with a layer of %d inputs and %d outputs", t.Module, sa, sb, in, out)
	}
	left, err := factor(&t.A)
	if err != nil {
		return err
	}
	right, err := factor(&t.B)
	if err != nil {
		return err
	}
	scale := float32(a.Adapter.Config().ScaleOf(t.Module, sa[0]) * a.Weight)
	if math.IsNaN(float64(scale)) || math.IsInf(float64(scale), 0) {
		return fault.Inputf("module %q: its scale is %v", t.Module, scale)
	}
	name, rank := t.Module+".weight", int(sa[0])
	old := found[name]
	if old == nil {
		old = &model.LowRank{Scale: 1}
	}
	sum := &model.LowRank{A: append(old.A, left...), Rank: old.Rank + rank, Scale: 1}
	for i := range out {
		sum.B = append(sum.B, old.B[i*old.Rank:(i+1)*old.Rank]...)
		for _, v := range right[i*rank : (i+1)*rank] {
			sum.B = append(sum.B, v*scale)
		}
	}
	found[name] = sum
	return nil
}

func factor(t *hf.Tensor) ([]float32, error) {
	f, ok := t.DType.Float()
	if !ok {
		return nil, fault.Inputf("tensor %q: dtype %s; expected F32, BF16 or F16", t.Name, t.DType)
	}
	b := make([]byte, t.Bytes())
	if err := t.ReadAt(b, 0); err != nil {
		return nil, err
	}
	x := make([]float32, t.Elems())
	cast.ToF32(x, b, f)
	for i, v := range x {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fault.Inputf("tensor %q: value at %d is %v", t.Name, i, v)
		}
	}
	return x, nil
}

// adapterNames are for reports.
func adapterNames(list []Adapter) []string {
	out := []string{}
	for _, a := range list {
		s := filepath.Clean(a.Adapter.Path())
		if a.Weight != 1 {
			s = fmt.Sprintf("%s=%g", s, a.Weight)
		}
		out = append(out, s)
	}
	return out
}

// adapters reads those of both sides.
func (r *Result) adapters(base, candidate *hf.Checkpoint, o *Options) (lowRank [2]func(string) *model.LowRank, err error) {
	r.Adapters, r.BaseAdapters = adapterNames(o.Adapters), adapterNames(o.OfBase)
	for i, list := range [][]Adapter{o.OfBase, o.Adapters} {
		if len(list) == 0 {
			continue
		}
		if lowRank[i], err = Unmerged([]*hf.Checkpoint{base, candidate}[i], list); err != nil {
			return lowRank, err
		}
	}
	return lowRank, nil
}
