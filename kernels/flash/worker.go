package flash

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/panel"
)

// worker is the scratch memory of one thread.
type worker struct {
	panels          []queries
	state, s        []float32
	k, v, tail, row []float32
}

// queries is a panel: some rows of a unit in the lanes of vecs vectors.
type queries struct {
	r0, r1  int
	w, vecs int
	lo, hi  int // keys that some of them see
	begun   bool

	q, o       []float32 // [dim][w], [vdim rounded up][w]
	m, l, corr []float32 // [w]
	slope, pos []float32 // [w], for ALiBi
}

// unit computes all of one unit.
func (x *worker) unit(c *call, u *unit) {
	x.begin(c, u)
	lo, hi := c.visible(u, u.r0, u.r1)
	c.keys(u, lo, hi, func(j0, j1 int) {
		for ; j0 < j1; j0 += chunk {
			x.chunk(c, u, j0, min(j1, j0+chunk))
		}
	})
	for i := range x.panels {
		x.finish(c, u, &x.panels[i])
	}
}

// begin cuts the rows into panels of nearly the same width and packs their queries.
func (x *worker) begin(c *call, u *unit) {
	lanes, tile := c.kn.Lanes, c.kn.Rows
	vecs := (u.r1 - u.r0 + lanes - 1) / lanes
	height := (c.vdim + tile - 1) / tile * tile
	x.state = grow(x.state, vecs*lanes*(c.dim+height+5))
	x.s = grow(x.s, (chunk+tile)*panel.MaxVecs*lanes)
	x.tail = grow(x.tail, tile*c.dim)
	at := x.state
	cut := func(n int) []float32 { s := at[:n:n]; at = at[n:]; return s }
	x.panels = x.panels[:0]
	for r0, left := u.r0, vecs; left > 0; {
		count := (left + panel.MaxVecs - 1) / panel.MaxVecs
		p := queries{r0: r0, vecs: (left + count - 1) / count}
		p.w = p.vecs * lanes
		p.r1 = min(u.r1, r0+p.w)
		p.lo, p.hi = c.visible(u, p.r0, p.r1)
		p.q, p.o = cut(c.dim*p.w), cut(height*p.w)
		p.m, p.l, p.corr, p.slope, p.pos = cut(p.w), cut(p.w), cut(p.w), cut(p.w), cut(p.w)
		for i := range p.m {
			p.m[i], p.l[i] = -math.MaxFloat32, 0
			p.slope[i] = 0
			if r := r0 + i; c.Slopes != nil && r < p.r1 {
				p.slope[i] = c.Slopes[u.head*c.group+r%c.group]
			}
		}
		x.pack(c, u, &p)
		x.panels = append(x.panels, p)
		r0, left = p.r1, left-p.vecs
	}
}

// pack writes the queries of a panel as [dim][w]; lanes without one are 0.
func (x *worker) pack(c *call, u *unit, p *queries) {
	n := p.r1 - p.r0
	if n < p.w {
		clear(p.q)
	}
	if c.group == 1 && c.Q.wide != nil {
		c.kn.Transpose(p.q, p.w, c.Q.wide[(u.q0+p.r0)*c.Q.Row+u.head*c.Q.Head:], c.Q.Row, n, c.dim)
		return
	}
	x.row = grow(x.row, unitRows*max(c.dim, c.vdim))
	for i := range n {
		t, h := u.q0+(p.r0+i)/c.group, u.head*c.group+(p.r0+i)%c.group
		c.Q.copy(x.row[i*c.dim:][:c.dim], t, h)
	}
	c.kn.Transpose(p.q, p.w, x.row, c.dim, n, c.dim)
}

// copy widens len(dst) elements of one head of one token.
func (h *Heads) copy(dst []float32, token, head int) {
	at := token*h.Row + head*h.Head
	if h.stored == nil {
		copy(dst, h.wide[at:])
		return
	}
	size := h.format.Size()
	cast.ToF32(dst, h.stored[at*size:(at+len(dst))*size], h.format)
}

// rows gives the keys or values from j0 to j1 as [n][stride] float32, in place where
// possible; width is what dim is padded to with zeros.
func (h *Heads) rows(buf *[]float32, u *unit, j0, j1, dim, width int) (x []float32, stride int) {
	if h.stored == nil && dim == width {
		return h.wide[(u.k0+j0)*h.Row+u.head*h.Head:], h.Row
	}
	*buf = grow(*buf, chunk*width)
	for j := j0; j < j1; j++ {
		row := (*buf)[(j-j0)*width:][:width]
		h.copy(row[:dim], u.k0+j, u.head)
		clear(row[dim:])
	}
	return *buf, width
}

// chunk adds the keys from j0 to j1 to all panels that see some of them.
func (x *worker) chunk(c *call, u *unit, j0, j1 int) {
	tile := c.kn.Rows
	height := (c.vdim + tile - 1) / tile * tile
	k, kRow := c.K.rows(&x.k, u, j0, j1, c.dim, c.dim)
	v, vRow := c.V.rows(&x.v, u, j0, j1, c.vdim, height)
	for i := range x.panels {
		p := &x.panels[i]
		lo, hi := max(j0, p.lo), min(j1, p.hi)
		n := hi - lo
		if n <= 0 {
			continue
		}
		x.scores(c, p, k[(lo-j0)*kRow:], kRow, n)
		s := x.s[:n*p.w]
		if c.Softcap != 0 {
			c.fn.softcap(s, n*p.vecs, c.scale/c.Softcap, c.Softcap)
		}
		if c.Slopes != nil {
			scale := c.scale
			if c.Softcap != 0 {
				scale = 1
			}
			for r := range p.pos {
				p.pos[r] = float32((p.r0+r)/c.group + u.k - u.q - lo)
			}
			c.fn.bias(s, n, p.w, p.vecs, scale, p.slope, p.pos)
		}
		c.hide(u, p, s, lo, hi)
		c.fn.softmax(s, n, p.w, p.vecs, c.c, c.cLow, p.m, p.l, p.corr)
		mode := panel.Rescale
		if !p.begun {
			mode, p.begun = panel.Store, true
		}
		c.kn.Mul(p.o, s, v[(lo-j0)*vRow:], 1, vRow, height/tile, n, p.vecs, mode, p.corr)
	}
}

// scores computes [n][w] products of keys and queries. The last tile of keys is copied
// when it is not whole, so that nothing behind the keys is read.
func (x *worker) scores(c *call, p *queries, k []float32, kRow, n int) {
	tile := c.kn.Rows
	whole := n / tile
	c.kn.Mul(x.s, p.q, k, kRow, 1, whole, c.dim, p.vecs, panel.Store, nil)
	if rest := n % tile; rest > 0 {
		for i := range rest {
			copy(x.tail[i*c.dim:(i+1)*c.dim], k[(whole*tile+i)*kRow:])
		}
		clear(x.tail[rest*c.dim:])
		c.kn.Mul(x.s[whole*tile*p.w:], p.q, x.tail, c.dim, 1, 1, c.dim, p.vecs, panel.Store, nil)
	}
}

// hide sets scores of keys that a query does not see to -Inf. For a key, the queries that
// see it are neighbours.
func (c *call) hide(u *unit, p *queries, s []float32, lo, hi int) {
	off := u.k - u.q
	first, last := p.r0/c.group+off, (p.r1-1)/c.group+off // positions
	if lo >= last-c.left && hi-1 <= first+c.right {
		return
	}
	for j := lo; j < hi; j++ {
		row := s[(j-lo)*p.w:][:p.w]
		from := min(p.w, max(0, (j-c.right-off)*c.group-p.r0))
		to := max(from, min(p.w, (j+c.left-off+1)*c.group-p.r0))
		copy(row[:from], unseen[:])
		copy(row[to:], unseen[:])
	}
}

// unseen is as long as the widest panel.
var unseen = func() (x [panel.MaxVecs * 16]float32) {
	for i := range x {
		x[i] = float32(math.Inf(-1))
	}
	return x
}()

// finish divides by the sums and writes the results of a panel.
func (x *worker) finish(c *call, u *unit, p *queries) {
	for i := range p.r1 - p.r0 {
		t, h := u.q0+(p.r0+i)/c.group, u.head*c.group+(p.r0+i)%c.group
		factor, top, z := c.normalize(h, p.m[i], p.l[i])
		p.corr[i] = factor
		if c.LSE != nil {
			c.LSE[h*c.tokens+t] = float32((top + math.Log2(z)) * math.Ln2)
		}
	}
	clear(p.corr[p.r1-p.r0:])
	if p.begun { // with k = 0, what is left of Mul is the scaling
		c.kn.Mul(p.o, nil, nil, 0, 0, len(p.o)/(p.w*c.kn.Rows), 0, p.vecs, panel.Rescale, p.corr)
	}
	n := p.r1 - p.r0
	direct := c.group == 1
	dst, stride := c.Out, c.OutRow
	if direct {
		dst = dst[(u.q0+p.r0)*c.OutRow+u.head*c.OutHead:]
	} else {
		x.row = grow(x.row, unitRows*max(c.dim, c.vdim))
		dst, stride = x.row, c.vdim
	}
	if p.begun {
		c.kn.Transpose(dst, stride, p.o, p.w, c.vdim, n)
	}
	for i := range n {
		row := dst[i*stride:][:c.vdim]
		if p.l[i] == 0 { // sees nothing: not even 0 times a value that is not finite
			clear(row)
		}
		if !direct {
			t, h := u.q0+(p.r0+i)/c.group, u.head*c.group+(p.r0+i)%c.group
			copy(c.Out[t*c.OutRow+h*c.OutHead:], row)
		}
	}
}

// normalize gives what the accumulator of a query is multiplied by, and the sum of its
// exponentials as z * 2^top.
func (c *call) normalize(head int, m, l float32) (factor float32, top, z float64) {
	top, z = float64(m)*c.exact, float64(l)
	if l == 0 {
		top, z = math.Inf(-1), 1
	}
	if c.Sinks == nil {
		if l == 0 {
			return 0, top, z
		}
		return float32(1 / z), top, z
	}
	sink := float64(c.Sinks[head]) * math.Log2E
	most := max(top, sink)
	if math.IsInf(most, -1) {
		return 0, top, z
	}
	f := math.Exp2(top - most)
	z = z*f + math.Exp2(sink-most)
	return float32(f / z), most, z
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}
