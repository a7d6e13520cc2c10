package model

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels/gemm"
)

// parts is testdata/parts.json, made by interop/golden_parts.py from transformers.
type parts struct {
	Ropes []struct {
		Parameters   json.RawMessage `json:"parameters"`
		HeadDim      int             `json:"head_dim"`
		MaxPositions int             `json:"max_position_embeddings"`
		Width        int
		InvFreq      []float64 `json:"inv_freq"`
		Attention    float64
	}
	Activations struct {
		X []float32
		Y map[string][]float64
	}
	Alibi   map[int][]float64
	Routers []struct {
		Name       string
		Top        int
		Normalize  bool
		Scale      float32
		Groups     int
		TopGroups  int `json:"top_groups"`
		Correction []float32
		Scores     [][]float32
		Weights    [][]float64
	}
}

func readParts(t *testing.T) parts {
	t.Helper()
	b, err := os.ReadFile("testdata/parts.json")
	if err != nil {
		t.Fatal(err)
	}
	var p parts
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// near tells whether values agree to a few units of float32's last place.
func near(got float32, want float64) bool {
	return math.Abs(float64(got)-want) <= 1e-6*max(math.Abs(want), 1e-3)
}

func TestRopeFrequencies(t *testing.T) {
	for _, c := range readParts(t).Ropes {
		text := `{"max_position_embeddings": ` + itoa(c.MaxPositions) + `, "rope_parameters": ` + string(c.Parameters) + `}`
		cfg, err := hf.ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		k := newConfig(cfg)
		r := k.rope(c.HeadDim, "full_attention", ropeDefaults{theta: 10000})
		if k.err != nil {
			t.Errorf("%s: %v", text, k.err)
			continue
		}
		got := r.frequencies(r.variant(c.Width))
		if len(got) != len(c.InvFreq) || !near(float32(r.Attention), c.Attention) {
			t.Errorf("%s, width %d: %d frequencies, attention %v; want %d, %v", text, c.Width, len(got), r.Attention, len(c.InvFreq), c.Attention)
			continue
		}
		for i, want := range c.InvFreq {
			if !near(got[i], want) {
				t.Errorf("%s, width %d: frequency %d is %v, want %v", text, c.Width, i, got[i], want)
			}
		}
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func TestActivations(t *testing.T) {
	p := readParts(t).Activations
	if len(p.Y) != len(activations) {
		t.Errorf("golden values of %d names; the package knows %d", len(p.Y), len(activations))
	}
	for name, want := range p.Y {
		a, err := activationOf(name)
		if err != nil {
			t.Error(err)
			continue
		}
		got := append([]float32(nil), p.X...)
		a.apply(got)
		for i, w := range want {
			// torch computes in float32, so that small results of 1 - 1 have its rounding.
			if d := math.Abs(float64(got[i]) - w); d > 1e-6*max(1, math.Abs(w)) {
				t.Errorf("%s(%v) = %v, want %v", name, p.X[i], got[i], w)
			}
		}
	}
}

func TestALiBi(t *testing.T) {
	for heads, want := range readParts(t).Alibi {
		got := alibi(heads)
		for i, w := range want {
			if !near(got[i], w) {
				t.Errorf("%d heads: slope %d is %v, want %v", heads, i, got[i], w)
			}
		}
	}
}

func TestRouters(t *testing.T) {
	scorings := map[string]Scoring{"softmax over all": SoftmaxAll, "softmax over the chosen": SoftmaxTop, "sigmoid": Sigmoid}
	for _, c := range readParts(t).Routers {
		s := MoE{Scoring: scorings[c.Name], TopK: c.Top, Normalize: c.Normalize, Scale: c.Scale, Groups: c.Groups, TopGroups: c.TopGroups, GroupBest: 2}
		if s.Scale == 0 {
			s.Scale = 1
		}
		m := moe{MoE: &s, correction: c.Correction}
		for row, scores := range c.Scores {
			got := make([]float32, len(scores))
			m.route(scores, func(e int, w float32) { got[e] += w })
			for e, w := range c.Weights[row] {
				if !near(got[e], w) {
					t.Errorf("%s, groups %d/%d: row %d gives expert %d weight %v, want %v", c.Name, c.TopGroups, c.Groups, row, e, got[e], w)
				}
			}
		}
	}
}

// TestNorms compares with the formulas of the papers, computed here step by step.
func TestNorms(t *testing.T) {
	x := []float32{1, -2, 3, 0.5, 8, 8, 8, 8}
	w := []float32{1, 2, 3, 4, 0.5, 0.5, 0.5, 0.5}
	b := []float32{0, 0, 1, 1, 2, 2, 2, 2}
	for _, layer := range []bool{false, true} {
		n := norm{Norm: &Norm{Layer: layer, Dim: 4, Groups: 2, Eps: 1e-5}, weight: w, bias: b}
		got := make([]float32, len(x))
		n.apply(newEngine(1), got, 8, x, 8, 1, 8)
		for g := range 2 {
			v := x[4*g : 4*g+4]
			mean, square := 0.0, 0.0
			for _, a := range v {
				mean += float64(a) / 4
			}
			if !layer {
				mean = 0
			}
			for _, a := range v {
				square += (float64(a) - mean) * (float64(a) - mean) / 4
			}
			for i, a := range v {
				want := (float64(a)-mean)/math.Sqrt(square+1e-5)*float64(w[4*g+i]) + float64(b[4*g+i])
				if !near(got[4*g+i], want) {
					t.Errorf("layer norm %v: element %d is %v, want %v", layer, 4*g+i, got[4*g+i], want)
				}
			}
		}
	}
}

// TestClampedGate is the gate of gpt-oss on both sides of its limit.
func TestClampedGate(t *testing.T) {
	c := GLUClamp{Alpha: 1.702, Limit: 7}
	h := []float32{1, 2, 9, -9, -9, 9, 7, 0}
	want := make([]float64, 4)
	for i := range want {
		g, u := min(float64(h[2*i]), 7), min(max(float64(h[2*i+1]), -7), 7)
		want[i] = (u + 1) * g / (1 + math.Exp(-1.702*g))
	}
	c.apply(h[:4], h)
	for i, w := range want {
		if !near(h[i], w) {
			t.Errorf("element %d is %v, want %v", i, h[i], w)
		}
	}
}

// TestLearnedPositions: padding counts for GPT-2, never for OPT, and is a token for RoBERTa.
func TestLearnedPositions(t *testing.T) {
	q := Sequence{IDs: []int{5, 1, 7, 8}, Start: 3}
	for rule, want := range map[PositionRule][]int{ByColumn: {3, 4, 5, 6}, ByToken: {2, 3, 4, 5}, AfterPad: {2, 1, 3, 4}} {
		p := Positions{Rule: rule, Pad: 1}
		if d := cmp.Diff(want, p.rows(q)); d != "" {
			t.Errorf("rule %d (-want +got):\n%s", rule, d)
		}
	}
}

// TestPadded: rows of a batch without their padding, which is remembered.
func TestPadded(t *testing.T) {
	got, err := Padded([]int64{9, 5, 6, 7, 8, 9}, []int64{0, 1, 1, 1, 1, 0}, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	want := []Sequence{{IDs: []int{5, 6}, Start: 1, Width: 3}, {IDs: []int{7, 8}, Width: 3}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	r := Rope{Kind: RopeLong, Original: 2}
	if r.variant(got[1].width()) != 1 || r.variant(Sequence{IDs: []int{7, 8}}.width()) != 0 {
		t.Error("longrope goes by the width of the row, and by the tokens where none is given")
	}
}

// TestAdapter: W x + s B A x, whatever the format of W.
func TestAdapter(t *testing.T) {
	const in, out, rank, rows = 5, 3, 2, 4
	e := newEngine(2)
	value := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32((i*7)%11) - 5
		}
		return v
	}
	w, a, b, x := value(in*out), value(rank*in), value(out*rank), value(rows*in)
	l := &loader{engine: e, lowRank: func(name string) *LowRank {
		if name != "w" {
			t.Errorf("asked for the adapter of %q", name)
		}
		return &LowRank{A: a, B: b, Rank: rank, Scale: 0.5}
	}}
	r := &linear{Linear: &Linear{Weight: "w", In: in, Out: out, Stack: 0}, w: gemm.F32(w, out, in)}
	if err := l.adapt(r, "w", 0, r.Out); err != nil {
		t.Fatal(err)
	}
	got := make([]float32, rows*out)
	e.linear(got, out, x, in, rows, r)
	for i := range rows {
		for o := range out {
			want := 0.0
			for k := range in {
				d := 0.0
				for j := range rank {
					d += float64(b[o*rank+j]) * float64(a[j*in+k])
				}
				want += (float64(w[o*in+k]) + 0.5*d) * float64(x[i*in+k])
			}
			if !near(got[i*out+o], want) {
				t.Errorf("row %d, output %d is %v, want %v", i, o, got[i*out+o], want)
			}
		}
	}
}
