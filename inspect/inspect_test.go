package inspect_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/inspect"
)

// report inspects a checkpoint, and wants a report that JSON can say.
func report(t *testing.T, path string) *inspect.Report {
	t.Helper()
	c, err := hf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return reportOn(t, c)
}

func reportOn(t *testing.T, c *hf.Checkpoint) *inspect.Report {
	t.Helper()
	r, err := inspect.Checkpoint(c, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	var physical, params, bytes int64
	for _, x := range c.Tensors() {
		physical += x.Bytes()
	}
	for _, list := range [][]inspect.Count{r.Storages, r.Roles} {
		params, bytes = 0, 0
		tensors := 0
		for _, n := range list {
			tensors, params, bytes = tensors+n.Tensors, params+n.Params, bytes+n.Bytes
		}
		if tensors != len(r.Tensors) || params != r.Params || bytes != r.Bytes || bytes != physical {
			t.Errorf("%d tensors, %d parameters, %d bytes; want %d, %d, %d of the files' %d: %v", tensors, params, bytes, len(r.Tensors), r.Params, r.Bytes, physical, list)
		}
	}
	return r
}

// quantized is the 4-bit form of a checkpoint.
func quantized(t *testing.T, src string, change func(*convert.QuantizeOptions)) (string, *convert.Plan) {
	t.Helper()
	c, err := hf.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := convert.DefaultQuantize()
	change(&o)
	p, err := convert.Quantize(c, o)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, err := convert.Run(context.Background(), p, convert.RunOptions{Out: out, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	return out, p
}

// edit replaces text in config.json.
func edit(t *testing.T, dir, old, text string) {
	t.Helper()
	path := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		t.Fatalf("config.json has no %s: %s", old, b)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), old, text, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPlain(t *testing.T) {
	dir := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "m"), fixtures.Spec{Layers: 1, Hidden: 8, Intermediate: 24, Vocab: 16, Shards: 2})
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "optimizer.pt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := report(t, dir)
	const params = 2*16*8 + 4*8*8 + 3*24*8 + 3*8
	if r.Schema != inspect.Schema || r.ModelType != "llama" || r.Architecture != "LlamaForCausalLM" || !r.Known || r.Scheme != "none" || r.Refused != "" ||
		r.Params != params || r.Bytes != 2*params || r.Bits != 16 || r.Quantization != nil {
		t.Errorf("%+v", r)
	}
	if diff := cmp.Diff([]string{"tokenizer.json"}, r.Side); diff != "" {
		t.Errorf("side files (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]inspect.NotCarried{{Name: "optimizer.pt", Why: "a state of training"}}, r.NotCarried); diff != "" {
		t.Errorf("left behind (-want +got)\n%s", diff)
	}
	if len(r.Files) != 2 || r.Files[0].Tensors+r.Files[1].Tensors != len(r.Tensors) {
		t.Errorf("files %v", r.Files)
	}
	if diff := cmp.Diff([]inspect.Count{{Name: "BF16", Tensors: 12, Params: params, Bytes: 2 * params}}, r.Storages); diff != "" {
		t.Errorf("storages (-want +got)\n%s", diff)
	}
	roles := map[string]int{}
	for _, n := range r.Roles {
		roles[n.Name] = n.Tensors
	}
	if diff := cmp.Diff(map[string]int{"linear": 7, "embedding": 1, "head": 1, "norm": 3}, roles); diff != "" {
		t.Errorf("roles (-want +got)\n%s", diff)
	}
	for _, x := range r.Tensors {
		if four := x.Would == "4-bit: linear"; four != (x.Role == "linear") || x.Would == "" {
			t.Errorf("%+v", x)
		}
	}
}

// A checkpoint that this program wrote is one on which all loaders agree.
func TestFourBit(t *testing.T) {
	src := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "m"), fixtures.Spec{Layers: 2, Hidden: 32})
	for _, double := range []bool{false, true} {
		dir, p := quantized(t, src, func(o *convert.QuantizeOptions) { o.DoubleQuant, o.BlockSize = double, 128 })
		r := report(t, dir)
		q := r.Quantization
		if r.Scheme != "bitsandbytes" || q == nil || q.Type != "nf4" || !slices.Equal(q.BlockSizes, []int{128}) || q.DoubleQuant != double ||
			q.ComputeDType != "bfloat16" || q.Modules != p.Totals.Quantized || !slices.Equal(q.SkipModules, []string{"lm_head"}) {
			t.Errorf("scheme %q, %+v", r.Scheme, q)
		}
		if r.Params != p.Totals.Params || len(r.Loaders) != 3 || len(r.Warnings) != 0 || r.Refused != "" {
			t.Errorf("%d parameters, loaders %v, warnings %q, refused %q", r.Params, r.Loaders, r.Warnings, r.Refused)
		}
		for _, l := range r.Loaders {
			if !l.Agrees || len(l.Problems) != 0 {
				t.Errorf("%+v", l)
			}
		}
	}
}

// What is wrong with a 4-bit checkpoint is said, not failed on: somebody is looking for it.
func TestFourBitOddities(t *testing.T) {
	src := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "m"), fixtures.Spec{Layers: 1, Hidden: 32})
	for _, c := range []struct {
		name, old, text string
		warning         string
		refused         string
		problem         string
	}{
		{name: "no configuration", old: `"quantization_config"`, text: `"was_quantization_config"`, warning: "has no quantization_config"},
		{name: "another type", old: `"nf4"`, text: `"fp4"`, warning: "differ in type or double quantization"},
		{name: "not double", old: `use_double_quant": true`, text: `use_double_quant": false`, warning: "differ in type or double quantization"},
		{name: "a string for a boolean", old: `use_double_quant": true`, text: `use_double_quant": "yes"`, warning: "bnb_4bit_use_double_quant: expected true or false, found yes"},
		{name: "null list", old: "[\n      \"lm_head\"\n    ]", text: "null", warning: "llm_int8_skip_modules is null"},
		{name: "skips too much", old: `"lm_head"`, text: `"lm_head", "o_proj"`, problem: "model.layers.0.self_attn.o_proj is 4-bit and would be expected in 16 bits"},
		{name: "skips too little", old: `"lm_head"`, text: ``, problem: "lm_head is 16-bit and would be expected in 4 bits"},
		{name: "no regular expression", old: `"lm_head"`, text: `"lm_head", "("`, problem: "as a regular expression"},
		{name: "no head", old: `"LlamaForCausalLM"`, text: `"LlamaForCausalLM"`, refused: "no tensor is its output head"},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := src
			if c.name == "no head" { // tied in the source; the edit says otherwise
				from = fixtures.Synthetic(t, filepath.Join(t.TempDir(), "tied"), fixtures.Spec{Layers: 1, Hidden: 32, Tied: true})
				c.old, c.text = `"tie_word_embeddings": true`, `"tie_word_embeddings": false`
			}
			dir, _ := quantized(t, from, func(*convert.QuantizeOptions) {})
			edit(t, dir, c.old, c.text)
			r := report(t, dir)
			if r.Quantization == nil || r.Quantization.Modules != 7 {
				t.Errorf("quantization %+v", r.Quantization)
			}
			if got := strings.Join(r.Warnings, "\n"); !strings.Contains(got, c.warning) || c.warning == "" && got != "" {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
			if !strings.Contains(r.Refused, c.refused) || c.refused == "" && r.Refused != "" {
				t.Errorf("refused for %q, want %q", r.Refused, c.refused)
			}
			var problems []string
			for _, l := range r.Loaders {
				problems = append(problems, l.Problems...)
				if l.Agrees != (len(l.Problems) == 0) {
					t.Errorf("%+v", l)
				}
			}
			if got := strings.Join(problems, "\n"); !strings.Contains(got, c.problem) || c.problem == "" && got != "" {
				t.Errorf("problems %q, want %q", got, c.problem)
			}
		})
	}
}

// Whatever can be opened can be inspected, and what conversions refuse is said.
func TestNeverFails(t *testing.T) {
	opened := 0
	cases := append(formatstest.Malformed(t, t.TempDir()), formatstest.Valid(t, t.TempDir())...)
	for _, c := range cases {
		src, err := hf.Open(c.Path)
		if err != nil {
			continue
		}
		opened++
		// config/dtype-... are refused unless --dtype chooses one.
		valid := strings.HasPrefix(c.Name, "valid/") || c.Runtime || c.Name == "fourbit/already" || c.Name == "config/dtype-unknown" || c.Name == "config/dtype-float64"
		if r := reportOn(t, src); (r.Refused == "") != valid {
			t.Errorf("%s: refused for %q", c.Name, r.Refused)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
	if opened < 80 {
		t.Errorf("%d checkpoints of %d were opened: nothing is shown", opened, len(cases))
	}
	for _, dir := range fixtures.Models(t) {
		if r := report(t, dir); r.Refused != "" || !r.Known {
			t.Errorf("%s: known %v, refused for %q", dir, r.Known, r.Refused)
		}
	}
}

// A scheme that is not read is named, and physical tensors are counted.
func TestForeign(t *testing.T) {
	dir := t.TempDir()
	formatstest.Write(t, dir, `{"model_type":"llama","quantization_config":{"quant_method":"gptq"}}`,
		formatstest.Tensor{Name: "a.qweight", DType: "I32", Shape: []int64{2, 3}, Data: make([]byte, 24)})
	r := report(t, dir)
	if r.Scheme != "GPTQ" || !strings.Contains(r.Refused, "GPTQ") || r.Params != 6 || r.Bits != 32 || r.Tensors[0].Role != "buffer" {
		t.Errorf("%+v", r)
	}
	c, err := hf.Open(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err = inspect.Checkpoint(c, false); err != nil || r.Tensors != nil || r.Params != 6 || !strings.Contains(strings.Join(r.Warnings, ""), "no config.json") {
		t.Errorf("%+v, %v", r, err)
	}
}
