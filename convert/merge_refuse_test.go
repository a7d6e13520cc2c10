package convert

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

func TestMergeThatChangesNothing(t *testing.T) {
	for name, scale := range map[string]float64{"zero": 0, "too small": 1e-12} {
		for _, quantize := range []bool{false, true} {
			if quantize && scale != 0 {
				continue
			}
			p := mustMerge(t, tiny(t, "mistral"), func(o *MergeOptions) {
				if quantize {
					q := DefaultQuantize()
					o.Quantize = &q
				}
			}, adapter(t, "", pair(q0, scale)...))
			out := filepath.Join(t.TempDir(), "out")
			_, err := runMerge(t, p, out)
			if fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), "nothing changed") {
				t.Errorf("%s, quantize %v: error %v, want class input and \"nothing changed\"", name, quantize, err)
			}
			if _, err := os.Stat(out); err == nil {
				t.Errorf("%s: there is an output", name)
			}
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	base := tiny(t, "llama")
	b := func(name string, ts ...formatstest.Tensor) []formatstest.Tensor {
		if len(ts) == 0 {
			ts = pair(name, 0.1)
		}
		return ts
	}
	for name, c := range map[string]struct {
		base, keys, want string
		ts               []formatstest.Tensor
	}{
		"no such module": {"", "", "no tensor for it", b("model.layers.9.self_attn.q_proj")},
		"other width":    {"", "", "does not go with factors", b("", values(q0+".lora_A.weight", 1, 2, 32), values(q0+".lora_B.weight", 1, 64, 2))},
		"other height":   {"", "", "does not go with factors", b("", values(q0+".lora_A.weight", 1, 2, 64), values(q0+".lora_B.weight", 1, 32, 2))},
		"bias of nothing": {"", `"lora_bias": true`, "has none",
			append(pair(q0, 0.1), values(q0+".lora_B.bias", 1, 64))},
		"trained bias of nothing": {"", `"bias": "all"`, "no tensor for it", append(pair(q0, 0.1), values(q0+".base_layer.bias", 1, 64))},
		"saved norm of other size": {"", `"modules_to_save": ["norm"]`, "does not go with shape",
			append(pair(q0, 0.1), values("model.norm.weight", 1, 65))},
		"row out of range": {"", `"trainable_token_indices": [100000]`, "names row 100000",
			append(pair(q0, 0.1), values("model.embed_tokens.token_adapter.trainable_tokens_delta", 1, 1, 64))},
		"row twice": {"", `"trainable_token_indices": [1, 1]`, "twice",
			append(pair(q0, 0.1), values("model.embed_tokens.token_adapter.trainable_tokens_delta", 1, 2, 64))},
		"resized embedding without its rows": {"", "", "has 272 rows, the adapter was trained with 300",
			b("", values("model.embed_tokens.lora_embedding_A", 1, 2, 300), values("model.embed_tokens.lora_embedding_B", 1, 64, 2))},
		"experts without parameters": {tiny(t, "mixtral"), "", "target_parameters",
			b("", values("model.layers.0.mlp.experts.lora_A.weight", 1, 8, 64), values("model.layers.0.mlp.experts.lora_B.weight", 1, 192, 8))},
		"rank of experts": {tiny(t, "mixtral"), `"target_parameters": ["gate_up_proj"]`, "for 4 experts",
			b("", values("model.layers.0.mlp.experts.lora_A.weight", 1, 6, 64), values("model.layers.0.mlp.experts.lora_B.weight", 1, 192, 6))},
		"embedding factors on a linear layer's": {"", "", "no embedding", b("", values(q0+".lora_embedding_A", 1, 2, 63), values(q0+".lora_embedding_B", 1, 64, 2))},
	} {
		t.Run(name, func(t *testing.T) {
			at := base
			if c.base != "" {
				at = c.base
			}
			o := DefaultMerge()
			o.Adapters = []MergeAdapter{{Adapter: openAdapter(t, adapter(t, c.keys, c.ts...)), Weight: 1}}
			_, err := Merge(openSource(t, at), o)
			if fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error %v of class %v, want input and %q", err, fault.ClassOf(err), c.want)
			}
		})
	}
}

func TestMergeRefusesCombinations(t *testing.T) {
	dir := filepath.Join(fixtures.Dir(t), "adapters")
	for name, c := range map[string]struct {
		base, want string
		adapters   []string
		weights    []float64
	}{
		"half a DoRA":        {"models/kjv-llama", "DoRA", []string{"dora"}, []float64{0.5}},
		"DoRA twice":         {"models/kjv-llama", "DoRA", []string{"dora", "dora"}, []float64{1, 1}},
		"half a replacement": {"arch/mistral", "cannot count", []string{"modules-to-save"}, []float64{0.5}},
		"two replacements":   {"arch/mistral", "replaces the same tensor", []string{"modules-to-save", "modules-to-save"}, []float64{1, 1}},
		"half of rows":       {"arch/mistral", "cannot count", []string{"tokens"}, []float64{0.5}},
	} {
		o := DefaultMerge()
		for i, a := range c.adapters {
			o.Adapters = append(o.Adapters, MergeAdapter{Adapter: openAdapter(t, filepath.Join(dir, a)), Weight: c.weights[i]})
		}
		_, err := Merge(openSource(t, filepath.Join(fixtures.Dir(t), c.base)), o)
		if fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: error %v of class %v, want input and %q", name, err, fault.ClassOf(err), c.want)
		}
	}
}

func TestMergeOfValuesThatAreNotNumbers(t *testing.T) {
	inf := values(q0+".lora_A.weight", 0.1, 2, 64)
	binary.LittleEndian.PutUint32(inf.Data[8:], math.Float32bits(float32(math.Inf(1))))
	h := "transformer.h.0.attn.c_attn"
	for name, c := range map[string]struct {
		base string
		want []string
		ts   []formatstest.Tensor
	}{
		"infinite factor": {"llama", []string{"lora_A.weight", "+Inf"}, []formatstest.Tensor{inf, values(q0+".lora_B.weight", 0.1, 64, 2)}},
		"float16 overflow": {"gpt2", []string{"float16 cannot hold", h + ".weight"},
			[]formatstest.Tensor{values(h+".lora_A.weight", 1000, 2, 64), values(h+".lora_B.weight", 1000, 192, 2)}},
	} {
		p := mustMerge(t, tiny(t, c.base), nil, adapter(t, "", c.ts...))
		_, err := runMerge(t, p, filepath.Join(t.TempDir(), "out"))
		for _, w := range c.want {
			if fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), w) {
				t.Errorf("%s: error %v of class %v, want input and %q", name, err, fault.ClassOf(err), w)
			}
		}
	}
}

func TestMergeComparesTheBase(t *testing.T) {
	base := tiny(t, "llama")
	src := openSource(t, base)
	w, _ := src.Lookup(q0 + ".weight")
	for _, right := range []bool{true, false} {
		dir := adapter(t, "", pair(q0, 0.1)...)
		d := treehash.Sum(contents(t, w))
		if !right {
			d[0] ^= 1
		}
		text := fmt.Sprintf(`{"schema": %q, "base": [{"tensor": %q, "blake3": %q}]}`, peft.RecordSchema, w.Name, d)
		if err := os.WriteFile(filepath.Join(dir, peft.RecordName), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		o := DefaultMerge()
		o.Adapters = []MergeAdapter{{Adapter: openAdapter(t, dir), Weight: 1}}
		_, err := Merge(src, o)
		if right && err != nil || !right && (fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "BLAKE3")) {
			t.Errorf("the right base %v: error %v", right, err)
		}
	}
}

func TestMinDeltaKept(t *testing.T) {
	base := kjv(t)
	dir := adapter(t, "", values(q0+".lora_A.weight", 0.2, 2, 256), values(q0+".lora_B.weight", 3e-5, 256, 2)) // far below the rounding of 4 bits
	four := mustRun(t, mustPlan(t, base, DefaultQuantize()), RunOptions{})
	q := DefaultQuantize()
	with := func(least float64) func(*MergeOptions) {
		return func(o *MergeOptions) { o.Quantize, o.From4Bit, o.MinKept = &q, true, least }
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err := runMerge(t, mustMerge(t, four, with(0.9), dir), out)
	if fault.ClassOf(err) != fault.Gate {
		t.Fatalf("error %v of class %v, want a gate", err, fault.ClassOf(err))
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("there is an output")
	}
	res, err := runMerge(t, mustMerge(t, four, with(0), dir), out)
	if err != nil {
		t.Fatal(err)
	}
	if m := res.Merge; len(m.Tensors) != 1 || m.Kept > 0.5 || res.Resumed == 0 {
		t.Errorf("kept %v, resumed %d; on a grid that the base stands on, such a delta is lost", m.Kept, res.Resumed)
	}
	// From the 16-bit base the rounding of 4 bits is independent of the delta, which survives.
	res, err = runMerge(t, mustMerge(t, base, func(o *MergeOptions) { o.Quantize = &q }, filepath.Join(fixtures.Dir(t), "adapters", "plain")), filepath.Join(t.TempDir(), "out"))
	if err != nil || res.Merge.Kept < 0.95 || res.Merge.Kept > 1.05 {
		t.Errorf("from 16 bits: kept %+v, %v", res, err)
	}
}

func TestMergeOfResizedVocabulary(t *testing.T) {
	base := tiny(t, "mistral")
	src := openSource(t, base)
	e, _ := src.Lookup("model.embed_tokens.weight")
	rows := e.Shape[0] + 3
	ts := append(pair(q0, 0.1), values("model.embed_tokens.weight", 0.1, rows, 64), values("lm_head.weight", 0.1, rows, 64))
	dir := adapter(t, "", ts...)
	for name, text := range map[string]string{"tokenizer.json": "{}", "chat_template.jinja": "{{ x }}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for choice, want := range map[string]string{"auto": "made", "adapter": "made", "base": "base"} {
		p := mustMerge(t, base, func(o *MergeOptions) { o.Tokenizer = choice }, dir)
		if p.Merge.Tokenizer != want {
			t.Errorf("%s: the tokenizer is that of %q, want %q", choice, p.Merge.Tokenizer, want)
		}
		out := mustRun(t, p, RunOptions{})
		got := openSource(t, out)
		if n, _ := got.Config().Get("vocab_size"); fmt.Sprint(n) != fmt.Sprint(rows) {
			t.Errorf("vocab_size is %v, want %d", n, rows)
		}
		if x, _ := got.Lookup("model.embed_tokens.weight"); x.DType != "BF16" || x.Shape[0] != rows {
			t.Errorf("the embedding is %s %v", x.DType, x.Shape)
		}
		_, err := os.Stat(filepath.Join(out, "chat_template.jinja"))
		if (err == nil) != (want == "made") {
			t.Errorf("%s: the chat template: %v", choice, err)
		}
	}
	only := adapter(t, "", append(pair(q0, 0.1), values("model.embed_tokens.weight", 0.1, rows, 64))...)
	o := DefaultMerge()
	o.Adapters = []MergeAdapter{{Adapter: openAdapter(t, only), Weight: 1}}
	if _, err := Merge(src, o); fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), "resizes one of the two") {
		t.Errorf("one of embedding and head resized: error %v", err)
	}
}

func TestMergeOfTiedMatrices(t *testing.T) {
	base := tiny(t, "llama")
	src := openSource(t, base)
	e, _ := src.Lookup("model.embed_tokens.weight")
	n := e.Shape[0]
	mirror := func(name string, x formatstest.Tensor) formatstest.Tensor {
		y := formatstest.Tensor{Name: "base_model.model." + name, DType: "F32", Shape: []int64{x.Shape[1], x.Shape[0]}, Data: make([]byte, len(x.Data))}
		rows, cols := int(x.Shape[0]), int(x.Shape[1])
		for i := range rows {
			for j := range cols {
				copy(y.Data[4*(j*rows+i):][:4], x.Data[4*(i*cols+j):])
			}
		}
		return y
	}
	whole := values("model.embed_tokens.weight", 1, n, 64)
	head := whole
	head.Name = "base_model.model.lm_head.weight"
	ea, eb := values("model.embed_tokens.lora_embedding_A", 0.3, 2, n), values("model.embed_tokens.lora_embedding_B", 0.3, 64, 2)
	for name, c := range map[string]struct {
		keys      string
		ts        []formatstest.Tensor
		tie       bool
		embedding bool // is the base's
		head      bool // is the base's
	}{
		"head saved":      {`"modules_to_save": ["lm_head"]`, []formatstest.Tensor{values("lm_head.weight", 1, n, 64)}, false, true, false},
		"embedding saved": {`"modules_to_save": ["embed_tokens"]`, []formatstest.Tensor{values("model.embed_tokens.weight", 1, n, 64)}, false, false, true},
		"both the same":   {`"modules_to_save": ["embed_tokens", "lm_head"]`, []formatstest.Tensor{whole, head}, true, false, false},
		"trained as one":  {`"modules_to_save": ["embed_tokens"], "ensure_weight_tying": true`, []formatstest.Tensor{values("model.embed_tokens.weight", 1, n, 64)}, true, false, false},
		"mirrored":        {`"ensure_weight_tying": true`, []formatstest.Tensor{ea, eb, mirror("lm_head.lora_A.weight", eb), mirror("lm_head.lora_B.weight", ea)}, true, false, false},
		"two pairs":       {"", []formatstest.Tensor{ea, eb, values("lm_head.lora_A.weight", 0.1, 2, 64), values("lm_head.lora_B.weight", 0.1, n, 2)}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := merged(t, base, nil, adapter(t, c.keys, c.ts...))
			if tie, _ := got.Config().Get("tie_word_embeddings"); tie != c.tie {
				t.Errorf("tie_word_embeddings is %v, want %v", tie, c.tie)
			}
			x, _ := got.Lookup("model.embed_tokens.weight")
			if same := bytes.Equal(contents(t, x), contents(t, e)); same != c.embedding {
				t.Errorf("the embedding is the base's: %v", same)
			}
			h, ok := got.Lookup("lm_head.weight")
			if ok == c.tie {
				t.Fatalf("there is a head: %v", ok)
			}
			if ok {
				if same := bytes.Equal(contents(t, h), contents(t, e)); same != c.head {
					t.Errorf("the head is the base's matrix: %v", same)
				}
			}
		})
	}
}

func TestExpertOrientation(t *testing.T) {
	for _, c := range []struct {
		model, version string
		a, b           []int64
		dims           [3]int64
		swapped, ok    bool
		perExpert      bool
	}{
		{"mixtral", "", []int64{8, 64}, []int64{192, 8}, [3]int64{4, 192, 64}, false, true, false},
		{"mixtral", "", []int64{8, 192}, []int64{64, 8}, [3]int64{4, 192, 64}, true, true, false},
		{"mixtral", "", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, false, false, false},
		{"mixtral", "0.18.1", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, true, true, false},
		{"mixtral", "0.19.0", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, true, true, false},
		{"mixtral", "0.19.1", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, false, true, false},
		{"gpt_oss", "0.17.0", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, true, true, false},
		{"gpt_oss", "0.19.0", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, false, true, false},
		{"gpt_oss", "0.21.2", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, true, true, false},
		{"llama4_text", "0.18.0", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, false, true, true},
		{"llama4_text", "0.19.0", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, true, true, true},
		{"llama4_text", "0.21.2", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, false, true, true},
		{"mixtral", "0.21.2", []int64{8, 64}, []int64{64, 8}, [3]int64{4, 64, 64}, false, true, true},
		{"mixtral", "0.21.2", []int64{8, 63}, []int64{64, 8}, [3]int64{4, 64, 64}, false, false, false},
	} {
		dir := adapter(t, fmt.Sprintf(`"peft_version": %q`, c.version), append([]formatstest.Tensor{}, values("e.experts.lora_A.weight", 1, c.a...), values("e.experts.lora_B.weight", 1, c.b...))...)
		m := &merger{adapter: openAdapter(t, dir), opt: &MergeAdapter{}}
		m.model = describeAs(t, c.model)
		got, err := m.orientation(&m.adapter.Targets()[0], c.dims, "gate_up_proj", c.perExpert)
		if (err == nil) != c.ok || c.ok && got != c.swapped {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}
