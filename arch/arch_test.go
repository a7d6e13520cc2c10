package arch_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// config decodes a config.json.
func config(tb testing.TB, text string) map[string]any {
	tb.Helper()
	if text == "" {
		return nil
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		tb.Fatal(err)
	}
	return m
}

// of makes tensors of names: matrices [96, 32], but for biases and norms.
func of(names ...string) []arch.TensorInfo {
	var out []arch.TensorInfo
	for _, n := range names {
		info := arch.TensorInfo{Name: n, Shape: []int64{96, 32}, Float: true}
		if strings.HasSuffix(n, "bias") || strings.Contains(strings.ToLower(n), "norm") {
			info.Shape = []int64{32}
		}
		out = append(out, info)
	}
	return out
}

func describe(tb testing.TB, cfg string, infos ...arch.TensorInfo) *arch.Model {
	tb.Helper()
	m, err := arch.Describe(config(tb, cfg), infos, false)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// TestFacts says, of the architectures that differ from Llama, what they differ in.
func TestFacts(t *testing.T) {
	const l = "model.layers.0."
	for _, c := range []struct {
		config, name string
		role         arch.Role
		four         bool
		why          string
	}{
		{`{"model_type":"llama"}`, l + "self_attn.q_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"llama"}`, "lm_head.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"llama"}`, "score.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"llama"}`, "model.embed_tokens.weight", arch.RoleEmbedding, false, "embedding"},
		{`{"model_type":"llama"}`, l + "self_attn.rotary_emb.inv_freq", arch.RoleBuffer, false, "buffer"},
		{`{"model_type":"llama"}`, l + "self_attn.q_proj.lora_A", arch.RoleOther, false, "not the weight"},
		{`{"model_type":"llama"}`, l + "adapter.weight", arch.RoleOther, false, "not a linear layer that the table"},
		{`{"model_type":"qwen2"}`, l + "self_attn.q_proj.bias", arch.RoleBias, false, "bias"},
		{`{"model_type":"qwen3"}`, l + "self_attn.q_norm.weight", arch.RoleNorm, false, "norm"},
		{`{"model_type":"phi3"}`, l + "self_attn.qkv_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"phi3"}`, l + "mlp.gate_up_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"gpt2"}`, "h.0.attn.bias", arch.RoleBuffer, false, "buffer"},
		{`{"model_type":"gpt2"}`, "h.0.attn.masked_bias", arch.RoleBuffer, false, "buffer"},
		{`{"model_type":"gpt2"}`, "h.0.attn.c_attn.bias", arch.RoleBias, false, "bias"},
		{`{"model_type":"gpt2"}`, "wpe.weight", arch.RoleEmbedding, false, "embedding"},
		{`{"model_type":"gpt_bigcode"}`, "transformer.h.0.attn.c_attn.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"gpt_neox"}`, "embed_out.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"opt"}`, "model.decoder.project_in.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"falcon"}`, "transformer.h.0.self_attention.dense.weight", arch.RoleLinear, false, "subclass of nn.Linear"},
		{`{"model_type":"bloom"}`, "transformer.h.0.self_attention.dense.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"mixtral"}`, l + "block_sparse_moe.gate.weight", arch.RoleRouter, false, "router"},
		{`{"model_type":"mixtral"}`, l + "block_sparse_moe.experts.3.w1.weight", arch.RoleExpert, false, "expert"},
		{`{"model_type":"mixtral"}`, l + "self_attn.k_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"qwen2_moe"}`, l + "mlp.gate.weight", arch.RoleRouter, false, "router"},
		{`{"model_type":"qwen2_moe"}`, l + "mlp.shared_expert_gate.weight", arch.RoleRouter, false, "router"},
		{`{"model_type":"qwen2_moe"}`, l + "mlp.gate_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"qwen2_moe"}`, l + "mlp.shared_expert.up_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"qwen3_moe"}`, l + "mlp.experts.11.gate_proj.weight", arch.RoleExpert, false, "expert"},
		{`{"model_type":"deepseek_v3"}`, l + "self_attn.kv_a_proj_with_mqa.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"deepseek_v3"}`, l + "mlp.shared_experts.down_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"deepseek_v3"}`, l + "mlp.experts.0.down_proj.weight", arch.RoleExpert, false, "expert"},
		{`{"model_type":"gpt_oss"}`, l + "mlp.router.weight", arch.RoleRouter, false, "router"},
		{`{"model_type":"gpt_oss"}`, l + "mlp.router.bias", arch.RoleBias, false, "bias"},
		{`{"model_type":"gpt_oss"}`, l + "mlp.experts.gate_up_proj_bias", arch.RoleBias, false, "bias"},
		{`{"model_type":"llama4_text"}`, l + "feed_forward.router.weight", arch.RoleRouter, false, "router"},
		{`{"model_type":"llama4_text"}`, l + "feed_forward.experts.3.up_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"llama4_text"}`, l + "feed_forward.shared_expert.up_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"bert"}`, "bert.pooler.dense.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"bert"}`, "cls.predictions.decoder.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"bert"}`, "classifier.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"bert"}`, "bert.encoder.layer.0.output.dense.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"bert"}`, "bert.embeddings.LayerNorm.gamma", arch.RoleNorm, false, "norm"},
		{`{"model_type":"roberta"}`, "lm_head.dense.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"t5"}`, "encoder.block.0.layer.0.SelfAttention.q.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"t5"}`, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", arch.RoleEmbedding, false, "embedding"},
		{`{"model_type":"t5"}`, "shared.weight", arch.RoleEmbedding, false, "embedding"},
		{`{"model_type":"t5"}`, "decoder.block.1.layer.2.DenseReluDense.wo.weight", arch.RoleLinear, false, "float32"},
		{`{"model_type":"llava"}`, "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", arch.RoleTower, false, "tower"},
		{`{"model_type":"llava"}`, "multi_modal_projector.linear_1.weight", arch.RoleProjector, false, "projector"},
		{`{"model_type":"llava"}`, "language_model.model.layers.0.self_attn.q_proj.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"llava"}`, "language_model.lm_head.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"qwen2_vl"}`, "visual.blocks.0.attn.qkv.weight", arch.RoleTower, false, "tower"},
		// transformers 5 looks for "weight" anywhere in a name.
		{`{"model_type":"new"}`, l + "indexer.weights_proj.weight", arch.RoleLinear, false, "weight"},
		// What is in no table: every matrix called weight.
		{`{"model_type":"new"}`, "blocks.0.fancy.weight", arch.RoleLinear, true, ""},
		{`{"model_type":"new"}`, "blocks.0.moe.gate.weight", arch.RoleRouter, false, "router"},
		{`{"model_type":"new"}`, "blocks.0.token_embedding.weight", arch.RoleEmbedding, false, "embedding"},
		{`{"model_type":"new"}`, "blocks.0.ln_1.weight", arch.RoleNorm, false, "norm"},
		{`{"model_type":"new"}`, "lm_head.weight", arch.RoleHead, false, "output head"},
		{`{"model_type":"new"}`, "blocks.0.experts.0.up.weight", arch.RoleExpert, false, "expert"},
		{`{"model_type":"new"}`, "blocks.0.latent", arch.RoleOther, false, "not the weight"},
		{``, "blocks.0.fancy.weight", arch.RoleLinear, true, ""},
	} {
		x := &describe(t, c.config, of(c.name)...).Tensors[0]
		if x.Role != c.role || x.Quantizable != c.four || !strings.Contains(x.Why, c.why) || (x.Why == "") != (c.why == "") {
			t.Errorf("%s %s: role %s, 4-bit %v, because %q; want %s, %v, %q", c.config, c.name, x.Role, x.Quantizable, x.Why, c.role, c.four, c.why)
		}
	}
}

// A shape decides where a name does not.
func TestShapes(t *testing.T) {
	const q = "model.layers.0.self_attn.q_proj.weight"
	for _, c := range []struct {
		info arch.TensorInfo
		want arch.Role
	}{
		{arch.TensorInfo{Name: q, Shape: []int64{8, 4}, Float: true}, arch.RoleLinear},
		{arch.TensorInfo{Name: q, Shape: []int64{32}, Float: true}, arch.RoleNorm},
		{arch.TensorInfo{Name: q, Shape: []int64{}, Float: true}, arch.RoleNorm},
		{arch.TensorInfo{Name: q, Shape: []int64{8, 4, 3}, Float: true}, arch.RoleConv},
		{arch.TensorInfo{Name: q, Shape: []int64{8, 4, 3, 3}, Float: true}, arch.RoleConv},
		{arch.TensorInfo{Name: q, Shape: []int64{8, 4}}, arch.RoleBuffer}, // integers
	} {
		x := &describe(t, `{"model_type":"llama"}`, c.info).Tensors[0]
		if x.Role != c.want || x.Quantizable != (c.want == arch.RoleLinear) {
			t.Errorf("%v, floating point %v: %s, 4-bit %v; want %s", c.info.Shape, c.info.Float, x.Role, x.Quantizable, c.want)
		}
	}
}

// GPT-2's Conv1D holds [in, out]; its files have the prefix of the base model or not.
func TestGPT2IsTransposed(t *testing.T) {
	m := describe(t, `{"model_type":"gpt2","architectures":["GPT2LMHeadModel"]}`, of("h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_fc.weight", "wte.weight")...)
	for _, x := range m.Tensors[:2] {
		if x.Role != arch.RoleConv1D || !x.Quantizable || !x.Transposed || x.InFeatures != 96 {
			t.Errorf("%s: %s, 4-bit %v, transposed %v, %d features in of [96, 32]", x.Name, x.Role, x.Quantizable, x.Transposed, x.InFeatures)
		}
	}
	if x := describe(t, `{"model_type":"llama"}`, of("model.layers.0.mlp.up_proj.weight")...).Tensors[0]; x.Transposed || x.InFeatures != 32 {
		t.Errorf("llama: transposed %v, %d features in of [96, 32]", x.Transposed, x.InFeatures)
	}
	var paths []string
	for _, mod := range m.Modules(arch.Transformers5) {
		paths = append(paths, mod.Path)
	}
	if want := []string{"transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "lm_head"}; !slices.Equal(paths, want) {
		t.Errorf("modules %q, want %q: the head is tied and in no file", paths, want)
	}
}

func TestT5KeepsWoInFloat32(t *testing.T) {
	m := describe(t, `{"model_type":"t5"}`, of("encoder.block.0.layer.1.DenseReluDense.wo.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")...)
	if wo, wi := m.Tensors[0], m.Tensors[1]; !wo.KeepFP32 || wo.Quantizable || wi.KeepFP32 || !wi.Quantizable {
		t.Errorf("wo: float32 %v, 4-bit %v; wi: float32 %v, 4-bit %v", wo.KeepFP32, wo.Quantizable, wi.KeepFP32, wi.Quantizable)
	}
	m = describe(t, `{"model_type":"gpt_oss"}`, of("model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.o_proj.weight")...)
	if norm, o := m.Tensors[0], m.Tensors[1]; !norm.KeepFP32 || o.KeepFP32 {
		t.Errorf("gpt_oss: norm float32 %v, o_proj float32 %v", norm.KeepFP32, o.KeepFP32)
	}
}

func TestUnknownArchitecture(t *testing.T) {
	infos := of("blocks.0.fancy.weight")
	m := describe(t, `{"model_type":"brand_new"}`, infos...)
	if m.Known || !strings.Contains(strings.Join(m.Warnings, ""), `"brand_new" is not in the table`) {
		t.Errorf("known %v, warnings %q", m.Known, m.Warnings)
	}
	if m := describe(t, "", infos...); m.Known || !strings.Contains(strings.Join(m.Warnings, ""), "no config.json") {
		t.Errorf("without config.json: known %v, warnings %q", m.Known, m.Warnings)
	}
	for _, text := range []string{"", "{}", `{"model_type":"brand_new"}`, `{"model_type":"LLAMA"}`} {
		if _, err := arch.Describe(config(t, text), infos, true); fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: strict gives %v, want it refused as invalid input", text, err)
		}
	}
	for _, known := range arch.Types() {
		m, err := arch.Describe(map[string]any{"model_type": known}, nil, true)
		if err != nil || !m.Known {
			t.Errorf("%s: known %v, %v", known, m != nil && m.Known, err)
		}
	}
	if types := arch.Types(); len(types) < 80 || !slices.IsSorted(types) {
		t.Errorf("%d types, sorted %v", len(types), slices.IsSorted(types))
	}
}

func TestTied(t *testing.T) {
	for text, want := range map[string]bool{
		`{"model_type":"llama"}`:                                            false,
		`{"model_type":"llama","tie_word_embeddings":true}`:                 true,
		`{"model_type":"gemma2"}`:                                           true,
		`{"model_type":"gemma2","tie_word_embeddings":false}`:               false,
		`{"model_type":"gpt2"}`:                                             true,
		`{"model_type":"bert"}`:                                             true,
		`{"model_type":"llava","text_config":{"tie_word_embeddings":true}}`: true,
		`{"model_type":"llava","text_config":{}}`:                           false,
		`{"model_type":"t5","tie_word_embeddings":false,"text_config":{"tie_word_embeddings":true}}`: false,
	} {
		if m := describe(t, text); m.Tied != want {
			t.Errorf("%s: tied %v, want %v", text, m.Tied, want)
		}
	}
}

// TestHeadIsMissing: loaders fill a head that is nowhere with random numbers.
func TestHeadIsMissing(t *testing.T) {
	body := []string{"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"}
	for text, refused := range map[string]bool{
		`{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":false}`: true,
		`{"model_type":"llama","architectures":["LlamaForCausalLM"]}`:                             true,
		`{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":true}`:  false,
		`{"model_type":"llama","architectures":["LlamaModel"]}`:                                   false,
		`{"model_type":"llama"}`: false,
		`{"model_type":"brand_new","architectures":["BrandNewForCausalLM"]}`:                    false,
		`{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"tie_word_embeddings":false}`: true,
		`{"model_type":"llama","architectures":["LlamaForSequenceClassification"]}`:             false,
	} {
		_, err := arch.Describe(config(t, text), of(body...), false)
		if (err != nil) != refused || err != nil && fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: %v, want refused %v", text, err, refused)
		}
		if _, err := arch.Describe(config(t, text), of(append(body, "lm_head.weight")...), false); err != nil {
			t.Errorf("%s, with lm_head: %v", text, err)
		}
	}
	if _, err := arch.Describe(config(t, `{"model_type":"llama","architectures":["LlamaForCausalLM"]}`), of(append(body, "lm_head.bias")...), false); err == nil {
		t.Error("a head with a bias alone is accepted")
	}
}

func TestUnfused(t *testing.T) {
	for text, want := range map[string]bool{
		`{"model_type":"llama4"}`: true, `{"model_type":"llama4_text"}`: true, `{"model_type":"llama"}`: false, `{"model_type":"gpt_oss"}`: false, `{}`: false,
	} {
		if got := arch.Unfused(config(t, text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func TestNotes(t *testing.T) {
	if w := describe(t, `{"model_type":"deberta"}`).Warnings; len(w) != 1 || !strings.Contains(w[0], "float32") {
		t.Errorf("deberta: warnings %q", w)
	}
	if w := describe(t, `{"model_type":"deberta-v2"}`).Warnings; len(w) != 0 { // the note is about the first version
		t.Errorf("deberta-v2: warnings %q", w)
	}
}
