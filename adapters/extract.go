package adapters

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/lora"
	"github.com/nf4conv/nf4conv/weights"
)

// ExtractOptions are the options that the bytes of an extracted adapter depend on.
type ExtractOptions struct {
	Rank     int     `json:"rank"`      // of every layer, at most; 0: as Energy asks for
	Energy   float64 `json:"energy"`    // share of the squared delta that every layer keeps at least; 0: Rank alone counts
	From4Bit bool    `json:"from_4bit"` // the base may be a 4-bit checkpoint
	Threads  int     `json:"-"`
}

// The parts that a tensor plays in an extraction.
const (
	PartFactors = "factors" // A and B
	PartBias    = "bias"    // of a layer with factors: its new values
	PartWhole   = "whole"   // a module saved as it is (modules_to_save)
)

// part is a tensor of the tuned checkpoint and its counterpart.
type part struct {
	name, module, param string // module: path in memory
	kind                string
	conv1D              bool
	base, tuned         weights.Tensor // base is nil for what only the tuned checkpoint has
	baseTransposed      bool           // a 4-bit Conv1D, whose logical shape is [out, in]
}

// ExtractPlan is an extraction before anything but headers has been read.
type ExtractPlan struct {
	o           ExtractOptions
	base, tuned *hf.Checkpoint
	model       *arch.Model
	parts       []part
	tied        bool
	resized     bool
	warnings    []string
}

// Extract plans the extraction of an adapter that turns base into tuned. Both must stay
// open until the plan has been run. Errors are classified: fault.Usage for options,
// fault.Input for checkpoints whose difference is no adapter.
func Extract(base, tuned *hf.Checkpoint, o ExtractOptions) (*ExtractPlan, error) {
	switch {
	case o.Rank < 0 || o.Rank > 1<<16:
		return nil, fault.Usagef("--rank %d: expected 1 to 65536", o.Rank)
	case math.IsNaN(o.Energy) || o.Energy < 0 || o.Energy > 1:
		return nil, fault.Usagef("--energy %v: expected a share above 0 and up to 1", o.Energy)
	case o.Rank == 0 && o.Energy == 0:
		return nil, fault.WithHint(fault.Usagef("neither --rank nor --energy was given"), "--rank 32, --energy 0.9, or both: as few as keep 90 %%, at most 32")
	}
	p := &ExtractPlan{o: o, base: base, tuned: tuned}
	if err := p.match(); err != nil {
		return nil, fmt.Errorf("extracting the difference of %q to %q: %w", tuned.Path(), base.Path(), err)
	}
	return p, nil
}

// Warnings are what the user should know before the plan is run.
func (p *ExtractPlan) Warnings() []string { return p.warnings }

func (p *ExtractPlan) warn(format string, a ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, a...))
}

func configMap(c *hf.Checkpoint) map[string]any {
	if cfg := c.Config(); cfg != nil {
		return cfg.Map()
	}
	return nil
}

func describe(c *hf.Checkpoint, set *weights.Set) (*arch.Model, error) {
	var infos []arch.TensorInfo
	for _, t := range set.Tensors() {
		infos = append(infos, arch.TensorInfo{Name: t.Name(), Shape: t.Shape(), Float: readable(t)})
	}
	return arch.Describe(configMap(c), infos, false)
}

// readable tells whether a tensor can be read as numbers.
func readable(t weights.Tensor) bool {
	_, plain := t.Sources()[0].DType.Float()
	return plain || encoded(t)
}

func encoded(t weights.Tensor) bool {
	return t.Storage() != string(t.Sources()[0].DType)
}

// match finds the counterpart of every tensor and what becomes of it.
func (p *ExtractPlan) match() error {
	from, err := weights.Open(p.base)
	if err != nil {
		return err
	}
	to, err := weights.Open(p.tuned)
	if err != nil {
		return err
	}
	switch four := from.Scheme() == "bitsandbytes"; {
	case four && !p.o.From4Bit:
		return fault.WithHint(fault.Inputf("the base is quantized to 4 bits: its rounding errors would be part of the delta"),
			"give the 16-bit base; --from-4bit extracts against what the 4-bit one dequantizes to, for an adapter that is used on it")
	case !four && p.o.From4Bit:
		return fault.Usagef("--from-4bit: the base %q is not a 4-bit checkpoint", p.base.Path())
	case to.Scheme() != "none":
		return fault.WithHint(fault.Inputf("the tuned checkpoint is quantized (%s): its rounding errors would be part of the delta", to.Scheme()), "give the 16-bit one it was made from")
	}
	if p.model, err = describe(p.tuned, to); err != nil {
		return err
	}
	baseModel, err := describe(p.base, from)
	if err != nil {
		return err
	}
	if a, b := baseModel.Type, p.model.Type; a != b {
		return fault.Inputf("the base is a %q, the tuned checkpoint a %q", a, b)
	}
	p.tied = p.model.Tied && p.model.InputEmbedding() >= 0
	p.compareConfigs()
	p.warnings = append(p.warnings, p.model.Warnings...)
	for i, t := range to.Tensors() {
		if err := p.place(i, t, from); err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name(), err)
		}
	}
	for i, t := range from.Tensors() {
		if _, there := to.Lookup(t.Name()); !there && baseModel.Tensors[i].Role != arch.RoleBuffer && (!p.tied || i != baseModel.OutputHead()) {
			return fault.Inputf("tensor %q of the base is not in the tuned checkpoint, and an adapter takes nothing away", t.Name())
		}
	}
	// A bias goes with the factors of its weight, else with the whole of its module.
	factors := map[string]bool{}
	for i := range p.parts {
		if p.parts[i].kind == PartFactors {
			factors[p.parts[i].module] = true
		}
	}
	for i := range p.parts {
		if x := &p.parts[i]; x.kind == PartBias && !factors[x.module] {
			x.kind = PartWhole
		}
	}
	return nil
}

// place finds the part of one tensor of the tuned checkpoint.
func (p *ExtractPlan) place(i int, t weights.Tensor, from *weights.Set) error {
	at := &p.model.Tensors[i]
	if p.tied && i == p.model.OutputHead() {
		return nil // a copy of the embedding, which loaders do not read
	}
	x := part{name: t.Name(), module: p.model.LoaderPath(arch.Transformers5, at.Module), param: at.Param(), tuned: t, conv1D: at.Role == arch.RoleConv1D}
	base, there := from.Lookup(t.Name())
	switch {
	case at.Role == arch.RoleBuffer:
		return nil
	case !there && at.Role == arch.RoleHead && at.Param() == "weight":
		x.kind = PartWhole
		p.parts = append(p.parts, x)
		p.warn("%q is in the tuned checkpoint only: it is saved whole", t.Name())
		return nil
	case !there:
		return fault.Inputf("the base has no such tensor")
	case !readable(t) || !readable(base):
		return fault.Inputf("dtype %s and, in the base, %s; expected F32, BF16 or F16", t.Storage(), base.Storage())
	}
	x.base = base
	was, is := base.Shape(), t.Shape()
	if x.conv1D && encoded(base) {
		x.baseTransposed = true
		was = slices.Clone(was)
		slices.Reverse(was)
	}
	vocabulary := at.Role == arch.RoleEmbedding || at.Role == arch.RoleHead
	same := slices.Equal(was, is)
	resized := vocabulary && len(was) == 2 && len(is) == 2 && was[1] == is[1]
	if !same && !resized {
		return fault.Inputf("shape %v; the base has %v", is, was)
	}
	switch at.Role {
	case arch.RoleExpert:
		x.kind = PartFactors
		if len(is) != 2 || p.model.Known && fusedExperts(at.Module) {
			x.kind = "" // transformers 5 has experts as one parameter, which modules cannot name
		}
	case arch.RoleLinear, arch.RoleConv1D, arch.RoleHead, arch.RoleTower, arch.RoleProjector:
		x.kind = PartFactors
		if x.param != "weight" || len(is) != 2 || !same {
			x.kind = PartWhole
		}
	case arch.RoleBias:
		x.kind = PartBias
	default:
		x.kind = PartWhole
	}
	if !same {
		p.resized = true
		p.warn("%q has %d rows, in the base %d: it is saved whole, and PEFT loads the adapter after model.resize_token_embeddings(%d)", t.Name(), is[0], was[0], is[0])
	}
	p.parts = append(p.parts, x)
	return nil
}

// fusedExperts tells whether a module is one of a numbered list of experts.
func fusedExperts(module string) bool { return strings.Contains(module, ".experts.") }

// compareConfigs warns of what no adapter can carry.
func (p *ExtractPlan) compareConfigs() {
	a, b := configMap(p.base), configMap(p.tuned)
	var keys []string
	for k := range b {
		switch k {
		case "vocab_size", "tie_word_embeddings", "torch_dtype", "dtype", "_name_or_path", "transformers_version", "architectures", "quantization_config", "use_cache",
			"bos_token_id", "eos_token_id", "pad_token_id":
			continue
		}
		if x, there := a[k]; there && fmt.Sprint(x) != fmt.Sprint(b[k]) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	if len(keys) > 0 {
		p.warn("config.json of the two differs in %s, which no adapter can carry", strings.Join(keys, ", "))
	}
}

// taskType is PEFT's name of what a class does, or empty.
func taskType(class string) string {
	if strings.HasSuffix(class, "ForCausalLM") || strings.HasSuffix(class, "LMHeadModel") {
		return "CAUSAL_LM"
	}
	return "" // for others PEFT would add heads to modules_to_save by itself
}

// rule is the rank rule of package lora.
func (o *ExtractOptions) rule() lora.Rank { return lora.Rank{N: o.Rank, Energy: o.Energy} }

// sideFiles are the tokenizer of a vocabulary that the base does not have.
func (p *ExtractPlan) sideFiles() []hf.SideFile {
	if !p.resized {
		return nil
	}
	var out []hf.SideFile
	for _, s := range p.tuned.Side() {
		if peft.IsTokenizerFile(s.Name) {
			out = append(out, s)
		}
	}
	return out
}
