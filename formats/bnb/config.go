package bnb

import (
	"encoding/json"
	"fmt"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// QuantizationConfig is config.json's quantization_config of a 4-bit checkpoint.
type QuantizationConfig struct {
	Type         nf4.Type
	DoubleQuant  bool
	ComputeDType string   // torch name
	Storage      string   // dtype in which packed weights are stored: "uint8"
	SkipModules  []string // llm_int8_skip_modules; nil: the loader's defaults
}

// NewQuantizationConfig is the configuration of a checkpoint that this program writes.
func NewQuantizationConfig(t nf4.Type, doubleQuant bool, dtype kernels.Float, skip []string) QuantizationConfig {
	return QuantizationConfig{Type: t, DoubleQuant: doubleQuant, ComputeDType: dtype.String(), Storage: "uint8", SkipModules: skip}
}

// JSON is the object with the 13 keys that transformers writes (BitsAndBytesConfig.to_dict),
// in its order. llm_int8_threshold is spelled 6.0: transformers refuses an integer.
func (c QuantizationConfig) JSON() json.RawMessage {
	text := func(v any) json.RawMessage { // %q would be Go's escapes, which JSON has not all
		b, err := json.Marshal(v)
		if err != nil {
			panic("bnb: internal error: " + err.Error())
		}
		return b
	}
	return fmt.Appendf(nil, `{"_load_in_4bit": true, "_load_in_8bit": false, "bnb_4bit_compute_dtype": %s, "bnb_4bit_quant_storage": %s, `+
		`"bnb_4bit_quant_type": "%v", "bnb_4bit_use_double_quant": %t, "llm_int8_enable_fp32_cpu_offload": false, `+
		`"llm_int8_has_fp16_weight": false, "llm_int8_skip_modules": %s, "llm_int8_threshold": 6.0, "load_in_4bit": true, `+
		`"load_in_8bit": false, "quant_method": "bitsandbytes"}`, text(c.ComputeDType), text(c.Storage), c.Type, c.DoubleQuant, text(c.SkipModules))
}

// ParseQuantizationConfig reads the quantization_config of a bitsandbytes checkpoint;
// it returns nil when there is none or when it names another method. Values of the wrong
// type are refused as transformers refuses them.
func ParseQuantizationConfig(cfg *hf.Config) (*QuantizationConfig, error) {
	if cfg == nil {
		return nil, nil
	}
	v, _ := cfg.Get("quantization_config")
	m, ok := v.(map[string]any)
	if !ok {
		return nil, nil
	}
	if method, _ := m["quant_method"].(string); method != "bitsandbytes" && (method != "" || m["load_in_4bit"] == nil) {
		return nil, nil
	}
	// Defaults of BitsAndBytesConfig.
	c := &QuantizationConfig{Type: nf4.FP4, ComputeDType: "float32", Storage: "uint8"}
	bad := func(key, want string) error {
		return fault.Inputf("config.json: quantization_config: %s: expected %s, found %v", key, want, m[key])
	}
	for _, key := range []string{"load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant"} {
		if b, isBool := m[key].(bool); isBool {
			if key == "bnb_4bit_use_double_quant" {
				c.DoubleQuant = b
			}
		} else if m[key] != nil {
			return nil, bad(key, "true or false")
		}
	}
	for key, dst := range map[string]*string{"bnb_4bit_compute_dtype": &c.ComputeDType, "bnb_4bit_quant_storage": &c.Storage} {
		if s, isString := m[key].(string); isString {
			*dst = s
		} else if m[key] != nil {
			return nil, bad(key, "the name of a dtype")
		}
	}
	if s, isString := m["bnb_4bit_quant_type"].(string); isString {
		t, err := nf4.Parse(s)
		if err != nil {
			return nil, bad("bnb_4bit_quant_type", "nf4 or fp4")
		}
		c.Type = t
	} else if m["bnb_4bit_quant_type"] != nil {
		return nil, bad("bnb_4bit_quant_type", "nf4 or fp4")
	}
	switch list := m["llm_int8_skip_modules"].(type) {
	case nil:
	case []any:
		c.SkipModules = []string{}
		for _, e := range list {
			s, isString := e.(string)
			if !isString {
				return nil, bad("llm_int8_skip_modules", "a list of strings")
			}
			c.SkipModules = append(c.SkipModules, s)
		}
	default:
		return nil, bad("llm_int8_skip_modules", "null or a list of strings")
	}
	return c, nil
}
