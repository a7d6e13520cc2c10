package model

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// FuzzDescribe: a configuration, with one option replaced, is refused with an error of class input, or described by a
// spec in which everything fits together; it never panics and never takes much memory.
func FuzzDescribe(f *testing.F) {
	configs, err := filepath.Glob(filepath.Join(fixtures.Dir(f), "*", "*", "config.json"))
	if err != nil || len(configs) == 0 {
		f.Fatalf("no configurations: %v", err)
	}
	for _, path := range configs {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "sliding_window", "-1")
		f.Add(b, "layer_types", `["full_attention"]`)
		f.Add(b, "num_key_value_heads", "0")
		f.Add(b, "num_attention_heads", "1e9")
		f.Add(b, "head_dim", "3")
	}
	for _, t := range Types() {
		b := []byte(`{"architectures": ["XForCausalLM"], "hidden_size": 8, "n_embd": 8, "dim": 8, "hidden_dim": 8, "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
			"ffn_dim": 8, "intermediate_size": 16, "vocab_size": 9, "attention_layers": ["global", "local"], "rotary_dim": 4, "num_experts": 4, "num_local_experts": 4, "moe_num_experts": 4, "n_routed_experts": 4,
			"num_experts_per_tok": 2, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4, "q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4, "n_group": 2,
			"topk_group": 1, "rope_parameters": {"rope_type": "default"}, "max_position_embeddings": 64, "model_type": "` + t + `"}`)
		f.Add(b, "tie_word_embeddings", "false")
		f.Add(b, "rope_parameters", `{"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32}`)
		f.Add(b, "rope_parameters", `{"rope_type": "dynamic", "factor": 1e-300, "partial_rotary_factor": 0.3}`)
		f.Add(b, "rope_scaling", `{"type": "longrope", "short_factor": [1], "long_factor": [0], "factor": 0}`)
		f.Add(b, "n_group", "3")
		for _, class := range []string{"SequenceClassification", "TokenClassification", "QuestionAnswering"} {
			f.Add(b, "architectures", `["XFor`+class+`"]`)
		}
		f.Add(b, "num_experts_per_tok", "-2")
		f.Add(b, "head_dim", "1e308")
	}
	f.Fuzz(func(t *testing.T, text []byte, key, value string) {
		cfg, err := hf.ParseConfig(text)
		if err != nil {
			return
		}
		if json.Valid([]byte(value)) {
			cfg = cfg.Set(key, json.RawMessage(value))
		}
		s, err := Describe(cfg)
		if err != nil {
			if fault.ClassOf(err) != fault.Input {
				t.Errorf("class %v: %v", fault.ClassOf(err), err)
			}
			return
		}
		for i := range s.Layers {
			l := &s.Layers[i]
			if (l.MLP == nil) == (l.MoE == nil) || !fits(&l.Attn, s.Hidden) {
				t.Fatalf("layer %d does not fit together: %+v", i, l)
			}
		}
	})
}

// fits tells whether heads lie within the rows they are read from.
func fits(a *Attention, hidden int) bool {
	if a.Heads < 1 || a.KVHeads < 1 || a.Heads%a.KVHeads != 0 || !(a.Scale > 0) || !(a.Softcap >= 0) || a.Window < 0 ||
		a.Out.In != a.Heads*a.ValueDim || a.Out.Out != hidden {
		return false
	}
	width := 0
	for _, in := range a.Inputs {
		width += in.Out
	}
	if a.Latent != nil {
		return width > 0 && (a.Rope == nil || a.Rope.First+a.Rope.Dim <= a.HeadDim)
	}
	for _, c := range [][]int{a.QCols, a.KCols, a.VCols} {
		for _, at := range c {
			if at < 0 || at+a.HeadDim > width {
				return false
			}
		}
	}
	return a.Rope == nil || a.Rope.First+a.Rope.Dim <= a.HeadDim
}
