package arch_test

import (
	"slices"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
)

// TestPaths: where each loader has a module of the file.
func TestPaths(t *testing.T) {
	const lang, layer = "language_model.model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"
	for _, c := range []struct{ config, module, v5, v4, vllm string }{
		{`{"model_type":"llama"}`, layer, layer, layer, layer},
		{`{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":true}`, "layers.0.self_attn.q_proj", layer, layer, "layers.0.self_attn.q_proj"},
		{`{"model_type":"llama","architectures":["LlamaModel"]}`, "layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"},
		{`{"model_type":"llama"}`, "lm_head", "lm_head", "lm_head", "lm_head"},
		{`{"model_type":"gpt_neox"}`, "embed_out", "lm_head", "embed_out", "embed_out"},
		{`{"model_type":"gpt2"}`, "h.3.mlp.c_fc", "transformer.h.3.mlp.c_fc", "transformer.h.3.mlp.c_fc", "h.3.mlp.c_fc"},
		{`{"model_type":"bert"}`, "encoder.layer.0.output.dense", "bert.encoder.layer.0.output.dense", "bert.encoder.layer.0.output.dense", "encoder.layer.0.output.dense"},
		{`{"model_type":"bert"}`, "cls.predictions.transform.dense", "cls.predictions.transform.dense", "cls.predictions.transform.dense", "cls.predictions.transform.dense"},
		{`{"model_type":"t5"}`, "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.0.SelfAttention.q"},
		{`{"model_type":"gemma3"}`, lang, "model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj", lang},
		{`{"model_type":"gemma3"}`, "vision_tower.encoder.layers.0.mlp.fc1", "model.vision_tower.encoder.layers.0.mlp.fc1", "model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.encoder.layers.0.mlp.fc1"},
		{`{"model_type":"gemma3"}`, "language_model.lm_head", "lm_head", "lm_head", "language_model.lm_head"},
		{`{"model_type":"qwen2_vl"}`, layer, "model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj", layer},
		{`{"model_type":"qwen2_vl"}`, "visual.merger.mlp.0", "model.visual.merger.mlp.0", "model.visual.merger.mlp.0", "visual.merger.mlp.0"},
		{`{"model_type":"new"}`, "blocks.0.up", "blocks.0.up", "blocks.0.up", "blocks.0.up"},
	} {
		m := describe(t, c.config, of(c.module+".weight")...)
		for l, want := range map[arch.Loader]string{arch.Transformers5: c.v5, arch.Transformers4: c.v4, arch.VLLM: c.vllm} {
			mods := m.Modules(l)
			if len(mods) == 0 || mods[0].Path != want || mods[0].Source != c.module || mods[0].Tensor != 0 {
				t.Errorf("%s %s: %s has %+v, want %q", c.config, c.module, l, mods, want)
			}
		}
	}
}

// TestModulesByRole: which modules a loader would make 4-bit unless told not to.
func TestModulesByRole(t *testing.T) {
	const l = "model.layers.0."
	for _, c := range []struct {
		config, module string
		v5, v4, vllm   bool // Linear
		either         bool // vLLM takes it as it is
	}{
		{`{"model_type":"llama"}`, l + "mlp.up_proj", true, true, true, false},
		{`{"model_type":"llama"}`, "lm_head", true, true, true, false},
		{`{"model_type":"falcon"}`, "transformer.h.0.mlp.dense_h_to_4h", false, true, true, false},
		{`{"model_type":"mixtral"}`, l + "block_sparse_moe.gate", false, true, true, false},
		{`{"model_type":"mixtral"}`, l + "block_sparse_moe.experts.0.w1", false, true, false, true},
		{`{"model_type":"qwen2_moe"}`, l + "mlp.shared_expert_gate", true, true, true, false},
		{`{"model_type":"gemma3"}`, "vision_tower.encoder.layers.0.mlp.fc1", true, true, true, false},
		{`{"model_type":"new"}`, "token_embedding", true, true, true, false}, // who knows what it is
	} {
		m := describe(t, c.config, of(c.module+".weight")...)
		for loader, want := range map[arch.Loader]bool{arch.Transformers5: c.v5, arch.Transformers4: c.v4, arch.VLLM: c.vllm} {
			mods := m.Modules(loader)
			if len(mods) == 0 || mods[0].Linear != want || mods[0].Either != (c.either && loader == arch.VLLM) {
				t.Errorf("%s %s: %s has %+v, want linear %v", c.config, c.module, loader, mods, want)
			}
		}
	}
	// Embeddings, norms, biases and buffers are no layers that a list could mean.
	m := describe(t, `{"model_type":"llama"}`, of("model.embed_tokens.weight", "model.norm.weight", l+"mlp.up_proj.bias", l+"self_attn.rotary_emb.inv_freq")...)
	for _, loader := range []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM} {
		if mods := m.Modules(loader); len(mods) != 0 {
			t.Errorf("%s: %+v", loader, mods)
		}
	}
}

// A tied head has no tensor; loaders have the module all the same.
func TestTiedHeadIsAModule(t *testing.T) {
	for text, want := range map[string][]string{
		`{"model_type":"llama","tie_word_embeddings":true}`:           {"lm_head"},
		`{"model_type":"llama","tie_word_embeddings":false}`:          nil,
		`{"model_type":"bert"}`:                                       {"cls.predictions.decoder"},
		`{"model_type":"roberta"}`:                                    {"lm_head", "lm_head.decoder"},
		`{"model_type":"mamba","architectures":["MambaForCausalLM"]}`: {"lm_head"},
	} {
		var got []string
		for _, mod := range describe(t, text, of("model.norm.weight")...).Modules(arch.Transformers5) {
			if mod.Tensor != -1 || !mod.Linear || mod.Source != "" {
				t.Errorf("%s: %+v", text, mod)
			}
			got = append(got, mod.Path)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestRoot(t *testing.T) {
	for _, c := range []struct {
		path string
		role arch.Role
		want string
	}{
		{"model.vision_tower.encoder.layers.0.mlp.fc1", arch.RoleTower, "vision_tower"},
		{"visual.merger.mlp.0", arch.RoleTower, "visual"},
		{"visual.merger.mlp.0", arch.RoleProjector, "merger"},
		{"model.multi_modal_projector.linear_1", arch.RoleProjector, "multi_modal_projector"},
		{"model.layers.0.mlp.up_proj", arch.RoleTower, ""},
	} {
		if got := arch.Root(c.path, c.role); got != c.want {
			t.Errorf("%s as %s: %q, want %q", c.path, c.role, got, c.want)
		}
	}
}
