package convert

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/nf4"
)

// PlanFromManifest plans the conversion that a manifest describes once more: from src, with
// the options that it records, and for a merge with adapters, which are recognized by their
// digests and may be given in any order. Errors are of class fault.Input where source, adapters or
// plan are not those of the manifest.
func PlanFromManifest(m *Manifest, src *hf.Checkpoint, adapters []*peft.Adapter, res Resources) (*Plan, error) {
	var p *Plan
	var err error
	if _, merge := m.Options.(MergeOptions); !merge && len(adapters) > 0 {
		return nil, fault.Usagef("the candidate was made by %s, without adapters", m.Verb)
	}
	switch o := m.Options.(type) {
	case QuantizeOptions:
		if o.Type, err = nf4.Parse(o.TypeName); err != nil {
			return nil, fault.Inputf("the manifest: %w", err)
		}
		o.Resources = res
		p, err = Quantize(src, o)
	case DequantizeOptions:
		o.Resources = res
		p, err = Dequantize(src, o)
	case MergeOptions:
		if o.Quantize != nil {
			if o.Quantize.Type, err = nf4.Parse(o.Quantize.TypeName); err != nil {
				return nil, fault.Inputf("the manifest: %w", err)
			}
		}
		if err := matchAdapters(m, &o, adapters); err != nil {
			return nil, err
		}
		o.Resources = res
		p, err = Merge(src, o)
	default:
		return nil, fault.Inputf("the manifest has no options of quantize, dequantize or merge")
	}
	if err != nil {
		if fault.ClassOf(err) == fault.Usage { // of options that nobody gave here
			err = fault.Inputf("the manifest: %w", err)
		}
		return nil, err
	}
	return p, p.agrees(m)
}

// matchAdapters finds the adapters of a manifest among those given.
func matchAdapters(m *Manifest, o *MergeOptions, given []*peft.Adapter) error {
	if m.Merge == nil || len(m.Merge.Adapters) != len(o.Adapters) {
		return fault.Inputf("the manifest: options name %d adapters, which it does not describe", len(o.Adapters))
	}
	used := make([]bool, len(given))
	for i := range o.Adapters {
		want := &m.Merge.Adapters[i]
		for k, a := range given {
			if h := a.File().Header(); !used[k] && h.FileSize == want.File.Size && h.Digest == want.File.HeaderBLAKE3 {
				o.Adapters[i].Adapter, used[k] = a, true
				break
			}
		}
		if o.Adapters[i].Adapter == nil {
			return fault.WithHint(fault.Inputf("the candidate was merged with the adapter %q, which is not among the %d given", want.Name, len(given)), "--rederive-adapter DIR gives it; repeatable")
		}
	}
	for k := range used {
		if !used[k] {
			return fault.Inputf("adapter %q: the candidate was not merged with it", given[k].Path())
		}
	}
	return nil
}

// agrees holds a plan against the manifest of an earlier run of it.
func (p *Plan) agrees(m *Manifest) error {
	if !sameSource(p.Source.Files, m.Source.Files) {
		return fault.WithHint(fault.Inputf("%q is not the checkpoint %q that the candidate was made from: its weight files have other sizes or headers", p.src.Path(), m.Source.Name),
			"give the very source as BASE")
	}
	if p.Merge != nil {
		for i := range p.Merge.Adapters {
			if a, b := &p.Merge.Adapters[i], &m.Merge.Adapters[i]; a.Config != b.Config {
				return fault.Inputf("adapter %q: another configuration than the candidate was merged with", a.Name)
			}
		}
	}
	if !maps.Equal(codebooksOf(p.Jobs), m.Codebooks) {
		return fault.Inputf("the manifest names other code books than this program has")
	}
	if len(p.Jobs) != len(m.Tensors) {
		return fault.Inputf("the manifest lists %d tensors; expected %d", len(m.Tensors), len(p.Jobs))
	}
	for i := range p.Jobs {
		j, t := &p.Jobs[i], &m.Tensors[i]
		a, errA := json.Marshal(j.Steps)
		b, errB := json.Marshal(t.Steps)
		if errA != nil || errB != nil || j.Name != t.Name || string(a) != string(b) {
			return fault.Inputf("the manifest says of tensor %q: %s; expected of %q: %s", t.Name, b, j.Name, a)
		}
	}
	return nil
}

// sameSource tells whether weight files are those that a manifest names, by size and header.
func sameSource(a, b []SourceFile) bool {
	return slices.EqualFunc(a, b, func(x, y SourceFile) bool { return x.Size == y.Size && x.HeaderBLAKE3 == y.HeaderBLAKE3 })
}
