package verify

import (
	"fmt"
	"math"
	"path/filepath"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/lora"
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
	pairs := map[string][]lora.Pair{}
	for _, a := range list {
		if err := unmerged(pairs, layers, a); err != nil {
			return nil, fmt.Errorf("running %q with %q, not merged: %w", c.Path(), a.Adapter.Path(), err)
		}
	}
	found := map[string]*model.LowRank{}
	for weight, list := range pairs {
		f := lora.Cat(layers[weight][1], layers[weight][0], list)
		found[weight] = &model.LowRank{A: f.R, B: f.L, Rank: f.Rank, Scale: 1}
	}
	return func(weight string) *model.LowRank { return found[weight] }, nil
}

// mergeFirst is the hint for what only merge can apply.
func mergeFirst(format string, a ...any) error {
	return fault.WithHint(fault.Inputf(format, a...), "only pairs of factors of linear layers run unmerged; merge the adapter and verify the result against what it should be")
}

// CheckUnmerged says what of an adapter cannot run unmerged whatever the model is, if
// anything. The error is of class fault.Input.
func CheckUnmerged(a *peft.Adapter) error {
	for _, r := range a.Replacements() {
		return mergeFirst("tensor %q replaces one of the base", r.Tensor.Name)
	}
	for _, r := range a.TokenRows() {
		return mergeFirst("tensor %q replaces rows of the base", r.Tensor.Name)
	}
	if len(a.Targets()) == 0 {
		return fault.Inputf("the adapter has no factors")
	}
	for _, t := range a.Targets() {
		switch {
		case t.Magnitude != nil:
			return mergeFirst("tensor %q is a magnitude of DoRA", t.Magnitude.Name)
		case t.Bias != nil:
			return mergeFirst("tensor %q is a bias of a factor", t.Bias.Name)
		case t.Embedding:
			return mergeFirst("tensor %q is a factor of an embedding", t.A.Name)
		case t.Nested > 0:
			return mergeFirst("tensor %q is a factor within another wrapper", t.A.Name)
		}
	}
	return nil
}

// unmerged reads the factors of an adapter, by the weight of their layer.
func unmerged(pairs map[string][]lora.Pair, layers map[string][2]int, a Adapter) error {
	if err := CheckUnmerged(a.Adapter); err != nil {
		return err
	}
	for _, t := range a.Adapter.Targets() {
		weight := t.Module + ".weight"
		layer, ok := layers[weight]
		if !ok {
			return mergeFirst("tensor %q: the model has no linear layer %q of its own", t.A.Name, t.Module)
		}
		p, err := readPair(layer, t, a)
		if err != nil {
			return err
		}
		pairs[weight] = append(pairs[weight], p)
	}
	return nil
}

func readPair(layer [2]int, t peft.Target, a Adapter) (p lora.Pair, err error) {
	in, out := layer[0], layer[1]
	sa, sb := t.A.Shape, t.B.Shape
	if len(sa) != 2 || len(sb) != 2 || sa[1] != int64(in) || sb[0] != int64(out) || sa[0] != sb[1] || sa[0] < 1 {
		return p, fault.Inputf("module %q: factors A %v and B %v do not go with a layer of %d inputs and %d outputs", t.Module, sa, sb, in, out)
	}
	p = lora.Pair{Rank: int(sa[0]), Scale: a.Adapter.Config().ScaleOf(t.Module, sa[0]), Weight: a.Weight}
	if c := p.Scale * p.Weight; math.IsNaN(c) || math.IsInf(float64(float32(c)), 0) {
		return p, fault.Inputf("module %q: its scale is %v", t.Module, c)
	}
	if p.A, err = peft.ReadAll(&t.A); err != nil {
		return p, err
	}
	p.B, err = peft.ReadAll(&t.B)
	return p, err
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
