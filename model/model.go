package model

import (
	"fmt"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/weights"
)

// Options are options of a model.
type Options struct {
	// Threads is how many threads compute; less than one is one. It changes no results.
	Threads int
	// LowRank returns the adapter of the linear layer with the given tensor as its weight, or
	// nil. Nil: no adapter.
	LowRank func(weight string) *LowRank
}

// A Model is a checkpoint that can be computed.
type Model struct {
	path    string
	spec    *Spec
	set     *weights.Set
	prefix  string
	options Options
}

// Open describes the checkpoint and checks that it has every tensor that its architecture
// uses, in the right shape, and no others. It reads no weights but for an output embedding
// that is said to be tied and stored nevertheless. The checkpoint must stay open as long as the model is used.
func Open(c *hf.Checkpoint, o Options) (*Model, error) {
	if c.Config() == nil {
		return nil, fault.Inputf("reading %q: there is no config.json, so that its architecture is not known", c.Path())
	}
	m := &Model{path: c.Path(), options: o}
	var err error
	if m.spec, err = Describe(c.Config()); err != nil {
		return nil, m.wrap(err)
	}
	if m.set, err = weights.Open(c); err != nil {
		return nil, err
	}
	if err := m.findPrefix(); err != nil {
		return nil, m.wrap(err)
	}
	return m, m.wrap(m.checkTensors(c.Config()))
}

func (m *Model) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("reading %q: %w", m.path, err)
}

// Spec is what the model is made of. It must not be changed.
func (m *Model) Spec() *Spec { return m.spec }

// Layers is the number of transformer blocks.
func (m *Model) Layers() int { return len(m.spec.Layers) }

// Width is the width of final hidden states.
func (m *Model) Width() int {
	if m.spec.Project != nil {
		return m.spec.Project.Out
	}
	return m.spec.Hidden
}

func (m *Model) loader(e *engine) *loader {
	return &loader{set: m.set, prefix: m.prefix, engine: e, lowRank: m.options.LowRank, room: &room{}}
}

// findPrefix finds out what "@" stands for by the token embedding.
func (m *Model) findPrefix() error {
	leaf := strings.TrimPrefix(m.spec.Embed.Tokens, "@")
	for _, p := range m.spec.prefixes {
		if _, ok := m.set.Lookup(p + leaf); ok {
			m.prefix = p
			return nil
		}
	}
	return fault.Inputf("tensor %q is missing, under any of the prefixes %q", leaf, m.spec.prefixes)
}

// checkTensors goes through the spec without reading weights.
func (m *Model) checkTensors(cfg *hf.Config) error {
	l := m.loader(newEngine(1))
	used := map[string]bool{}
	var first error
	each := func(name string, check func() error) {
		if name == "" {
			return
		}
		used[l.name(name)] = true
		if err := check(); err != nil && first == nil {
			first = err
		}
	}
	walk{
		linear: func(s *Linear) {
			each(s.Weight, func() error { _, _, _, err := l.find(s); return err })
			each(s.Bias, func() error { return l.hasElements(s.Bias, max(1, s.Stack)*s.Out) })
		},
		vector: func(name string, n int) { each(name, func() error { return l.hasElements(name, n) }) },
		table: func(name string, rows, dim int) {
			each(name, func() error { _, err := l.lookup(name, rows, dim); return err })
		},
	}.spec(m.spec)
	if first != nil {
		return first
	}
	return m.checkRest(cfg, used)
}

func (l *loader) hasElements(name string, n int) error {
	t, ok := l.set.Lookup(l.name(name))
	if !ok {
		return fault.Inputf("tensor %q is missing", l.name(name))
	}
	have := int64(1)
	for _, d := range t.Shape() {
		have *= d
	}
	if have != int64(n) {
		return fault.Inputf("tensor %q: shape %v; expected %d elements", t.Name(), t.Shape(), n)
	}
	return nil
}

// checkRest refuses tensors that no part uses.
func (m *Model) checkRest(cfg *hf.Config, used map[string]bool) error {
	var infos []arch.TensorInfo
	for _, t := range m.set.Tensors() {
		if !used[t.Name()] {
			infos = append(infos, arch.TensorInfo{Name: t.Name(), Shape: t.Shape(), Float: true})
		}
	}
	desc, err := arch.Describe(map[string]any{"model_type": cfg.ModelType(), "tie_word_embeddings": true}, infos, false)
	if err != nil {
		return err
	}
	for _, t := range desc.Tensors {
		switch {
		case t.Role == arch.RoleBuffer || t.Role == arch.RoleTower || t.Role == arch.RoleProjector:
		case m.isIgnored(t.Name):
		case m.isTied(t.Name):
			if err := m.sameTensor(t.Name); err != nil {
				return err
			}
		default:
			return fault.Inputf("tensor %q is no part of a %s as config.json describes it", t.Name, m.spec.Type)
		}
	}
	return nil
}

func (m *Model) isIgnored(name string) bool {
	for _, p := range m.spec.ignored {
		if strings.HasPrefix(name, p) || strings.HasPrefix(p, "@") && strings.HasPrefix(name, m.prefix+p[1:]) {
			return true
		}
	}
	return false
}

// tiedNames are output matrices that some files have though they are tied.
var tiedNames = []string{"lm_head.weight", "language_model.lm_head.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight", "decoder.weight", "embed_out.weight", "generator_lm_head.weight"}

func (m *Model) isTied(name string) bool {
	if m.spec.Head == nil || m.spec.Head.Out.Weight != m.spec.Embed.Tokens {
		return false
	}
	for _, n := range tiedNames {
		if n == name {
			return true
		}
	}
	return false
}

// sameTensor compares a stored output matrix with the embedding it is tied to.
func (m *Model) sameTensor(name string) error {
	a, _ := m.set.Lookup(name)
	b, _ := m.set.Lookup(m.loader(nil).name(m.spec.Embed.Tokens))
	differ := fault.Inputf("tensor %q is not %q, although config.json says tie_word_embeddings", a.Name(), b.Name())
	n := int64(1)
	for i, d := range b.Shape() {
		if len(a.Shape()) != len(b.Shape()) || a.Shape()[i] != d {
			return differ
		}
		n *= d
	}
	x, y := make([]float32, 1<<18), make([]float32, 1<<18)
	for at := int64(0); at < n; at += int64(len(x)) {
		k := min(int64(len(x)), n-at)
		if err := a.ReadF32(x[:k], at); err != nil {
			return err
		}
		if err := b.ReadF32(y[:k], at); err != nil {
			return err
		}
		for i, v := range x[:k] {
			if v != y[i] {
				return differ
			}
		}
	}
	return nil
}

// walk visits the tensors of a spec.
type walk struct {
	linear func(*Linear)
	vector func(name string, elements int)
	table  func(name string, rows, dim int)
}

func (w walk) spec(s *Spec) {
	w.table(s.Embed.Tokens, s.Vocab, s.Embed.Dim)
	w.optional(s.Embed.TokenProject, s.Embed.Project, s.Project)
	if p := s.Embed.Positions; p != nil {
		dim := s.Embed.Dim
		if s.Embed.TokenProject != nil {
			dim = s.Embed.TokenProject.Out
		}
		w.table(p.Table, p.Rows, dim)
	}
	w.table(s.Embed.Types, s.Embed.TypeRows, s.Embed.Dim)
	w.norms(s.Embed.Norm, s.Final)
	for i := range s.Layers {
		w.layer(&s.Layers[i])
	}
	if h := s.Head; h != nil {
		w.optional(h.Transform, &h.Out)
		w.norms(h.Norm)
	}
}

func (w walk) layer(l *Layer) {
	w.norms(l.AttnNorm, l.AttnPost, l.MLPNorm, l.MLPPost, l.Attn.QNorm, l.Attn.KNorm)
	for i := range l.Attn.Inputs {
		w.linear(&l.Attn.Inputs[i])
	}
	if m := l.Attn.Latent; m != nil {
		w.norms(m.QNorm, m.KVNorm)
		w.optional(m.QUp, &m.KVUp)
	}
	w.vector(l.Attn.Sinks, l.Attn.Heads)
	w.linear(&l.Attn.Out)
	w.mlp(l.MLP)
	if m := l.MoE; m != nil {
		w.optional(&m.Router, m.SharedGate)
		w.vector(m.Correction, len(m.Experts))
		for i := range m.Experts {
			w.mlp(&m.Experts[i])
		}
		w.mlp(m.Shared)
	}
}

func (w walk) mlp(m *MLP) {
	if m == nil {
		return
	}
	w.optional(m.Gate, &m.Up, &m.Down)
	if a := m.XIELU; a != nil {
		for _, name := range []string{a.AlphaP, a.AlphaN, a.Beta, a.Eps} {
			w.vector(name, 1)
		}
	}
}

func (w walk) optional(list ...*Linear) {
	for _, l := range list {
		if l != nil {
			w.linear(l)
		}
	}
}

func (w walk) norms(list ...*Norm) {
	for _, n := range list {
		if n != nil {
			w.vector(n.Weight, n.Groups*n.Dim)
			w.vector(n.Bias, n.Groups*n.Dim)
		}
	}
}
