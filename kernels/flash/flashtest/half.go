package flashtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// HalfCall is a call on operands in a half format: what Params says, in bytes. Out has the
// elements and strides of Params.Out, which is nil, and is all ones before; LSE is as in
// Params.
type HalfCall struct {
	*flash.Params
	Format                           kernels.Float
	QBytes, KBytes, VBytes, OutBytes []byte
}

// HalfForward is an implementation that reads and writes half formats with float32 sums:
// strides are multiples of 8, masks have blocks of multiples of 128, values the dimension
// of keys, a multiple of 8 up to 256, and there are no slopes and no sinks.
type HalfForward func(t *testing.T, c *HalfCall)

// RunHalf holds an implementation against the definition: as near to textbook attention in
// float64 as textbook attention in the format, with the limits of Run. The work grows
// with effort: 1 for an emulator, 10 for a device.
func RunHalf(t *testing.T, forward HalfForward, effort int) {
	t.Run("features", func(t *testing.T) {
		byKind := map[string]*errorsOf{}
		for seed := range uint64(60 * effort) {
			c := randomHalf(seed, effort)
			if byKind[c.Kind] == nil {
				byKind[c.Kind] = &errorsOf{}
			}
			byKind[c.Kind].merge(checkHalf(t, forward, c, seed))
		}
		for kind, e := range byKind {
			if err := e.halfVerdict(); err != "" {
				t.Errorf("all cases of kind %s: %s", kind, err)
			}
		}
	})
	t.Run("lengths", func(t *testing.T) {
		var together errorsOf
		all := []int{1, 3, 64, 113, 128, 203, 239, 256, 799, 1024, 2048, 4097}
		for i, sq := range all {
			for j, sk := range all {
				if effort < 10 && (sq*sk > 60000 || (i+j)%3 > 0) {
					continue
				}
				c := &Case{Seqs: [][2]int{{sq, sk}}, Heads: 1, KVHeads: 1, Dim: []int{64, 96, 128, 256}[(i+3*j)%4], Format: []kernels.Float{kernels.F16, kernels.BF16}[j%2],
					Causal: (i+j/2)%2 == 0, Kind: "normal", Rows: 12}
				together.merge(checkHalf(t, forward, c, uint64(100*i+j)))
			}
		}
		if err := together.halfVerdict(); err != "" {
			t.Error(err)
		}
	})
	t.Run("bits", func(t *testing.T) {
		c := &Case{Seqs: [][2]int{{130, 200}, {64, 64}}, Heads: 2, KVHeads: 1, Dim: 64, Format: kernels.F16, Causal: true, Kind: "outliers"}
		call, _ := c.buildHalf(rand.New(rand.NewPCG(9, 9)))
		var first []byte
		for i := range 2 + 98*(effort/10) {
			for j := range call.OutBytes {
				call.OutBytes[j] = 0xff
			}
			forward(t, call)
			if first == nil {
				first = append(first, call.OutBytes...)
			} else if string(first) != string(call.OutBytes) {
				t.Fatalf("repeat %d gives other bits", i)
			}
		}
	})
	t.Run("unseen", func(t *testing.T) {
		for i, c := range []*Case{
			{Seqs: [][2]int{{5, 0}}},
			{Seqs: [][2]int{{5, 9}, {70, 20}}, Padding: []int{9, 20}},
			{Seqs: [][2]int{{90, 30}}, Causal: true},
			{Seqs: [][2]int{{90, 30}}, Window: &flash.Window{Left: -1, Right: 2}},
			{Seqs: [][2]int{{0, 30}}},
			{Seqs: [][2]int{{0, 0}, {3, 3}}},
			{Seqs: [][2]int{{200, 200}}, Mask: flash.FromFunc(128, 128, 200, 200, func(i, j int) bool { return i == 1 && j == 0 })},
		} {
			c.Heads, c.KVHeads, c.Dim, c.Kind, c.Format = 4, 2, 64, "normal", kernels.BF16
			checkHalf(t, forward, c, uint64(i))
		}
	})
	t.Run("nan", func(t *testing.T) {
		const n, d = 150, 64
		c := &Case{Seqs: [][2]int{{n, n}}, Heads: 1, KVHeads: 1, Dim: d, Format: kernels.F16, Causal: true, Kind: "normal"}
		for _, where := range []string{"query", "key"} {
			call, _ := c.buildHalf(rand.New(rand.NewPCG(4, 4)))
			x := [2]struct {
				b   []byte
				row int
			}{{call.QBytes, call.Q.Row}, {call.KBytes, call.K.Row}}[map[string]int{"key": 1}[where]]
			x.b[2*(70*x.row+5)], x.b[2*(70*x.row+5)+1] = 0xff, 0x7f
			forward(t, call)
			out := call.widen()
			for i := range n {
				want := where == "query" && i == 70 || where == "key" && i >= 70
				for j, y := range out[i*call.OutRow:][:d] {
					if (y != y) != want {
						t.Fatalf("NaN in %s 70: out of query %d, element %d is %v", where, i, j, y)
					}
				}
			}
		}
	})
}

// randomHalf is a case with any options that half formats have.
func randomHalf(seed uint64, effort int) *Case {
	r := rand.New(rand.NewPCG(seed, 8))
	one := func(n int) bool { return r.IntN(n) == 0 }
	c := &Case{KVHeads: 1 + r.IntN(2), Dim: []int{8, 40, 64, 80, 96, 128, 192, 256}[r.IntN(8)], HeadsFirst: one(2), Causal: one(2),
		Format: []kernels.Float{kernels.F16, kernels.BF16}[r.IntN(2)], Kind: Kinds[r.IntN(len(Kinds))], Rows: 12}
	c.Heads = c.KVHeads * []int{1, 1, 2, 3}[r.IntN(4)]
	masked := one(3)
	longest := [2]int{}
	for range 1 + r.IntN(3) {
		s := [2]int{r.IntN(40 + 60*effort), r.IntN(100 + 60*effort)}
		if masked {
			s = [2]int{r.IntN(300), r.IntN(400)}
		}
		if one(3) {
			s[1] = s[0]
		}
		c.Seqs = append(c.Seqs, s)
		longest = [2]int{max(longest[0], s[0]), max(longest[1], s[1])}
		if c.Padding != nil || one(4) {
			for len(c.Padding) < len(c.Seqs) {
				c.Padding = append(c.Padding, 0)
			}
			c.Padding[len(c.Seqs)-1] = r.IntN(s[1] + 1)
		}
		if masked {
			break
		}
	}
	if one(3) {
		c.Window = &flash.Window{Left: r.IntN(80) - 1, Right: r.IntN(60) - 1}
	}
	if one(4) {
		c.Softcap = float32(1 + r.IntN(50))
	}
	if one(4) {
		c.Scale = float32(r.Float64() + 0.01)
	}
	if masked {
		density := r.Float64()
		c.Mask = flash.FromFunc(128, 128*(1+r.IntN(2)), longest[0], longest[1], func(int, int) bool { return r.Float64() < density })
	}
	return c
}

// buildHalf puts a case into memory.
func (c *Case) buildHalf(r *rand.Rand) (*HalfCall, *reference) {
	call := &HalfCall{Params: &flash.Params{QStarts: []int{0}, KStarts: []int{0}}, Format: c.Format}
	p, ref := call.Params, &reference{c: c}
	ref.Params = p
	qn, kn := 0, 0
	for i, s := range c.Seqs {
		qn, kn = qn+s[0], kn+s[1]
		p.QStarts, p.KStarts = append(p.QStarts, qn), append(p.KStarts, kn)
		if c.Padding != nil {
			p.KLens = append(p.KLens, c.keys(i))
		}
	}
	if len(c.Seqs) == 1 && c.Padding == nil {
		p.QStarts, p.KStarts, p.QTokens, p.KTokens = nil, nil, qn, kn
	}
	p.QHeads, p.KVHeads, p.HeadDim = c.Heads, c.KVHeads, c.Dim
	p.Scale, p.Causal, p.Window, p.Softcap, p.Mask = c.Scale, c.Causal, c.Window, c.Softcap, c.Mask
	operand := func(tokens, heads int, what byte) (flash.Heads, []byte, []float32) {
		exact, _ := c.widen(c.draw(r, tokens*heads*c.Dim, c.Dim, what))
		row, head, size := c.strides(r, tokens, heads)
		x := make([]float32, size)
		for i := range x {
			x[i] = float32(math.NaN())
		}
		for t := range tokens {
			for h := range heads {
				if what == 'q' || !c.padded(t) {
					copy(x[t*row+h*head:], exact[(t*heads+h)*c.Dim:][:c.Dim])
				}
			}
		}
		raw := make([]byte, 2*size)
		cast.FromF32(raw, x, c.Format)
		return flash.Stored(raw, c.Format, row, head), raw, exact
	}
	p.Q, call.QBytes, ref.q = operand(qn, c.Heads, 'q')
	p.K, call.KBytes, ref.k = operand(kn, c.KVHeads, 'k')
	p.V, call.VBytes, ref.v = operand(kn, c.KVHeads, 'v')
	var size int
	p.OutRow, p.OutHead, size = c.strides(r, qn, c.Heads)
	call.OutBytes = make([]byte, 2*size)
	for i := range call.OutBytes {
		call.OutBytes[i] = 0xff
	}
	p.LSE = filled(c.Heads * qn)
	return call, ref
}

func (c *Case) strides(r *rand.Rand, tokens, heads int) (row, head, size int) {
	dim := c.Dim + 8*r.IntN(3)
	if c.HeadsFirst {
		row, head = dim, max(1, tokens)*dim
	} else {
		row, head = heads*dim, dim
	}
	if tokens > 0 {
		size = (tokens-1)*row + (heads-1)*head + c.Dim
	}
	return row, head, size
}

func (c *HalfCall) widen() []float32 {
	out := make([]float32, len(c.OutBytes)/2)
	cast.ToF32(out, c.OutBytes, c.Format)
	return out
}

// checkHalf runs one case and returns its errors.
func checkHalf(t *testing.T, forward HalfForward, c *Case, seed uint64) errorsOf {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 78))
	call, ref := c.buildHalf(r)
	forward(t, call)
	out, qn := call.widen(), len(call.LSE)/c.Heads
	inside := make([]bool, len(out))
	var e errorsOf
	for s := range c.Seqs {
		q0, _ := c.starts(s)
		for h := range c.Heads {
			for i := range c.Seqs[s][0] {
				for d := range c.Dim {
					inside[(q0+i)*call.OutRow+h*call.OutHead+d] = true
				}
			}
			for _, i := range c.sample(r, c.Seqs[s][0]) {
				want, lse, size := attend[float64](ref, s, i, h, 0)
				got := out[(q0+i)*call.OutRow+h*call.OutHead:][:c.Dim]
				e.addHalf(c.Format, got, want, c.attendHalf(ref, s, i, h))
				gotLSE := float64(call.LSE[h*qn+q0+i])
				if d := math.Abs(gotLSE - lse); !(d <= 1e-4*max(1, math.Abs(lse))+0x1p-22*size) && !(math.IsInf(lse, -1) && math.IsInf(gotLSE, -1)) {
					t.Fatalf("seed %d: %v: sequence %d, query %d, head %d: lse %v, want %v", seed, c, s, i, h, gotLSE, lse)
				}
				for d, x := range got {
					if !ref.any(s, i) && math.Float32bits(x) != 0 {
						t.Fatalf("seed %d: %v: sequence %d, query %d, head %d sees no key: out[%d] is %v, want 0", seed, c, s, i, h, d, x)
					}
				}
			}
		}
	}
	for i, in := range inside {
		if !in && (call.OutBytes[2*i] != 0xff || call.OutBytes[2*i+1] != 0xff) {
			t.Fatalf("seed %d: %v: element %d outside of Out was written", seed, c, i)
		}
	}
	if err := e.halfVerdict(); err != "" {
		t.Fatalf("seed %d: %v: %s", seed, c, err)
	}
	return e
}

// attendHalf is textbook attention as a simple program has it: every tensor in the format,
// products with float32 sums.
func (c *Case) attendHalf(r *reference, b, i, h int) []float32 {
	q0, k0 := c.starts(b)
	sk, hk := c.keys(b), h/(c.Heads/c.KVHeads)
	scale := r.Scale
	if scale == 0 {
		scale = float32(1 / math.Sqrt(float64(c.Dim)))
	}
	q := append([]float32(nil), r.q[((q0+i)*c.Heads+h)*c.Dim:][:c.Dim]...)
	for d := range q {
		q[d] *= scale
	}
	q, _ = c.widen(q)
	x, top := make([]float32, sk), float32(math.Inf(-1))
	for j := range x {
		for d, v := range r.k[((k0+j)*c.KVHeads+hk)*c.Dim:][:c.Dim] {
			x[j] += q[d] * v
		}
	}
	if c.Softcap != 0 {
		x, _ = c.widen(x)
		for j := range x {
			x[j] = c.Softcap * float32(math.Tanh(float64(x[j]/c.Softcap)))
		}
	}
	x, _ = c.widen(x)
	for j := range x {
		if !r.sees(b, i, j) {
			x[j] = float32(math.Inf(-1))
		}
		top = max(top, x[j])
	}
	out := make([]float32, c.Dim)
	if math.IsInf(float64(top), -1) {
		return out
	}
	var z float32
	for j := range x {
		x[j] = float32(math.Exp(float64(x[j] - top)))
		z += x[j]
	}
	for j := range x {
		x[j] /= z
	}
	x, _ = c.widen(x)
	for j, p := range x {
		for d, v := range r.v[((k0+j)*c.KVHeads+hk)*c.Dim:][:c.Dim] {
			out[d] += p * v
		}
	}
	out, _ = c.widen(out)
	return out
}

func (e *errorsOf) addHalf(f kernels.Float, got []float32, want []float64, plain []float32) {
	if e.plain == nil {
		e.plain = make([]struct{ max, sum float64 }, 1) // one textbook
	}
	e.add(got, want, plain)
	shifted, back := make([]float32, len(want)), make([]float32, len(want))
	ref := make([]float32, len(want))
	round := func(dst, src []float32) {
		raw := make([]byte, 2*len(src))
		cast.FromF32(raw, src, f)
		cast.ToF32(dst, raw, f)
	}
	for i, w := range want {
		ref[i] = float32(w)
	}
	round(ref, ref)
	for i := range ref {
		shifted[i] = ref[i] + 0.3
	}
	round(shifted, shifted)
	for i := range shifted {
		back[i] = shifted[i] - 0.3
	}
	round(back, back)
	for i := range back {
		e.place = max(e.place, math.Abs(float64(back[i]-ref[i])))
	}
}

// halfVerdict is FlashAttention-3's gate: twice the largest error of the textbook, 1.5 times
// the mean one, and what adding and subtracting 0.3 changes.
func (e *errorsOf) halfVerdict() string {
	if e.n == 0 {
		return ""
	}
	if limit := 2*e.plain[0].max + 2*e.place; e.max > limit {
		return complain("largest", e.max, e.plain[0].max, limit)
	}
	n := float64(e.n)
	if limit := 1.5*e.plain[0].sum/n + e.place/4; e.sum/n > limit {
		return complain("mean", e.sum/n, e.plain[0].sum/n, limit)
	}
	return ""
}

func complain(what string, got, plain, limit float64) string {
	return fmt.Sprintf("%s error %.3g, of the textbook %.3g, limit %.3g", what, got, plain, limit)
}
