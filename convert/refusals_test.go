package convert

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// TestRefusalsSayWhy: what cannot be converted is refused with the reason and a way that
// exists.
func TestRefusalsSayWhy(t *testing.T) {
	matrix := func(name, dtype string, width int) formatstest.Tensor {
		return formatstest.Tensor{Name: name, DType: dtype, Shape: []int64{8, 8}, Data: make([]byte, 64*width)}
	}
	const falcon = `{"model_type":"falcon","architectures":["FalconForCausalLM"],"dtype":"bfloat16","num_hidden_layers":1}`
	const llama = `{"model_type":"llama","architectures":["LlamaModel"],"num_hidden_layers":1`
	q, k, v := "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight", "layers.0.self_attn.v_proj.weight"
	o := matrix("layers.0.self_attn.o_proj.weight", "BF16", 2)
	for _, c := range []struct {
		name, config string
		tensors      []formatstest.Tensor
		o            QuantizeOptions
		want, hint   string // no want: it is converted
	}{
		{"falcon", falcon, []formatstest.Tensor{matrix("transformer.h.0.mlp.dense_h_to_4h.weight", "BF16", 2)}, options(nil),
			"1 of them because: a subclass of nn.Linear, which transformers 5 leaves in 16 bits", "--loader transformers4"},
		{"falcon for transformers 4", falcon, []formatstest.Tensor{matrix("transformer.h.0.mlp.dense_h_to_4h.weight", "BF16", 2)},
			options(func(o *QuantizeOptions) { o.Loaders = []string{"transformers4"} }), "", ""},
		{"float64 in config.json", llama + `,"dtype":"float64"}`, []formatstest.Tensor{o}, options(nil), `dtype is "float64", which is not supported`, "float32 first"},
		{"float64 weights", llama + `}`, []formatstest.Tensor{matrix("layers.0.self_attn.o_proj.weight", "F64", 8)}, options(func(o *QuantizeOptions) { o.DType = "bfloat16" }), "dtype F64 cannot be quantized", "whatever --dtype says"},
		{"a tensor is missing", llama + `}`, []formatstest.Tensor{matrix(k, "BF16", 2), matrix(v, "BF16", 2), o}, options(nil), `"layers.0.self_attn.q_proj.weight" is missing`, "shard"},
		{"a size is wrong", llama + `,"hidden_size":16}`, []formatstest.Tensor{matrix(q, "BF16", 2), matrix(k, "BF16", 2), matrix(v, "BF16", 2), o}, options(nil), "found [8 8]", "another model"},
	} {
		dir := t.TempDir()
		formatstest.Write(t, dir, c.config, c.tensors...)
		p, err := Quantize(openSource(t, dir), c.o)
		switch {
		case c.want == "":
			if err != nil || p.Totals.Quantized != 1 {
				t.Errorf("%s: %v", c.name, err)
			}
		case fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) || !strings.Contains(strings.Join(fault.Hints(err), " "), c.hint):
			t.Errorf("%s: %v, hints %q", c.name, err, fault.Hints(err))
		}
	}
}

// TestConfigOfOutput: infinities come out as they went in, and a skip list is written
// even when nothing must be skipped.
func TestConfigOfOutput(t *testing.T) {
	dir := t.TempDir()
	formatstest.Write(t, dir, `{"model_type":"llama","architectures":["LlamaModel"],"time_step_limit":[0.0, Infinity],"text_config":{"dtype":"float32","x":-Infinity,"y":NaN}}`,
		formatstest.Tensor{Name: "layers.0.self_attn.o_proj.weight", DType: "BF16", Shape: []int64{8, 8}, Data: make([]byte, 128)})
	p := mustPlan(t, dir, options(nil))
	text := p.Texts[0].Content
	for _, want := range []string{"    0.0,\n    Infinity\n", `"x": -Infinity`, `"y": NaN`, `"llm_int8_skip_modules": []`, `"dtype": "bfloat16"`} {
		if !strings.Contains(text, want) {
			t.Errorf("config.json lacks %s:\n%s", want, text)
		}
	}
	if _, err := json.Marshal(p); err != nil {
		t.Error(err)
	}
}
