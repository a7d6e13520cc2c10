package model_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/model"
)

func fixture(t testing.TB, name string) string {
	return filepath.Join(fixtures.Dir(t), filepath.FromSlash(name))
}

// edited is a directory with the weights of a model and its config.json after edit.
func edited(t testing.TB, dir string, edit func(cfg map[string]any)) string {
	t.Helper()
	out := t.TempDir()
	files, err := filepath.Glob(filepath.Join(dir, "model*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(out, filepath.Base(f)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cfg map[string]any
	if err := json.Unmarshal(b, &cfg); err != nil {
		t.Fatal(err)
	}
	edit(cfg)
	if b, err = json.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func set(values map[string]any) func(map[string]any) {
	return func(cfg map[string]any) { maps.Copy(cfg, values) }
}

func plainRope(theta float64) map[string]any {
	return map[string]any{"rope_type": "default", "rope_theta": theta}
}

// TestOptionsMatter turns options off one at a time and finds the change of the logits that
// transformers finds: the tests above would notice if an option were not there.
func TestOptionsMatter(t *testing.T) {
	plain := plainRope(10000)
	edits := map[string]map[string]func(map[string]any){
		"llama": {"plain rope": set(map[string]any{"rope_scaling": nil})},
		"mistral": {
			"no sliding window": set(map[string]any{"sliding_window": nil}),
			"sliding window 17": set(map[string]any{"sliding_window": 17}),
		},
		"gemma2": {
			"no attention softcap":      set(map[string]any{"attn_logit_softcapping": nil}),
			"full attention everywhere": set(map[string]any{"layer_types": []string{"full_attention", "full_attention"}}),
			"scale 1/sqrt(head_dim)":    set(map[string]any{"query_pre_attn_scalar": 32}),
		},
		"gemma3": {
			"full attention mask everywhere": set(map[string]any{"sliding_window": 1024}),
			"one rope for all layers":        set(map[string]any{"rope_parameters": map[string]any{"sliding_attention": plain, "full_attention": plain}}),
		},
		"phi3": {"short factors": func(cfg map[string]any) {
			cfg["original_max_position_embeddings"] = 64
			cfg["rope_parameters"].(map[string]any)["original_max_position_embeddings"] = 64
		}},
		"gpt_neox":  {"sequential residual": set(map[string]any{"use_parallel_residual": false}), "gelu tanh": set(map[string]any{"hidden_act": "gelu_new"})},
		"qwen3_moe": {"norm_topk_prob off": set(map[string]any{"norm_topk_prob": false})},
	}
	for name, list := range edits {
		dir := fixture(t, "arch/"+name)
		g := golden(t, dir)
		b, err := os.ReadFile(strings.TrimSuffix(fixtures.Golden(t, dir), ".safetensors") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var facts struct {
			Change map[string]float64 `json:"max_logit_change_if"`
		}
		if err := json.Unmarshal(b, &facts); err != nil {
			t.Fatal(err)
		}
		if len(facts.Change) != len(list) {
			t.Errorf("%s: %d options are known to matter; %d are tested", name, len(facts.Change), len(list))
		}
		seqs, _, _ := g.batch(t)
		right := forward(t, open(t, dir, model.Options{}), seqs)
		for label, edit := range list {
			wrong := forward(t, open(t, edited(t, dir, edit), model.Options{}), seqs)
			change := 0.0
			for i, v := range wrong.logits {
				change = max(change, math.Abs(float64(v)-float64(right.logits[i])))
			}
			if want := facts.Change[label]; !(math.Abs(change-want) <= 1e-3*want) {
				t.Errorf("%s: %s changes logits by %.5g; it does by %.5g in transformers", name, label, change, want)
			}
		}
	}
}

// TestLanguageModel is a trained model, and left padding, which must change nothing but
// positions.
func TestLanguageModel(t *testing.T) {
	dir := fixture(t, "models/kjv-llama")
	g := golden(t, dir)
	m := open(t, dir, model.Options{Threads: 2})
	ids, shape := g.ints(t, "input_ids")
	rows, seq := int(shape[0]), int(shape[1])
	mask := slices.Repeat([]int64{1}, len(ids))
	columns := make([]int64, seq)
	for i := range columns {
		columns[i] = int64(i)
	}
	if _, ok := g.c.Lookup("columns"); ok {
		columns, _ = g.ints(t, "columns")
	}
	seqs, err := model.Padded(ids, mask, rows, seq)
	if err != nil {
		t.Fatal(err)
	}
	r := forward(t, m, seqs)
	last := r.hidden[len(r.hidden)-1]
	hidden, _ := g.floats(t, "hidden")
	compare(t, "hidden", last, hidden, 256, tokensOf(seqs, columns))
	logits, _ := g.floats(t, "logits_seq0")
	first := tokensOf(seqs[:1], columns)
	compare(t, "logits", r.logits, logits, 2048, first)
	states, _ := g.floats(t, "hidden_states_seq0")
	for i, h := range r.hidden {
		compare(t, fmt.Sprintf("hidden state %d", i), h, states[i*len(columns)*256:], 256, first)
	}

	ids, shape = g.ints(t, "padded_input_ids")
	mask, _ = g.ints(t, "padded_attention_mask")
	if seqs, err = model.Padded(ids, mask, rows, int(shape[1])); err != nil {
		t.Fatal(err)
	}
	r = forward(t, m, seqs)
	hidden, _ = g.floats(t, "padded_hidden")
	compare(t, "padded hidden", r.hidden[len(r.hidden)-1], hidden, 256, tokensOf(seqs, columns))
	logits, shape = g.floats(t, "padded_logits_tail")
	tail := columns[:0:0]
	for i := range shape[1] {
		tail = append(tail, int64(seq)-shape[1]+i)
	}
	compare(t, "padded logits", r.logits, logits, 2048, tokensOf(seqs, tail))
}

// TestBitsDependOnTheSequenceAlone: not on threads, nor on the batch, nor on how many
// sequences share a step.
func TestBitsDependOnTheSequenceAlone(t *testing.T) {
	for _, name := range []string{"llama", "gemma2", "qwen3_moe", "phi3", "bert", "opt"} {
		dir := fixture(t, "arch/"+name)
		seqs, _, _ := golden(t, dir).batch(t)
		for len(seqs) < 50 { // more than one group of sequences
			seqs = append(seqs, seqs...)
		}
		one := forward(t, open(t, dir, model.Options{Threads: 1}), seqs)
		three := forward(t, open(t, dir, model.Options{Threads: 3}), seqs)
		equal(t, name+" with three threads", one, three, 0)
		alone := forward(t, open(t, dir, model.Options{}), seqs[1:2])
		equal(t, name+" alone", alone, one, len(seqs[0].IDs))
	}
}

// equal holds a to what b has from token number first on.
func equal(t *testing.T, what string, a, b result, first int) {
	t.Helper()
	same := func(name string, x, y []float32, width int) {
		for i, v := range x {
			if math.Float32bits(v) != math.Float32bits(y[first*width+i]) {
				t.Errorf("%s: %s differs at element %d: %v and %v", what, name, i, v, y[first*width+i])
				return
			}
		}
	}
	n := a.tokens
	for i, h := range a.hidden {
		same(fmt.Sprintf("hidden state %d", i), h, b.hidden[i], len(h)/n)
	}
	same("logits", a.logits, b.logits, len(a.logits)/n)
}

// quantized converts a model to 4 bits, and that back to 16.
func quantized(t *testing.T, dir string, edit func(*convert.QuantizeOptions)) (four, sixteen string) {
	t.Helper()
	four, sixteen = filepath.Join(t.TempDir(), "four"), filepath.Join(t.TempDir(), "sixteen")
	run := func(src, out string, plan func(*hf.Checkpoint) (*convert.Plan, error)) {
		c, err := hf.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p, err := plan(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := convert.Run(context.Background(), p, convert.RunOptions{Out: out}); err != nil {
			t.Fatal(err)
		}
	}
	run(dir, four, func(c *hf.Checkpoint) (*convert.Plan, error) {
		o := convert.DefaultQuantize()
		edit(&o)
		return convert.Quantize(c, o)
	})
	run(four, sixteen, func(c *hf.Checkpoint) (*convert.Plan, error) {
		return convert.Dequantize(c, convert.DefaultDequantize())
	})
	return four, sixteen
}

// TestQuantized: a 4-bit checkpoint gives what its dequantized weights give, bit for bit,
// and not what the original gives.
func TestQuantized(t *testing.T) {
	for _, name := range []string{"llama", "gpt2", "phi3", "gpt_neox", "opt"} {
		for _, double := range []bool{false, true} {
			dir := fixture(t, "arch/"+name)
			seqs, _, _ := golden(t, dir).batch(t)
			four, sixteen := quantized(t, dir, func(o *convert.QuantizeOptions) { o.DoubleQuant = double })
			a, b := forward(t, open(t, four, model.Options{Threads: 2}), seqs), forward(t, open(t, sixteen, model.Options{}), seqs)
			equal(t, fmt.Sprintf("%s in 4 bits, double quantization %v", name, double), a, b, 0)
			if c := forward(t, open(t, dir, model.Options{}), seqs); slices.Equal(a.logits, c.logits) {
				t.Errorf("%s: logits in 4 bits are those of the original", name)
			}
		}
	}
}

// TestRefusals: what is not implemented, missing or too much is named.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		model string
		edit  func(map[string]any)
		want  string
	}{
		{"llama", set(map[string]any{"model_type": "zamba"}), `model_type "zamba"`},
		{"llama", set(map[string]any{"hidden_act": "mish"}), `activation "mish"`},
		{"llama", set(map[string]any{"rope_scaling": map[string]any{"rope_type": "spiral", "factor": 2}}), `rope type "spiral"`},
		{"llama", set(map[string]any{"rope_scaling": map[string]any{"rope_type": "linear", "factor": 2, "wobble": 1}}), `rope parameter "wobble"`},
		{"llama", set(map[string]any{"rope_scaling": map[string]any{"rope_type": "linear"}}), "factor"},
		{"llama", set(map[string]any{"rope_scaling": map[string]any{"rope_type": "llama3", "factor": 8}}), "low_freq_factor"},
		{"llama", set(map[string]any{"partial_rotary_factor": 0.5}), "partial_rotary_factor"},
		{"llama", set(map[string]any{"attention_bias": true}), "self_attn.q_proj.bias\" is missing"},
		{"llama", set(map[string]any{"num_hidden_layers": 1}), "model.layers.1."},
		{"llama", set(map[string]any{"num_hidden_layers": 3}), "model.layers.2."},
		{"llama", set(map[string]any{"num_hidden_layers": -1}), "num_hidden_layers"},
		{"llama", set(map[string]any{"num_hidden_layers": "two"}), "num_hidden_layers"},
		{"llama", set(map[string]any{"num_key_value_heads": 3}), "key/value heads"},
		{"llama", set(map[string]any{"intermediate_size": 128}), "expected [128 64]"},
		{"llama", set(map[string]any{"tie_word_embeddings": false}), "lm_head.weight\" is missing"},
		{"llama", set(map[string]any{"architectures": []string{"LlamaForSequenceClassification"}}), "score.weight"},
		{"llama", set(map[string]any{"architectures": []string{"LlamaForQuestionAnswering"}}), "LlamaForQuestionAnswering"},
		{"bert", set(map[string]any{"architectures": []string{"BertForMultipleChoice"}}), "BertForMultipleChoice"},
		{"llama", func(m map[string]any) { delete(m, "hidden_size") }, "hidden_size is missing"},
		{"mistral", set(map[string]any{"tie_word_embeddings": true}), "although config.json says tie_word_embeddings"},
		{"qwen3", set(map[string]any{"model_type": "qwen2"}), "bias\" is missing"},
		{"qwen3", set(map[string]any{"model_type": "llama"}), "k_norm.weight\" is no part of a llama"},
		{"qwen3", set(map[string]any{"layer_types": []string{"linear_attention", "full_attention"}}), "linear_attention"},
		{"gemma3", set(map[string]any{"attn_logit_softcapping": 30}), "attn_logit_softcapping"},
		{"gpt2", set(map[string]any{"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse_layer_idx"},
		{"bert", set(map[string]any{"is_decoder": true}), "is_decoder"},
		{"bert", set(map[string]any{"position_embedding_type": "relative_key"}), "relative_key"},
		{"mixtral", set(map[string]any{"num_experts_per_tok": 5}), "num_experts_per_tok 5"},
		{"phi3", set(map[string]any{"rope_parameters": map[string]any{"rope_type": "longrope", "short_factor": []float64{1}, "long_factor": []float64{1}}}), "1 short and 1 long factors"},
	} {
		dir := edited(t, fixture(t, "arch/"+c.model), c.edit)
		ckpt, err := hf.Open(dir)
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v; expected an error that says %q", c.model, err, c.want)
			}
			continue
		}
		m, err := model.Open(ckpt, model.Options{})
		ckpt.Close()
		switch {
		case err == nil:
			t.Errorf("%s: %d layers were accepted; expected an error that says %q", c.model, m.Layers(), c.want)
		case fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: class %v, %v; expected one of class input that says %q", c.model, fault.ClassOf(err), err, c.want)
		}
	}
}

// TestSequencesRefused: tokens without an embedding are refused before anything is computed.
func TestSequencesRefused(t *testing.T) {
	for _, c := range []struct {
		model, want string
		seq         model.Sequence
	}{
		{"llama", "token 272", model.Sequence{IDs: []int{1, 272}}},
		{"llama", "token -1", model.Sequence{IDs: []int{-1}}},
		{"llama", "no tokens", model.Sequence{}},
		{"llama", "row of 3", model.Sequence{IDs: []int{1, 2}, Start: 2, Width: 3}},
		{"gpt2", "64 positions", model.Sequence{IDs: make([]int, 65)}},
		{"gpt2", "64 positions", model.Sequence{IDs: make([]int, 64), Start: 1}},
		{"opt", "98 positions", model.Sequence{IDs: make([]int, 97)}},
		{"roberta", "66 positions", model.Sequence{IDs: make([]int, 65)}},
	} {
		m := open(t, fixture(t, "arch/"+c.model), model.Options{})
		_, err := model.Forward(context.Background(), m, []model.Sequence{{IDs: []int{5}}, c.seq}, model.RunOptions{}, nil)
		if err == nil || fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "sequence 1") {
			t.Errorf("%s: %v; expected an error about sequence 1 that says %q", c.model, err, c.want)
		}
	}
	for _, mask := range [][]int64{{1, 0, 1}, {2, 1, 1}, {1, 1}} {
		if _, err := model.Padded([]int64{1, 2, 3}, mask, 1, 3); err == nil || fault.ClassOf(err) != fault.Input {
			t.Errorf("mask %v: %v; expected an error of class input", mask, err)
		}
	}
}

// TestInterrupted: a pass ends between two groups of sequences.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m := open(t, fixture(t, "arch/llama"), model.Options{})
	layers := 0
	_, err := model.Forward(ctx, m, []model.Sequence{{IDs: []int{1, 2, 3}}}, model.RunOptions{}, func(int, []float32) error {
		layers++
		cancel()
		return nil
	})
	if fault.ClassOf(err) != fault.Interrupted || layers != 1 {
		t.Errorf("%v after %d layers; expected to be interrupted after one", err, layers)
	}
}
