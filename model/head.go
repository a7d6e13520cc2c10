package model

import (
	"math"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// projection is a Head with its weights but for the output matrix.
type projection struct {
	*Head
	engine    *engine
	loader    *loader
	transform *linear
	norm      *norm
}

func (m *Model) projection() (projection, error) {
	p := projection{Head: m.spec.Head}
	if p.Head == nil {
		return p, fault.Inputf("reading %q: it has no head that maps to the vocabulary", m.path)
	}
	p.engine = newEngine(m.options.Threads)
	p.loader = m.loader(p.engine)
	var err error
	if p.Transform != nil {
		if p.transform, err = p.loader.linear(p.Transform); err != nil {
			return p, m.wrap(err)
		}
	}
	p.norm, err = p.loader.norm(p.Norm)
	return p, m.wrap(err)
}

// Vocab is the number of logits of a token.
func (p *projection) Vocab() int { return p.Out.Out }

// width is that of final hidden states.
func (p *projection) width() int {
	if p.transform != nil {
		return p.transform.In
	}
	return p.Out.In
}

// input is what the output matrix is applied to: x, or h with the transform of x.
func (p *projection) input(h, x []float32, rows int) []float32 {
	if p.transform == nil {
		return x
	}
	e, width := p.engine, p.transform.Out
	e.linear(h, width, x, p.transform.In, rows, p.transform)
	e.rows(rows, func(r0, r1 int) { p.Act.apply(h[r0*width : r1*width]) })
	if p.norm != nil {
		p.norm.apply(e, h, width, h, width, rows, width)
	}
	return h
}

// finish applies what follows the output matrix to rows of n logits.
func (p *projection) finish(dst []float32, rows, n int) {
	if p.Scale == 1 && p.Softcap == 0 {
		return
	}
	p.engine.rows(rows, func(r0, r1 int) {
		for i := r0 * n; i < r1*n; i++ {
			dst[i] *= p.Scale
			if p.Softcap != 0 {
				dst[i] = p.Softcap * float32(math.Tanh(float64(dst[i]/p.Softcap)))
			}
		}
	})
}

// A Projection is a model's head with its weights in memory. It is not for concurrent use.
type Projection struct {
	projection
	out *linear
}

// Project reads the weights of the head. Errors are of class fault.Input for a model that
// has none.
func (m *Model) Project() (*Projection, error) {
	p, err := m.projection()
	if err != nil {
		return nil, err
	}
	out, err := p.loader.linear(&p.Out)
	return &Projection{p, out}, m.wrap(err)
}

// Logits computes the logits [rows, vocab] of rows of final hidden states.
func (p *Projection) Logits(dst, hidden []float32, rows int) {
	x := hidden
	if p.transform != nil {
		x = p.input(p.engine.buffer("head", rows*p.transform.Out), hidden, rows)
	}
	p.engine.linear(dst, p.Vocab(), x, p.out.In, rows, p.out)
	p.finish(dst, rows, p.Vocab())
}

// EachLogits computes logits of all rows in chunks of at most memory bytes and calls do with
// the first row and the logits of each, which are only valid during the call.
func (p *Projection) EachLogits(hidden []float32, memory int, do func(first int, logits []float32) error) error {
	width := p.width()
	n := len(hidden) / width
	step := max(1, memory/4/p.Vocab())
	for r := 0; r < n; r += step {
		rows := min(step, n-r)
		out := p.engine.buffer("logits", rows*p.Vocab())
		p.Logits(out, hidden[r*width:], rows)
		if err := do(r, out); err != nil {
			return err
		}
	}
	return nil
}

// Slices is a model's head of which so much of the output matrix is in memory as makes the
// logits of some tokens of the vocabulary. It is not for concurrent use.
type Slices struct {
	projection
	model *Model
	x     []float32
	out   *linear
}

// Slices takes final hidden states, of all rows, to the output matrix; hidden must be kept.
// Errors are of class fault.Input for a model that has no head.
func (m *Model) Slices(hidden []float32) (*Slices, error) {
	p, err := m.projection()
	if err != nil {
		return nil, err
	}
	s := &Slices{projection: p, model: m, x: hidden}
	if p.transform != nil {
		rows := len(hidden) / p.width()
		s.x = p.input(make([]float32, rows*p.transform.Out), hidden, rows)
	}
	return s, nil
}

// Load reads the part of the output matrix for the tokens v0 to v1-1 of the vocabulary.
func (s *Slices) Load(v0, v1 int) error {
	s.loader.reset()
	var err error
	s.out, err = s.loader.slice(&s.Out, v0, v1)
	return s.model.wrap(err)
}

// Logits computes the logits [rows, v1-v0] of rows from first on, for the tokens loaded last.
func (s *Slices) Logits(dst []float32, first, rows int) {
	n := s.out.w.Rows()
	s.engine.linear(dst, n, s.x[first*s.out.In:], s.out.In, rows, s.out)
	s.finish(dst, rows, n)
}
