package flash_test

import (
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/kernels/flash/flashtest"
	"github.com/nf4conv/nf4conv/kernels/panel"
)

// eachTier runs f with every tier that this machine has. One that is required and not here
// is a failure: a machine without it must not pass for one on which it was tested.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			if got := panel.Best().Tier; got != tier {
				t.Fatalf("the tier in use is %s", got)
			}
			f(t)
		})
	}
	for _, tier := range strings.FieldsFunc(os.Getenv("NF4CONV_TEST_REQUIRE"), func(r rune) bool { return r == ',' }) {
		if strings.HasPrefix(tier, "avx") && !slices.Contains(kernels.Tiers(), tier) {
			t.Errorf("tier %q is required and not here; here are %v", tier, kernels.Tiers())
		}
	}
}

// forward reuses scratch from call to call, so that stale contents show.
func forward() flashtest.Forward {
	shared := map[int]*flash.Attention{}
	return func(threads int, p *flash.Params) {
		if shared[threads] == nil {
			shared[threads] = flash.New(threads)
		}
		shared[threads].Forward(p)
	}
}

func TestConformance(t *testing.T) {
	eachTier(t, func(t *testing.T) { flashtest.Run(t, forward()) })
}

func FuzzForward(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(1000 + seed)
	}
	run := forward()
	f.Fuzz(func(t *testing.T, seed uint64) {
		c := flashtest.Random(seed)
		c.Rows = 4
		flashtest.Check(t, run, c, seed)
	})
}

func TestWrongLengthsPanic(t *testing.T) {
	good := func() *flash.Params {
		x := func(n int) []float32 { return make([]float32, n) }
		return &flash.Params{Q: flash.F32(x(2*4*8), 32, 8), K: flash.F32(x(3*2*8), 16, 8), V: flash.F32(x(3*2*8), 16, 8), Out: x(64), OutRow: 32, OutHead: 8,
			QHeads: 4, KVHeads: 2, HeadDim: 8, QTokens: 2, KTokens: 3}
	}
	flash.New(1).Forward(good())
	for name, spoil := range map[string]func(p *flash.Params){
		"heads":       func(p *flash.Params) { p.KVHeads = 3 },
		"no heads":    func(p *flash.Params) { p.KVHeads = 0 },
		"dim":         func(p *flash.Params) { p.HeadDim = 9 },
		"q":           func(p *flash.Params) { p.QTokens = 3 },
		"k":           func(p *flash.Params) { p.KTokens = 4 },
		"out":         func(p *flash.Params) { p.Out = p.Out[:63] },
		"out row":     func(p *flash.Params) { p.OutRow = 7 },
		"lse":         func(p *flash.Params) { p.LSE = make([]float32, 7) },
		"slopes":      func(p *flash.Params) { p.Slopes = make([]float32, 2) },
		"sinks":       func(p *flash.Params) { p.Sinks = make([]float32, 5) },
		"scale":       func(p *flash.Params) { p.Scale = -1 },
		"scale nan":   func(p *flash.Params) { p.Scale = float32(math.NaN()) },
		"starts":      func(p *flash.Params) { p.QStarts = []int{0, 2} },
		"descending":  func(p *flash.Params) { p.QStarts, p.KStarts = []int{0, 2, 1}, []int{0, 1, 3} },
		"key lengths": func(p *flash.Params) { p.KLens = []int{4} },
		"mask":        func(p *flash.Params) { p.Mask = flash.Local(1, 2, 2, 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			p := good()
			spoil(p)
			flash.New(1).Forward(p)
		}()
	}
}

func TestBuilders(t *testing.T) {
	show := func(m *flash.BlockMask, block, n int) string {
		var b strings.Builder
		for i := 0; i < n; i += block {
			for j := 0; j < n; j += block {
				b.WriteByte(".x"[map[bool]int{true: 1}[m.Has(i, j)]])
			}
			b.WriteByte('\n')
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		mask    *flash.BlockMask
		want    string
		density float64
	}{
		"butterfly":    {flash.Butterfly(2, 8, 8), "xxx.\nxx.x\nx.xx\n.xxx\n", 12. / 16},
		"local":        {flash.Local(2, 8, 8, 1), "xx..\nxxx.\n.xxx\n..xx\n", 10. / 16},
		"strided":      {flash.Strided(2, 8, 8, 2), "x.x.\n.x.x\nx.x.\n.x.x\n", 8. / 16},
		"global local": {flash.GlobalLocal(2, 8, 8, 1, 0), "xxxx\nxx..\nx.x.\nx..x\n", 10. / 16},
		"list":         {flash.FromList(2, 2, 8, 8, [][2]int{{3, 0}, {0, 3}, {3, 0}}), "...x\n....\n....\nx...\n", 2. / 16},
		"bitmap":       {flash.FromBitmap(2, 2, [][]bool{{true, false, true, true}, {}, {}, {}}[:1]), "", 3. / 4},
		"cut short":    {flash.Local(3, 8, 8, 0), "x..\n.x.\n..x\n", 3. / 9},
	} {
		block := 2
		if name == "cut short" {
			block = 3
		}
		if c.want != "" && show(c.mask, block, 8) != c.want {
			t.Errorf("%s:\n%swant\n%s", name, show(c.mask, block, 8), c.want)
		}
		if got := c.mask.Density(); math.Abs(got-c.density) > 1e-12 {
			t.Errorf("%s: density %v, want %v", name, got, c.density)
		}
	}
}

// Memory is that of the scratch, whatever the number of tokens, and of the list of units.
func TestMemory(t *testing.T) {
	const d, unit = 64, 96 // of few tokens
	bytes := func(n int) int {
		x := make([]float32, n*d)
		h := flash.F32(x, d, d)
		p := &flash.Params{Q: h, K: h, V: h, Out: make([]float32, n*d), OutRow: d, OutHead: d, QHeads: 1, KVHeads: 1, HeadDim: d, QTokens: n, KTokens: n, Causal: true}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		flash.New(1).Forward(p)
		runtime.ReadMemStats(&after)
		return int(after.TotalAlloc - before.TotalAlloc)
	}
	small, large := bytes(256), bytes(2048)
	// A list that grows by appending allocates about three times what it holds.
	if most := small + 3*100*2048/unit; large > most {
		t.Errorf("a call allocates %d bytes for 256 tokens and %d for 2048, want %d at most", small, large, most)
	}
}
