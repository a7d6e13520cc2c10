package model

import (
	"context"
	"fmt"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// Observer sees the residual stream [tokens, width], sequence after sequence: at layer 0 as
// it enters the first layer, at layer i as it leaves layer number i, and at the last one
// after the final norm too, which is the convention of transformers' hidden_states. It must
// not keep hidden. An error ends the pass.
type Observer func(layer int, hidden []float32) error

// RunOptions are options of one pass.
type RunOptions struct {
	// Mask restricts attention to blocks of scores, in every layer and for every sequence, in
	// addition to what the model masks. It must cover the longest sequence.
	Mask *flash.BlockMask
	// Group is how many tokens go through a layer together, whole sequences; 0: 1920. Their
	// activations are in memory. It changes no bits.
	Group int
	// Beside is a pass that takes its steps in turn with this one, never at the same time, so
	// that both may use the same threads, scratch memory and room for the weights of a layer.
	Beside *Pass
}

// Forward takes sequences through the model and returns the final hidden state [tokens,
// width]; observe may be nil. Errors are of class fault.Input for tokens that the model has
// no embedding for and for tensors that do not fit.
func Forward(ctx context.Context, m *Model, sequences []Sequence, o RunOptions, observe Observer) ([]float32, error) {
	p, err := m.Start(sequences, o)
	for layer := 0; err == nil; layer++ {
		if observe != nil {
			if err := observe(layer, p.Hidden()); err != nil {
				return nil, err
			}
		}
		if layer == m.Layers() {
			return p.Hidden(), nil
		}
		err = p.Step(ctx)
	}
	return nil, err
}

// A Pass is sequences on their way through a model. It is not for concurrent use.
type Pass struct {
	model     *Model
	engine    *engine
	loader    *loader
	sequences []Sequence
	groups    []group
	tokens    int
	longest   int // columns of the widest row
	mask      *flash.BlockMask
	hidden    []float32
	layer     int
	tables    map[turnsKey]*turns
}

type turnsKey struct {
	rope    *Rope
	variant int
}

// Start embeds the sequences.
func (m *Model) Start(sequences []Sequence, o RunOptions) (*Pass, error) {
	if err := m.spec.check(sequences); err != nil {
		return nil, m.wrap(err)
	}
	e := newEngine(m.options.Threads)
	l := m.loader(e)
	if o.Beside != nil {
		e = o.Beside.engine
		l = m.loader(e)
		l.room = o.Beside.loader.room
	}
	p := &Pass{model: m, engine: e, loader: l, sequences: sequences, groups: groups(sequences, o.Group), mask: o.Mask, tables: map[turnsKey]*turns{}}
	for _, s := range sequences {
		p.tokens += len(s.IDs)
		p.longest = max(p.longest, s.Start+len(s.IDs))
	}
	for i, s := range sequences {
		if n := len(s.IDs); o.Mask != nil && !o.Mask.Covers(n, n) {
			return nil, fault.Inputf("the attention mask is too small for sequence %d of %d tokens", i, n)
		}
	}
	p.hidden = make([]float32, p.tokens*m.spec.Hidden)
	if err := p.embed(); err != nil {
		return nil, m.wrap(fmt.Errorf("embedding: %w", err))
	}
	p.loader.expect(m.spec.Layers)
	if m.Layers() == 0 {
		return p, m.wrap(p.finish())
	}
	return p, nil
}

// Hidden is the residual stream after the last step, as an [Observer] sees it; it is valid
// until the next step.
func (p *Pass) Hidden() []float32 { return p.hidden }

// Layer is how many layers are done.
func (p *Pass) Layer() int { return p.layer }

// Step does one layer, and the final norm after the last.
func (p *Pass) Step(ctx context.Context) error {
	m := p.model
	if p.layer >= m.Layers() {
		panic("model: internal error: a step after the last layer")
	}
	p.loader.reset()
	l, err := p.loader.layer(&m.spec.Layers[p.layer])
	if err != nil {
		return m.wrap(fmt.Errorf("layer %d: %w", p.layer, err))
	}
	for i := range p.groups {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("computing layer %d: %w", p.layer, err)
		}
		l.forward(p, &p.groups[i])
	}
	p.layer++
	if p.layer == m.Layers() {
		return m.wrap(p.finish())
	}
	return nil
}

// finish applies what follows the last layer.
func (p *Pass) finish() error {
	s := p.model.spec
	n, err := p.loader.norm(s.Final)
	if err != nil {
		return err
	}
	if n != nil {
		n.apply(p.engine, p.hidden, n.Dim, p.hidden, n.Dim, p.tokens, n.Dim)
	}
	if s.Project != nil {
		w, err := p.loader.linear(s.Project)
		if err != nil {
			return err
		}
		out := make([]float32, p.tokens*w.Out)
		p.engine.linear(out, w.Out, p.hidden, w.In, p.tokens, w)
		p.hidden = out
	}
	return nil
}

// turns are made once for the longest row.
func (p *Pass) turns(r *Rope, s Sequence) *turns {
	key := turnsKey{r, r.variant(s.width())}
	if p.tables[key] == nil {
		p.tables[key] = r.turns(p.engine, p.longest, key.variant)
	}
	return p.tables[key]
}

// layer is a Layer with its weights.
type layer struct {
	*Layer
	attnNorm, attnPost, mlpNorm, mlpPost *norm
	attn                                 *attention
	mlp                                  *mlp
	moe                                  *moe
}

func (l *loader) layer(s *Layer) (*layer, error) {
	r := &layer{Layer: s}
	for _, n := range []struct {
		to   **norm
		from *Norm
	}{{&r.attnNorm, s.AttnNorm}, {&r.attnPost, s.AttnPost}, {&r.mlpNorm, s.MLPNorm}, {&r.mlpPost, s.MLPPost}} {
		var err error
		if *n.to, err = l.norm(n.from); err != nil {
			return nil, err
		}
	}
	var err error
	if r.attn, err = l.attention(&s.Attn); err != nil {
		return nil, err
	}
	if r.mlp, err = l.mlp(s.MLP); err != nil {
		return nil, err
	}
	r.moe, err = l.moe(s.MoE)
	if err == nil && (r.mlp == nil) == (r.moe == nil) {
		err = fault.Inputf("one feed-forward block is expected")
	}
	return r, err
}

func (l *layer) feed(e *engine, y, x []float32, dim, n int) {
	if l.moe != nil {
		l.moe.forward(e, y, dim, x, dim, n)
		return
	}
	l.mlp.forward(e, y, dim, x, dim, n)
}

// forward takes a group through the layer, as the package comment says.
func (l *layer) forward(p *Pass, g *group) {
	e, dim, n := p.engine, p.model.spec.Hidden, g.tokens
	x := p.hidden[g.first*dim:][:n*dim]
	y := e.buffer("y", n*dim)
	normed := func(m *norm, name string) []float32 {
		if m == nil {
			return x
		}
		out := e.buffer(name, n*dim)
		m.apply(e, out, dim, x, dim, n, dim)
		return out
	}
	after := func(m *norm) {
		if m != nil {
			m.apply(e, y, dim, y, dim, n, dim)
		}
	}
	switch l.Wiring {
	case Sequential:
		l.attn.forward(p, g, y, normed(l.attnNorm, "x"), dim)
		after(l.attnPost)
		add(e, x, l.Residual, y)
		l.feed(e, y, normed(l.mlpNorm, "x"), dim, n)
		after(l.mlpPost)
		add(e, x, l.Residual, y)
	case Parallel:
		in := normed(l.attnNorm, "x")
		if l.mlpNorm != nil {
			in = normed(l.mlpNorm, "x")
			l.feed(e, y, in, dim, n)
			in = normed(l.attnNorm, "x")
		} else {
			l.feed(e, y, in, dim, n)
		}
		z := e.buffer("z", n*dim)
		l.attn.forward(p, g, z, in, dim)
		add(e, x, 1, y)
		add(e, x, 1, z)
	case PostNorm:
		l.attn.forward(p, g, y, x, dim)
		add(e, x, 1, y)
		l.attnPost.apply(e, x, dim, x, dim, n, dim)
		l.feed(e, y, x, dim, n)
		add(e, x, 1, y)
		l.mlpPost.apply(e, x, dim, x, dim, n, dim)
	}
}

// add adds c*y to x.
func add(e *engine, x []float32, c float32, y []float32) {
	const step = 256
	e.rows((len(x)+step-1)/step, func(r0, r1 int) {
		axpy(x[r0*step:min(len(x), r1*step)], c, y[r0*step:min(len(x), r1*step)])
	})
}
