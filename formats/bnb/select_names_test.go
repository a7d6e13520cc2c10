package bnb_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// described makes a model of names alone, all of them matrices.
func described(t *testing.T, config map[string]any, modules ...string) *arch.Model {
	t.Helper()
	var infos []arch.TensorInfo
	for _, m := range modules {
		infos = append(infos, arch.TensorInfo{Name: m + ".weight", Shape: []int64{64, 64}, Float: true})
	}
	m, err := arch.Describe(config, infos, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSelectWidens: "proj" is the end of another module's path, so that no list names
// the one without the other; both stay 16-bit, and that is said.
func TestSelectWidens(t *testing.T) {
	m := described(t, nil, "proj", "model.proj", "model.up")
	s, err := bnb.Select(m, bnb.SelectOptions{Skip: []string{"proj"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := four(m, s); !slices.Equal(got, []string{"model.up"}) {
		t.Errorf("4-bit: %q, want model.up alone", got)
	}
	if w := strings.Join(s.Warnings, "\n"); !strings.Contains(w, "1 more modules stay 16-bit because loaders would read the skip list differently") {
		t.Errorf("warnings: %q", s.Warnings)
	}
	if !strings.Contains(s.Why[1], "would skip it") {
		t.Errorf("model.proj is 16-bit because %q", s.Why[1])
	}
	proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)
}

// TestSelectOneExpert: where one expert is 4-bit, "experts" cannot stand in the list; and
// vLLM stacks the experts of a layer, so that they must be alike.
func TestSelectOneExpert(t *testing.T) {
	m := fixture(t, "mixtral")
	o := bnb.SelectOptions{Include: []string{"*.1.block_sparse_moe.experts.2.w2"}, Loaders: []string{"transformers4"}}
	s, err := bnb.Select(m, o)
	if err != nil {
		t.Fatal(err)
	}
	var experts []string
	for _, mod := range four(m, s) {
		if strings.Contains(mod, "experts") {
			experts = append(experts, mod)
		}
	}
	if !slices.Equal(experts, []string{"model.layers.1.block_sparse_moe.experts.2.w2"}) {
		t.Errorf("4-bit experts are %q, want the one", experts)
	}
	if slices.Contains(s.SkipModules, "experts") {
		t.Errorf("the list skips all experts: %q", s.SkipModules)
	}
	proves(t, m, s, arch.Transformers4)

	o.Loaders = []string{"vllm"}
	if _, err = bnb.Select(m, o); fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "experts of a layer") {
		t.Errorf("one expert for vLLM: %v, want it refused", err)
	}
	o.Include = []string{"*.layers.1.*experts.*"} // other layers may differ
	if s, err = bnb.Select(m, o); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, mod := range four(m, s) {
		if strings.HasPrefix(mod, "model.layers.1.block_sparse_moe.experts.") {
			n++
		} else if strings.Contains(mod, "experts") {
			t.Errorf("%s is 4-bit", mod)
		}
	}
	if n == 0 {
		t.Error("no expert is 4-bit")
	}
}

// TestSelectTower: a tower stays 16-bit under the name each loader gives it, before and
// after transformers 5 renames it.
func TestSelectTower(t *testing.T) {
	config := map[string]any{"model_type": "gemma3", "architectures": []any{"Gemma3ForConditionalGeneration"}, "tie_word_embeddings": true}
	const attn, tower, projector = "language_model.model.layers.0.self_attn.", "vision_tower.vision_model.encoder.layers.0.self_attn.", "multi_modal_projector.mm_input_projection"
	m := described(t, config, attn+"q_proj", attn+"k_proj", attn+"v_proj", attn+"o_proj", tower+"q_proj", tower+"k_proj", tower+"v_proj", tower+"out_proj",
		projector, "language_model.model.embed_tokens")
	s, err := bnb.Select(m, bnb.SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := four(m, s); !slices.Equal(got, []string{attn + "q_proj", attn + "k_proj", attn + "v_proj", attn + "o_proj"}) {
		t.Errorf("4-bit: %q", got)
	}
	for _, key := range []string{"vision_tower", "model.vision_tower", "multi_modal_projector", "model.multi_modal_projector"} {
		if !slices.Contains(s.SkipModules, key) {
			t.Errorf("the skip list lacks %q: %q", key, s.SkipModules)
		}
	}
	proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)

	// Asked for, a part of the tower is 4-bit and the rest is not.
	s, err = bnb.Select(m, bnb.SelectOptions{Include: []string{tower + "out_proj"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := four(m, s); len(got) != 5 || !slices.Contains(got, tower+"out_proj") {
		t.Errorf("4-bit: %q", got)
	}
	proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)
}

// TestSelectWarnsOfShapes: rows that no whole number of blocks of 64 fills are read
// wrongly by some CPUs' kernels.
func TestSelectWarnsOfShapes(t *testing.T) {
	m, err := arch.Describe(map[string]any{"model_type": "llama"}, []arch.TensorInfo{
		{Name: "model.layers.0.self_attn.o_proj.weight", Shape: []int64{64, 80}, Float: true},
		{Name: "model.layers.0.mlp.down_proj.weight", Shape: []int64{80, 64}, Float: true},
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := bnb.Select(m, bnb.SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if w := strings.Join(s.Warnings, "\n"); !strings.Contains(w, "1 4-bit modules") || !strings.Contains(w, "o_proj has 80") || !strings.Contains(w, "block size 64") {
		t.Errorf("warnings: %q", s.Warnings)
	}
	// It is the block size in use that counts.
	for size, want := range map[int]string{16: "", 32: "1 4-bit modules", 128: "2 4-bit modules"} {
		s, err := bnb.Select(m, bnb.SelectOptions{BlockSize: size})
		if err != nil {
			t.Fatal(err)
		}
		if w := strings.Join(s.Warnings, "\n"); (w == "") != (want == "") || !strings.Contains(w, want) {
			t.Errorf("block size %d: warnings %q", size, s.Warnings)
		}
	}
}

// TestSelectWritesAList: loaders take null for leave to keep what they like.
func TestSelectWritesAList(t *testing.T) {
	m := described(t, map[string]any{"model_type": "llama", "architectures": []any{"LlamaModel"}}, "layers.0.mlp.up_proj", "layers.0.mlp.down_proj")
	s, err := bnb.Select(m, bnb.SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s.SkipModules == nil || len(s.SkipModules) != 0 {
		t.Errorf("skip list %#v, want an empty one", s.SkipModules)
	}
	proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)
}

// TestSelectSubclass: Falcon's layers become 4-bit where transformers 5 need not load them.
func TestSelectSubclass(t *testing.T) {
	m := described(t, map[string]any{"model_type": "falcon", "architectures": []any{"FalconForCausalLM"}}, "transformer.h.0.mlp.dense_h_to_4h", "transformer.h.0.mlp.dense_4h_to_h")
	s, err := bnb.Select(m, bnb.SelectOptions{Loaders: []string{"transformers4"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(four(m, s)) != 2 {
		t.Errorf("4-bit: %q", four(m, s))
	}
	proves(t, m, s, arch.Transformers4)
	if v := s.Verdicts[0]; v.Loads || !strings.Contains(v.Why, "subclass") {
		t.Errorf("transformers 5: %+v", v)
	}
	if s, err = bnb.Select(m, bnb.SelectOptions{}); err != nil || len(four(m, s)) != 0 {
		t.Errorf("for all loaders: %q, %v", four(m, s), err)
	}
}

// TestSelectTiedHeads: names of heads that an unknown class may have stand in the list,
// but for those that would skip 4-bit weights.
func TestSelectTiedHeads(t *testing.T) {
	m := described(t, map[string]any{"model_type": "brand_new"}, "model.decoder.layers.0.up", "model.decoder.layers.0.head")
	s, err := bnb.Select(m, bnb.SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(four(m, s)) != 2 {
		t.Errorf("4-bit: %q", four(m, s))
	}
	for name, want := range map[string]bool{"lm_head": true, "proj_out": true, "predictions.decoder": true, "decoder": false, "head": false} {
		if slices.Contains(s.SkipModules, name) != want {
			t.Errorf("%q in the list: %v; the list is %q", name, !want, s.SkipModules)
		}
	}
	proves(t, m, s, arch.Transformers5, arch.Transformers4, arch.VLLM)
}

// TestSelectNamesNoPattern: a message about a name shows no control characters.
func TestSelectNamesNoPattern(t *testing.T) {
	m := described(t, map[string]any{"model_type": "llama"}, "model.layers.0.up_proj", "model.layers.0.\x1b[31m")
	_, err := bnb.Select(m, bnb.SelectOptions{})
	if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "missing closing ]") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%v", err)
	}
}
