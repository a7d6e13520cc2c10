package model

import "math"

// mlp is an MLP with its weights.
type mlp struct {
	*MLP
	gate, up, down *linear
	xielu          *xielu
}

// xielu is an XIELU with its parameters.
type xielu struct{ p, n, beta, eps float64 }

func (l *loader) xielu(s *XIELU) (*xielu, error) {
	var v [4]float64
	for i, name := range []string{s.AlphaP, s.AlphaN, s.Beta, s.Eps} {
		x, err := l.vector(name, 1)
		if err != nil {
			return nil, err
		}
		v[i] = float64(x[0])
	}
	softplus := func(x float64) float64 { return math.Log1p(math.Exp(x)) }
	return &xielu{p: softplus(v[0]), n: v[2] + softplus(v[1]), beta: v[2], eps: v[3]}, nil
}

func (a *xielu) apply(x []float32) {
	for i, v := range x {
		y := float64(v)
		if y > 0 {
			x[i] = float32(a.p*y*y + a.beta*y)
		} else {
			x[i] = float32(a.n*(math.Expm1(min(y, a.eps))-y) + a.beta*y)
		}
	}
}

func (l *loader) mlp(s *MLP) (*mlp, error) {
	if s == nil {
		return nil, nil
	}
	m := &mlp{MLP: s}
	var err error
	if s.Gate != nil {
		if m.gate, err = l.linear(s.Gate); err != nil {
			return nil, err
		}
	}
	if s.XIELU != nil {
		if m.xielu, err = l.xielu(s.XIELU); err != nil {
			return nil, err
		}
	}
	if m.up, err = l.linear(&s.Up); err != nil {
		return nil, err
	}
	m.down, err = l.linear(&s.Down)
	return m, err
}

// mlpRows is how many rows go through a feed-forward block at a time: it bounds the
// scratch memory. It changes no bits.
const mlpRows = 960

func (m *mlp) forward(e *engine, y []float32, ldy int, x []float32, ldx, n int) {
	width := m.Inner
	if m.Gated {
		width *= 2
	}
	for r0 := 0; r0 < n; r0 += mlpRows {
		rows := min(mlpRows, n-r0)
		h := e.buffer("mlp", rows*width)
		xs := x[r0*ldx:]
		if m.gate != nil {
			e.linear(h, width, xs, ldx, rows, m.gate)
			e.linear(h[m.Inner:], width, xs, ldx, rows, m.up)
		} else {
			e.linear(h, width, xs, ldx, rows, m.up)
		}
		e.rows(rows, func(i0, i1 int) {
			for i := i0; i < i1; i++ {
				m.activate(h[i*width:][:width])
			}
		})
		e.linear(y[r0*ldy:], ldy, h, width, rows, m.down)
	}
}

// activate leaves the activations in the first Inner elements of a row.
func (m *mlp) activate(h []float32) {
	switch {
	case m.Clamp != nil:
		m.Clamp.apply(h[:m.Inner], h)
	case m.xielu != nil:
		m.xielu.apply(h)
	case m.Gated:
		g, u := h[:m.Inner], h[m.Inner:]
		m.Act.apply(g)
		for i, v := range u {
			g[i] *= v
		}
	default:
		m.Act.apply(h)
	}
}

// apply reads pairs (g, u) of h.
func (c *GLUClamp) apply(dst, h []float32) {
	for i := range dst {
		g, u := min(h[2*i], c.Limit), min(max(h[2*i+1], -c.Limit), c.Limit)
		s := float64(g) / (1 + math.Exp(-float64(c.Alpha*g)))
		dst[i] = (u + 1) * float32(s)
	}
}
