package model

import (
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// attention is an Attention with its weights.
type attention struct {
	*Attention
	inputs       []*linear
	width        int // of a row of the inputs' outputs
	qNorm, kNorm *norm
	latent       *latent
	sinks        []float32
	out          *linear
}

func (l *loader) attention(s *Attention) (*attention, error) {
	a := &attention{Attention: s}
	for i := range s.Inputs {
		in, err := l.linear(&s.Inputs[i])
		if err != nil {
			return nil, err
		}
		a.inputs = append(a.inputs, in)
		a.width += in.Out
	}
	var err error
	if a.qNorm, err = l.norm(s.QNorm); err != nil {
		return nil, err
	}
	if a.kNorm, err = l.norm(s.KNorm); err != nil {
		return nil, err
	}
	if s.Sinks != "" {
		if a.sinks, err = l.vector(s.Sinks, s.Heads); err != nil {
			return nil, err
		}
	}
	if s.Latent != nil {
		if a.latent, err = l.latent(s.Latent); err != nil {
			return nil, err
		}
	}
	a.out, err = l.linear(&s.Out)
	return a, err
}

// forward computes attention of the sequences of a group: y from x, rows of s.hidden.
func (a *attention) forward(p *Pass, g *group, y, x []float32, ldx int) {
	e, n := p.engine, g.tokens
	row := e.buffer("inputs", n*a.width)
	at := 0
	for _, in := range a.inputs {
		e.linear(row[at:], a.width, x, ldx, n, in)
		at += in.Out
	}
	heads := headsOf{q: row, k: row, v: row, width: a.width, kWidth: a.width, vWidth: a.width, qCols: a.QCols, kCols: a.KCols, vCols: a.VCols}
	if a.latent != nil {
		heads = a.latent.expand(p, a, row, n)
	}
	if !a.NormAfterRope {
		a.normalize(e, &heads, n)
	}
	if a.Clip > 0 {
		clip(e, row, a.Clip)
	}
	if a.Rope != nil {
		a.rotate(p, g, &heads)
	}
	if a.NormAfterRope {
		a.normalize(e, &heads, n)
	}
	out := e.buffer("attention", n*a.Heads*a.ValueDim)
	params := &flash.Params{
		Q:   heads.view(e, "q", heads.q, heads.width, heads.qCols, a.HeadDim, n),
		K:   heads.view(e, "k", heads.k, heads.kWidth, heads.kCols, a.HeadDim, n),
		V:   heads.view(e, "v", heads.v, heads.vWidth, heads.vCols, a.ValueDim, n),
		Out: out, OutRow: a.Heads * a.ValueDim, OutHead: a.ValueDim,
		QHeads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, ValueDim: a.ValueDim,
		QStarts: g.starts, KStarts: g.starts,
		Scale: a.Scale, Causal: a.Causal, Softcap: a.Softcap, Slopes: a.Slopes, Sinks: a.sinks, Mask: p.mask,
	}
	if a.Window > 0 {
		params.Window = &flash.Window{Left: a.Window - 1, Right: a.Window - 1}
	}
	e.flash.Forward(params)
	e.linear(y, a.out.Out, out, a.out.In, n, a.out)
}

// headsOf says where the heads' queries, keys and values lie in rows of widths.
type headsOf struct {
	q, k, v               []float32
	width, kWidth, vWidth int
	qCols, kCols, vCols   []int
}

// view is what attention reads; heads at uneven distances are copied side by side.
func (h *headsOf) view(e *engine, name string, x []float32, width int, cols []int, dim, tokens int) flash.Heads {
	step := 0
	if len(cols) > 1 {
		step = cols[1] - cols[0]
	}
	even := step >= 0
	for i, c := range cols {
		even = even && c == cols[0]+i*step
	}
	if even {
		return flash.F32(x[cols[0]:], width, step)
	}
	out := e.buffer(name, tokens*len(cols)*dim)
	e.rows(tokens, func(t0, t1 int) {
		for t := t0; t < t1; t++ {
			for i, c := range cols {
				copy(out[(t*len(cols)+i)*dim:][:dim], x[t*width+c:])
			}
		}
	})
	return flash.F32(out, len(cols)*dim, dim)
}

// normalize applies the norms of queries and keys, to each head or to all at once.
func (a *attention) normalize(e *engine, h *headsOf, n int) {
	apply := func(m *norm, x []float32, width int, cols []int) {
		if m == nil {
			return
		}
		if m.Dim > a.HeadDim { // over all heads, which then lie side by side
			m.apply(e, x[cols[0]:], width, x[cols[0]:], width, n, m.Dim)
			return
		}
		e.rows(n, func(r0, r1 int) {
			for r := r0; r < r1; r++ {
				for i, c := range cols {
					v := x[r*width+c:][:m.Dim]
					m.row(v, v, i%m.Groups*m.Dim)
				}
			}
		})
	}
	apply(a.qNorm, h.q, h.width, h.qCols)
	apply(a.kNorm, h.k, h.kWidth, h.kCols)
}

func (a *attention) rotate(p *Pass, g *group, h *headsOf) {
	for i, s := range g.sequences {
		t := p.turns(a.Rope, s)
		first := g.starts[i]
		p.engine.rows(len(s.IDs), func(r0, r1 int) {
			for r := r0; r < r1; r++ {
				for _, c := range h.qCols {
					a.Rope.rotate(h.q[(first+r)*h.width+c:][:a.HeadDim], t, s.Start+r)
				}
				for _, c := range h.kCols {
					a.Rope.rotate(h.k[(first+r)*h.kWidth+c:][:a.HeadDim], t, s.Start+r)
				}
			}
		})
	}
}

func clip(e *engine, x []float32, limit float32) {
	e.rows(len(x)/64+1, func(r0, r1 int) {
		for i := r0 * 64; i < min(len(x), r1*64); i++ {
			x[i] = min(max(x[i], -limit), limit)
		}
	})
}

// latent is a Latent with its weights.
type latent struct {
	*Latent
	qNorm, kvNorm *norm
	qUp, kvUp     *linear
}

func (l *loader) latent(s *Latent) (*latent, error) {
	r := &latent{Latent: s}
	var err error
	if r.qNorm, err = l.norm(s.QNorm); err != nil {
		return nil, err
	}
	if r.kvNorm, err = l.norm(s.KVNorm); err != nil {
		return nil, err
	}
	if s.QUp != nil {
		if r.qUp, err = l.linear(s.QUp); err != nil {
			return nil, err
		}
	}
	r.kvUp, err = l.linear(&s.KVUp)
	return r, err
}

// expand makes queries, keys and values of n rows: key heads are copied together of their
// own part and the rotary part that all share.
func (m *latent) expand(p *Pass, a *attention, row []float32, n int) headsOf {
	e, dim := p.engine, m.NopeDim+m.RopeDim
	h := headsOf{q: row, width: a.width}
	at := a.Heads * dim // where the compressed vector begins
	if m.qUp != nil {
		at = m.QRank
		m.qNorm.apply(e, row, a.width, row, a.width, n, m.QRank)
		h.q, h.width = e.buffer("latent.q", n*a.Heads*dim), a.Heads*dim
		e.linear(h.q, h.width, row, a.width, n, m.qUp)
	}
	m.kvNorm.apply(e, row[at:], a.width, row[at:], a.width, n, m.KVRank)
	kv := e.buffer("latent.kv", n*m.kvUp.Out)
	e.linear(kv, m.kvUp.Out, row[at:], a.width, n, m.kvUp)
	h.k, h.kWidth = e.buffer("latent.k", n*a.Heads*dim), a.Heads*dim
	h.v, h.vWidth = kv, m.kvUp.Out
	e.rows(n, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for i := range a.Heads {
				k := h.k[(r*a.Heads+i)*dim:][:dim]
				copy(k[:m.NopeDim], kv[r*h.vWidth+i*(m.NopeDim+a.ValueDim):])
				copy(k[m.NopeDim:], row[r*a.width+at+m.KVRank:][:m.RopeDim])
			}
		}
	})
	for i := range a.Heads {
		h.qCols = append(h.qCols, i*dim)
		h.kCols = append(h.kCols, i*dim)
		h.vCols = append(h.vCols, i*(m.NopeDim+a.ValueDim)+m.NopeDim)
	}
	return h
}
