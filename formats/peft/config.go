package peft

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// Config is what adapter_config.json says about the arithmetic of a merge.
type Config struct {
	Version          string             // of PEFT; empty before 0.18 and from other writers
	Base             string             // base_model_name_or_path: a hint, not an identity
	TaskType         string             // CAUSAL_LM, SEQ_CLS...
	Rank             int                // r; the shapes of the factors are what counts
	Alpha            float64            // lora_alpha
	RSLoRA           bool               // scaling alpha/sqrt(r) instead of alpha/r
	DoRA             bool               // magnitudes beside the factors
	LoraBias         bool               // lora_B has a bias
	FanInFanOut      bool               // as saved, which the type of a layer overrides
	Bias             string             // none, all or lora_only: which biases of the base were trained
	ModulesToSave    []string           // modules that were trained whole
	TargetModules    []string           // for checking names only; empty when given as a pattern
	TargetParameters []string           // 3-D parameters of experts
	TokenIndices     []int64            // trained rows of the input embedding
	TokenIndicesOf   map[string][]int64 // trained rows by module name
	TiedTraining     bool               // ensure_weight_tying: input and output embedding were trained as one
	Warnings         []string

	alphas []pattern
}

// pattern is a key of alpha_pattern.
type pattern struct {
	key   string
	re    *regexp.Regexp
	value float64
}

// changedBase says, by init_lora_weights, what was trained instead of the base.
var changedBase = map[string]string{
	"pissa":   "the base minus its principal components",
	"olora":   "the base minus the factors of its QR decomposition",
	"corda":   "the base minus components chosen by its activations",
	"lora_ga": "the base minus factors taken from gradients",
	"loftq":   "the quantized base plus a correction",
}

// sameBase are the values of init_lora_weights that leave the base as it is.
var sameBase = []string{"gaussian", "eva", "orthogonal", "mica", "true", "false"}

// harmless are keys that do not change what a merge computes.
var harmless = []string{
	"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version", "task_type", "lora_dropout",
	"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "runtime_config",
	"loftq_config", "eva_config", "corda_config", "lora_ga_config", // parameters of the initialisation, which init_lora_weights names
	"qalora_group_size", "velora_config", "monteclora_config",
	"fan_in_fan_out", // the architecture decides: what is saved is that of whichever module came last
	"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias", "modules_to_save", "target_parameters",
	"trainable_token_indices", "ensure_weight_tying", "init_lora_weights",
}

// refused are keys whose truth makes an adapter something else than an addition to its base.
var refused = []struct{ key, why, hint string }{
	{"layer_replication", "its layer numbers are those of an expanded stack of layers", "expand the base first; PEFT writes such a model with layer_replication"},
	{"alora_invocation_tokens", "an activated LoRA acts only after its invocation tokens, which no merged weight can do", "serve it unmerged"},
	{"arrow_config", "Arrow chooses among adapters for every token, which no merged weight can do", "serve it unmerged, or merge one of its adapters"},
	{"use_qalora", "QA-LoRA pools the input of a GPTQ base, which no addition to a weight can do", "serve it unmerged"},
	{"use_bdlora", "block-diagonal factors are not read", "expand the factors and save an ordinary LoRA"},
	{"kasa_config", "KaSA drops the smallest singular components of the base before training", "merge onto the truncated base with PEFT"},
	{"lora_B_layout", "the order of the columns of its experts is not PEFT's", "convert it to PEFT's order (expert fastest) and remove the key"},
	{"target_r", "it is an AdaLoRA adapter", "convert it to LoRA with PEFT first"},
}

// ParseConfig reads adapter_config.json and refuses what cannot be merged. Errors are of
// class fault.Input; the caller adds the file.
func ParseConfig(b []byte) (*Config, error) {
	raw, err := hf.ParseConfig(b)
	if err != nil {
		return nil, fault.Inputf("%w", err)
	}
	p := &parser{raw: raw}
	if err := p.refuse(); err != nil {
		return nil, err
	}
	c := &Config{
		Version: p.text("peft_version", ""), Base: p.text("base_model_name_or_path", ""), TaskType: p.text("task_type", ""),
		Rank: int(p.number("r", 8)), Alpha: p.number("lora_alpha", 8),
		RSLoRA: p.truth("use_rslora"), DoRA: p.truth("use_dora"), LoraBias: p.truth("lora_bias"), FanInFanOut: p.truth("fan_in_fan_out"), TiedTraining: p.truth("ensure_weight_tying"),
		Bias: p.text("bias", "none"), ModulesToSave: p.texts("modules_to_save"), TargetParameters: p.texts("target_parameters"),
		alphas: p.patterns("alpha_pattern"),
	}
	if v, _ := raw.Get("target_modules"); kindOf(v) == "a list" {
		c.TargetModules = p.texts("target_modules")
	}
	p.patterns("rank_pattern") // shapes say the ranks; what is not a table of numbers is refused
	p.tokens(c)
	if p.err == nil {
		p.check(c)
	}
	if p.err != nil {
		return nil, p.err
	}
	if _, there := raw.Get("lora_alpha"); !there {
		c.Warnings = append(c.Warnings, "adapter_config.json has no lora_alpha: 8 is taken, PEFT's default")
	}
	return c, nil
}

func (p *parser) check(c *Config) {
	switch {
	case c.Rank < 1 || c.Rank > 1<<20:
		p.fail("r: expected a positive number, found %d", c.Rank)
	case !slices.Contains([]string{"none", "all", "lora_only"}, c.Bias):
		p.fail("bias: expected none, all or lora_only, found %q", c.Bias)
	case c.DoRA && c.LoraBias:
		p.fail("use_dora and lora_bias: PEFT forbids the two together")
	case c.DoRA && len(c.TargetParameters) > 0:
		p.fail("use_dora and target_parameters: PEFT forbids the two together")
	case c.LoraBias && len(c.TargetParameters) > 0:
		p.fail("lora_bias and target_parameters: PEFT forbids the two together")
	}
}

// AlphaOf a module is that of the first key of alpha_pattern which matches its path from
// an element's start, else lora_alpha. warning says that a later key would give another
// value: files are written with sorted keys, so the order of training is lost.
func (c *Config) AlphaOf(module string) (alpha float64, warning string) {
	found := -1
	for i := range c.alphas {
		switch p := &c.alphas[i]; {
		case !p.re.MatchString(module):
		case found < 0:
			found = i
		case p.value != c.alphas[found].value:
			return c.alphas[found].value, fmt.Sprintf("alpha_pattern: %q and %q both match %q, with %v and %v; the first counts, as in PEFT, though keys are sorted when they are saved",
				c.alphas[found].key, p.key, module, c.alphas[found].value, p.value)
		}
	}
	if found >= 0 {
		return c.alphas[found].value, ""
	}
	return c.Alpha, ""
}

// ScaleOf is the factor of B A for a module whose factors have that rank.
func (c *Config) ScaleOf(module string, rank int64) float64 {
	alpha, _ := c.AlphaOf(module)
	if c.RSLoRA {
		return alpha / math.Sqrt(float64(rank))
	}
	return alpha / float64(rank)
}

// Saves tells whether modules_to_save covers a module: PEFT takes every entry as the end
// of a path, not of an element ("norm" covers input_layernorm), and everything below it.
func (c *Config) Saves(module string) bool {
	saved := c.ModulesToSave
	if c.TaskType == "SEQ_CLS" || c.TaskType == "TOKEN_CLS" { // PEFT adds these itself
		saved = append(slices.Clone(saved), "classifier", "score")
	}
	return slices.ContainsFunc(saved, func(m string) bool { return m != "" && strings.Contains(module+".", m+".") })
}

// parser collects the first error.
type parser struct {
	raw *hf.Config
	err error
}

func (p *parser) fail(format string, a ...any) {
	if p.err == nil {
		p.err = fault.Inputf(format, a...)
	}
}

func (p *parser) text(key, missing string) string {
	switch v, _ := p.raw.Get(key); v := v.(type) {
	case nil:
		return missing
	case string:
		return v
	default:
		p.fail("%s: expected a string, found %s", key, kindOf(v))
	}
	return ""
}

func (p *parser) truth(key string) bool {
	switch v, _ := p.raw.Get(key); v := v.(type) {
	case nil:
	case bool:
		return v
	default:
		p.fail("%s: expected true or false, found %s", key, kindOf(v))
	}
	return false
}

func (p *parser) number(key string, missing float64) float64 {
	v, _ := p.raw.Get(key)
	if v == nil {
		return missing
	}
	return p.float(key, v)
}

func (p *parser) float(key string, v any) float64 {
	n, ok := v.(json.Number)
	f, err := n.Float64()
	if !ok || err != nil || math.IsInf(f, 0) {
		p.fail("%s: expected a number, found %s", key, kindOf(v))
	}
	return f
}

func (p *parser) texts(key string) []string {
	v, _ := p.raw.Get(key)
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		p.fail("%s: expected a list of names, found %s", key, kindOf(v))
		return nil
	}
	var out []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			p.fail("%s: expected a list of names, found %s in it", key, kindOf(e))
			return nil
		}
		out = append(out, s)
	}
	return out
}

// patterns reads a table from pattern to number in the order of the file. PEFT matches
// with re.match("(.*\.)?(KEY)$", path).
func (p *parser) patterns(key string) []pattern {
	v, there := p.raw.Get(key)
	if !there || v == nil {
		return nil
	}
	raw, _ := p.raw.Raw(key)
	table, err := hf.ParseConfig(raw)
	if err != nil {
		p.fail("%s: expected an object, found %s", key, kindOf(v))
		return nil
	}
	var out []pattern
	for _, k := range table.Keys() {
		value, _ := table.Get(k)
		re, err := regexp.Compile(`^(?:.*\.)?(?:` + k + `)$`)
		if err != nil {
			if key == "rank_pattern" {
				continue // the shapes of the factors say the rank
			}
			if p.err == nil {
				p.err = fault.WithHint(fault.Inputf("%s: key %q is not a pattern this program understands: %w", key, k, err),
					"write the full module paths it stands for")
			}
			return nil
		}
		out = append(out, pattern{k, re, p.float(key+": "+k, value)})
	}
	return out
}

// tokens reads trainable_token_indices.
func (p *parser) tokens(c *Config) {
	const key = "trainable_token_indices"
	list := func(v any) []int64 {
		elems, ok := v.([]any)
		if !ok {
			p.fail("%s: expected a list of numbers, found %s", key, kindOf(v))
			return nil
		}
		var out []int64
		for _, e := range elems {
			n, _ := e.(json.Number)
			i, err := n.Int64()
			if err != nil || i < 0 {
				p.fail("%s: expected the number of a token, found %v", key, e)
				return nil
			}
			out = append(out, i)
		}
		return out
	}
	switch v, _ := p.raw.Get(key); v := v.(type) {
	case nil:
	case map[string]any:
		c.TokenIndicesOf = map[string][]int64{}
		for module, l := range v {
			c.TokenIndicesOf[module] = list(l)
		}
	default:
		c.TokenIndices = list(v)
	}
}

// refuse goes through the keys that make a merge wrong or that nobody here knows.
func (p *parser) refuse() error {
	switch kind := p.text("peft_type", ""); {
	case p.err != nil:
		return p.err
	case kind == "":
		return fault.WithHint(fault.Inputf("peft_type is missing; expected \"LORA\""), "this is not an adapter_config.json that PEFT wrote")
	case kind != "LORA":
		return fault.WithHint(fault.Inputf("peft_type is %q; only \"LORA\" is merged", kind), "PEFT converts other types: peft.convert_to_lora, or merges them itself")
	}
	for _, r := range refused {
		if v, _ := p.raw.Get(r.key); truthy(v) {
			return fault.WithHint(fault.Inputf("%s: %s", r.key, r.why), "%s", r.hint)
		}
	}
	for _, key := range p.raw.Keys() {
		if v, _ := p.raw.Get(key); truthy(v) && !slices.Contains(harmless, key) {
			return fault.WithHint(fault.Inputf("%s: this key is not known, and what it asks for might change the arithmetic of a merge", key),
				"remove it from adapter_config.json if it has no effect on the merged weights")
		}
	}
	return p.initialised()
}

// initialised refuses adapters that were trained against another base.
func (p *parser) initialised() error {
	const key = "init_lora_weights"
	switch v, _ := p.raw.Get(key); v := v.(type) {
	case nil, bool:
		return nil
	case string:
		name := strings.ToLower(v)
		if slices.Contains(sameBase, name) {
			return nil
		}
		if strings.HasPrefix(name, "pissa") {
			name = "pissa"
		}
		why, known := changedBase[name]
		if !known {
			return fault.WithHint(fault.Inputf("%s: %q is not known; it may stand for a changed base", key, v), "set it to true if the base was left as it is")
		}
		return fault.WithHint(fault.Inputf("%s is %q: the adapter was trained against %s, and adding it to the base is wrong", key, v, why),
			"save it as an ordinary LoRA: model.save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL), or merge it with PEFT on the base it was trained with")
	default:
		return fault.Inputf("%s: expected true, false or a name, found %s", key, kindOf(v))
	}
}

// truthy is Python's bool().
func truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	case json.Number:
		f, err := v.Float64()
		return err != nil || f != 0
	}
	return true
}

func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return fmt.Sprintf("the string %q", v)
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	case json.Number:
		return "the number " + v.String()
	}
	return "something else"
}
