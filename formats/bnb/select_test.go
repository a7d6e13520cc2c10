package bnb_test

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// model describes a checkpoint of the fixtures by its directory.
func model(tb testing.TB, dir string) *arch.Model {
	tb.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	}()
	var infos []arch.TensorInfo
	for _, t := range c.Tensors() {
		_, float := t.DType.Float()
		infos = append(infos, arch.TensorInfo{Name: t.Name, Shape: t.Shape, Float: float})
	}
	m, err := arch.Describe(c.Config().Map(), infos, true)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func fixture(tb testing.TB, name string) *arch.Model {
	tb.Helper()
	return model(tb, filepath.Join(fixtures.Dir(tb), "arch", name))
}

// four lists the modules that became 4-bit.
func four(m *arch.Model, s *bnb.Selection) []string {
	var out []string
	for i := range m.Tensors {
		if s.FourBit[i] {
			out = append(out, m.Tensors[i].Module)
		}
	}
	return out
}

// proves asks the matchers themselves, not Select: each loader must expect 4 bits
// exactly where they are.
func proves(t *testing.T, m *arch.Model, s *bnb.Selection, loaders ...arch.Loader) {
	t.Helper()
	for _, l := range loaders {
		match, err := bnb.NewMatcher(l, s.SkipModules)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for _, mod := range m.Modules(l) {
			is := mod.Tensor >= 0 && s.FourBit[mod.Tensor]
			seen[mod.Tensor] = true
			if expects := mod.Linear && !match.Skips(mod.Path); expects != is && !mod.Either && !mod.Maybe {
				t.Errorf("%s: module %s is 4-bit: %v, and the loader expects 4 bits: %v (list %q)", l, mod.Path, is, expects, s.SkipModules)
			}
		}
		for i, is := range s.FourBit {
			if is && !seen[i] {
				t.Errorf("%s: %s is 4-bit, and no module of the loader has it", l, m.Tensors[i].Name)
			}
		}
	}
}

// TestSelectDefaults: with nothing asked for, what may be 4-bit is, and the list holds
// what people write by hand.
func TestSelectDefaults(t *testing.T) {
	for _, dir := range fixtures.Models(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			m := model(t, dir)
			s, err := bnb.Select(m, bnb.SelectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)
			for i := range m.Tensors {
				if s.FourBit[i] != m.Tensors[i].Quantizable {
					t.Errorf("%s: 4-bit %v, quantizable %v (%s)", m.Tensors[i].Name, s.FourBit[i], m.Tensors[i].Quantizable, s.Why[i])
				}
				if want := "16-bit"; !s.FourBit[i] && !strings.HasPrefix(s.Why[i], want) && !strings.HasPrefix(s.Why[i], "kept") || s.FourBit[i] && s.Why[i] != "4-bit: linear" {
					t.Errorf("%s: 4-bit %v because %q", m.Tensors[i].Name, s.FourBit[i], s.Why[i])
				}
			}
			for _, v := range s.Verdicts {
				if !v.Loads {
					t.Errorf("%s does not load it: %s", v.Loader, v.Why)
				}
			}
		})
	}
	for name, want := range map[string][]string{
		"llama": {"lm_head"}, "mistral": {"lm_head"}, "phi3": {"lm_head"},
		"gpt2": {"lm_head"}, "gpt_neox": {"lm_head", "embed_out"},
		"mixtral":   {"lm_head", "experts", "gate"},
		"qwen3_moe": {"lm_head", "experts", "gate"},
	} {
		s, err := bnb.Select(fixture(t, name), bnb.SelectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		if got := slices.Sorted(slices.Values(s.SkipModules)); !slices.Equal(got, want) {
			t.Errorf("%s: the skip list is %q, want %q", name, got, want)
		}
	}
}

func TestSelectSkip(t *testing.T) {
	m := fixture(t, "mistral")
	all, err := bnb.Select(m, bnb.SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const q, k, v = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"
	for _, c := range []struct {
		name    string
		o       bnb.SelectOptions
		kept    []string // of the modules that are 4-bit by default
		warning string
		loaders []arch.Loader
	}{
		{"vLLM fuses q, k and v", bnb.SelectOptions{Skip: []string{q}}, []string{q, k, v}, "2 more modules stay 16-bit because vLLM fuses", []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM}},
		{"vLLM alone", bnb.SelectOptions{Skip: []string{k}, Loaders: []string{"vllm"}}, []string{q, k, v}, "vLLM fuses", []arch.Loader{arch.VLLM}},
		{"transformers fuses nothing", bnb.SelectOptions{Skip: []string{q}, Loaders: []string{"transformers"}}, []string{q}, "", []arch.Loader{arch.Transformers5, arch.Transformers4}},
		{"gate and up", bnb.SelectOptions{Skip: []string{"model.layers.1.mlp.up_proj"}}, []string{"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"}, "1 more modules", []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM}},
		{"down is fused with nothing", bnb.SelectOptions{Skip: []string{"*.1.mlp.down_proj"}}, []string{"model.layers.1.mlp.down_proj"}, "", []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM}},
		{"? is one character", bnb.SelectOptions{Skip: []string{"model.layers.?.self_attn.o_proj"}}, []string{"model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"}, "", nil},
		{"what is 16-bit anyway", bnb.SelectOptions{Skip: []string{"lm_head"}}, nil, "", nil},
		{"skip wins", bnb.SelectOptions{Skip: []string{"*.0.mlp.down_proj"}, Include: []string{"*.mlp.*"}}, []string{"model.layers.0.mlp.down_proj"}, "", nil},
		{"a dot is a dot", bnb.SelectOptions{Skip: []string{"*.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"}}, []string{"model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := bnb.Select(m, c.o)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, mod := range four(m, all) {
				if !slices.Contains(c.kept, mod) {
					want = append(want, mod)
				}
			}
			if got := four(m, s); !slices.Equal(got, want) {
				t.Errorf("4-bit: %q\nwant %q", got, want)
			}
			warned := strings.Join(s.Warnings, "\n")
			if strings.Contains(warned, "vLLM fuses") != (c.warning != "") || !strings.Contains(warned, c.warning) {
				t.Errorf("warnings %q, want %q", s.Warnings, c.warning)
			}
			proves(t, m, s, c.loaders...)
		})
	}
}

func TestSelectInclude(t *testing.T) {
	const head = "lm_head"
	s, err := bnb.Select(fixture(t, "mistral"), bnb.SelectOptions{Include: []string{head}})
	if err != nil {
		t.Fatal(err)
	}
	if m := fixture(t, "mistral"); !slices.Contains(four(m, s), head) || slices.Contains(s.SkipModules, head) {
		t.Errorf("lm_head was included; 4-bit %q, skip list %q", four(m, s), s.SkipModules)
	} else {
		proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)
	}

	for _, c := range []struct {
		name, fixture, include string
		loaders                []string
		class                  fault.Class
		message                string
	}{
		{"experts", "mixtral", "*.experts.*", nil, fault.Input, "transformers 5 fuses experts"},
		{"one expert", "qwen3_moe", "model.layers.1.mlp.experts.0.up_proj", []string{"transformers"}, fault.Input, "an expert"},
		{"experts for Unsloth", "mixtral", "*.experts.*", []string{"unsloth"}, fault.Input, "transformers 5 fuses experts"},
		{"a router", "mixtral", "*.block_sparse_moe.gate", nil, fault.Input, "a router"},
		{"a tied head", "gpt2", "*wte", nil, fault.Input, "embedding"},
		{"an embedding", "mistral", "model.embed_tokens", nil, fault.Input, "embedding"},
		{"a norm is no matrix", "mistral", "model.norm", nil, fault.Class(-1), ""},
		{"nothing", "mistral", "model.layers.7.*", nil, fault.Usage, `--include "model.layers.7.*" matches no module`},
		{"empty", "mistral", "", nil, fault.Usage, "an empty glob"},
		{"a part of a path", "mistral", "mlp.down_proj", nil, fault.Usage, "matches no module"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := bnb.Select(fixture(t, c.fixture), bnb.SelectOptions{Include: []string{c.include}, Loaders: c.loaders})
			if c.class < 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatalf("accepted: %q", s.SkipModules)
			}
			if fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.message) {
				t.Errorf("class %v, %v; want class %v and %q", fault.ClassOf(err), err, c.class, c.message)
			}
		})
	}

	// What no version of transformers 5 loads, vLLM does.
	m := fixture(t, "mixtral")
	s, err = bnb.Select(m, bnb.SelectOptions{Include: []string{"*.experts.*"}, Loaders: []string{"vllm"}})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, mod := range four(m, s) {
		if strings.Contains(mod, ".experts.") {
			n++
		}
	}
	if experts := strings.Count(strings.Join(modules(m), "\n"), ".experts."); n != experts || n == 0 {
		t.Errorf("%d experts are 4-bit, want all %d", n, experts)
	}
	proves(t, m, s, arch.VLLM)
	for _, v := range s.Verdicts {
		if v.Loads != (v.Loader == "vllm") {
			t.Errorf("%s: loads %v, %s", v.Loader, v.Loads, v.Why)
		}
	}
}

func modules(m *arch.Model) []string {
	var out []string
	for i := range m.Tensors {
		out = append(out, m.Tensors[i].Module)
	}
	return out
}

func TestSelectUsage(t *testing.T) {
	m := fixture(t, "llama")
	for _, c := range []struct {
		o       bnb.SelectOptions
		message string
	}{
		{bnb.SelectOptions{Loaders: []string{"tgi"}}, `--loader "tgi"`},
		{bnb.SelectOptions{Loaders: []string{"vllm", ""}}, `--loader ""`},
		{bnb.SelectOptions{Skip: []string{"lm_hed"}}, `--skip "lm_hed" matches no module`},
		{bnb.SelectOptions{Skip: []string{"*.q_proj", "*.0.q_proj"}}, `"*.0.q_proj"`},
		{bnb.SelectOptions{Skip: []string{"model.layers.0.self_attn.(q|k)_proj"}}, "matches no module"},
		{bnb.SelectOptions{Skip: []string{""}}, "empty"},
	} {
		s, err := bnb.Select(m, c.o)
		if err == nil {
			t.Errorf("%+v: accepted with %q", c.o, s.SkipModules)
		} else if fault.ClassOf(err) != fault.Usage || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%+v: class %v, %v; want a usage error with %q", c.o, fault.ClassOf(err), err, c.message)
		}
	}
	_, err := bnb.Select(m, bnb.SelectOptions{Skip: []string{"down_proj"}})
	if hints := strings.Join(fault.Hints(err), ""); !strings.Contains(hints, "model.layers.0.") {
		t.Errorf("the hint shows no module path of this model: %q", hints)
	}
}

// Unsloth keeps its own list whatever the file says.
func TestSelectUnsloth(t *testing.T) {
	m := fixture(t, "mistral")
	s, err := bnb.Select(m, bnb.SelectOptions{Include: []string{"lm_head"}, Loaders: []string{"unsloth"}})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(four(m, s), "lm_head") {
		t.Error("lm_head is 4-bit, which Unsloth does not load")
	}
	proves(t, m, s, arch.Transformers5)
}

// TestSelectProperty: whatever people skip or include, a selection that is accepted is
// one that every loader asked for reads in the same way, and what was skipped stays
// 16-bit.
func TestSelectProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 9))
	sets := map[string][]arch.Loader{
		"": {arch.Transformers5, arch.Transformers4, arch.VLLM}, "transformers": {arch.Transformers5, arch.Transformers4},
		"transformers5": {arch.Transformers5}, "transformers4": {arch.Transformers4}, "vllm": {arch.VLLM}, "unsloth": {arch.Transformers5},
	}
	names := []string{"", "transformers", "transformers5", "transformers4", "vllm", "unsloth"}
	accepted := 0
	for _, dir := range fixtures.Models(t) {
		m := model(t, dir)
		mods := modules(m)
		for range 60 {
			o := bnb.SelectOptions{}
			loader := names[r.IntN(len(names))]
			if loader != "" {
				o.Loaders = []string{loader}
			}
			for range 1 + r.IntN(3) {
				o.Skip = append(o.Skip, glob(r, mods[r.IntN(len(mods))]))
			}
			if r.IntN(4) == 0 {
				o.Include = append(o.Include, glob(r, mods[r.IntN(len(mods))]))
			}
			s, err := bnb.Select(m, o)
			if err != nil {
				// Globs are made to match, and skipping can always be written down.
				if fault.ClassOf(err) != fault.Input || len(o.Include) == 0 {
					t.Errorf("%s, %+v: class %v: %v", filepath.Base(dir), o, fault.ClassOf(err), err)
				}
				continue
			}
			accepted++
			proves(t, m, s, sets[loader]...)
			for i := range m.Tensors {
				if s.FourBit[i] && slices.ContainsFunc(o.Skip, func(g string) bool { return matches(g, m.Tensors[i].Module) }) {
					t.Errorf("%s, %+v: %s is 4-bit", filepath.Base(dir), o, m.Tensors[i].Module)
				}
				if s.FourBit[i] && len(o.Include) == 0 && !m.Tensors[i].Quantizable {
					t.Errorf("%s, %+v: %s is 4-bit and is not quantizable", filepath.Base(dir), o, m.Tensors[i].Module)
				}
			}
			if t.Failed() {
				t.Fatalf("%s: %+v", filepath.Base(dir), o)
			}
		}
	}
	if accepted < 600 {
		t.Errorf("%d selections were accepted: the test shows too little", accepted)
	}
}

// glob makes one that matches path.
func glob(r *rand.Rand, path string) string {
	i := r.IntN(len(path))
	j := i + r.IntN(len(path)-i+1)
	switch r.IntN(5) {
	case 0:
		return path
	case 1:
		return path[:i] + "*"
	case 2:
		return "*" + path[i:]
	case 3:
		return path[:i] + "?" + path[i+1:]
	}
	return path[:i] + "*" + path[j:]
}

// matches is the definition of a glob, by trying everything.
func matches(glob, s string) bool {
	switch {
	case glob == "":
		return s == ""
	case glob[0] == '*':
		return matches(glob[1:], s) || s != "" && matches(glob, s[1:])
	case s == "":
		return false
	}
	return (glob[0] == '?' || glob[0] == s[0]) && matches(glob[1:], s[1:])
}
