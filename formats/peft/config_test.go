package peft

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
)

func parse(t *testing.T, keys string) (*Config, error) {
	t.Helper()
	text := `{"peft_type": "LORA"`
	if keys != "" {
		text += ", " + keys
	}
	return ParseConfig([]byte(text + "}"))
}

func TestConfigDefaults(t *testing.T) {
	c, err := parse(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Rank != 8 || c.Alpha != 8 || c.Bias != "none" || c.RSLoRA || c.DoRA || len(c.Warnings) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestConfigReads(t *testing.T) {
	c, err := parse(t, `"r": 4, "lora_alpha": 22.5, "use_rslora": true, "bias": "all", "modules_to_save": ["lm_head"], "peft_version": "0.21.2",
		"target_modules": "all-linear", "init_lora_weights": "gaussian", "trainable_token_indices": {"embed_tokens": [3, 1]}, "loftq_config": {}, "revision": null`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Rank != 4 || c.Alpha != 22.5 || !c.RSLoRA || c.Bias != "all" || c.Version != "0.21.2" || len(c.TokenIndicesOf["embed_tokens"]) != 2 || len(c.Warnings) != 0 {
		t.Errorf("%+v", c)
	}
	if got, want := c.ScaleOf("x", 9), 22.5/3; got != want {
		t.Errorf("scale %v, want %v", got, want)
	}
}

// Every way of training that is no addition to the given base, and every key that nobody
// here knows, is refused as input, with the key, and with a hint.
func TestConfigRefuses(t *testing.T) {
	for _, c := range []struct{ keys, want string }{
		{`"init_lora_weights": "pissa"`, "pissa"},
		{`"init_lora_weights": "pissa_niter_16"`, "principal components"},
		{`"init_lora_weights": "olora"`, "QR"},
		{`"init_lora_weights": "corda"`, "corda"},
		{`"init_lora_weights": "lora_ga"`, "gradients"},
		{`"init_lora_weights": "loftq"`, "quantized base"},
		{`"init_lora_weights": "something"`, "something"},
		{`"kasa_config": {"a": 1}`, "kasa_config"},
		{`"alora_invocation_tokens": [5]`, "alora"},
		{`"arrow_config": {"top_k": 2}`, "Arrow"},
		{`"use_qalora": true`, "use_qalora"},
		{`"use_bdlora": {"nblocks": 2}`, "use_bdlora"},
		{`"layer_replication": [[0, 2]]`, "layer_replication"},
		{`"lora_B_layout": "expert_slowest"`, "lora_B_layout"},
		{`"some_new_thing": true`, "some_new_thing"},
		{`"some_new_thing": 0.5`, "some_new_thing"},
		{`"some_new_thing": {"a": null}`, "some_new_thing"},
		{`"alpha_pattern": {"(?=x)y": 3}`, "alpha_pattern"},
	} {
		_, err := parse(t, c.keys)
		if fault.ClassOf(err) != fault.Input || len(fault.Hints(err)) == 0 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, hints %q; want class input, a hint and %q", c.keys, err, fault.Hints(err), c.want)
		}
	}
	for _, text := range []string{`{}`, `{"peft_type": "LOHA"}`, `{"peft_type": "ADALORA", "target_r": 8}`, `{"peft_type": 1}`, `[]`, `{"peft_type": "LORA", "peft_type": "LORA"}`} {
		if _, err := ParseConfig([]byte(text)); fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: error %v, want class input", text, err)
		}
	}
}

// Values of a wrong type are refused, those that are false or empty are nobody's business.
func TestConfigTypes(t *testing.T) {
	for _, keys := range []string{
		`"r": "8"`, `"r": 0`, `"r": -1`, `"lora_alpha": []`, `"lora_alpha": 1e999`, `"use_rslora": "true"`, `"use_dora": 1`, `"bias": "some"`, `"modules_to_save": "lm_head"`,
		`"modules_to_save": [1]`, `"alpha_pattern": []`, `"alpha_pattern": {"a": "b"}`, `"rank_pattern": {"a": []}`, `"trainable_token_indices": 5`,
		`"trainable_token_indices": [-1]`, `"trainable_token_indices": [1.5]`, `"trainable_token_indices": {"a": 1}`, `"init_lora_weights": 3`, `"peft_version": 1`,
		`"use_dora": true, "lora_bias": true`, `"use_dora": true, "target_parameters": ["x"]`, `"lora_bias": true, "target_parameters": ["x"]`,
	} {
		if _, err := parse(t, keys); fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: error %v, want class input", keys, err)
		}
	}
	for _, keys := range []string{`"unknown": false`, `"unknown": null`, `"unknown": []`, `"unknown": {}`, `"unknown": ""`, `"unknown": 0`, `"init_lora_weights": null`,
		`"init_lora_weights": false`, `"init_lora_weights": "eva"`, `"init_lora_weights": "orthogonal"`, `"init_lora_weights": "mica"`, `"velora_config": {"a": 1}`, `"corda_config": {"a": 1}`} {
		if _, err := parse(t, keys); err != nil {
			t.Errorf("%s: %v", keys, err)
		}
	}
}

// alpha_pattern: the first key in the file's order that matches from an element's start.
func TestAlphaOf(t *testing.T) {
	c, err := parse(t, `"lora_alpha": 1, "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 5, "^model.layers.1.mlp.up_proj": 7, "proj": 9, "l[0-9]+_proj": 11}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		module string
		want   float64
		warned bool
	}{
		{"model.layers.0.self_attn.q_proj", 3, true},
		{"model.layers.10.self_attn.q_proj", 5, false},
		{"model.layers.1.mlp.up_proj", 7, false},
		{"base.model.layers.1.mlp.up_proj", 1, false},
		{"model.proj", 9, false},
		{"model.xq_proj", 1, false},
		{"q_proj", 5, false},
		{"a.l12_proj", 11, false},
	} {
		got, warning := c.AlphaOf(x.module)
		if got != x.want || (warning != "") != x.warned {
			t.Errorf("%s: alpha %v and warning %q, want %v and a warning: %v", x.module, got, warning, x.want, x.warned)
		}
	}
}

// PEFT wraps every module whose path ends with an entry, at an element's start or not.
func TestSaves(t *testing.T) {
	c, _ := parse(t, `"modules_to_save": ["norm", "lm_head"]`)
	for module, want := range map[string]bool{"model.norm": true, "model.layers.0.input_layernorm": true, "lm_head": true, "score": false, "model.norm.sub": true, "model.normal": false} {
		if c.Saves(module) != want {
			t.Errorf("%s: %v, want %v", module, !want, want)
		}
	}
	if c, _ = parse(t, `"task_type": "SEQ_CLS"`); !c.Saves("score") {
		t.Error("the head of a classifier is not taken for saved")
	}
}

// FuzzParseConfig: whatever is in the file, an error is one of input, and a configuration
// that is accepted gives every module a scale that can be computed with.
func FuzzParseConfig(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join(fixtures.Dir(f), "adapters", "*", ConfigName))
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"peft_type": "LORA", "alpha_pattern": {"a(b": 1}, "trainable_token_indices": {"x": [1]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			if fault.ClassOf(err) != fault.Input {
				t.Errorf("class %v of %v, want input", fault.ClassOf(err), err)
			}
			return
		}
		if s := c.ScaleOf("model.layers.0.self_attn.q_proj", 4); math.IsNaN(s) || math.IsInf(s, 0) {
			t.Errorf("scale %v", s)
		}
		if !json.Valid(b) {
			t.Error("what is not JSON was accepted")
		}
	})
}
