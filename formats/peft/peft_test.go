package peft

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/internal/fault"
)

func TestParseKey(t *testing.T) {
	for _, c := range []struct {
		name string
		want key
	}{
		{"base_model.model.model.layers.0.q_proj.lora_A.weight", key{module: "model.layers.0.q_proj", part: partA}},
		{"base_model.model.model.layers.0.q_proj.lora_B.default.weight", key{module: "model.layers.0.q_proj", part: partB}},
		{"model.layers.0.q_proj.lora_B.bias", key{module: "model.layers.0.q_proj", part: partBias}},
		{"base_model.model._orig_mod.m.lora_A.weight", key{module: "m", part: partA}},
		{"base_model.model.m._fsdp_wrapped_module.q.lora_A.weight", key{module: "m.q", part: partA}},
		{"base_model.model.wte.lora_embedding_A", key{module: "wte", part: partEmbeddingA}},
		{"base_model.model.wte.lora_embedding_B.x", key{module: "wte", part: partEmbeddingB}},
		{"base_model.model.q.lora_magnitude_vector", key{module: "q", part: partMagnitude}},
		{"base_model.model.q.lora_magnitude_vector.default.weight", key{module: "q", part: partMagnitude}},
		{"base_model.model.e.token_adapter.trainable_tokens_delta", key{module: "e", part: partRows}},
		{"base_model.model.m.experts.base_layer.lora_A.weight", key{module: "m.experts", nested: 1, part: partA}},
		{"base_model.model.m.experts.base_layer.base_layer.lora_A.weight", key{module: "m.experts", nested: 2, part: partA}},
		{"base_model.model.a.base_layer.out_proj.lora_A.weight", key{module: "a.out_proj", part: partA}},
		{"base_model.model.e.base_layer.weight", key{module: "e", part: partBase, param: "weight"}},
		{"base_model.model.lm_head.weight", key{module: "lm_head", part: partReplace, param: "weight"}},
		{"base_model.model.score.modules_to_save.default.weight", key{module: "score", part: partReplace, param: "weight", saved: true}},
		{"base_model.model.score.modules_to_save.default.dense.weight", key{module: "score.dense", part: partReplace, param: "weight", saved: true}},
		{"base_model.model.q.lora_velora_embed.x.y", key{module: "q", part: partIgnored}},
		{"base_model.model.base_model.model.q.lora_A.weight", key{module: "base_model.model.q", part: partA}},
	} {
		got, ok := parseKey(c.name)
		if !ok || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, ok, c.want)
		}
	}
	for _, name := range []string{"", "weight", "lora_A.weight", "base_model.model.", "a..lora_A.weight", "q.lora_A.a.b.weight", "q.lora_A.bias", "q.lora_diag", "q.token_adapter.x", "q.modules_to_save.weight"} {
		if k, ok := parseKey(name); ok {
			t.Errorf("%q was taken for %+v", name, k)
		}
	}
}

// All adapters that PEFT wrote are read, and every tensor of theirs has a place.
func TestOpenGolden(t *testing.T) {
	dirs, _ := filepath.Glob(filepath.Join(fixtures.Dir(t), "adapters", "*", WeightsName))
	opened := 0
	for _, f := range dirs {
		a, err := Open(filepath.Dir(f))
		if err != nil {
			continue // those that must be are listed with the tests of merges
		}
		opened++
		n := len(a.Replacements()) + len(a.TokenRows()) + len(a.Ignored())
		for _, x := range a.Targets() {
			n += 2
			if x.Bias != nil {
				n++
			}
			if x.Magnitude != nil {
				n++
			}
		}
		if want := len(a.File().Header().Tensors); n != want {
			t.Errorf("%s: %d of %d tensors have a place", filepath.Dir(f), n, want)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if opened < 20 {
		t.Errorf("only %d adapters were opened", opened)
	}
}

// made writes an adapter.
func made(t *testing.T, keys string, ts ...formatstest.Tensor) string {
	t.Helper()
	dir := t.TempDir()
	formatstest.Write(t, dir, "", ts...)
	if err := os.Rename(filepath.Join(dir, "model.safetensors"), filepath.Join(dir, WeightsName)); err != nil {
		t.Fatal(err)
	}
	text := `{"peft_type": "LORA", "r": 2, "lora_alpha": 2`
	if keys != "" {
		text += ", " + keys
	}
	if err := os.WriteFile(filepath.Join(dir, ConfigName), []byte(text+"}"), 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

func zeros(name string, shape ...int64) formatstest.Tensor {
	n := int64(4)
	for _, d := range shape {
		n *= d
	}
	return formatstest.Tensor{Name: name, DType: "F32", Shape: shape, Data: make([]byte, n)}
}

func TestOpenRefuses(t *testing.T) {
	a, b := zeros("m.lora_A.weight", 2, 4), zeros("m.lora_B.weight", 3, 2)
	with := func(x formatstest.Tensor, dtype string) formatstest.Tensor {
		x.DType = dtype
		return x
	}
	for name, c := range map[string]struct {
		keys string
		ts   []formatstest.Tensor
		want string
	}{
		"no B":                {"", []formatstest.Tensor{a}, "its other factor, B, is missing"},
		"no A":                {"", []formatstest.Tensor{b}, "its other factor, A, is missing"},
		"other rank":          {"", []formatstest.Tensor{a, zeros("m.lora_B.weight", 3, 3)}, "the ranks differ"},
		"no matrix":           {"", []formatstest.Tensor{zeros("m.lora_A.weight", 8), zeros("m.lora_B.weight", 6)}, "expected two matrices"},
		"groups":              {"", []formatstest.Tensor{zeros("m.lora_A.weight", 4, 4, 3), zeros("m.lora_B.weight", 3, 2, 1)}, "in groups"},
		"wide B":              {"", []formatstest.Tensor{zeros("m.lora_A.weight", 2, 4, 3), zeros("m.lora_B.weight", 3, 2, 3)}, "kernels of size 1"},
		"unknown tensor":      {"", []formatstest.Tensor{a, b, zeros("m.lora_diag", 2)}, `"m.lora_diag"`},
		"unexplained tensor":  {"", []formatstest.Tensor{a, b, zeros("m.weight", 3, 4)}, "no reason for it"},
		"unasked bias":        {"", []formatstest.Tensor{a, b, zeros("m.bias", 3)}, "no reason for it"},
		"two adapters":        {"", []formatstest.Tensor{a, b, zeros("m.lora_A.second.weight", 2, 4)}, "same part of the same module"},
		"bias of B":           {"", []formatstest.Tensor{a, b, zeros("m.lora_B.bias", 3)}, "lora_bias is false"},
		"shape of bias":       {`"lora_bias": true`, []formatstest.Tensor{a, b, zeros("m.lora_B.bias", 4)}, "expected [3]"},
		"no magnitude":        {`"use_dora": true`, []formatstest.Tensor{a, b}, "no lora_magnitude_vector"},
		"magnitude":           {"", []formatstest.Tensor{a, b, zeros("m.lora_magnitude_vector", 3)}, "use_dora is false"},
		"shape of magnitude":  {`"use_dora": true`, []formatstest.Tensor{a, b, zeros("m.lora_magnitude_vector", 4)}, "expected 3 factors"},
		"magnitude of no one": {`"use_dora": true`, []formatstest.Tensor{zeros("n.lora_magnitude_vector", 3)}, "there are no factors"},
		"integers":            {"", []formatstest.Tensor{with(a, "I32"), b}, "dtype I32"},
		"rows":                {`"trainable_token_indices": [1]`, []formatstest.Tensor{zeros("e.token_adapter.trainable_tokens_delta", 2, 4)}, "lists 1 rows"},
		"no rows listed":      {"", []formatstest.Tensor{zeros("e.token_adapter.trainable_tokens_delta", 2, 4)}, "lists 0 rows"},
		"nothing":             {"", []formatstest.Tensor{zeros("m.lora_velora_embed", 1)}, "nothing to merge"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Open(made(t, c.keys, c.ts...))
			if err == nil {
				o.Close()
				t.Fatal("it was accepted")
			}
			if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), WeightsName) {
				t.Errorf("error %v of class %v; want input, the file and %q", err, fault.ClassOf(err), c.want)
			}
		})
	}
}

// What people try instead of an adapter directory gets a hint.
func TestOpenHints(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) string {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(`{"peft_type": "LORA"}`), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("bin/adapter_config.json")
	write("bin/adapter_model.bin")
	write("named/mine/adapter_config.json")
	write("model/config.json")
	for path, want := range map[string]string{
		"bin": "pickle", "named": "mine", "model": "this is a model", "nothing": "give the directory", "bin/adapter_config.json": "give the directory",
	} {
		_, err := Open(filepath.Join(dir, filepath.FromSlash(path)))
		if hints := fmt.Sprint(fault.Hints(err)); fault.ClassOf(err) != fault.Input || !strings.Contains(hints, want) {
			t.Errorf("%s: error %v, hints %s; want class input and %q", path, err, hints, want)
		}
	}
}

func TestReplacementsAndTargets(t *testing.T) {
	dir := made(t, `"modules_to_save": ["head"], "bias": "lora_only"`,
		zeros("base_model.model.m.lora_A.weight", 2, 4), zeros("base_model.model.m.lora_B.weight", 3, 2), zeros("base_model.model.m.base_layer.bias", 3), zeros("base_model.model.head.weight", 5, 4))
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var got []string
	for _, r := range a.Replacements() {
		got = append(got, fmt.Sprintf("%s base=%v trained=%v", r.Name(), r.Base, r.Trained))
	}
	if diff := cmp.Diff([]string{"m.bias base=true trained=true", "head.weight base=false trained=true"}, got); diff != "" {
		t.Error(diff)
	}
	if len(a.Targets()) != 1 || a.Targets()[0].Module != "m" {
		t.Errorf("targets %+v", a.Targets())
	}
}

func TestBaseDigests(t *testing.T) {
	dir := made(t, "", zeros("m.lora_A.weight", 2, 4), zeros("m.lora_B.weight", 3, 2))
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if d, err := a.BaseDigests(); err != nil || len(d) != 0 {
		t.Errorf("digests %v, %v of an adapter without a record", d, err)
	}
	for text, ok := range map[string]bool{
		`{"schema": "nf4conv.adapter/1", "base": [{"tensor": "m.weight", "blake3": "` + strings.Repeat("0f", 32) + `"}]}`: true,
		`{"schema": "nf4conv.manifest/1"}`: false, `nonsense`: false,
		`{"schema": "nf4conv.adapter/1", "base": [{"tensor": "m.weight", "blake3": "0f"}]}`: false,
	} {
		if err := os.WriteFile(filepath.Join(dir, RecordName), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		d, err := a.BaseDigests()
		if (err == nil) != ok || ok && len(d) != 1 || !ok && fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
}
