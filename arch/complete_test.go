package arch_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
)

const llamaSizes = `{"model_type":"llama","num_hidden_layers":2,"hidden_size":64,"intermediate_size":192,"num_attention_heads":4,"num_key_value_heads":2}`

// decoder makes the linear layers of a Llama.
func decoder(layers int) []arch.TensorInfo {
	var out []arch.TensorInfo
	for i := range layers {
		for name, shape := range map[string][]int64{
			"self_attn.q_proj": {64, 64}, "self_attn.k_proj": {32, 64}, "self_attn.v_proj": {32, 64}, "self_attn.o_proj": {64, 64},
			"mlp.gate_proj": {192, 64}, "mlp.up_proj": {192, 64}, "mlp.down_proj": {64, 192},
		} {
			out = append(out, arch.TensorInfo{Name: fmt.Sprintf("model.layers.%d.%s.weight", i, name), Shape: shape, Float: true})
		}
	}
	return out
}

func TestComplete(t *testing.T) {
	without := func(name string) []arch.TensorInfo {
		return slices.DeleteFunc(decoder(2), func(x arch.TensorInfo) bool { return strings.HasPrefix(x.Name, name) })
	}
	shaped := func(name string, shape ...int64) []arch.TensorInfo {
		list := decoder(2)
		for i := range list {
			if list[i].Name == name {
				list[i].Shape = shape
			}
		}
		return list
	}
	for _, c := range []struct {
		config string
		infos  []arch.TensorInfo
		want   []string // in the message; none: complete
	}{
		{llamaSizes, decoder(2), nil},
		{llamaSizes, decoder(3), nil}, // as DeepSeek has
		{`{"model_type":"llama"}`, decoder(1), nil},
		{`{"model_type":"brand_new","num_hidden_layers":5}`, decoder(1), nil},
		{llamaSizes, decoder(1), []string{"model.layers.1", "num_hidden_layers 2", "found 1"}},
		{llamaSizes, without("model.layers.0."), []string{"model.layers.0"}},
		{llamaSizes, without("model.layers.0.self_attn.q_proj"), []string{`"model.layers.0.self_attn.q_proj.weight" is missing`}},
		{llamaSizes, without("model.layers.1.mlp.gate_proj"), []string{`"model.layers.1.mlp.gate_proj.weight" is missing`}},
		{`{"model_type":"llama"}`, slices.DeleteFunc(decoder(1), func(x arch.TensorInfo) bool { return strings.Contains(x.Name, "q_proj") }), []string{"q_proj.weight"}},
		{`{"model_type":"llama"}`, slices.DeleteFunc(decoder(1), func(x arch.TensorInfo) bool { return strings.Contains(x.Name, "gate_proj") }), []string{"gate_proj.weight"}},
		{llamaSizes, shaped("model.layers.1.self_attn.q_proj.weight", 64, 32), []string{"model.layers.1.self_attn.q_proj.weight", "[64 64]", "[64 32]"}},
		{llamaSizes, shaped("model.layers.0.self_attn.k_proj.weight", 64, 64), []string{"[32 64]", "[64 64]"}},
		{llamaSizes, shaped("model.layers.0.mlp.down_proj.weight", 64, 190), []string{"[64 192]", "[64 190]"}},
		{`{"model_type":"gpt_neox"}`, of("gpt_neox.layers.0.attention.dense.weight", "gpt_neox.layers.0.attention.query_key_value.weight", "gpt_neox.layers.1.attention.query_key_value.weight"),
			[]string{`"gpt_neox.layers.1.attention.dense.weight" is missing`, "other layers have it"}},
	} {
		err := describe(t, c.config, c.infos...).Complete()
		if (err != nil) != (c.want != nil) || err != nil && fault.ClassOf(err) != fault.Input {
			t.Errorf("%s, %d tensors: %v, want %q", c.config, len(c.infos), err, c.want)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v lacks %q", c.config, err, w)
			}
		}
	}
	// Layers of two kinds, and attention without a whole q, k and v, are valid.
	for text, infos := range map[string][]arch.TensorInfo{
		`{"model_type":"qwen2_moe","num_hidden_layers":2}`: of("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
			"model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.0.gate_proj.weight"),
		`{"model_type":"deepseek_v2","num_hidden_layers":1}`: of("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"),
		`{"model_type":"nemotron","num_hidden_layers":1}`:    of("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"),
		`{"model_type":"bart","num_hidden_layers":9}`:        of("model.decoder.layers.0.fc1.weight", "model.decoder.layers.0.fc2.weight"),
		`{"model_type":"mllama","text_config":{"num_hidden_layers":2}}`: of("model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.down_proj.weight",
			"model.language_model.layers.1.mlp.up_proj.weight", "model.language_model.layers.1.mlp.down_proj.weight"),
	} {
		if err := describe(t, text, infos...).Complete(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestFixturesAreComplete(t *testing.T) {
	for _, dir := range fixtures.Models(t) {
		if err := open(t, dir).Complete(); err != nil {
			t.Errorf("%s: %v", filepath.Base(dir), err)
		}
	}
}
