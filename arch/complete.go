package arch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// Complete compares the layers of a known architecture with config.json and with each
// other. It refuses (fault.Input) only what loaders stop at or fill with random numbers:
// layers that are missing, parts of an attention or of a feed-forward block that are
// missing, sizes that differ.
func (m *Model) Complete() error {
	if !m.Known {
		return nil
	}
	config := m.config
	if sub, ok := config["text_config"].(map[string]any); ok {
		config = sub
	}
	stacks := m.stacks()
	for _, stack := range slices.Sorted(maps.Keys(stacks)) {
		layers := stacks[stack]
		if len(stacks) == 1 && !m.entry.stacks {
			if err := checkCount(config, stack, layers); err != nil {
				return err
			}
		}
		if err := m.checkParts(stack, layers); err != nil {
			return err
		}
	}
	return m.checkSizes(config)
}

// stacks lists the linear layers of every layer of every stack: "model.layers" -> 3 ->
// "mlp.up_proj". Layers without one are there, with nothing in them.
func (m *Model) stacks() map[string]map[int][]string {
	out := map[string]map[int][]string{}
	for pass := range 2 { // a stack is one that holds a linear layer
		for i := range m.Tensors {
			t := &m.Tensors[i]
			stack, index, rest, ok := splitLayer(t.Module)
			n, err := strconv.Atoi(index)
			if !ok || err != nil || t.Role == RoleTower || t.Role == RoleProjector {
				continue
			}
			layer := (t.Role == RoleLinear || t.Role == RoleConv1D) && rest != ""
			switch {
			case pass == 0 && layer && out[stack] == nil:
				out[stack] = map[int][]string{}
			case pass == 1 && out[stack] != nil && layer:
				out[stack][n] = append(out[stack][n], rest)
			case pass == 1 && out[stack] != nil && out[stack][n] == nil:
				out[stack][n] = []string{}
			}
		}
	}
	return out
}

// checkCount wants the layers that config.json counts. More of them are no error:
// DeepSeek's predictor of a second token follows the last one.
func checkCount(config map[string]any, stack string, layers map[int][]string) error {
	for _, key := range []string{"num_hidden_layers", "n_layer", "n_layers", "num_layers"} {
		n, ok := number(config, key)
		if !ok {
			continue
		}
		for i := range min(n, 1<<16) {
			if _, there := layers[int(i)]; !there {
				return fault.WithHint(
					fault.Inputf("no tensor of \"%s.%d\": config.json says %s %d, found %d layers", stack, i, key, n, len(layers)),
					"a shard is missing, or config.json belongs to another model")
			}
		}
		return nil
	}
	return nil
}

// blocks are modules that are whole or not there at all; the first one makes the others
// necessary. Each name stands for one of several.
var blocks = [][][]string{
	{{"gate_proj"}, {"up_proj"}, {"down_proj"}},
	{{"up_proj"}, {"down_proj"}},
	{{"q_proj"}, {"k_proj", "kv_a_proj_with_mqa"}},
	{{"k_proj"}, {"v_proj"}, {"q_proj"}, {"o_proj", "out_proj", "dense"}},
	{{"v_proj"}, {"k_proj"}},
	{{"query"}, {"key"}, {"value"}}, {{"key"}, {"query"}}, {{"value"}, {"key"}},
	{{"c_attn"}, {"c_proj"}}, {{"c_fc"}, {"c_proj"}},
}

// checkParts wants whole blocks: by what they are made of, and by what the same block is
// made of in other layers.
func (m *Model) checkParts(stack string, layers map[int][]string) error {
	all := map[string][]string{} // block -> its linear layers in any layer
	perLayer := map[int]map[string][]string{}
	for _, n := range slices.Sorted(maps.Keys(layers)) {
		perLayer[n] = map[string][]string{}
		for _, path := range layers[n] {
			parent, leaf := "", path
			if i := strings.LastIndexByte(path, '.'); i >= 0 {
				parent, leaf = path[:i], path[i+1:]
			}
			perLayer[n][parent] = append(perLayer[n][parent], leaf)
			if !slices.Contains(all[parent], leaf) {
				all[parent] = append(all[parent], leaf)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(perLayer)) {
		for _, parent := range slices.Sorted(maps.Keys(perLayer[n])) {
			have := perLayer[n][parent]
			at := fmt.Sprintf("%s.%d.%s", stack, n, parent)
			for _, leaf := range all[parent] {
				if parent != "" && !slices.Contains(have, leaf) && !m.has(at+"."+leaf) {
					return missing(at+"."+leaf, "other layers have it")
				}
			}
			for _, b := range blocks {
				if !slices.Contains(have, b[0][0]) {
					continue
				}
				for _, names := range b[1:] {
					if !slices.ContainsFunc(names, func(leaf string) bool { return m.has(at + "." + leaf) }) {
						return missing(at+"."+names[0], fmt.Sprintf("%q is there", b[0][0]))
					}
				}
			}
			if m.entry.sized && slices.Contains(have, "down_proj") && !m.has(at+".gate_proj") {
				return missing(at+".gate_proj", `"down_proj" is there`)
			}
		}
	}
	return nil
}

func (m *Model) has(module string) bool {
	_, there := m.survey.shapes[module+".weight"]
	return there
}

func missing(module, because string) error {
	return fault.WithHint(fault.Inputf("tensor %q is missing: expected it because %s", module+".weight", because),
		"a shard is missing, or the file was written by something that changes the model")
}

// derivesHeadDim lists types whose head_dim is hidden_size / num_attention_heads when
// config.json does not say it.
var derivesHeadDim = []string{"llama", "mistral", "qwen2", "granite", "olmo", "olmo2", "olmo3", "smollm3", "cohere", "cohere2"}

// checkSizes compares the matrices of plain decoders with the sizes in config.json.
func (m *Model) checkSizes(config map[string]any) error {
	if !m.entry.sized {
		return nil
	}
	hidden, _ := number(config, "hidden_size")
	middle, _ := number(config, "intermediate_size")
	heads, _ := number(config, "num_attention_heads")
	kv, _ := number(config, "num_key_value_heads")
	dim, said := number(config, "head_dim")
	if !said && slices.Contains(derivesHeadDim, m.Type) && heads > 0 && hidden > 0 {
		dim = hidden / heads
	}
	// Zero stands for a size that is not known.
	want := map[string][2]int64{
		"self_attn.q_proj": {heads * dim, hidden}, "self_attn.k_proj": {kv * dim, hidden}, "self_attn.v_proj": {kv * dim, hidden}, "self_attn.o_proj": {hidden, heads * dim},
		"mlp.gate_proj": {middle, hidden}, "mlp.up_proj": {middle, hidden}, "mlp.down_proj": {hidden, middle},
	}
	for i := range m.Tensors {
		t := &m.Tensors[i]
		_, _, rest, _ := splitLayer(t.Module)
		w, known := want[rest]
		if !known || t.Role != RoleLinear {
			continue
		}
		got := m.survey.shapes[t.Name]
		if w[0] != 0 && w[0] != got[0] || w[1] != 0 && w[1] != got[1] {
			return fault.WithHint(
				fault.Inputf("tensor %q: config.json makes its shape %s, found %v", t.Name, shapeText(w), got),
				"config.json belongs to another model, or the file was written by something that changes the model")
		}
	}
	return nil
}

func shapeText(w [2]int64) string {
	text := func(n int64) string {
		if n == 0 {
			return "any"
		}
		return strconv.FormatInt(n, 10)
	}
	return "[" + text(w[0]) + " " + text(w[1]) + "]"
}

// number is a positive integer of the configuration.
func number(config map[string]any, key string) (int64, bool) {
	switch v := config[key].(type) {
	case json.Number:
		n, err := v.Int64()
		return n, err == nil && n > 0
	case float64:
		return int64(v), v > 0 && v == float64(int64(v))
	}
	return 0, false
}
