package arch_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
)

// missingModules are modules that a loader may have without a tensor in the file.
func missingModules(m *arch.Model, l arch.Loader) (sure, maybe []string) {
	for _, mod := range m.Modules(l) {
		switch {
		case mod.Tensor >= 0:
		case mod.Maybe:
			maybe = append(maybe, mod.Path)
		default:
			sure = append(sure, mod.Path)
		}
	}
	return sure, maybe
}

// TestTiedHeads: output heads of other names than lm_head, as transformers' classes tie them.
func TestTiedHeads(t *testing.T) {
	for text, want := range map[string]string{
		`{"model_type":"whisper","architectures":["WhisperForConditionalGeneration"]}`:          "proj_out",
		`{"model_type":"modernbert","architectures":["ModernBertForMaskedLM"]}`:                 "decoder",
		`{"model_type":"modernbert-decoder","architectures":["ModernBertDecoderForCausalLM"]}`:  "decoder",
		`{"model_type":"albert","architectures":["AlbertForMaskedLM"]}`:                         "predictions.decoder",
		`{"model_type":"xlnet","architectures":["XLNetLMHeadModel"]}`:                           "lm_loss",
		`{"model_type":"xlm","architectures":["XLMWithLMHeadModel"]}`:                           "pred_layer.proj",
		`{"model_type":"mobilebert","architectures":["MobileBertForMaskedLM"]}`:                 "cls.predictions.decoder",
		`{"model_type":"blip","architectures":["BlipForConditionalGeneration"]}`:                "text_decoder.cls.predictions.decoder",
		`{"model_type":"gpt_neox_japanese","architectures":["GPTNeoXJapaneseForCausalLM"]}`:     "embed_out",
		`{"model_type":"deformable_detr","architectures":["DeformableDetrForObjectDetection"]}`: "bbox_embed",
		`{"model_type":"gpt2","architectures":["GPT2LMHeadModel"]}`:                             "lm_head",
		`{"model_type":"openai-gpt","architectures":["OpenAIGPTLMHeadModel"]}`:                  "lm_head",
		`{"model_type":"mbart","architectures":["MBartForConditionalGeneration"]}`:              "lm_head",
		`{"model_type":"bert","architectures":["BertForMaskedLM"]}`:                             "cls.predictions.decoder",
		`{"model_type":"llama","architectures":["LlamaModel"],"tie_word_embeddings":false}`:     "",
	} {
		m := describe(t, text, of("model.norm.weight")...)
		for _, l := range []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM} {
			if sure, _ := missingModules(m, l); want == "" && len(sure) > 0 || want != "" && !slices.Contains(sure, want) {
				t.Errorf("%s: %s has %q, want %q", text, l, sure, want)
			}
		}
	}
	// A head that is there is one, and is named once.
	m := describe(t, `{"model_type":"whisper","architectures":["WhisperForConditionalGeneration"]}`, of("proj_out.weight")...)
	if sure, _ := missingModules(m, arch.Transformers5); m.Tensors[0].Role != arch.RoleHead || slices.Contains(sure, "proj_out") {
		t.Errorf("proj_out: %s, and again %q", m.Tensors[0].Role, sure)
	}
	m = describe(t, `{"model_type":"deformable_detr","architectures":["DeformableDetrForObjectDetection"]}`, of("bbox_embed.0.layers.1.weight")...)
	if m.Tensors[0].Role != arch.RoleHead {
		t.Errorf("a part of a tied head: %s", m.Tensors[0].Role)
	}
	// Of a class nobody has heard of, all names; of another class of transformers, lm_head.
	_, maybe := missingModules(describe(t, `{"model_type":"brand_new","architectures":["BrandNewForCausalLM"]}`, of("a.weight")...), arch.Transformers5)
	for _, name := range []string{"lm_head", "proj_out", "embed_out", "lm_loss", "predictions.decoder"} {
		if !slices.Contains(maybe, name) {
			t.Errorf("brand_new lacks %q: %q", name, maybe)
		}
	}
	if _, maybe = missingModules(describe(t, `{"model_type":"mamba","architectures":["MambaForCausalLM"]}`, of("a.weight")...), arch.Transformers5); !slices.Equal(maybe, []string{"lm_head"}) {
		t.Errorf("mamba: %q", maybe)
	}
	if _, maybe = missingModules(describe(t, `{"model_type":"brand_new","tie_word_embeddings":false}`, of("a.weight")...), arch.Transformers5); len(maybe) > 0 {
		t.Errorf("not tied: %q", maybe)
	}
}

// TestConv1D: all classes of transformers that use Conv1D.
func TestConv1D(t *testing.T) {
	for modelType, name := range map[string]string{
		"gpt2": "transformer.h.0.attn.c_attn", "openai-gpt": "transformer.h.0.mlp.c_fc", "imagegpt": "transformer.h.1.attn.c_proj",
		"decision_transformer": "encoder.h.0.attn.c_attn", "clvp": "speech_decoder_model.decoder.layers.0.mlp.c_fc",
	} {
		m := describe(t, `{"model_type":"`+modelType+`"}`, of(name+".weight", "transformer.h.0.crossattention.q_attn.weight")...)
		if x := &m.Tensors[0]; x.Role != arch.RoleConv1D || !x.Transposed || !x.Quantizable || x.InFeatures != 96 {
			t.Errorf("%s: %+v", modelType, x)
		}
		if x := &m.Tensors[1]; modelType != "clvp" && !x.Transposed {
			t.Errorf("%s: %+v", modelType, x)
		}
	}
	m := describe(t, `{"model_type":"decision_transformer"}`, of("embed_state.weight", "predict_action.0.weight", "embed_timestep.weight")...)
	for i, want := range []arch.Role{arch.RoleHead, arch.RoleHead, arch.RoleEmbedding} {
		if m.Tensors[i].Role != want {
			t.Errorf("%s: %s, want %s", m.Tensors[i].Name, m.Tensors[i].Role, want)
		}
	}
	// Of an unknown class a bias tells; square matrices beside such ones are left alone.
	matrix := func(name string, out, in, bias int64) []arch.TensorInfo {
		return []arch.TensorInfo{{Name: name + ".weight", Shape: []int64{out, in}, Float: true}, {Name: name + ".bias", Shape: []int64{bias}, Float: true}}
	}
	infos := slices.Concat(matrix("h.0.c_fc", 64, 256, 256), matrix("h.0.c_proj", 64, 64, 64), matrix("h.0.up", 256, 64, 256))
	m = describe(t, `{"model_type":"brand_new"}`, infos...)
	for i, want := range map[int]bool{0: false, 2: false, 4: true} {
		if x := &m.Tensors[i]; x.Quantizable != want {
			t.Errorf("%s: 4-bit %v, because %q", x.Name, x.Quantizable, x.Why)
		}
	}
	if m = describe(t, `{"model_type":"brand_new"}`, infos[2:]...); !m.Tensors[0].Quantizable {
		t.Errorf("a square matrix by itself stays 16-bit: %q", m.Tensors[0].Why)
	}
}

// TestLeftAlone: modules that look like linear layers and are none that a loader may replace.
func TestLeftAlone(t *testing.T) {
	for _, c := range []struct{ config, name, also, why string }{
		{`{"model_type":"siglip_vision_model"}`, "head.attention.out_proj", "head.attention.in_proj_weight", "MultiheadAttention"},
		{`{"model_type":"brand_new"}`, "h.0.attn.out_proj", "h.0.attn.q_proj_weight", "MultiheadAttention"},
		{`{"model_type":"mobilebert"}`, "cls.predictions.dense", "", "without calling"},
		{`{"model_type":"mamba"}`, "backbone.layers.0.mixer.dt_proj", "", "without calling"},
		{`{"model_type":"deepseek_v4"}`, "model.layers.0.self_attn.o_a_proj", "", "subclass"},
		{`{"model_type":"esm"}`, "trunk.blocks.0.tri_att_start.mha.linear_q", "", "subclass"},
	} {
		infos := of(c.name + ".weight")
		if c.also != "" {
			infos = append(infos, of(c.also)...)
		}
		m := describe(t, c.config, infos...)
		if x := &m.Tensors[0]; x.Quantizable || !strings.Contains(x.Why, c.why) {
			t.Errorf("%s: 4-bit %v, because %q", x.Name, x.Quantizable, x.Why)
		}
		if mods := m.Modules(arch.Transformers4); len(mods) == 0 || !mods[0].Linear {
			t.Errorf("%s: transformers 4 would replace it, and %+v does not say so", c.name, mods)
		}
	}
	m := describe(t, `{"model_type":"siglip_vision_model"}`, of("encoder.layers.0.self_attn.out_proj.weight")...)
	if !m.Tensors[0].Quantizable {
		t.Errorf("an out_proj of another attention: %q", m.Tensors[0].Why)
	}
	for _, shape := range [][]int64{{0, 64}, {64, 0}} {
		m := describe(t, `{"model_type":"llama"}`, arch.TensorInfo{Name: "model.layers.0.mlp.up_proj.weight", Shape: shape, Float: true})
		if x := &m.Tensors[0]; x.Quantizable || !strings.Contains(x.Why, "no elements") {
			t.Errorf("%v: 4-bit %v, because %q", shape, x.Quantizable, x.Why)
		}
	}
}

// TestTowerOrModel: a vision model is a tower only beside something else, whatever its
// prefix.
func TestTowerOrModel(t *testing.T) {
	vit := of("vit.encoder.layer.0.output.dense.weight", "classifier.weight", "vit.embeddings.patch_embeddings.projection.weight")
	if m := describe(t, `{"model_type":"vit"}`, vit...); !m.Tensors[0].Quantizable || m.Tensors[1].Role != arch.RoleHead {
		t.Errorf("ViT: %+v", m.Tensors)
	}
	clip := of("vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight")
	if m := describe(t, `{"model_type":"clip_vision_model"}`, clip...); !m.Tensors[0].Quantizable {
		t.Errorf("CLIP's vision model: %q", m.Tensors[0].Why)
	}
	clip = append(clip, of("text_model.encoder.layers.0.mlp.fc1.weight")...)
	if m := describe(t, `{"model_type":"clip"}`, clip...); m.Tensors[0].Role != arch.RoleTower || !m.Tensors[2].Quantizable {
		t.Errorf("CLIP: %+v", m.Tensors)
	}
}

func TestSubclass(t *testing.T) {
	m := describe(t, `{"model_type":"falcon"}`, of("transformer.h.0.mlp.dense_h_to_4h.weight")...)
	if x := &m.Tensors[0]; !x.Subclass || x.Quantizable || !strings.Contains(x.Why, "transformers 5 leaves in 16 bits") {
		t.Errorf("%+v", x)
	}
}
