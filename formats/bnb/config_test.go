package bnb_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// TestQuantizationConfigBytes holds the object, as it stands in config.json, to the text
// that transformers 5.23 and 4.57 write for these options: 13 keys, sorted, and a
// threshold that is no integer.
func TestQuantizationConfigBytes(t *testing.T) {
	for _, c := range []struct {
		config bnb.QuantizationConfig
		skip   string
		double string
		kind   string
		dtype  string
	}{
		{bnb.NewQuantizationConfig(nf4.NF4, true, kernels.BF16, nil), "null", "true", "nf4", "bfloat16"},
		{bnb.NewQuantizationConfig(nf4.FP4, false, kernels.F16, []string{}), "[]", "false", "fp4", "float16"},
		{bnb.NewQuantizationConfig(nf4.NF4, false, kernels.F32, []string{"lm_head", "model.visual"}), "[\n      \"lm_head\",\n      \"model.visual\"\n    ]", "false", "nf4", "float32"},
	} {
		want := `{
  "quantization_config": {
    "_load_in_4bit": true,
    "_load_in_8bit": false,
    "bnb_4bit_compute_dtype": "` + c.dtype + `",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "` + c.kind + `",
    "bnb_4bit_use_double_quant": ` + c.double + `,
    "llm_int8_enable_fp32_cpu_offload": false,
    "llm_int8_has_fp16_weight": false,
    "llm_int8_skip_modules": ` + c.skip + `,
    "llm_int8_threshold": 6.0,
    "load_in_4bit": true,
    "load_in_8bit": false,
    "quant_method": "bitsandbytes"
  }
}
`
		empty, err := hf.ParseConfig([]byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		cfg := empty.Set("quantization_config", c.config.JSON())
		if got := string(cfg.Encode()); got != want {
			t.Errorf("wrote\n%s\nwant\n%s", got, want)
		}
		back, err := bnb.ParseQuantizationConfig(cfg)
		if err != nil || !reflect.DeepEqual(*back, c.config) {
			t.Errorf("read back as %+v, %v; want %+v", back, err, c.config)
		}
	}
}

// Names of modules come from files: what JSON or HTML escapes must come back as it was.
func TestQuantizationConfigOddNames(t *testing.T) {
	odd := []string{`a"b\c`, "<tower>&", "größe.層", "\u2028", "tab\t"}
	c := bnb.NewQuantizationConfig(nf4.NF4, true, kernels.BF16, odd)
	if !json.Valid(c.JSON()) {
		t.Fatalf("no JSON: %s", c.JSON())
	}
	cfg, err := hf.ParseConfig([]byte(`{"quantization_config": ` + string(c.JSON()) + "}"))
	if err != nil {
		t.Fatal(err)
	}
	back, err := bnb.ParseQuantizationConfig(cfg)
	if err != nil || !reflect.DeepEqual(back.SkipModules, odd) {
		t.Errorf("read back %q, %v; want %q", back.SkipModules, err, odd)
	}
}

func TestParseQuantizationConfig(t *testing.T) {
	defaults := bnb.QuantizationConfig{Type: nf4.FP4, ComputeDType: "float32", Storage: "uint8"}
	all := bnb.QuantizationConfig{Type: nf4.NF4, DoubleQuant: true, ComputeDType: "float16", Storage: "bfloat16", SkipModules: []string{"a"}}
	for _, c := range []struct {
		text string
		want *bnb.QuantizationConfig // nil: not of bitsandbytes
	}{
		{`{}`, nil},
		{`{"quantization_config": null}`, nil},
		{`{"quantization_config": {}}`, nil},
		{`{"quantization_config": {"quant_method": "gptq", "load_in_4bit": true}}`, nil},
		{`{"quantization_config": {"quant_method": "fp8"}}`, nil},
		// What BitsAndBytesConfig takes when a key is not there.
		{`{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}`, &defaults},
		{`{"quantization_config": {"load_in_4bit": true}}`, &defaults},
		{`{"quantization_config": {"quant_method": "bitsandbytes", "bnb_4bit_compute_dtype": null, "llm_int8_skip_modules": null}}`, &defaults},
		{`{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
		   "bnb_4bit_compute_dtype": "float16", "bnb_4bit_quant_storage": "bfloat16", "llm_int8_skip_modules": ["a"]}}`, &all},
	} {
		cfg, err := hf.ParseConfig([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := bnb.ParseQuantizationConfig(cfg)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.text, got, err, c.want)
		}
	}
	if got, err := bnb.ParseQuantizationConfig(nil); got != nil || err != nil {
		t.Errorf("without config.json: %v, %v", got, err)
	}
	for _, pair := range []string{
		`"load_in_4bit": "true"`, `"load_in_4bit": 1`, `"load_in_8bit": 0`, `"bnb_4bit_use_double_quant": "yes"`,
		`"bnb_4bit_compute_dtype": 16`, `"bnb_4bit_quant_storage": true`, `"bnb_4bit_quant_type": "int4"`, `"bnb_4bit_quant_type": 4`,
		`"llm_int8_skip_modules": "lm_head"`, `"llm_int8_skip_modules": [1]`, `"llm_int8_skip_modules": {}`,
	} {
		cfg, err := hf.ParseConfig([]byte(`{"quantization_config": {"quant_method": "bitsandbytes", ` + pair + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bnb.ParseQuantizationConfig(cfg); err == nil || fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: %+v, %v; want it refused as invalid input", pair, got, err)
		}
	}
}

// FuzzParseQuantizationConfig: what is read is written as something that reads the same,
// and refused is only invalid input.
func FuzzParseQuantizationConfig(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `[]`, `{"load_in_4bit":true}`, `{"load_in_4bit":null}`, `{"quant_method":"gptq","load_in_4bit":true}`, `{"quant_method":"bitsandbytes","load_in_4bit":1}`,
		`{"quant_method":"bitsandbytes","bnb_4bit_quant_type":"nf4","bnb_4bit_compute_dtype":"bfloat16","bnb_4bit_quant_storage":"uint8","llm_int8_skip_modules":["lm_head","<&>","\u00e9\u0007"]}`,
		`{"quant_method":"bitsandbytes","bnb_4bit_compute_dtype":"\u0007\u007f\ud800","llm_int8_skip_modules":[]}`, `{"quant_method":"bitsandbytes","llm_int8_skip_modules":[null]}`,
		string(bnb.NewQuantizationConfig(nf4.NF4, true, kernels.BF16, []string{"a"}).JSON()),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg, err := hf.ParseConfig([]byte(`{"quantization_config":` + string(b) + `}`))
		if err != nil {
			return
		}
		c, err := bnb.ParseQuantizationConfig(cfg)
		if err != nil {
			if fault.ClassOf(err) != fault.Input || c != nil {
				t.Fatalf("%s: %+v, %v of class %v", b, c, err, fault.ClassOf(err))
			}
			return
		}
		if c == nil {
			return
		}
		if !json.Valid(c.JSON()) {
			t.Fatalf("%s is written as %s", b, c.JSON())
		}
		back, err := bnb.ParseQuantizationConfig(cfg.Set("quantization_config", c.JSON()))
		if err != nil || !reflect.DeepEqual(c, back) {
			t.Fatalf("%s is read as %+v, and written and read again as %+v, %v", b, c, back, err)
		}
	})
}
