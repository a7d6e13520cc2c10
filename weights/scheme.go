package weights

import (
	"fmt"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// foreign names the other schemes by the quant_method of quantization_config.
var foreign = map[string]string{
	"gptq": "GPTQ", "awq": "AWQ", "auto-round": "AutoRound", "autoround": "AutoRound", "hqq": "HQQ", "aqlm": "AQLM",
	"eetq": "EETQ", "quanto": "quanto", "torchao": "torchao", "compressed-tensors": "compressed-tensors", "fbgemm_fp8": "FBGEMM FP8",
	"bitnet": "BitNet", "spqr": "SpQR", "vptq": "VPTQ", "higgs": "HIGGS", "fp_quant": "FP-Quant", "quark": "Quark",
	"modelopt": "ModelOpt", "sinq": "SINQ", "bitnet_b1_58": "BitNet", "exl2": "EXL2", "exl3": "EXL3", "marlin": "Marlin", "nvfp4": "NVFP4",
}

// marks are tensor-name endings that give a scheme away where config.json says nothing.
var marks = []struct{ suffix, scheme string }{
	{".qweight", "GPTQ or AWQ"}, {".qzeros", "GPTQ or AWQ"}, {".g_idx", "GPTQ"}, {".SCB", "bitsandbytes 8-bit"},
	{".weight_packed", "compressed-tensors"}, {".W_q", "HQQ"}, {".weight_zero_point", "compressed-tensors"},
	{".codebooks", "AQLM"}, {".weight._data", "quanto"}, {".weight_scale_2", "NVFP4"},
}

// CheckScheme refuses checkpoints that are quantized in a way this program does not read,
// by name. Errors are of class fault.Input.
func CheckScheme(c *hf.Checkpoint) error {
	if scheme := Foreign(c); scheme != "" {
		return fault.WithHint(
			fault.Inputf("reading %q: the checkpoint is quantized by %s, which nf4conv does not read", c.Path(), scheme),
			"start from the 16-bit checkpoint it was made from")
	}
	return nil
}

// Foreign is the name of the scheme that keeps a checkpoint from being read, or empty.
func Foreign(c *hf.Checkpoint) string {
	if c.Config() != nil {
		for _, path := range [][]string{{"quantization_config"}, {"text_config", "quantization_config"}, {"compression_config"}} {
			if v, ok := c.Config().Get(path...); ok {
				if m, isMap := v.(map[string]any); isMap {
					if s := foreignMethod(m, path[0] == "compression_config"); s != "" {
						return s
					}
				}
			}
		}
	}
	for _, t := range c.Tensors() {
		for _, m := range marks {
			if strings.HasSuffix(t.Name, m.suffix) {
				return fmt.Sprintf("%s (it has a tensor %q)", m.scheme, t.Name)
			}
		}
	}
	return ""
}

func foreignMethod(m map[string]any, compressed bool) string {
	method, isText := m["quant_method"].(string)
	if !isText && m["quant_method"] != nil {
		return fmt.Sprintf("a method called %v", m["quant_method"])
	}
	eight, _ := m["load_in_8bit"].(bool)
	switch {
	case compressed:
		return "compressed-tensors"
	case eight, method == "bitsandbytes_8bit":
		return "bitsandbytes 8-bit (LLM.int8)"
	case method == "", method == "bitsandbytes", method == "bitsandbytes_4bit", method == "fp8", method == "mxfp4":
		return ""
	}
	if name := foreign[strings.ToLower(method)]; name != "" {
		return name
	}
	return fmt.Sprintf("a method called %q", method)
}
