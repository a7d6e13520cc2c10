package convert

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/weights"
)

// merger finds the tensor of the base for every tensor of the adapters.
type merger struct {
	o        *MergeOptions
	src      *hf.Checkpoint
	set      *weights.Set
	model    *arch.Model
	after    *arch.Model // of the output, when it is quantized
	items    []item      // in the order of the output
	byName   map[string]int
	byPath   map[string]int // module path in memory -> item of its weight
	tie      tie
	sources  []AdapterSource
	warnings []string

	adapter *peft.Adapter // the one being added
	opt     *MergeAdapter
}

// item is a tensor of the output.
type item struct {
	name  string
	t     weights.Tensor // what is read: of the base, or what an adapter has in its place
	at    *arch.Tensor
	from  string         // label of the adapter's file when t is not the base's
	old   weights.Tensor // what t took the place of; nil for what the base lacks
	by    []string       // adapters, for people
	terms []boundTerm
	rows  *boundRows
}

// boundTerm is a term with the tensors it reads.
type boundTerm struct {
	Term
	a, b      Ref
	magnitude *Ref
}

// boundRows are rows with the tensor that holds them.
type boundRows struct {
	rows []int64
	ref  Ref
}

func (it *item) merges() bool { return len(it.terms) > 0 || it.rows != nil }

func (it *item) shape() []int64 { return it.t.Shape() }

// to is the dtype of the output: that of the base's tensor, or of the model for what is new
// or decoded.
func (it *item) to(stored, dtype kernels.Float) kernels.Float {
	t := it.t
	if it.from != "" {
		if it.old == nil {
			return dtype
		}
		t = it.old
	}
	if isEncoded(t) {
		return dtype
	}
	if f, ok := t.Sources()[0].DType.Float(); ok {
		return f
	}
	return stored
}

// note says for people what the adapters did to the tensor.
func (it *item) note() string {
	var parts []string
	by := strings.Join(slices.Compact(slices.Clone(it.by)), ", ")
	if it.from != "" {
		parts = append(parts, "replaced")
	}
	if it.rows != nil {
		parts = append(parts, fmt.Sprintf("%d rows replaced", len(it.rows.rows)))
	}
	if len(it.terms) > 0 {
		parts = append(parts, "merged")
	}
	if len(parts) == 0 {
		return ""
	}
	return strings.Join(parts, " and ") + " with " + by
}

func newMerger(src *hf.Checkpoint, set *weights.Set, model *arch.Model, o *MergeOptions) *merger {
	m := &merger{o: o, src: src, set: set, model: model, byName: map[string]int{}, byPath: map[string]int{}}
	for i, t := range set.Tensors() {
		m.byName[t.Name()] = i
		m.items = append(m.items, item{name: t.Name(), t: t, at: &model.Tensors[i]})
	}
	// A path that is the tensor's own goes before one that a loader would give it.
	for rank := range 8 {
		for i := range model.Tensors {
			paths := model.Paths(i)
			if rank >= len(paths) || model.Tensors[i].Param() != "weight" && rank > 0 {
				continue
			}
			if _, taken := m.byPath[paths[rank]]; !taken && model.Tensors[i].Param() == "weight" {
				m.byPath[paths[rank]] = i
			}
		}
	}
	m.tie = newTie(m)
	return m
}

// find is the item of a module's weight or other parameter.
func (m *merger) find(module, param string) (*item, bool) {
	if i, ok := m.byPath[module]; ok {
		if param == "weight" {
			return &m.items[i], true
		}
		module = m.items[i].at.Module
	}
	for _, name := range []string{module + "." + param, strings.Replace(module, ".mlp.", ".block_sparse_moe.", 1) + "." + param} {
		if i, ok := m.byName[name]; ok {
			return &m.items[i], true
		}
	}
	return nil, false
}

// label names the adapter's file among the inputs.
func (m *merger) label() string { return m.opt.Name + "/" + peft.WeightsName }

func (m *merger) ref(t hf.Tensor) Ref {
	return Ref{Name: t.Name, File: m.label(), DType: t.DType, Shape: t.Shape, Bytes: t.Bytes(), tensor: t}
}

func (m *merger) warn(format string, a ...any) {
	m.warnings = append(m.warnings, fmt.Sprintf(format, a...))
}

// add takes in adapter i of the options.
func (m *merger) add(i int) error {
	m.opt = &m.o.Adapters[i]
	m.adapter = m.opt.Adapter
	a, cfg := m.adapter, m.adapter.Config()
	m.warnings = append(m.warnings, cfg.Warnings...)
	m.compareNames(cfg.Base)
	if err := m.compareBase(); err != nil {
		return err
	}
	for _, name := range a.Ignored() {
		m.warn("%s: tensor %q has no effect on a merged model and is left out", m.opt.Name, name)
	}
	// What replaces comes first: factors are added to it.
	rs := a.Replacements()
	for k := range rs {
		if err := m.replace(&rs[k]); err != nil {
			return fmt.Errorf("tensor %q: %w", rs[k].Tensor.Name, err)
		}
	}
	if err := m.tie.resolve(m); err != nil {
		return err
	}
	for _, r := range a.TokenRows() {
		if err := m.setRows(r); err != nil {
			return fmt.Errorf("tensor %q: %w", r.Tensor.Name, err)
		}
	}
	ts := a.Targets()
	for k := range ts {
		if err := m.target(&ts[k], ts); err != nil {
			return fmt.Errorf("module %q: %w", ts[k].Module, err)
		}
	}
	h := a.File().Header()
	m.sources = append(m.sources, AdapterSource{
		Name: m.opt.Name, Weight: m.opt.Weight, Base: cfg.Base, PEFTVersion: cfg.Version, Config: a.ConfigDigest(),
		File: SourceFile{Name: m.label(), Size: h.FileSize, HeaderBLAKE3: h.Digest}, Pairs: len(ts), Replaced: len(rs) + len(a.TokenRows()),
	})
	return nil
}

// compareNames warns of an adapter that names another base: names are a hint only.
func (m *merger) compareNames(base string) {
	if base == "" {
		return
	}
	want := []string{filepath.Base(m.src.Path())}
	if cfg := m.src.Config(); cfg != nil {
		if s, ok := cfg.String("_name_or_path"); ok && s != "" {
			want = append(want, filepath.Base(s))
		}
	}
	if abs, err := filepath.Abs(m.src.Path()); err == nil {
		want = append(want, filepath.Base(abs))
	}
	if !slices.Contains(want, filepath.Base(base)) {
		m.warn("%s was trained on %q, the base is %q: only shapes can tell whether they are the same", m.opt.Name, base, m.src.Path())
	}
}

// replace puts a tensor of the adapter in the place of one of the base.
func (m *merger) replace(r *peft.Replacement) error {
	if m.opt.Weight != 1 {
		return fault.WithHint(fault.Inputf("it replaces a tensor of the base, which cannot count %v", m.opt.Weight), "give this adapter the weight 1")
	}
	if head := m.tie.head; head != "" && r.Param == "weight" && (r.Module == head || m.isEmbedding(r.Module)) {
		return m.tie.replace(m, r, r.Module == head)
	}
	it, ok := m.find(r.Module, r.Param)
	if !ok {
		if !r.Trained || r.Param == "bias" {
			return fault.WithHint(fault.Inputf("the base has no tensor for it"), "is this the base that the adapter was trained on?")
		}
		m.warn("%s: module %q is not in the base; it was trained as a whole and is added as %q", m.opt.Name, r.Module, r.Name())
		return m.addItem(r)
	}
	return m.put(it, r)
}

// put makes the adapter's tensor what the item reads.
func (m *merger) put(it *item, r *peft.Replacement) error {
	was, is := it.t.Shape(), r.Tensor.Shape
	resized := len(was) == 2 && len(is) == 2 && was[1] == is[1] && (it.at.Role == arch.RoleEmbedding || it.at.Role == arch.RoleHead)
	switch {
	case it.from != "":
		return fault.WithHint(fault.Inputf("%q replaces the same tensor %q", it.from, it.name), "only one adapter can say what it becomes")
	case it.merges():
		return fault.WithHint(fault.Inputf("it replaces %q, to which another adapter adds", it.name), "merge the adapters one after the other")
	case !slices.Equal(was, is) && !resized:
		return m.mismatch(it, "shape %v in the adapter", is)
	}
	it.old, it.t, it.from = it.t, foreign{it.name, r.Tensor}, m.label()
	it.by = append(it.by, m.opt.Name)
	return nil
}

// mismatch is the error of an adapter for another base.
func (m *merger) mismatch(it *item, format string, a ...any) error {
	return fault.WithHint(fault.Inputf("the base's tensor %q has shape %v, which does not go with %s", it.name, it.t.Shape(), fmt.Sprintf(format, a...)),
		"is this the base that the adapter was trained on? It says %q", m.adapter.Config().Base)
}

// addItem appends a tensor that the base lacks.
func (m *merger) addItem(r *peft.Replacement) error {
	name := r.Name()
	if _, there := m.byName[name]; there {
		return fault.Inputf("there is a tensor %q already", name)
	}
	infos := []arch.TensorInfo{{Name: name, Shape: r.Tensor.Shape, Float: true}}
	d, err := arch.Describe(map[string]any{"model_type": m.model.Type}, infos, false)
	if err != nil {
		return fault.Inputf("%w", err)
	}
	m.byName[name] = len(m.items)
	m.items = append(m.items, item{name: name, t: foreign{name, r.Tensor}, at: &d.Tensors[0], from: m.label(), by: []string{m.opt.Name}})
	return nil
}

func (m *merger) isEmbedding(module string) bool {
	i, ok := m.byPath[module]
	return ok && i == m.tie.embedding
}

// setRows replaces rows of an embedding.
func (m *merger) setRows(r peft.TokenRows) error {
	if m.opt.Weight != 1 {
		return fault.WithHint(fault.Inputf("it replaces rows of the base, which cannot count %v", m.opt.Weight), "give this adapter the weight 1")
	}
	it, ok := m.find(r.Module, "weight")
	if !ok {
		return fault.Inputf("the base has no tensor %q", r.Module+".weight")
	}
	shape := it.t.Shape()
	if len(shape) != 2 || shape[1] != r.Tensor.Shape[1] {
		return m.mismatch(it, "rows of shape %v", r.Tensor.Shape)
	}
	seen := map[int64]bool{}
	for _, row := range r.Rows {
		if row >= shape[0] || seen[row] {
			return fault.Inputf("trainable_token_indices names row %d of the %d of %q, or names it twice", row, shape[0], it.name)
		}
		seen[row] = true
	}
	if it.merges() || it.from != "" {
		return fault.Inputf("another adapter, or another tensor of this one, changes %q too", it.name)
	}
	it.rows = &boundRows{rows: r.Rows, ref: m.ref(r.Tensor)}
	it.by = append(it.by, m.opt.Name)
	return nil
}

// foreign is a tensor of an adapter under the name it has in the model.
type foreign struct {
	name string
	t    hf.Tensor
}

func (f foreign) Name() string         { return f.name }
func (f foreign) Shape() []int64       { return f.t.Shape }
func (f foreign) Storage() string      { return string(f.t.DType) }
func (f foreign) Sources() []hf.Tensor { return []hf.Tensor{f.t} }

// Format is that of the stored values; peft takes floating tensors only.
func (f foreign) Format() kernels.Float {
	format, _ := f.t.DType.Float()
	return format
}

// ReadF32 is never asked for: the values of a plain float tensor are read as bytes.
func (f foreign) ReadF32([]float32, int64) error {
	return fmt.Errorf("convert: internal error: %q is read as bytes", f.name)
}

// renamed is a logical tensor under another name.
type renamed struct {
	weights.Tensor
	name string
}

func (r renamed) Name() string { return r.name }
