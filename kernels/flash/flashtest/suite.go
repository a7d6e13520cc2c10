package flashtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// Run holds forward against the definition.
func Run(t *testing.T, forward Forward) {
	t.Run("lengths", func(t *testing.T) { lengths(t, forward) })
	t.Run("dims", func(t *testing.T) { dims(t, forward) })
	t.Run("kinds", func(t *testing.T) { kinds(t, forward) })
	t.Run("features", func(t *testing.T) {
		byKind := map[string]*errorsOf{}
		for seed := range uint64(200) {
			c := Random(seed)
			if byKind[c.Kind] == nil {
				byKind[c.Kind] = &errorsOf{}
			}
			byKind[c.Kind].merge(check(t, forward, c, seed))
		}
		for kind, e := range byKind {
			if err := e.verdict(); err != "" {
				t.Errorf("all cases of kind %s: %s", kind, err)
			}
		}
	})
	t.Run("masks", func(t *testing.T) { masks(t, forward) })
	t.Run("bits", func(t *testing.T) { sameBits(t, forward) })
	t.Run("nan", func(t *testing.T) { nan(t, forward) })
	t.Run("unseen", func(t *testing.T) { unseen(t, forward) })
}

// lengths are those at which tiles, chunks and units end, and ones around them.
func lengths(t *testing.T, forward Forward) {
	var together errorsOf
	all := []int{1, 3, 64, 113, 128, 203, 239, 256, 799, 1024, 2048, 4097}
	for i, sq := range all {
		for j, sk := range all {
			// All pairs of small ones; each large one with a few.
			if max(sq, sk) > 300 && (i+2*j)%4 != 0 && i != j || testing.Short() && max(sq, sk) > 1100 {
				continue
			}
			dim := 64 << ((i + j) % 2)
			c := &Case{Seqs: [][2]int{{sq, sk}}, Heads: 1, KVHeads: 1, Dim: dim, View: true, Causal: (i+j/2)%2 == 0, Kind: "normal", Rows: 12}
			together.merge(check(t, forward, c, uint64(100*i+j)))
		}
	}
	if err := together.verdict(); err != "" {
		t.Error(err)
	}
}

func dims(t *testing.T, forward Forward) {
	for _, dim := range []int{1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 40, 64, 72, 80, 96, 100, 112, 128, 160, 192, 200, 256} {
		for i, vdim := range []int{0, 8, 13, 64} {
			c := &Case{Seqs: [][2]int{{67, 131}}, Heads: 2, KVHeads: 1, Dim: dim, VDim: vdim, View: i%2 == 0, Causal: i%2 == 1, Kind: "normal", Rows: 25}
			Check(t, forward, c, uint64(dim*10+i))
		}
	}
}

func kinds(t *testing.T, forward Forward) {
	for i, kind := range Kinds {
		var together errorsOf
		for j, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
			for _, s := range [][2]int{{200, 200}, {64, 1500}} {
				c := &Case{Seqs: [][2]int{s}, Heads: 2, KVHeads: 2, Dim: 64, Format: f, Causal: true, Kind: kind, Rows: 20}
				together.merge(check(t, forward, c, uint64(10*i+j)))
				c.Softcap, c.Scale = 15, 1 // so that the cap bites
				together.merge(check(t, forward, c, uint64(10*i+j)))
			}
		}
		if err := together.verdict(); err != "" {
			t.Errorf("%s: %s", kind, err)
		}
	}
}

// Random is a small case with any options.
func Random(seed uint64) *Case {
	r := rand.New(rand.NewPCG(seed, 3))
	one := func(n int) bool { return r.IntN(n) == 0 }
	c := &Case{KVHeads: 1 + r.IntN(3), Dim: []int{32, 40, 64, 80, 128}[r.IntN(5)], HeadsFirst: one(2), Causal: one(2),
		Format: kernels.Float(r.IntN(3)), ALiBi: one(4), Sinks: one(4), Kind: Kinds[r.IntN(len(Kinds))], Rows: 12}
	c.Heads = c.KVHeads * []int{1, 1, 2, 3, 8}[r.IntN(5)]
	c.View = c.Format == kernels.F32 && one(2)
	if one(6) {
		c.VDim = 1 + r.IntN(100)
	}
	longest := [2]int{}
	for range 1 + r.IntN(3) {
		s := [2]int{r.IntN(70), r.IntN(200)}
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
	if one(3) {
		density := r.Float64()
		c.Mask = flash.FromFunc(1+r.IntN(70), 1+r.IntN(70), longest[0], longest[1], func(int, int) bool { return r.Float64() < density })
	}
	return c
}

// masks: attention under a block mask is attention under the mask of its elements.
func masks(t *testing.T, forward Forward) {
	const n = 600
	for name, m := range map[string]*flash.BlockMask{
		"butterfly":    flash.Butterfly(64, n, n),
		"local":        flash.Local(16, n, n, 2),
		"strided":      flash.Strided(32, n, n, 3),
		"global local": flash.GlobalLocal(48, n, n, 1, 1),
		"none":         flash.FromFunc(64, 64, n, n, func(int, int) bool { return false }),
		"all":          flash.FromFunc(64, 64, n, n, func(int, int) bool { return true }),
		"wide blocks":  flash.FromFunc(300, 250, n, n, func(i, j int) bool { return (i+j)%2 == 0 }),
		"narrow":       flash.FromList(100, 1, n, n, [][2]int{{0, 3}, {0, 4}, {1, 599}, {5, 0}, {5, 131}}),
		"single":       flash.FromFunc(1, 1, n, n, func(i, j int) bool { return (7*i+j)%11 == 0 }),
	} {
		for i, causal := range []bool{false, true} {
			for _, heads := range []int{1, 4} {
				t.Run(fmt.Sprintf("%s/causal=%v/heads=%d", name, causal, heads), func(t *testing.T) {
					c := &Case{Seqs: [][2]int{{n, n}}, Heads: heads, KVHeads: 1, Dim: 64, View: true, Causal: causal, Mask: m, Kind: "normal", Rows: 25}
					Check(t, forward, c, uint64(i))
				})
			}
		}
	}
}

// sameBits: 100 repeats in any number of threads.
func sameBits(t *testing.T, forward Forward) {
	for seed := range uint64(5) {
		c := &Case{Seqs: [][2]int{{70, 140}, {20, 20}, {1, 131}}, Heads: 4, KVHeads: 2, Dim: 32, Causal: seed%2 == 0, ALiBi: seed == 3, Kind: "outliers"}
		if seed == 4 {
			c.Mask = flash.Butterfly(16, 70, 140)
		}
		b := c.build(rand.New(rand.NewPCG(seed, 1)))
		forward(1, &b.p)
		out, lse := append([]float32(nil), b.p.Out...), append([]float32(nil), b.p.LSE...)
		for i := range 100 {
			clear(b.p.Out)
			clear(b.p.LSE)
			forward(1+i%7, &b.p)
			for k, s := range []([2][]float32){{out, b.p.Out}, {lse, b.p.LSE}} {
				for j := range s[0] {
					if s[0][j] != canary && math.Float32bits(s[0][j]) != math.Float32bits(s[1][j]) {
						t.Fatalf("%v: repeat %d, %d threads: element %d of %s is %v, was %v", c, i, 1+i%7, j, []string{"out", "lse"}[k], s[1][j], s[0][j])
					}
				}
			}
		}
	}
}

// nan: a NaN makes NaN of what sees it and of nothing else.
func nan(t *testing.T, forward Forward) {
	const n, d = 150, 32
	bad := float32(math.NaN())
	for _, where := range []string{"query", "key"} {
		c := &Case{Seqs: [][2]int{{n, n}}, Heads: 1, KVHeads: 1, Dim: d, View: true, Causal: true, Kind: "normal"}
		b := c.build(rand.New(rand.NewPCG(4, 4)))
		x := append([]float32(nil), b.ref.q...)
		if where == "key" {
			x = append([]float32(nil), b.ref.k...)
		}
		x[70*d+5] = bad
		if where == "query" {
			b.p.Q = flash.F32(x, d, d)
		} else {
			b.p.K = flash.F32(x, d, d)
		}
		forward(2, &b.p)
		for i := range n {
			want := where == "query" && i == 70 || where == "key" && i >= 70
			for j, y := range b.p.Out[i*b.p.OutRow:][:d] {
				if (y != y) != want {
					t.Fatalf("NaN in %s 70: out of query %d, element %d is %v", where, i, j, y)
				}
			}
		}
	}
}

// unseen: queries without keys, because there are none, because all are padding, because
// they stand before the first, or because the window ends before it.
func unseen(t *testing.T, forward Forward) {
	for i, c := range []*Case{
		{Seqs: [][2]int{{5, 0}}},
		{Seqs: [][2]int{{5, 9}, {70, 20}}, Padding: []int{9, 20}},
		{Seqs: [][2]int{{90, 30}}, Causal: true},
		{Seqs: [][2]int{{90, 30}}, Window: &flash.Window{Left: -1, Right: 2}},
		{Seqs: [][2]int{{0, 30}}},
		{Seqs: [][2]int{{0, 0}, {3, 3}}},
	} {
		c.Heads, c.KVHeads, c.Dim, c.Kind = 4, 2, 64, "normal"
		Check(t, forward, c, uint64(i))
		c.Sinks = true
		Check(t, forward, c, uint64(i))
	}
}
