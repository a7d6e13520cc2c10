package peft

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// part is what a tensor of the file is.
type part int

const (
	partA part = iota
	partB
	partBias
	partEmbeddingA
	partEmbeddingB
	partMagnitude
	partRows
	partBase    // m.base_layer.weight
	partReplace // anything under the name that the model has
	partIgnored
)

// key is a tensor's name taken apart.
type key struct {
	module string
	nested int
	part   part
	param  string // of partBase and partReplace
	saved  bool   // the name itself says modules_to_save
}

const prefix = "base_model.model."

// parseKey takes a name apart; ok is false for names that follow no rule.
func parseKey(name string) (k key, ok bool) {
	elems := strings.Split(strings.TrimPrefix(name, prefix), ".")
	elems = slices.DeleteFunc(elems, func(s string) bool { return s == "_orig_mod" || s == "_fsdp_wrapped_module" })
	if slices.Contains(elems, "") {
		return k, false
	}
	at := -1
	for i, e := range elems {
		switch e {
		case "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_velora_embed", "token_adapter", "modules_to_save":
			at = i
		}
	}
	if at < 0 {
		return replaceKey(elems)
	}
	rest := elems[at+1:]
	k.module, k.nested = modulePath(elems[:at])
	if k.module == "" {
		return k, false
	}
	last := ""
	if len(rest) > 0 {
		last = rest[len(rest)-1]
	}
	switch elems[at] {
	case "lora_A":
		k.part, ok = partA, last == "weight" && len(rest) <= 2
	case "lora_B":
		k.part, ok = partB, (last == "weight" || last == "bias") && len(rest) <= 2
		if last == "bias" {
			k.part = partBias
		}
	case "lora_embedding_A":
		k.part, ok = partEmbeddingA, len(rest) <= 1
	case "lora_embedding_B":
		k.part, ok = partEmbeddingB, len(rest) <= 1
	case "lora_magnitude_vector":
		k.part, ok = partMagnitude, len(rest) <= 1 || len(rest) == 2 && last == "weight"
	case "lora_velora_embed":
		k.part, ok = partIgnored, true
	case "token_adapter":
		k.part, ok = partRows, len(rest) > 0 && len(rest) <= 2 && rest[0] == "trainable_tokens_delta"
	case "modules_to_save":
		k.part, k.saved = partReplace, true
		if ok = len(rest) >= 2; ok { // NAME.weight, NAME.dense.weight
			k.param = last
			k.module = strings.Join(append([]string{k.module}, rest[1:len(rest)-1]...), ".")
		}
	}
	return k, ok
}

// replaceKey is for names that stand for a tensor of the base.
func replaceKey(elems []string) (k key, ok bool) {
	if len(elems) < 2 {
		return k, false
	}
	module, param := elems[:len(elems)-1], elems[len(elems)-1]
	if strings.HasPrefix(param, "lora_") {
		return k, false
	}
	k.part, k.param = partReplace, param
	if module[len(module)-1] == "base_layer" {
		k.part = partBase
	}
	k.module, _ = modulePath(module)
	return k, k.module != ""
}

// modulePath drops the levels that wrappers add and counts those at the end.
func modulePath(elems []string) (string, int) {
	nested := 0
	for n := len(elems); n > 0 && elems[n-1] == "base_layer"; n-- {
		nested++
	}
	return strings.Join(slices.DeleteFunc(slices.Clone(elems), func(s string) bool { return s == "base_layer" }), "."), nested
}

// classify sorts the tensors of a file. Every one has a place or is refused.
func classify(f *safetensors.File, cfg *Config) (contents, error) {
	type place struct {
		module    string
		nested    int
		embedding bool
	}
	found := map[place]*Target{}
	var order []place
	var c contents
	seen := map[key]string{}
	magnitudes := map[string]*hf.Tensor{}
	ts := f.Header().Tensors
	for i := range ts {
		t := hf.Tensor{Tensor: &ts[i], File: f}
		k, ok := parseKey(t.Name)
		if !ok {
			return c, fault.WithHint(fault.Inputf("tensor %q: its name follows none of the rules of PEFT's LoRA", t.Name),
				"an adapter is merged only when every tensor of it is understood")
		}
		id := k
		id.saved = false
		if other, twice := seen[id]; twice {
			return c, fault.WithHint(fault.Inputf("tensors %q and %q stand for the same part of the same module", other, t.Name),
				"the file holds two adapters; save each by itself")
		}
		seen[id] = t.Name
		if _, float := t.DType.Float(); !float && k.part != partIgnored {
			return c, fault.Inputf("tensor %q: dtype %s; expected F32, BF16 or F16", t.Name, t.DType)
		}
		p := place{k.module, k.nested, k.part == partEmbeddingA || k.part == partEmbeddingB}
		switch k.part {
		case partA, partB, partBias, partEmbeddingA, partEmbeddingB:
			if found[p] == nil {
				found[p] = &Target{Module: p.module, Nested: p.nested, Embedding: p.embedding}
				order = append(order, p)
			}
			tg := found[p]
			switch k.part {
			case partA, partEmbeddingA:
				tg.A = t
			case partB, partEmbeddingB:
				tg.B = t
			default:
				tg.Bias = &t
			}
		case partMagnitude:
			magnitudes[k.module] = &t
		case partRows:
			rows, err := rowsOf(cfg, k.module, t)
			if err != nil {
				return c, err
			}
			c.rows = append(c.rows, rows)
		case partBase, partReplace:
			c.replacements = append(c.replacements, Replacement{Module: k.module, Param: k.param, Base: k.part == partBase, Tensor: t, Trained: k.saved})
		case partIgnored:
			c.ignored = append(c.ignored, t.Name)
		}
	}
	for _, p := range order {
		tg := found[p]
		if tg.Magnitude = magnitudes[p.module]; tg.Magnitude != nil {
			delete(magnitudes, p.module)
		}
		if err := checkTarget(tg, cfg); err != nil {
			return c, err
		}
		c.targets = append(c.targets, *tg)
	}
	for _, module := range slices.Sorted(maps.Keys(magnitudes)) {
		return c, fault.Inputf("tensor %q: there are no factors for module %q", magnitudes[module].Name, module)
	}
	for i := range c.replacements {
		if err := c.checkReplacement(&c.replacements[i], cfg); err != nil {
			return c, err
		}
	}
	if len(c.targets)+len(c.replacements)+len(c.rows) == 0 {
		return c, fault.WithHint(fault.Inputf("there is nothing to merge in it"), "a file of a few kilobytes is what is left when training with a sharded optimizer saves only one process's part")
	}
	slices.SortStableFunc(c.targets, func(a, b Target) int {
		return cmp.Or(strings.Compare(a.Module, b.Module), cmp.Compare(a.Nested, b.Nested))
	})
	return c, nil
}

// checkTarget holds the shapes of a pair together.
func checkTarget(t *Target, cfg *Config) error {
	switch {
	case t.A.Tensor == nil && t.B.Tensor == nil:
		return fault.Inputf("tensor %q: there are no factors for module %q", t.Bias.Name, t.Module)
	case t.A.Tensor == nil:
		return fault.Inputf("tensor %q: its other factor, A, is missing", t.B.Name)
	case t.B.Tensor == nil:
		return fault.Inputf("tensor %q: its other factor, B, is missing", t.A.Name)
	}
	a, b := t.A.Shape, t.B.Shape
	dims := len(a) == 2 || (len(a) >= 3 && len(a) <= 5 && !t.Embedding)
	if !dims || len(a) != len(b) {
		return fault.Inputf("tensors %q %v and %q %v: expected two matrices, or the kernels of a convolution", t.A.Name, a, t.B.Name, b)
	}
	if a[0] != b[1] || a[0] == 0 {
		if len(a) > 2 && b[1] != 0 && a[0]%b[1] == 0 {
			return fault.WithHint(fault.Inputf("tensors %q %v and %q %v: a convolution in groups cannot be merged", t.A.Name, a, t.B.Name, b), "PEFT refuses it too; serve it unmerged")
		}
		return fault.Inputf("tensors %q %v and %q %v: the ranks differ", t.A.Name, a, t.B.Name, b)
	}
	for _, d := range b[2:] {
		if d != 1 {
			return fault.Inputf("tensor %q: shape %v; expected kernels of size 1", t.B.Name, b)
		}
	}
	switch {
	case t.Bias != nil && !cfg.LoraBias:
		return fault.WithHint(fault.Inputf("tensor %q: lora_bias is false in adapter_config.json, so PEFT ignores it", t.Bias.Name),
			"set lora_bias to true if the bias was trained, or remove the tensor")
	case t.Bias != nil && (len(t.Bias.Shape) != 1 || t.Bias.Shape[0] != b[0]):
		return fault.Inputf("tensor %q: shape %v; expected [%d]", t.Bias.Name, t.Bias.Shape, b[0])
	case cfg.DoRA && t.Magnitude == nil:
		return fault.Inputf("module %q: use_dora is true and there is no lora_magnitude_vector for it", t.Module)
	case !cfg.DoRA && t.Magnitude != nil:
		return fault.Inputf("tensor %q: use_dora is false in adapter_config.json", t.Magnitude.Name)
	case t.Magnitude != nil && (t.Magnitude.Elems() != b[0]):
		return fault.Inputf("tensor %q: shape %v; expected %d factors", t.Magnitude.Name, t.Magnitude.Shape, b[0])
	}
	return nil
}

// embeddings are the names of which PEFT saves the embedding itself.
var embeddings = []string{"embed_tokens", "lm_head"}

// checkReplacement finds the reason for a tensor without factors.
func (c *contents) checkReplacement(r *Replacement, cfg *Config) error {
	targeted := slices.ContainsFunc(c.targets, func(t Target) bool { return t.Module == r.Module })
	last := r.Module[strings.LastIndexByte(r.Module, '.')+1:]
	switch {
	case r.Trained:
	case cfg.Saves(r.Module):
		r.Trained = true
	case r.Param == "bias" && cfg.Bias != "none":
		r.Trained = true
	case r.Base && targeted && slices.Contains(embeddings, last):
	case !r.Base && slices.Contains(embeddings, last) && r.Param == "weight":
	default:
		return fault.WithHint(fault.Inputf("tensor %q: adapter_config.json gives no reason for it: it is in no module of modules_to_save %q, and bias is %q", r.Tensor.Name, cfg.ModulesToSave, cfg.Bias),
			"an adapter is merged only when every tensor of it is understood")
	}
	return nil
}

// rowsOf finds the list of rows that a trainable_tokens_delta holds.
func rowsOf(cfg *Config, module string, t hf.Tensor) (TokenRows, error) {
	rows, best := cfg.TokenIndices, -1
	for name, l := range cfg.TokenIndicesOf {
		if len(name) > best && (module == name || strings.HasSuffix(module, "."+name)) {
			rows, best = l, len(name)
		}
	}
	if len(t.Shape) != 2 || t.Shape[0] != int64(len(rows)) || len(rows) == 0 {
		return TokenRows{}, fault.Inputf("tensor %q: shape %v; trainable_token_indices lists %d rows for module %q", t.Name, t.Shape, len(rows), module)
	}
	return TokenRows{Module: module, Rows: rows, Tensor: t}, nil
}
