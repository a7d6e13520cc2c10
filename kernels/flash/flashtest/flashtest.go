// Package flashtest is the conformance suite of kernels/flash: any implementation, on any
// device, must come as near to textbook attention in float64 as textbook attention in
// float32 does, which is how FlashAttention tests itself (hopper/test_flash_attn.py): over
// the rows of a case, the largest error at most twice as large, plus some last places, and
// the mean error at most 1.5 times; lse within 1e-4 and the last places of the terms of a score; a
// query that sees nothing exactly zero; the same bits every time.
package flashtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// Forward is (*flash.Attention).Forward in so many threads.
type Forward func(threads int, p *flash.Params)

// A Case describes one call.
type Case struct {
	Seqs           [][2]int // queries and keys of each sequence, padding of keys included
	Padding        []int    // of the keys, per sequence
	Heads, KVHeads int
	Dim, VDim      int // VDim 0: Dim
	Format         kernels.Float
	View           bool // float32 through flash.F32, not flash.Stored
	HeadsFirst     bool // [heads, tokens, dim] in memory
	Causal         bool
	Window         *flash.Window
	Scale          float32
	Softcap        float32
	ALiBi, Sinks   bool
	Mask           *flash.BlockMask
	Kind           string
	Rows           int // queries per head that are looked at; 0: all
}

func (c *Case) String() string {
	w := "none"
	if c.Window != nil {
		w = fmt.Sprintf("%d,%d", c.Window.Left, c.Window.Right)
	}
	mask := "none"
	if c.Mask != nil {
		mask = fmt.Sprintf("%.2f", c.Mask.Density())
	}
	return fmt.Sprintf("%v pad %v heads %d/%d dim %d/%d %v heads first %v causal %v window %s scale %v softcap %v alibi %v sinks %v mask %s %s",
		c.Seqs, c.Padding, c.Heads, c.KVHeads, c.Dim, c.VDim, c.Format, c.HeadsFirst, c.Causal, w, c.Scale, c.Softcap, c.ALiBi, c.Sinks, mask, c.Kind)
}

func (c *Case) vdim() int {
	if c.VDim == 0 {
		return c.Dim
	}
	return c.VDim
}

func (c *Case) keys(b int) int {
	if c.Padding == nil {
		return c.Seqs[b][1]
	}
	return c.Seqs[b][1] - c.Padding[b]
}

func (c *Case) starts(b int) (q, k int) {
	for _, s := range c.Seqs[:b] {
		q, k = q+s[0], k+s[1]
	}
	return q, k
}

// Kinds are the distributions of queries, keys and values. A normal one hardly tells
// implementations apart.
var Kinds = []string{"normal", "outliers", "large", "constant rows", "shifted", "zero"}

func (c *Case) draw(r *rand.Rand, n, dim int, what byte) []float32 {
	x := make([]float32, n)
	for i := range x {
		v := r.NormFloat64()
		switch c.Kind {
		case "outliers": // N(0,1) + N(0,100)*Bernoulli(0.001), as in FlashAttention-3
			if r.IntN(1000) == 0 {
				v += 10 * r.NormFloat64()
			}
		case "large":
			if what != 'v' {
				v *= 30
			}
		case "constant rows":
			if i%dim != 0 {
				v = float64(x[i-1])
			}
		case "shifted": // all scores are far from zero: exp overflows without the maximum
			if what != 'v' {
				v += 8
			}
		case "zero":
			v = 0
		}
		x[i] = float32(v)
	}
	return x
}

const canary = 54321.5

// built is a case in memory.
type built struct {
	p      flash.Params
	ref    reference
	all    []float32 // out with guards
	shift  int
	lseAll []float32
	qn     int
}

func (c *Case) build(r *rand.Rand) *built {
	b := &built{shift: r.IntN(17)}
	qn, kn := 0, 0
	p := &b.p
	p.QStarts, p.KStarts = []int{0}, []int{0}
	for _, s := range c.Seqs {
		qn, kn = qn+s[0], kn+s[1]
		p.QStarts, p.KStarts = append(p.QStarts, qn), append(p.KStarts, kn)
	}
	b.qn = qn
	if len(c.Seqs) == 1 {
		p.QStarts, p.KStarts, p.QTokens, p.KTokens = nil, nil, qn, kn
	}
	if c.Padding != nil {
		for i := range c.Seqs {
			p.KLens = append(p.KLens, c.keys(i))
		}
	}
	p.QHeads, p.KVHeads, p.HeadDim, p.ValueDim = c.Heads, c.KVHeads, c.Dim, c.VDim
	p.Scale, p.Causal, p.Window, p.Softcap, p.Mask = c.Scale, c.Causal, c.Window, c.Softcap, c.Mask
	for h := range c.Heads {
		if c.ALiBi {
			p.Slopes = append(p.Slopes, float32(math.Exp2(-8*float64(h+1)/float64(c.Heads))))
		}
		if c.Sinks {
			p.Sinks = append(p.Sinks, float32(3*r.NormFloat64()))
		}
	}
	b.ref = reference{Params: p, c: c}
	p.Q, b.ref.q = c.heads(r, qn, c.Heads, c.Dim, 'q')
	p.K, b.ref.k = c.heads(r, kn, c.KVHeads, c.Dim, 'k')
	p.V, b.ref.v = c.heads(r, kn, c.KVHeads, c.vdim(), 'v')
	gap := r.IntN(3)
	p.OutRow, p.OutHead = c.Heads*(c.vdim()+gap), c.vdim()+gap
	if c.HeadsFirst {
		p.OutRow, p.OutHead = c.vdim()+gap, qn*(c.vdim()+gap)
	}
	size := 0
	if qn > 0 {
		size = (qn-1)*p.OutRow + (c.Heads-1)*p.OutHead + c.vdim()
	}
	b.all = filled(size + 40)
	p.Out = b.all[b.shift : b.shift+size : b.shift+size]
	b.lseAll = filled(c.Heads*qn + 40)
	p.LSE = b.lseAll[b.shift : b.shift+c.Heads*qn : b.shift+c.Heads*qn]
	return b
}

func filled(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = canary
	}
	return x
}

// heads makes tokens of one operand, with NaN in gaps between them and in padding.
func (c *Case) heads(r *rand.Rand, tokens, heads, dim int, what byte) (flash.Heads, []float32) {
	exact, _ := c.widen(c.draw(r, tokens*heads*dim, dim, what))
	gap := r.IntN(3)
	row, head := heads*(dim+gap), dim+gap
	if c.HeadsFirst {
		row, head = dim+gap, tokens*(dim+gap)
	}
	size := 0
	if tokens > 0 {
		size = (tokens-1)*row + (heads-1)*head + dim
	}
	x := make([]float32, size)
	for i := range x {
		x[i] = float32(math.NaN())
	}
	for t := range tokens {
		if what != 'q' && c.padded(t) {
			continue
		}
		for h := range heads {
			copy(x[t*row+h*head:], exact[(t*heads+h)*dim:][:dim])
		}
	}
	if c.View {
		return flash.F32(x, row, head), exact
	}
	_, raw := c.widen(x)
	return flash.Stored(raw, c.Format, row, head), exact
}

func (c *Case) padded(token int) bool {
	for b := range c.Seqs {
		if _, k0 := c.starts(b); token >= k0+c.keys(b) && token < k0+c.Seqs[b][1] {
			return true
		}
	}
	return false
}

// Check runs one case.
func Check(t *testing.T, forward Forward, c *Case, seed uint64) {
	t.Helper()
	check(t, forward, c, seed)
}

func check(t *testing.T, forward Forward, c *Case, seed uint64) errorsOf {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 77))
	b := c.build(r)
	forward(1+r.IntN(3), &b.p)
	b.untouched(t, c)
	if t.Failed() {
		t.Fatalf("seed %d: %v", seed, c)
	}
	rows := b.rows(t, c, seed, func(n int) []int { return c.sample(r, n) })
	e := compare(&b.ref, rows, 2)
	err := e.verdict()
	if err != "" && len(rows) < fewRows {
		all := compare(&b.ref, b.rows(t, c, seed, everyOne), manyOrders)
		err = all.verdict()
	}
	if err != "" {
		t.Fatalf("seed %d: %v: %s", seed, c, err)
	}
	return e
}

// With few rows, all hangs on the one in which two large scores nearly tie, and two plain
// sums of it may both happen to be good: what is unavoidable shows in more rows and sums.
const (
	fewRows    = 1000
	manyOrders = 16
)

// rows are the queries that sample chooses of each head, checked for what needs no other rows.
func (b *built) rows(t *testing.T, c *Case, seed uint64, sample func(n int) []int) (rows []row) {
	t.Helper()
	for s := range c.Seqs {
		q0, _ := c.starts(s)
		for h := range c.Heads {
			for _, i := range sample(c.Seqs[s][0]) {
				want, lse, size := attend[float64](&b.ref, s, i, h, 0)
				got := b.p.Out[(q0+i)*b.p.OutRow+h*b.p.OutHead:][:c.vdim()]
				rows = append(rows, row{s, i, h, got, want})
				gotLSE := float64(b.p.LSE[h*b.qn+q0+i])
				if d := math.Abs(gotLSE - lse); !(d <= 1e-4*max(1, math.Abs(lse))+0x1p-23*size) && !(math.IsInf(lse, -1) && math.IsInf(gotLSE, -1)) {
					t.Fatalf("seed %d: %v: sequence %d, query %d, head %d: lse %v, want %v", seed, c, s, i, h, gotLSE, lse)
				}
				if math.IsInf(lse, -1) || !b.ref.any(s, i) {
					for d, x := range got {
						if math.Float32bits(x) != 0 {
							t.Fatalf("seed %d: %v: sequence %d, query %d, head %d sees no key: out[%d] is %v, want 0", seed, c, s, i, h, d, x)
						}
					}
				}
			}
		}
	}
	return rows
}

// row is a query that is looked at: what came out and what should have.
type row struct {
	s, i, h int
	got     []float32
	want    []float64
}

// compare holds the rows against the exact results beside plain float32 in so many orders.
func compare(r *reference, rows []row, orders int) errorsOf {
	e := errorsOf{plain: make([]struct{ max, sum float64 }, orders)}
	for _, x := range rows {
		plain := make([][]float32, orders)
		for o := range plain {
			plain[o], _, _ = attend[float32](r, x.s, x.i, x.h, order(o))
		}
		e.add(x.got, x.want, plain...)
	}
	return e
}

func (r *reference) any(b, i int) bool {
	for j := range r.c.keys(b) {
		if r.sees(b, i, j) {
			return true
		}
	}
	return false
}

// sample is which of n queries are looked at: all, or the ends and some between.
func (c *Case) sample(r *rand.Rand, n int) []int {
	if c.Rows == 0 || n <= c.Rows {
		return everyOne(n)
	}
	var list []int
	for range c.Rows - 2 {
		list = append(list, r.IntN(n))
	}
	return append(list, 0, n-1)
}

func everyOne(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func (b *built) untouched(t *testing.T, c *Case) {
	t.Helper()
	inside := make([]bool, len(b.all))
	for tok := range b.qn {
		for h := range c.Heads {
			for d := range c.vdim() {
				inside[b.shift+tok*b.p.OutRow+h*b.p.OutHead+d] = true
			}
		}
	}
	for i, x := range b.all {
		if !inside[i] && x != canary {
			t.Errorf("element %d outside of Out was written", i-b.shift)
			return
		}
	}
	for i, x := range b.lseAll {
		if (i < b.shift || i >= b.shift+c.Heads*b.qn) && x != canary {
			t.Errorf("element %d outside of LSE was written", i-b.shift)
		}
	}
}

// errorsOf compares with the exact result.
type errorsOf struct {
	n        int
	max, sum float64
	size     float64                      // of the exact results, all together
	largest  float64                      // of them
	plain    []struct{ max, sum float64 } // in each order
	place    float64                      // what adding and subtracting 0.3 in float32 changes at most
}

func (e *errorsOf) add(got []float32, want []float64, plain ...[]float32) {
	for i, w := range want {
		d := math.Abs(float64(got[i]) - w)
		if math.IsNaN(d) {
			d = math.Inf(1)
		}
		e.n, e.size, e.largest = e.n+1, e.size+math.Abs(w), max(e.largest, math.Abs(w))
		e.max, e.sum = max(e.max, d), e.sum+d
		for j := range e.plain {
			p := math.Abs(float64(plain[j][i]) - w)
			e.plain[j].max, e.plain[j].sum = max(e.plain[j].max, p), e.plain[j].sum+p
		}
		ref := float32(w)
		shifted := ref + 0.3
		shifted -= 0.3
		e.place = max(e.place, math.Abs(float64(shifted-ref)))
	}
}

// merge adds the elements of other.
func (e *errorsOf) merge(other errorsOf) {
	e.n += other.n
	e.max, e.sum, e.place = max(e.max, other.max), e.sum+other.sum, max(e.place, other.place)
	e.size, e.largest = e.size+other.size, max(e.largest, other.largest)
	for j, o := range other.plain {
		if j == len(e.plain) {
			e.plain = append(e.plain, o)
			continue
		}
		p := &e.plain[j]
		p.max, p.sum = max(p.max, o.max), p.sum+o.sum
	}
}

func (e *errorsOf) verdict() string {
	if e.n == 0 {
		return ""
	}
	most, sum := 0.0, 0.0
	for _, p := range e.plain {
		most, sum = max(most, p.max), max(sum, p.sum)
	}
	// Un-normalised sums are rounded once more, when they are multiplied by 1/z, which is
	// rounded too: by half of a last place each at most, by a quarter in the mean.
	if limit := 2*most + 2*e.place + 0x1p-23*e.largest; e.max > limit {
		return fmt.Sprintf("largest error %.3g, of plain float32 %.3g, limit %.3g", e.max, most, limit)
	}
	if limit := 1.5*sum + 0x1p-25*e.size; e.sum > limit {
		return fmt.Sprintf("mean error %.3g, of plain float32 %.3g", e.sum/float64(e.n), sum/float64(e.n))
	}
	return ""
}
