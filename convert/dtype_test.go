package convert

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
	"github.com/nf4conv/nf4conv/weights"
)

func zeros(name, dtype string, n int64) formatstest.Tensor {
	width := map[string]int64{"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "F64": 8}[dtype]
	return formatstest.Tensor{Name: name, DType: dtype, Shape: []int64{1, n}, Data: make([]byte, n*width)}
}

// packedAsBF16 is a 4-bit weight as bnb_4bit_quant_storage="bfloat16" stores it.
func packedAsBF16() []formatstest.Tensor {
	state := bnb.QuantState{Type: nf4.NF4, BlockSize: 1024, DType: kernels.F16, Shape: []int64{32, 32}}.JSON()
	ts := []formatstest.Tensor{zeros("w", "BF16", 256), zeros("w.absmax", "F32", 1), zeros("w.quant_map", "F32", 16),
		{Name: "w" + bnb.StateSuffix(nf4.NF4), DType: "U8", Shape: []int64{int64(len(state))}, Data: state}}
	ts[2].Data = floatBytes(nf4.NF4.Codebook().Levels[:])
	return ts
}

// The dtype of a checkpoint is what config.json says, else what most of its floating
// bytes are, those of FP8 and integers left out; quantize makes 16 bits of it.
func TestDTypes(t *testing.T) {
	fp8 := []formatstest.Tensor{zeros("v", "F8_E4M3", 4096), {Name: "v_scale_inv", DType: "F32", Shape: []int64{1, 32}, Data: make([]byte, 128)}}
	for _, c := range []struct {
		name, config string
		ts           []formatstest.Tensor
		own, target  kernels.Float
	}{
		{"config", `{"dtype":"float16"}`, []formatstest.Tensor{zeros("a", "BF16", 9)}, kernels.F16, kernels.F16},
		{"config of old", `{"torch_dtype":"torch.bfloat16"}`, []formatstest.Tensor{zeros("a", "F16", 9)}, kernels.BF16, kernels.BF16},
		{"config in float32", `{"torch_dtype":"float32"}`, []formatstest.Tensor{zeros("a", "F16", 9)}, kernels.F32, kernels.BF16},
		{"of the text model", `{"text_config":{"dtype":"float16"}}`, []formatstest.Tensor{zeros("a", "BF16", 9)}, kernels.F16, kernels.F16},
		{"auto", `{"dtype":"auto"}`, []formatstest.Tensor{zeros("a", "F16", 9)}, kernels.F16, kernels.F16},
		{"none", ``, []formatstest.Tensor{zeros("a", "F16", 9)}, kernels.F16, kernels.F16},
		{"float32", `{}`, []formatstest.Tensor{zeros("a", "F32", 9), zeros("b", "F16", 17)}, kernels.F32, kernels.BF16},
		{"by bytes", `{}`, []formatstest.Tensor{zeros("a", "F32", 9), zeros("b", "F16", 19)}, kernels.F16, kernels.F16},
		{"a draw", `{}`, []formatstest.Tensor{zeros("a", "F16", 9), zeros("b", "BF16", 9)}, kernels.BF16, kernels.BF16},
		{"no numbers", `{}`, []formatstest.Tensor{zeros("a", "I64", 9), zeros("b", "F64", 9)}, kernels.BF16, kernels.BF16},
		{"4-bit stored as BF16", `{}`, append(packedAsBF16(), zeros("a", "F16", 9)), kernels.F16, kernels.F16},
		{"FP8", `{}`, append(fp8, zeros("a", "F16", 9)), kernels.F16, kernels.F16},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			formatstest.Write(t, dir, c.config, c.ts...)
			src := openSource(t, dir)
			set, err := weights.Open(src)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := ownDType(src, set); got != c.own || err != nil {
				t.Errorf("own dtype %v, %v; want %v", got, err, c.own)
			}
			if got, err := targetDType(src, set, "auto"); got != c.target || err != nil {
				t.Errorf("target dtype %v, %v; want %v", got, err, c.target)
			}
			if got, err := targetDType(src, set, "float16"); got != kernels.F16 || err != nil {
				t.Errorf("dtype of choice %v, %v", got, err)
			}
			for _, bad := range []string{"float32", "int8", "", "BF16", "torch.float16"} {
				if _, err := targetDType(src, set, bad); fault.ClassOf(err) != fault.Usage {
					t.Errorf("--dtype %q: %v, want class usage", bad, err)
				}
			}
		})
	}
	dir := t.TempDir()
	formatstest.Write(t, dir, `{"dtype":"float8_e4m3fn"}`, zeros("a", "BF16", 1))
	src := openSource(t, dir)
	set, err := weights.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	_, err = targetDType(src, set, "auto")
	if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), `dtype is "float8_e4m3fn"`) || len(fault.Hints(err)) != 1 {
		t.Errorf("an unknown dtype: %v, hints %q", err, fault.Hints(err))
	}
	if got, err := targetDType(src, set, "bfloat16"); got != kernels.BF16 || err != nil {
		t.Errorf("an unknown dtype, another chosen: %v, %v", got, err)
	}
}

func TestConfigEdits(t *testing.T) {
	for _, c := range []struct{ text, dtype, unquantized string }{
		{`{}`, `{"dtype":"float16"}`, ""},
		{`{"a":1e-05}`, `{"a":1e-05,"dtype":"float16"}`, ""},
		{`{"torch_dtype":"float32","a":6.0}`, `{"torch_dtype":"float16","a":6.0}`, ""},
		{`{"torch_dtype":"float32","dtype":"bfloat16"}`, `{"torch_dtype":"float16","dtype":"float16"}`, ""},
		{`{"dtype":null,"torch_dtype":"float32"}`, `{"dtype":null,"torch_dtype":"float16"}`, ""},
		{`{"text_config":{"torch_dtype":"float32"},"b":1}`, `{"text_config":{"torch_dtype":"float16"},"b":1,"torch_dtype":"float16"}`, ""},
		{`{"quantization_config":{"dtype":"float32"},"my_config":{"dtype":"float32","x":[1.0,{"dtype":"float32"}]}}`,
			`{"quantization_config":{"dtype":"float32"},"my_config":{"dtype":"float16","x":[1.0,{"dtype":"float32"}]},"dtype":"float16"}`, ""},
		{`{"text_config":{"\u00e9<":1,"quantization_config":{"quant_method":"fp8"},"z":1e-05},"quantization_config":1,"vision_config":{"quantization_config":2}}`, "",
			`{"text_config":{"\u00e9<":1,"z":1e-05},"quantization_config":1,"vision_config":{"quantization_config":2}}`},
		{`{"text_config":null}`, "", `{"text_config":null}`},
	} {
		cfg, err := hf.ParseConfig([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		for want, got := range map[string]*hf.Config{c.dtype: withDType(cfg, kernels.F16), c.unquantized: unquantized(cfg)} {
			var text bytes.Buffer
			if err := json.Compact(&text, got.Encode()); err != nil {
				t.Fatal(err)
			}
			if want != "" && text.String() != want {
				t.Errorf("%s became\n%s, want\n%s", c.text, text.String(), want)
			}
		}
	}
}

// An output does not say of itself what was true of its source.
func TestOutputsForgetHowTheSourceWasQuantized(t *testing.T) {
	dir := small(t)
	path := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const nested = `{"text_config":{"quantization_config":{"quant_method":"fp8"},"x":1.0},`
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "{", nested, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	p := mustPlan(t, dir, DefaultQuantize())
	out := mustRun(t, p, RunOptions{})
	back, err := os.ReadFile(filepath.Join(out, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "config.json"), []byte(strings.Replace(string(back), `"x": 1.0`, `"x": 1.0, "quantization_config": {"quant_method": "fp8"}`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	q, err := Dequantize(openSource(t, out), DefaultDequantize())
	if err != nil {
		t.Fatal(err)
	}
	for verb, p := range map[string]*Plan{"quantize": p, "dequantize": q} {
		content := p.Texts[0].Content
		if strings.Contains(content, "fp8") || !strings.Contains(content, `"x": 1.0`) || strings.Contains(content, "quantization_config") != (verb == "quantize") {
			t.Errorf("%s writes %s", verb, content)
		}
	}
}
