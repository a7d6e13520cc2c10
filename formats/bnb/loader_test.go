package bnb_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/bnb"
)

// TestMatchersAreTransformers asks the matchers what transformers' own functions were
// asked when testdata/matchers.jsonl was made.
func TestMatchersAreTransformers(t *testing.T) {
	var paths []string
	lists, refused := 0, 0
	golden(t, "matchers.jsonl", func(line []byte) {
		var l struct {
			Paths  []string
			Keys   []string
			V5, V4 *string
		}
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		if l.Paths != nil {
			paths = l.Paths
			return
		}
		lists++
		for loader, want := range map[arch.Loader]*string{arch.Transformers5: l.V5, arch.Transformers4: l.V4} {
			m, err := bnb.NewMatcher(loader, l.Keys)
			if err != nil {
				// A regular expression that cannot be simulated is refused; a name never is.
				refused++
				if want != nil && !strings.ContainsAny(strings.Join(l.Keys, ""), `$\(?{`) {
					t.Errorf("%s refuses %q: %v", loader, l.Keys, err)
				}
				continue
			}
			if want == nil {
				t.Errorf("%s takes %q, at which transformers raises", loader, l.Keys)
				continue
			}
			for i, p := range paths {
				if got := m.Skips(p); got != ((*want)[i] == '1') {
					t.Errorf("%s: keys %q, module %s: skipped %v, transformers says otherwise", loader, l.Keys, p, got)
				}
			}
		}
	})
	if lists < 400 || len(paths) < 40 || refused > 16 {
		t.Errorf("%d lists of %d paths, %d refused: the golden file shrank, or too much is refused", lists, len(paths), refused)
	}
}

// TestMatcherTable spells out where the three loaders part.
func TestMatcherTable(t *testing.T) {
	const layer = "model.layers.0."
	const tower = "model.vision_tower.encoder.layers.3.self_attn.q_proj"
	for _, c := range []struct {
		path, key    string
		v5, v4, vllm bool // skipped
	}{
		{"lm_head", "lm_head", true, true, true},
		{"score", "score", true, true, true},
		{layer + "self_attn.o_proj", layer + "self_attn.o_proj", true, true, true},
		{tower, "vision_tower", false, true, true},
		{tower, "model.vision_tower", true, true, true},
		{"vision_tower.encoder.layers.3.self_attn.q_proj", "model.vision_tower", false, false, false},
		{"model.layers.10.mlp.up_proj", "model.layers.1", false, false, false},
		{"model.layers.1.mlp.up_proj", "model.layers.1", true, true, true},
		{"model.layers.1.mlp.up_proj", "layers.1", false, true, false},
		{layer + "mlp.gate", "mlp.gate", true, false, false},
		{layer + "mlp.gate", "gate", true, true, true},
		{layer + "mlp.gate_proj", layer + "mlp.gate", false, false, false},
		{layer + "mlp.gate_proj", "gate", false, false, false},
		{layer + "self_attn.o_proj", "self_attn", false, true, true},
		{layer + "self_attn.o_proj", "o_proj", true, true, true},
		{layer + "self_attn.o_proj", "proj", true, false, false},
		{layer + "self_attn.o_proj", "attn", false, true, false},
		{layer + "mlp.experts.3.w1", "experts", false, true, true},
		{"model.lm_head", "lm_head", true, true, true},
		{"my_lm_head", "lm_head", true, false, false},
		{"lm_head.dense", "lm_head", true, true, true},
		{"modelXlayersX0", "model.layers.0", true, false, false}, // a dot of a regular expression
		{layer + "mlp.up_proj", "", true, true, false},
		{layer + "mlp.up_proj", "model", true, true, true},
	} {
		for loader, want := range map[arch.Loader]bool{arch.Transformers5: c.v5, arch.Transformers4: c.v4, arch.VLLM: c.vllm} {
			m, err := bnb.NewMatcher(loader, []string{"unrelated", c.key})
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Skips(c.path); got != want {
				t.Errorf("%s: key %q, module %s: skipped %v, want %v", loader, c.key, c.path, got, want)
			}
		}
	}
	for _, l := range []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM} {
		m, err := bnb.NewMatcher(l, nil)
		if err != nil || m.Skips("lm_head") {
			t.Errorf("%s: an empty list skips lm_head (%v)", l, err)
		}
	}
}

// Keys that Go and Python read differently, or that only one of them can read, must not
// be simulated wrongly.
func TestMatcherRefusesWhatItCannotSimulate(t *testing.T) {
	for _, key := range []string{"[", "(", "*a", `a\`, "(?!lm_head).*", "model$", `model\b`, `\Qmodel\E`, "a{,2}"} {
		if _, err := bnb.NewMatcher(arch.Transformers5, []string{key}); err == nil {
			t.Errorf("%q: accepted", key)
		} else if !strings.Contains(err.Error(), key) && !strings.Contains(err.Error(), `\\`) {
			t.Errorf("%q: the message does not name it: %v", key, err)
		}
		for _, l := range []arch.Loader{arch.Transformers4, arch.VLLM} { // plain text there
			if _, err := bnb.NewMatcher(l, []string{key}); err != nil {
				t.Errorf("%s: %q: %v", l, key, err)
			}
		}
	}
}
