package model

import (
	"math"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// A Projection is a model's head with its weights in memory. It is not for concurrent use.
type Projection struct {
	*Head
	engine    *engine
	transform *linear
	norm      *norm
	out       *linear
}

// Project reads the weights of the head. Errors are of class fault.Input for a model that
// has none.
func (m *Model) Project() (*Projection, error) {
	if m.spec.Head == nil {
		return nil, fault.Inputf("reading %q: it has no head that maps to the vocabulary", m.path)
	}
	e := newEngine(m.options.Threads)
	l := m.loader(e)
	p := &Projection{Head: m.spec.Head, engine: e}
	var err error
	if p.Transform != nil {
		if p.transform, err = l.linear(p.Transform); err != nil {
			return nil, m.wrap(err)
		}
	}
	if p.norm, err = l.norm(p.Norm); err != nil {
		return nil, m.wrap(err)
	}
	p.out, err = l.linear(&p.Out)
	return p, m.wrap(err)
}

// Vocab is the number of logits of a token.
func (p *Projection) Vocab() int { return p.out.Out }

// Logits computes the logits [rows, vocab] of rows of final hidden states.
func (p *Projection) Logits(dst, hidden []float32, rows int) {
	e, x, width := p.engine, hidden, p.out.In
	if p.transform != nil {
		width = p.transform.In
		h := e.buffer("head", rows*p.transform.Out)
		e.linear(h, p.transform.Out, x, width, rows, p.transform)
		width, x = p.transform.Out, h
		e.rows(rows, func(r0, r1 int) { p.Act.apply(h[r0*width : r1*width]) })
		if p.norm != nil {
			p.norm.apply(e, h, width, h, width, rows, width)
		}
	}
	vocab := p.out.Out
	e.linear(dst, vocab, x, width, rows, p.out)
	if p.Scale == 1 && p.Softcap == 0 {
		return
	}
	e.rows(rows, func(r0, r1 int) {
		for i := r0 * vocab; i < r1*vocab; i++ {
			dst[i] *= p.Scale
			if p.Softcap != 0 {
				dst[i] = p.Softcap * float32(math.Tanh(float64(dst[i]/p.Softcap)))
			}
		}
	})
}

// EachLogits computes logits of all rows in chunks of at most memory bytes and calls do with
// the first row and the logits of each, which are only valid during the call.
func (p *Projection) EachLogits(hidden []float32, memory int, do func(first int, logits []float32) error) error {
	width := p.out.In
	if p.transform != nil {
		width = p.transform.In
	}
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
