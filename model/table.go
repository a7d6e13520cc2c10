package model

import (
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// family is an entry of the table: architectures with one description.
type family struct {
	types    []string
	prefixes []string // of the base model, the most common one first
	encoder  bool
	describe func(b *builder, modelType string)
}

// textPrefixes are those of decoders, which composite models hold one level deeper.
var textPrefixes = []string{"model.", "language_model.model.", "model.language_model.", "language_model.", "model.text_model.", ""}

var table = []family{
	{types: []string{"llama", "mistral", "ministral", "qwen2", "qwen3", "granite", "seed_oss", "arcee", "smollm3", "helium", "olmo", "olmo2", "olmo3", "exaone4", "ernie4_5", "hunyuan_v1_dense", "apertus"}, prefixes: textPrefixes, describe: llamaLike},
	{types: []string{"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared", "dots1", "glm4_moe", "ernie4_5_moe"}, prefixes: textPrefixes, describe: llamaLike},
	{types: []string{"gemma", "gemma2", "gemma3_text"}, prefixes: textPrefixes, describe: gemma},
	{types: []string{"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}, prefixes: textPrefixes, describe: qwenVL},
	{types: []string{"phimoe"}, prefixes: textPrefixes, describe: phimoe},
	{types: []string{"internlm2"}, prefixes: textPrefixes, describe: internlm2},
	{types: []string{"phi3"}, prefixes: textPrefixes, describe: phi3},
	{types: []string{"glm"}, prefixes: textPrefixes, describe: glm},
	{types: []string{"phi"}, prefixes: textPrefixes, describe: phi},
	{types: []string{"starcoder2"}, prefixes: textPrefixes, describe: starcoder2},
	{types: []string{"stablelm"}, prefixes: textPrefixes, describe: stablelm},
	{types: []string{"cohere", "cohere2"}, prefixes: textPrefixes, describe: cohere},
	{types: []string{"nemotron", "persimmon"}, prefixes: textPrefixes, describe: nemotron},
	{types: []string{"deepseek_v2", "deepseek_v3"}, prefixes: textPrefixes, describe: deepseek},
	{types: []string{"gpt_oss"}, prefixes: textPrefixes, describe: gptOSS},
	{types: []string{"gpt2", "gpt_bigcode"}, prefixes: []string{"transformer.", ""}, describe: gpt2},
	{types: []string{"openai-gpt"}, prefixes: []string{"transformer.", ""}, describe: gpt1},
	{types: []string{"gpt_neo"}, prefixes: []string{"transformer.", ""}, describe: gptNeo},
	{types: []string{"gptj", "codegen"}, prefixes: []string{"transformer.", ""}, describe: gptJ},
	{types: []string{"gpt_neox"}, prefixes: []string{"gpt_neox.", ""}, describe: gptNeoX},
	{types: []string{"bloom"}, prefixes: []string{"transformer.", ""}, describe: bloom},
	{types: []string{"falcon"}, prefixes: []string{"transformer.", ""}, describe: falcon},
	{types: []string{"opt"}, prefixes: []string{"model.decoder.", "decoder."}, describe: opt},
	{types: []string{"bert"}, prefixes: []string{"bert.", ""}, encoder: true, describe: bert},
	{types: []string{"roberta", "xlm-roberta", "camembert"}, prefixes: []string{"roberta.", ""}, encoder: true, describe: bert},
	{types: []string{"electra"}, prefixes: []string{"electra.", ""}, encoder: true, describe: bert},
	{types: []string{"modernbert"}, prefixes: []string{"model.", ""}, encoder: true, describe: modernbert},
	{types: []string{"distilbert"}, prefixes: []string{"distilbert.", ""}, encoder: true, describe: distilbert},
}

// Types are the model types that can be computed, sorted.
func Types() []string {
	var out []string
	for _, f := range table {
		out = append(out, f.types...)
	}
	slices.Sort(out)
	return out
}

// composite are types whose text model is described by text_config and computed alone: no
// image can be among the tokens of a text.
var composite = []string{"gemma3", "llava", "llava_next", "mistral3", "vipllava", "llava_onevision", "idefics3", "smolvlm", "internvl", "aya_vision", "got_ocr2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}

// Describe makes the specification of a model from config.json. Errors are of class
// fault.Input and name what is not implemented.
func Describe(cfg *hf.Config) (*Spec, error) {
	modelType := cfg.ModelType()
	c := newConfig(cfg)
	if slices.Contains(composite, modelType) {
		if _, ok := cfg.Get("text_config"); ok {
			modelType = c.textOr("", "model_type")
		} else { // transformers 4 has the text model's keys beside the others
			modelType += "_text"
		}
	} else if _, ok := cfg.Get("text_config"); ok {
		return nil, notImplemented(modelType)
	}
	for i := range table {
		f := &table[i]
		if !slices.Contains(f.types, modelType) {
			continue
		}
		b := &builder{config: c, spec: &Spec{Type: modelType, Causal: !f.encoder, prefixes: f.prefixes}, at: "@"}
		f.describe(b, modelType)
		if cfg.ModelType() == "aya_vision" && b.spec.Head != nil {
			b.spec.Head.Scale = 1 // its own head, which does not scale as Cohere's does
		}
		b.class(cfg.Architecture())
		return b.spec, b.err
	}
	return nil, notImplemented(modelType)
}

func notImplemented(modelType string) error {
	return fault.WithHint(fault.Inputf("config.json: no forward pass is implemented for model_type %q", modelType),
		"those that can be computed: %s", strings.Join(Types(), ", "))
}
