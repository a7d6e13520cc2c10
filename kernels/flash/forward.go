package flash

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nf4conv/nf4conv/kernels/panel"
)

const (
	unitRows = 192 // queries that share what is read of keys and values, at most
	fewUnits = 128 // below so many units, they are of half as many queries: 16 threads shall not wait long for the last
	chunk    = 128 // keys between two steps of the online softmax: it changes bits
)

// call is one Forward.
type call struct {
	*Params
	kn          *panel.Kernel
	fn          scores
	group       int // query heads per key head
	dim, vdim   int
	scale       float32 // of scores, before anything else
	exact       float64 // factor of the exponent to base 2, after everything else
	c, cLow     float32 // the same in two parts
	left, right int
	tokens      int // of all queries
	unitRows    int // depends on shapes alone: in a window or a mask, it changes bits
	units       []unit
}

// A unit is some rows of one key head of one sequence. Row r of a head is query token
// r/group of the sequence and the (r mod group)-th query head of the key head.
type unit struct {
	sequence
	head   int // of keys
	r0, r1 int
	cost   int
}

// Forward computes attention; [Params] and the package comment say what is what. Out must
// not overlap the inputs. Forward panics if lengths do not fit.
func (a *Attention) Forward(p *Params) {
	c := &call{Params: p, kn: panel.Best(), group: 1, dim: p.HeadDim, vdim: p.valueDim(), scale: p.Scale}
	seqs := p.sequences()
	c.group = p.QHeads / p.KVHeads
	c.fn = scores{tiers[c.kn.Tier]}
	if c.scale == 0 {
		c.scale = float32(1 / math.Sqrt(float64(p.HeadDim)))
	}
	c.exact = math.Log2E
	if p.Softcap == 0 && p.Slopes == nil { // which need the scale before
		c.exact *= float64(c.scale)
	}
	if c.c = float32(c.exact); float64(c.c) > c.exact {
		c.c = math.Nextafter32(c.c, 0)
	}
	c.cLow = max(float32(c.exact-float64(c.c)), 1e-30) // 0 would make a NaN of -Inf
	far := 0
	for _, s := range seqs {
		far = max(far, s.q+s.k)
	}
	c.left, c.right = p.reach(far)
	c.tokens = p.queryTokens()
	c.unitRows = unitRows
	for _, s := range seqs {
		c.plan(s)
	}
	if len(c.units) < fewUnits {
		c.unitRows, c.units = unitRows/2, c.units[:0]
		for _, s := range seqs {
			c.plan(s)
		}
	}
	// The longest first, so that no thread is left alone with one at the end.
	slices.SortStableFunc(c.units, func(x, y unit) int { return y.cost - x.cost })
	if a.threads == 1 || len(c.units) <= 1 {
		for i := range c.units {
			a.workers[0].unit(c, &c.units[i])
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for id := range min(a.threads, len(c.units)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(c.units); i = int(next.Add(1)) - 1 {
				a.workers[id].unit(c, &c.units[i])
			}
		})
	}
	wg.Wait()
}

// plan cuts a sequence into units, none across a row of blocks of the mask.
func (c *call) plan(s sequence) {
	rows := s.q * c.group
	step := max(1, rows)
	if c.Mask != nil {
		step = c.Mask.blockQ * c.group
	}
	for head := range c.KVHeads {
		for b0 := 0; b0 < rows; b0 += step {
			for r0 := b0; r0 < min(rows, b0+step); r0 += c.unitRows {
				u := unit{sequence: s, head: head, r0: r0, r1: min(rows, b0+step, r0+c.unitRows)}
				lo, hi := c.visible(&u, u.r0, u.r1)
				c.keys(&u, lo, hi, func(j0, j1 int) { u.cost += (j1 - j0) * (u.r1 - u.r0) })
				c.units = append(c.units, u)
			}
		}
	}
}

// visible is the range of keys that some of the rows from r0 to r1 see, masks of blocks aside.
func (c *call) visible(u *unit, r0, r1 int) (lo, hi int) {
	first, last := r0/c.group+u.k-u.q, (r1-1)/c.group+u.k-u.q
	return max(0, first-c.left), min(u.k, last+c.right+1)
}

// keys calls do with the parts of the range from lo to hi that the mask has for u.
func (c *call) keys(u *unit, lo, hi int, do func(j0, j1 int)) {
	if c.Mask == nil {
		if lo < hi {
			do(lo, hi)
		}
		return
	}
	for _, r := range c.Mask.runs[u.r0/c.group/c.Mask.blockQ] {
		if j0, j1 := max(lo, r.lo*c.Mask.blockK), min(hi, r.hi*c.Mask.blockK); j0 < j1 {
			do(j0, j1)
		}
	}
}
