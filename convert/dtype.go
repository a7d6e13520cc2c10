package convert

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/weights"
)

// targetDType settles the dtype of everything that is not 4-bit. auto keeps the
// checkpoint's own 16-bit dtype: what config.json says, else what most floating
// weights are stored in; float32 becomes bfloat16, because the loaders of 4-bit
// checkpoints (vLLM) want 16 bits.
func targetDType(src *hf.Checkpoint, set *weights.Set, option string) (kernels.Float, error) {
	if option != "auto" {
		f, ok := parseFloat(option)
		if !ok || f == kernels.F32 {
			return 0, fault.Usagef("--dtype %q: expected auto, bfloat16 or float16", option)
		}
		return f, nil
	}
	f, err := ownDType(src, set)
	if f == kernels.F32 {
		f = kernels.BF16
	}
	return f, err
}

// ownDType is the dtype that the checkpoint says it has.
func ownDType(src *hf.Checkpoint, set *weights.Set) (kernels.Float, error) {
	if cfg := src.Config(); cfg != nil {
		if name, key, ok := cfg.DType(); ok && name != "auto" {
			f, known := parseFloat(name)
			if name == "float64" {
				return 0, fault.WithHint(
					fault.Inputf("reading %q: config.json: %s is \"float64\", which is not supported; expected float32, bfloat16 or float16", src.Path(), key),
					"F64 weights: save the model in float32 first; where config.json alone says float64, choose a dtype with --dtype")
			}
			if !known {
				return 0, fault.WithHint(
					fault.Inputf("reading %q: config.json: %s is %q; expected float32, bfloat16 or float16", src.Path(), key, name),
					"choose one with --dtype")
			}
			return f, nil
		}
	}
	var bytes [3]int64
	for _, t := range set.Tensors() {
		if f, ok := t.Sources()[0].DType.Float(); ok && !isEncoded(t) {
			bytes[f] += t.Sources()[0].Bytes()
		}
	}
	best := kernels.BF16
	for _, f := range []kernels.Float{kernels.F16, kernels.F32} {
		if bytes[f] > bytes[best] {
			best = f
		}
	}
	return best, nil
}

// unquantized takes out what the text model of a composite configuration says of the
// source's own quantization; the top-level key is the caller's.
func unquantized(cfg *hf.Config) *hf.Config {
	raw, _ := cfg.Raw("text_config")
	part, err := hf.ParseConfig(raw)
	if err != nil { // there is none
		return cfg
	}
	if _, there := part.Raw("quantization_config"); !there {
		return cfg
	}
	return cfg.Set("text_config", json.RawMessage(part.Delete("quantization_config").Encode()))
}

var dtypeKeys = []string{"dtype", "torch_dtype"}

// withDType makes config.json say dtype, under the key it uses already.
func withDType(cfg *hf.Config, dtype kernels.Float) *hf.Config {
	_, key, ok := cfg.DType()
	if !ok {
		key = "dtype"
	}
	cfg = replaceDType(cfg.Set(key, json.RawMessage(strconv.Quote(dtype.String()))), dtype)
	// The parts of a composite model say it again.
	for _, key := range cfg.Keys() {
		raw, _ := cfg.Raw(key)
		if !strings.HasSuffix(key, "_config") || key == "quantization_config" {
			continue
		}
		if part, err := hf.ParseConfig(raw); err == nil { // not an object: not a part
			if changed := replaceDType(part, dtype); changed != part {
				cfg = cfg.Set(key, json.RawMessage(changed.Encode()))
			}
		}
	}
	return cfg
}

// replaceDType sets every key that names a dtype: writers in transition leave both.
func replaceDType(cfg *hf.Config, dtype kernels.Float) *hf.Config {
	for _, key := range dtypeKeys {
		if _, names := cfg.String(key); names {
			cfg = cfg.Set(key, json.RawMessage(strconv.Quote(dtype.String())))
		}
	}
	return cfg
}
