package adapters

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// held is a tensor that takes the place of one of the base, in some adapters.
type held struct {
	module, param string
	trained       bool // by at least one of them; else it is the base's own
	from          []int
	tensors       []hf.Tensor
}

// heldRows are rows of an embedding, in some adapters.
type heldRows struct {
	module string
	from   []int
	rows   []peft.TokenRows
}

// replacements takes in what adapter i has besides factors.
func (p *CombinePlan) replacements(i int) error {
	a := p.inputs[i].Adapter
	rs := a.Replacements()
	for k := range rs {
		r := &rs[k]
		at := slices.IndexFunc(p.held, func(h held) bool { return h.module == r.Module && h.param == r.Param })
		if at < 0 {
			at = len(p.held)
			p.held = append(p.held, held{module: r.Module, param: r.Param})
		}
		h := &p.held[at]
		h.trained = h.trained || r.Trained
		h.from, h.tensors = append(h.from, i), append(h.tensors, r.Tensor)
		if r.Param == "bias" && !a.Config().Saves(r.Module) && (p.bias == "none" || a.Config().Bias == "all") {
			p.bias = a.Config().Bias
		}
	}
	for _, r := range a.TokenRows() {
		at := slices.IndexFunc(p.rows, func(h heldRows) bool { return h.module == r.Module })
		if at < 0 {
			at = len(p.rows)
			p.rows = append(p.rows, heldRows{module: r.Module})
		}
		h := &p.rows[at]
		h.from, h.rows = append(h.from, i), append(h.rows, r)
		p.rowList = p.rowList && len(a.Config().TokenIndices) > 0
	}
	return nil
}

// checkHeld refuses replacements that go with nothing else. What an adapter puts in the
// place of W counts as the delta R - W, which is known without W only when the weights of
// those that hold R add up to 1.
func (p *CombinePlan) checkHeld() error {
	for k := range p.held {
		h := &p.held[k]
		name := h.tensors[0].Name
		if h.trained {
			if err := p.whole(fmt.Sprintf("tensor %q", name), h.from); err != nil {
				return err
			}
		}
		if l := p.layer(h.module); l != nil && h.trained && h.param == "weight" {
			return fault.WithHint(fault.Inputf("tensor %q of %q replaces the weight to which %q adds", name, p.path(h.from[0]), p.path(l.from[0])), "merge the adapters one after the other")
		} else if l != nil && h.param == "bias" && l.hasBias() {
			return fault.WithHint(fault.Inputf("tensor %q of %q replaces the bias to which lora_bias adds", name, p.path(h.from[0])), "merge the adapters one after the other")
		}
	}
	for k := range p.rows {
		h := &p.rows[k]
		name := h.rows[0].Tensor.Name
		if err := p.whole(fmt.Sprintf("tensor %q", name), h.from); err != nil {
			return err
		}
		if p.layer(h.module) != nil || slices.ContainsFunc(p.held, func(x held) bool { return x.module == h.module }) {
			return fault.WithHint(fault.Inputf("tensor %q of %q replaces rows of %q, which another adapter changes too", name, p.path(h.from[0]), h.module), "merge the adapters one after the other")
		}
	}
	return nil
}

func (p *CombinePlan) path(i int) string { return p.inputs[i].Adapter.Path() }

func (p *CombinePlan) whole(what string, from []int) error {
	var sum float64
	var names []string
	for _, i := range from {
		sum += p.inputs[i].Weight
		names = append(names, fmt.Sprintf("%q", p.path(i)))
	}
	if math.Abs(sum-1) > 1e-6 {
		return fault.WithHint(fault.Inputf("%s of %s takes the place of values of the base, and counts %v: without the base nobody knows the rest", what, strings.Join(names, " and "), sum),
			"give it the weight 1, or merge the adapters")
	}
	return nil
}

// put puts the replacements into the output.
func (r *combining) put() error {
	for k := range r.held {
		h := &r.held[k]
		b, err := r.same(h.from, h.tensors, h.trained)
		if err != nil {
			return err
		}
		t, name := h.tensors[0], h.module+"."+h.param
		if r.layer(h.module) != nil {
			name = h.module + ".base_layer." + h.param
		}
		r.tensors[peft.Key(name)] = raw{t.DType, t.Shape, b}
		r.doc.Totals.Replaced++
	}
	for k := range r.rows {
		h := &r.rows[k]
		var ts []hf.Tensor
		for _, x := range h.rows {
			if !slices.Equal(x.Rows, h.rows[0].Rows) {
				return fault.Inputf("tensors %q of %q and %q replace other rows of %q: each alone would need the weight 1", x.Tensor.Name, r.path(h.from[0]), r.path(h.from[1]), h.module)
			}
			ts = append(ts, x.Tensor)
		}
		b, err := r.same(h.from, ts, true)
		if err != nil {
			return err
		}
		r.tensors[peft.Key(h.module+".token_adapter.trainable_tokens_delta")] = raw{ts[0].DType, ts[0].Shape, b}
		r.doc.Totals.Replaced++
	}
	return nil
}

// same reads tensors that must have the same bytes.
func (r *combining) same(from []int, ts []hf.Tensor, trained bool) ([]byte, error) {
	first, err := bytesOf(ts[0])
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", ts[0].Name, err)
	}
	for k, t := range ts[1:] {
		b, err := bytesOf(t)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if t.DType == ts[0].DType && slices.Equal(t.Shape, ts[0].Shape) && bytes.Equal(b, first) {
			continue
		}
		if trained {
			return nil, fault.WithHint(fault.Inputf("tensor %q: %q and %q have different values in the place of the base's, which only one can have (PEFT refuses it too)", t.Name, r.path(from[0]), r.path(from[k+1])),
				"leave it out of one of them, or merge one adapter and train on")
		}
		return nil, fault.WithHint(fault.Inputf("tensor %q: %q and %q hold different values of the base", t.Name, r.path(from[0]), r.path(from[k+1])), "the adapters were trained on different bases")
	}
	return first, nil
}

func finite(v []float32) bool {
	for _, x := range v {
		if x-x != 0 {
			return false
		}
	}
	return true
}
