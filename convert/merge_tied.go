package convert

import (
	"slices"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// tie is an output head that shares its matrix with the input embedding. An adapter that
// changes one of the two makes them different matrices: both are written then, and
// config.json says so. Adding every delta to the shared matrix, as PEFT does in memory,
// would change the model.
type tie struct {
	head      string // module path of the head; empty when nothing is tied
	embedding int    // item of the shared matrix
	onDisk    int    // item of the head where the file has it all the same; else -1
	item      item   // the head, as it would be by itself
	own       bool   // the head was replaced by a matrix of its own
	apart     bool   // the embedding was replaced and the head was not
	untied    bool   // settled: two matrices are written

	newHead, newEmbedding *peft.Replacement // of the adapter being added
}

func newTie(m *merger) tie {
	e := m.model.InputEmbedding()
	if !m.model.Tied || e < 0 {
		return tie{}
	}
	t := tie{head: m.model.TiedHead(), embedding: e, onDisk: -1}
	if h := m.model.OutputHead(); h >= 0 {
		t.head, t.onDisk = m.model.Tensors[h].Module, h
	}
	if t.head == "" {
		return tie{}
	}
	name := t.head + ".weight"
	at := &arch.Tensor{Name: name, Module: t.head, Role: arch.RoleHead, Why: "16-bit: output head"}
	t.item = item{name: name, t: renamed{m.items[e].t, name}, at: at}
	return t
}

// replace notes what an adapter has in place of the embedding or the head; all of its
// tensors must be seen before it is clear what they mean.
func (t *tie) replace(_ *merger, r *peft.Replacement, head bool) error {
	at := &t.newEmbedding
	if head {
		at = &t.newHead
	}
	if *at != nil {
		return fault.Inputf("%q replaces the same matrix", (*at).Tensor.Name)
	}
	*at = r
	return nil
}

// resolve decides what the replacements of an adapter are for.
func (t *tie) resolve(m *merger) error {
	e, h := t.newEmbedding, t.newHead
	t.newEmbedding, t.newHead = nil, nil
	cfg := m.adapter.Config()
	was := m.items[max(t.embedding, 0)].t.Shape()
	switch {
	case e == nil && h == nil:
		return nil
	case e != nil && h != nil:
		same, err := sameTensor(m, e, h)
		if err != nil {
			return err
		}
		if same {
			return t.share(m, e)
		}
		t.own = true
		if err := m.put(&t.item, h); err != nil {
			return err
		}
		return m.put(&m.items[t.embedding], e)
	case e != nil && cfg.Saves(e.Module) && !e.Base && !cfg.TiedTraining && slices.Equal(was, e.Tensor.Shape):
		t.apart = true
		return m.put(&m.items[t.embedding], e)
	case e != nil:
		return t.share(m, e)
	case cfg.Saves(h.Module) && !h.Base && !cfg.TiedTraining:
		t.own = true
		return m.put(&t.item, h)
	}
	return t.share(m, h)
}

// share makes a tensor of the adapter the shared matrix.
func (t *tie) share(m *merger, r *peft.Replacement) error {
	it := &m.items[t.embedding]
	if err := m.put(it, r); err != nil {
		return err
	}
	t.item.old, t.item.t, t.item.from = it.old, renamed{it.t, t.item.name}, it.from
	t.item.by = append(t.item.by, m.opt.Name)
	return nil
}

func sameTensor(m *merger, a, b *peft.Replacement) (bool, error) {
	if a.Tensor.DType != b.Tensor.DType || !slices.Equal(a.Tensor.Shape, b.Tensor.Shape) {
		return false, nil
	}
	var sums [2]treehash.Digest
	for i, r := range []*peft.Replacement{a, b} {
		ref := m.ref(r.Tensor)
		var err error
		if sums[i], err = hashRef(&ref, make([]byte, 1<<16)); err != nil {
			return false, err
		}
	}
	return sums[0] == sums[1], nil
}

// addHead adds factors to the head.
func (t *tie) addHead(m *merger, target *peft.Target) error { return m.bind(&t.item, target) }

// settle is called when all adapters were added.
func (m *merger) settle() error {
	t := &m.tie
	if t.head != "" {
		if err := t.settle(m); err != nil {
			return err
		}
	}
	return m.checkVocabulary()
}

func (t *tie) settle(m *merger) error {
	e := &m.items[t.embedding]
	mirrored, err := t.mirrored(e)
	if err != nil {
		return err
	}
	if mirrored {
		t.item.terms = nil
		m.warn("the factors of %q mirror those of %q: they were trained as one and are added once", t.item.name, e.name)
	}
	t.untied = t.own || t.apart || len(t.item.terms) > 0 || len(e.terms) > 0 && !mirrored
	changed := e.merges() || e.from != ""
	switch {
	case t.untied && e.rows != nil:
		return fault.Inputf("rows of the shared matrix %q are replaced, and its other use %q is changed by itself", e.name, t.item.name)
	case t.untied:
		m.warn("input and output embedding were one matrix; the adapter changes them differently, so %q is written by itself and config.json says tie_word_embeddings false", t.item.name)
	case t.onDisk >= 0 && changed: // a copy of the shared matrix stays a copy
		t.item.t, t.item.from, t.item.old = renamed{e.t, t.item.name}, e.from, e.old
		t.item.terms, t.item.rows, t.item.by = e.terms, e.rows, e.by
	default:
		return nil
	}
	if t.onDisk >= 0 {
		m.items[t.onDisk] = t.item
		return nil
	}
	m.byName[t.item.name] = len(m.items)
	m.items = append(m.items, t.item)
	return nil
}

// mirrored tells whether the head's factors are the embedding's, turned round: so PEFT
// saves one pair that was trained for both.
func (t *tie) mirrored(e *item) (bool, error) {
	if len(e.terms) == 0 || len(e.terms) != len(t.item.terms) {
		return false, nil
	}
	for i := range e.terms {
		x, y := &e.terms[i], &t.item.terms[i]
		if x.Scale != y.Scale || x.Adapter != y.Adapter || x.magnitude != nil || y.magnitude != nil {
			return false, nil
		}
		for _, p := range [][2]Ref{{x.b, y.a}, {x.a, y.b}} {
			same, err := equalTransposed(p[0].tensor, p[1].tensor)
			if !same || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// checkVocabulary holds the rows of embedding and head together.
func (m *merger) checkVocabulary() error {
	e, h := m.model.InputEmbedding(), m.model.OutputHead()
	if m.tie.untied && m.tie.onDisk < 0 {
		h = m.byName[m.tie.item.name]
	}
	if e < 0 || h < 0 {
		return nil
	}
	a, b := &m.items[e], &m.items[h]
	if sa, sb := a.shape(), b.shape(); (a.from != "" || b.from != "") && len(sa) == 2 && len(sb) == 2 && sa[0] != sb[0] {
		return fault.Inputf("%q would have %d rows and %q %d; the adapter resizes one of the two", a.name, sa[0], b.name, sb[0])
	}
	return nil
}

// resized is the number of rows of a token embedding that is not what it was, or 0.
func (m *merger) resized() int64 {
	if e := m.model.InputEmbedding(); e >= 0 {
		it := &m.items[e]
		if it.old != nil && it.shape()[0] != it.old.Shape()[0] {
			return it.shape()[0]
		}
	}
	return 0
}

// summary is what the plan says of the merge.
func (m *merger) summary() *Merging {
	s := &Merging{Adapters: m.sources, Untied: m.tie.untied, Tokenizer: "base"}
	for i := range m.items {
		if it := &m.items[i]; it.merges() || it.from != "" {
			s.Tensors++
		}
	}
	return s
}
