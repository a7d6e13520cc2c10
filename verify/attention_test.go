package verify

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/model"
)

func TestParseAttention(t *testing.T) {
	for _, c := range []struct {
		pattern string
		has     func(i, j int) bool // of blocks
		block   int
	}{
		{"local:64", func(i, j int) bool { return i-j <= 1 && j-i <= 1 }, 64},
		{"local:65", func(i, j int) bool { return i-j <= 2 && j-i <= 2 }, 64},
		{"local:16@16", func(i, j int) bool { return i-j <= 1 && j-i <= 1 }, 16},
		{"butterfly@32", func(i, j int) bool { x := i ^ j; return x&(x-1) == 0 }, 32},
		{"strided:3@16", func(i, j int) bool { return (i-j)%3 == 0 }, 16},
		{"global:20+16@16", func(i, j int) bool { return i < 2 || j < 2 || i-j <= 1 && j-i <= 1 }, 16},
	} {
		a, err := ParseAttention(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		const tokens = 300
		m, err := a.Mask(ones(t, tokens))
		if err != nil {
			t.Fatal(err)
		}
		for i := range tokens {
			for j := range tokens {
				if m.Has(i, j) != c.has(i/c.block, j/c.block) {
					t.Fatalf("%s: query %d, key %d: %v", c.pattern, i, j, m.Has(i, j))
				}
			}
		}
		for _, causal := range []bool{false, true} {
			var have, all float64
			for i := range tokens {
				for j := range tokens {
					if causal && j > i {
						continue
					}
					all++
					if m.Has(i, j) {
						have++
					}
				}
			}
			if got := attended(ones(t, tokens), m, causal); math.Abs(got-have/all) > 1e-12 {
				t.Errorf("%s: attended %v, want %v", c.pattern, got, have/all)
			}
		}
	}
	if a, err := ParseAttention("dense"); a != nil || err != nil {
		t.Errorf("dense: %v, %v", a, err)
	}
	for _, s := range []string{"", "local", "local:0", "local:-1", "local:x", "butterfly:2", "butterfly@0", "strided:0", "global:1", "global:1+", "dense@3", "no/such/file", "local:9999999999999999999"} {
		if _, err := ParseAttention(s); fault.ClassOf(err) != fault.Usage {
			t.Errorf("%q: %v; want an error of class usage", s, err)
		}
	}
}

func ones(t *testing.T, n int) *IDs {
	t.Helper()
	ids, err := NewIDs([]model.Sequence{{IDs: make([]int, n)}})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestReadAttention(t *testing.T) {
	a, err := ReadAttention(strings.NewReader(`{"block": 8, "rows": ["10", "01"]}`))
	if err != nil {
		t.Fatal(err)
	}
	m, err := a.Mask(ones(t, 16))
	if err != nil || !m.Has(7, 0) || m.Has(8, 0) || !m.Has(15, 8) {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := a.Mask(ones(t, 17)); fault.ClassOf(err) != fault.Input {
		t.Errorf("17 tokens under a mask of 16: %v", err)
	}
	for _, s := range []string{``, `{}`, `{"block": 0, "rows": ["1"]}`, `{"block": 8, "rows": ["01", "01"]}`, `{"block": 8, "rows": ["1", "1"]}`, `{"block": 8, "rows": ["12", "11"]}`, `{"block": 8, "rows": ["1"], "x": 1}`, `{"block": 8, "rows": ["1"]} 2`} {
		if _, err := ReadAttention(strings.NewReader(s)); fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: %v; want an error of class input", s, err)
		}
	}
}

// TestSparseAttentionCosts: a mask of everything costs nothing, less costs more, and one
// that is too small is refused.
func TestSparseAttentionCosts(t *testing.T) {
	c := openModel(t, kjv)
	text, err := SampleText()
	if err != nil {
		t.Fatal(err)
	}
	ids, _, err := Tokenize(c, c, text, "sample", TextOptions{Context: 256, Tokens: 512})
	if err != nil {
		t.Fatal(err)
	}
	kld := func(pattern string) (float64, Text) {
		a, err := ParseAttention(pattern)
		if err != nil {
			t.Fatal(err)
		}
		mask, err := a.Mask(ids)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(context.Background(), c, c, Options{Stages: []string{StageLayers, StageLogits}, Text: ids, Mask: mask, Attention: a.Name, Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		m, _ := r.Metric("kld.mean")
		return float64(m.Value), r.Text
	}
	all, said := kld("local:256@16")
	if !(math.Abs(all) < 1e-6) || said.Attended != 1 {
		t.Errorf("a mask of everything: divergence %v, attended %v", all, said.Attended)
	}
	wide, _ := kld("local:64@16")
	narrow, said := kld("local:1@16")
	if !(wide > 1e-4 && narrow > wide) || !(said.Attended > 0.1 && said.Attended < 0.25) || said.Attention != "local:1, blocks of 16" {
		t.Errorf("divergence %v within 64 tokens, %v within 16; %+v", wide, narrow, said)
	}
	_, err = Run(context.Background(), c, c, Options{Text: ids, Mask: flash.Butterfly(16, 128, 128), Attention: "small"})
	if fault.ClassOf(err) != fault.Input {
		t.Errorf("a mask that is too small: %v", err)
	}
}

func FuzzReadAttention(f *testing.F) {
	for _, s := range []string{`{"block": 8, "rows": ["10", "11"]}`, `{"block": 1, "rows": []}`, `{"block": -1, "rows": ["1"]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ReadAttention(strings.NewReader(s))
		if err != nil {
			if fault.ClassOf(err) != fault.Input {
				t.Errorf("%v is not of class input", err)
			}
			return
		}
		m, err := a.Mask(ones(t, min(a.limit, 100)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(a.limit, 100) {
			if seen := m.Has(i, 0) || i > 0; !seen {
				t.Errorf("token %d sees nothing", i)
			}
		}
	})
}

func FuzzParseAttention(f *testing.F) {
	for _, s := range []string{"dense", "local:3@2", "butterfly@9", "strided:2", "global:3+4@16"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(s, "/.") {
			return // no files
		}
		a, err := ParseAttention(s)
		if err != nil || a == nil {
			return
		}
		if _, err := a.Mask(ones(t, 70)); err != nil && fault.ClassOf(err) != fault.Input {
			t.Errorf("%q: %v", s, err)
		}
	})
}
