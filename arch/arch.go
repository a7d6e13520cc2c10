// Package arch knows what model architectures are made of: which tensors are weights of
// linear layers, which are embeddings, heads, routers, experts or vision towers, and
// under which module paths the loaders of a checkpoint see them. It is one [table] of
// data; quantize, lora and model read it. It knows no files.
//
// Sources: transformers 5.23 and 4.57 (models/*/modeling_*.py, conversion_mapping.py); tied.txt
// holds which output heads each class ties, as interop/tied_heads.py asked them.
package arch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// Role is what a tensor is for.
type Role string

// The roles.
const (
	RoleLinear    Role = "linear"    // weight [out, in] of an nn.Linear
	RoleConv1D    Role = "conv1d"    // weight [in, out] of transformers' Conv1D (GPT-2)
	RoleEmbedding Role = "embedding" // token, position or type embedding
	RoleHead      Role = "head"      // projection to vocabulary or labels
	RoleRouter    Role = "router"    // mixture-of-experts gate
	RoleExpert    Role = "expert"    // mixture-of-experts weight
	RoleTower     Role = "tower"     // vision or audio tower
	RoleProjector Role = "projector" // between tower and language model
	RoleNorm      Role = "norm"
	RoleBias      Role = "bias"
	RoleConv      Role = "conv"   // convolution kernels
	RoleBuffer    Role = "buffer" // not a parameter: masks, inverse frequencies
	RoleOther     Role = "other"
)

// TensorInfo is what Describe needs to know of a tensor.
type TensorInfo struct {
	Name  string
	Shape []int64
	Float bool
}

// Tensor is a tensor's place in its architecture.
type Tensor struct {
	Name        string
	Module      string // path of the module that holds it: the name without its last element
	Role        Role
	Quantizable bool   // may become 4-bit by default
	Transposed  bool   // Conv1D: stored [in, out]; 4-bit weights are [out, in]
	KeepFP32    bool   // the model keeps it in float32 whatever dtype it is loaded in
	Why         string // why it is not quantizable, for people
	InFeatures  int64  // of a linear layer
	// Subclass: a subclass of nn.Linear, which transformers 5 leaves in 16 bits and loaders
	// that ask isinstance turn into a 4-bit layer.
	Subclass   bool
	param      string // last element of the name
	fp32Module bool
}

// Model is a checkpoint's architecture.
type Model struct {
	Type     string // model_type of config.json
	Class    string // first of its architectures
	Known    bool   // the type is in the table
	Tied     bool   // input and output embedding are one matrix
	Warnings []string
	Tensors  []Tensor // aligned with the input of Describe

	config map[string]any
	entry  *entry
	untied bool // config.json says that the embeddings are not tied
	survey survey
}

// Describe finds the role of every tensor. config is config.json decoded (nil when there
// is none). With strict, an architecture that is not in the table is refused; else the
// generic rule is used and said so in Warnings. Errors are of class fault.Input.
func Describe(config map[string]any, tensors []TensorInfo, strict bool) (*Model, error) {
	m := &Model{Type: text(config, "model_type"), config: config}
	if list, ok := config["architectures"].([]any); ok && len(list) > 0 {
		m.Class, _ = list[0].(string)
	}
	m.entry, m.Known = lookup(m.Type)
	if !m.Known {
		if strict && m.Type == "" {
			return nil, fault.WithHint(fault.Inputf("config.json has no model_type, so that no entry of the table of architectures applies"), "without --strict-arch a generic rule is used")
		}
		if strict {
			return nil, fault.WithHint(
				fault.Inputf("config.json: model_type %q is not in the table of architectures", m.Type),
				"without --strict-arch a generic rule is used: every matrix called weight that does not look like an embedding, norm, router or head")
		}
		m.Warnings = append(m.Warnings, unknownWarning(config, m.Type))
	}
	if m.entry.note != "" && m.Type == m.entry.types[0] {
		m.Warnings = append(m.Warnings, m.entry.note)
	}
	isTied, said := tied(config)
	m.Tied = isTied
	if !said {
		m.Tied = m.entry.tiedDefault
	}
	m.untied = said && !m.Tied
	m.survey = m.look(tensors)
	for _, t := range tensors {
		m.Tensors = append(m.Tensors, m.describe(t))
	}
	return m, m.checkHead()
}

func unknownWarning(config map[string]any, modelType string) string {
	if config == nil {
		return "there is no config.json: a generic rule decides which matrices are linear layers, and no loader can be simulated for its class"
	}
	if modelType == "" {
		return "config.json has no model_type: a generic rule decides which matrices are linear layers (--strict-arch refuses)"
	}
	return fmt.Sprintf("architecture %q is not in the table: a generic rule decides which matrices are linear layers (--strict-arch refuses)", modelType)
}

func text(config map[string]any, key string) string { s, _ := config[key].(string); return s }

// tied is what config.json says of whether the output embedding is the input embedding.
func tied(config map[string]any) (is, said bool) {
	if v, ok := config["tie_word_embeddings"].(bool); ok {
		return v, true
	}
	if sub, ok := config["text_config"].(map[string]any); ok {
		if v, ok := sub["tie_word_embeddings"].(bool); ok {
			return v, true
		}
	}
	return false, false
}

// describe classifies one tensor.
func (m *Model) describe(info TensorInfo) Tensor {
	t := Tensor{Name: info.Name, Module: info.Name}
	if i := strings.LastIndexByte(info.Name, '.'); i >= 0 {
		t.Module, t.param = info.Name[:i], info.Name[i+1:]
	}
	t.Role, t.Why = m.role(&t, info)
	t.fp32Module = slices.ContainsFunc(m.entry.fp32, func(s string) bool { return slices.Contains(strings.Split(t.Module, "."), s) })
	t.KeepFP32 = t.fp32Module
	switch t.Role {
	case RoleLinear:
		t.InFeatures = info.Shape[1]
	case RoleConv1D:
		t.Transposed, t.InFeatures = true, info.Shape[0]
	default:
		return t
	}
	switch {
	case t.fp32Module:
		t.Why = "16-bit: the model keeps this module in float32"
	case strings.Contains(t.Module, "weight"):
		// transformers 5 finds the parts of a 4-bit weight by an unanchored "weight".
		t.Why = "16-bit: its path contains \"weight\", which loaders mistake for the parameter"
	case m.entry.subclass:
		t.Subclass, t.Why = true, "16-bit: a subclass of nn.Linear, which transformers 5 leaves in 16 bits"
	default:
		t.Quantizable = true
	}
	return t
}

// role tells what a tensor is and why it stays 16-bit.
func (m *Model) role(t *Tensor, info TensorInfo) (Role, string) {
	path := t.Module
	last := path[strings.LastIndexByte(path, '.')+1:]
	e := m.entry
	switch {
	case !info.Float:
		return RoleBuffer, "kept: not floating point"
	case slices.Contains(info.Shape, 0):
		return RoleOther, "16-bit: it has no elements"
	case hasAny(t.param, bufferParams) || (last == "attn" || last == "attention") && (t.param == "bias" || t.param == "masked_bias"):
		return RoleBuffer, "16-bit: a buffer"
	case e.in(path, e.towers) && !m.survey.pure:
		return RoleTower, "16-bit: vision or audio tower"
	case e.in(path, e.projectors):
		return RoleProjector, "16-bit: projector of the tower"
	case t.param == "bias" || strings.HasSuffix(t.param, "_bias"):
		return RoleBias, "16-bit: bias"
	case isNorm(last) || t.param == "gamma" || t.param == "beta":
		return RoleNorm, "16-bit: norm"
	case e.unfuse && t.param == "weight" && len(info.Shape) == 2 && expertLeaf(path):
		return RoleLinear, ""
	case slices.Contains(strings.Split(info.Name, "."), "experts"):
		return RoleExpert, "16-bit: expert (transformers 5 fuses experts, which bitsandbytes cannot quantize)"
	case e.isRouter(path, last):
		return RoleRouter, "16-bit: router"
	case m.isHead(path):
		return RoleHead, "16-bit: output head"
	case m.survey.isAttentionOut(path):
		return RoleOther, "16-bit: nn.MultiheadAttention uses its weight directly"
	case e.generic && matchSuffix(path, direct):
		return RoleOther, "16-bit: the model uses its weight without calling it as a layer"
	case e.isSubclass(path):
		return RoleOther, "16-bit: a subclass of nn.Linear, which transformers 5 leaves in 16 bits"
	case matchSuffix(path, e.linear) && t.param == "weight" && len(info.Shape) == 2:
		return RoleLinear, ""
	case isEmbedding(last) || isEmbedding(t.param):
		return RoleEmbedding, "16-bit: embedding"
	case len(info.Shape) > 2:
		return RoleConv, "16-bit: not a matrix"
	case len(info.Shape) < 2:
		return RoleNorm, "16-bit: norm"
	case t.param != "weight":
		return RoleOther, "16-bit: not the weight of a linear layer"
	case e.conv1d(path):
		return RoleConv1D, ""
	case e.generic && m.survey.isTransposed(path):
		return RoleOther, "16-bit: it is [in, out], as its bias shows, and so no nn.Linear"
	case e.generic && m.survey.mayBeTransposed(path):
		return RoleOther, "16-bit: it may be [in, out], as others of this model are"
	case e.generic:
		return RoleLinear, ""
	}
	return RoleOther, "16-bit: not a linear layer that the table of architectures names"
}

// bufferParams are names of tensors that are saved but not learnt.
var bufferParams = []string{"inv_freq", "position_ids", "token_type_ids", "masked_bias", "rotary_emb", "causal_mask", "num_batches_tracked"}

func hasAny(s string, list []string) bool { return slices.Contains(list, s) }

func isNorm(last string) bool {
	l := strings.ToLower(last)
	return strings.Contains(l, "norm") || strings.HasPrefix(l, "ln_") || l == "ln" || strings.HasPrefix(l, "rmsnorm")
}

// isEmbedding goes by the last element of a path.
func isEmbedding(last string) bool {
	l := strings.ToLower(last)
	return strings.Contains(l, "embed") && l != "embed_out" || slices.Contains([]string{"wte", "wpe", "shared", "relative_attention_bias"}, l)
}

// expertLeaf tells whether path is a linear layer of one expert: experts.N.up_proj.
func expertLeaf(path string) bool {
	parts := strings.Split(path, ".")
	n := len(parts)
	return n >= 3 && parts[n-3] == "experts"
}

// matchSuffix tells whether path ends with one of the suffixes at an element's start.
func matchSuffix(path string, suffixes []string) bool {
	return slices.ContainsFunc(suffixes, func(s string) bool {
		return path == s || strings.HasSuffix(path, "."+s)
	})
}

// checkHead refuses an untied causal model without its output matrix: loaders would
// start it with a random one and only warn.
func (m *Model) checkHead() error {
	if !m.Known || m.Tied || !strings.HasSuffix(m.Class, "ForCausalLM") && !strings.HasSuffix(m.Class, "LMHeadModel") {
		return nil
	}
	for i := range m.Tensors {
		if m.Tensors[i].Role == RoleHead && m.Tensors[i].param == "weight" {
			return nil
		}
	}
	return fault.WithHint(
		fault.Inputf("the model is a %s with tie_word_embeddings false, and no tensor is its output head (%s)", m.Class, strings.Join(m.entry.heads, ", ")),
		"a shard is missing, or config.json should say tie_word_embeddings true")
}

// Unfused tells whether a 4-bit checkpoint of this architecture must hold one linear
// layer per expert in place of the fused experts of the 16-bit one (Llama 4:
// transformers, quantizers/base.py, SequentialLlama4TextExperts).
func Unfused(config map[string]any) bool {
	e, _ := lookup(text(config, "model_type"))
	return e.unfuse
}
