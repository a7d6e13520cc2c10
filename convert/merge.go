package convert

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
	"github.com/nf4conv/nf4conv/weights"
)

// The rounding modes of a merge; package lora has the formulas.
const (
	RoundOnce     = "once"      // the float32 sum of weight and all deltas is rounded once
	RoundPEFTSafe = "peft-safe" // every delta is rounded before it is added, as PEFT's safe_merge does
)

// MergeOptions are the options that the bytes of a merged checkpoint depend on.
type MergeOptions struct {
	Adapters     []MergeAdapter   `json:"adapters"`
	Rounding     string           `json:"rounding"`           // once or peft-safe
	From4Bit     bool             `json:"from_4bit"`          // the base may be a 4-bit checkpoint
	Tokenizer    string           `json:"tokenizer"`          // auto, base or adapter: whose tokenizer and chat template the output gets
	Quantize     *QuantizeOptions `json:"quantize,omitempty"` // quantize the sum in the same pass
	MaxShardSize int64            `json:"max_shard_size"`
	FileName     string           `json:"file_name,omitempty"`
	MinKept      float64          `json:"-"` // the least share of every delta that must survive; 0: any
	Resources    `json:"-"`
}

// MergeAdapter is an adapter and what it counts.
type MergeAdapter struct {
	Name    string        `json:"name"` // for people and in the manifest; set by Merge
	Weight  float64       `json:"weight"`
	Adapter *peft.Adapter `json:"-"`
}

// DefaultMerge are the options of a plain `nf4conv merge`.
func DefaultMerge() MergeOptions {
	return MergeOptions{Rounding: RoundOnce, Tokenizer: "auto", MaxShardSize: DefaultMaxShardSize}
}

// AdapterSource identifies an adapter of a merge.
type AdapterSource struct {
	Name        string          `json:"name"`
	Weight      float64         `json:"weight"`
	Base        string          `json:"base"`         // base_model_name_or_path, as the adapter has it
	PEFTVersion string          `json:"peft_version"` // empty when the adapter does not say
	Config      treehash.Digest `json:"config_blake3"`
	File        SourceFile      `json:"file"`
	Pairs       int             `json:"pairs"`        // of factors, all of which were used
	Replaced    int             `json:"replacements"` // tensors and rows that take the place of the base's
}

// Merging is what a plan says of its adapters.
type Merging struct {
	Adapters  []AdapterSource `json:"adapters"`
	Tensors   int             `json:"tensors"`   // changed or added
	Untied    bool            `json:"untied"`    // input and output embedding were one matrix and are two now
	Tokenizer string          `json:"tokenizer"` // base, or the name of the adapter it was taken from
}

// Merge plans the addition of adapters to a checkpoint, and its quantization in the same
// pass where o.Quantize is set. src and the adapters must stay open until the plan has been
// run. Errors are classified: fault.Usage for options, fault.Input for adapters that are
// not an addition to this base.
func Merge(src *hf.Checkpoint, o MergeOptions) (*Plan, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	set, err := openBase(src, &o)
	if err != nil {
		return nil, err
	}
	model, err := arch.Describe(configMap(src), tensorInfos(set), o.Quantize != nil && o.Quantize.StrictArch)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", src.Path(), err)
	}
	m := newMerger(src, set, model, &o)
	for i := range o.Adapters {
		if err := m.add(i); err != nil {
			return nil, fmt.Errorf("merging %q into %q: %w", o.Adapters[i].Adapter.Path(), src.Path(), err)
		}
	}
	if err := m.settle(); err != nil {
		return nil, fmt.Errorf("merging into %q: %w", src.Path(), err)
	}
	cfg, err := m.config()
	if err != nil {
		return nil, err
	}
	dtype, err := ownDType(src, set)
	if o.Quantize != nil {
		dtype, err = targetDType(src, set, o.Quantize.DType)
	}
	if err != nil {
		return nil, err
	}
	p := newPlan("merge", src, o, model, dtype)
	p.Warnings = append(p.Warnings, m.warnings...)
	p.minKept = o.MinKept
	var sel *bnb.Selection
	if o.Quantize != nil {
		if sel, err = m.selection(cfg, p); err != nil {
			return nil, err
		}
	}
	if err := m.jobs(p, sel, dtype); err != nil {
		return nil, fmt.Errorf("merging into %q: %w", src.Path(), err)
	}
	if cfg != nil {
		if o.Quantize != nil {
			cfg = quantizedConfig(cfg, dtype, sel.SkipModules, *o.Quantize)
		} else if set.Scheme() != "none" {
			cfg = withDType(unquantized(cfg).Delete("quantization_config"), dtype)
		}
		p.Texts = append(p.Texts, Text{Name: "config.json", Content: string(cfg.Encode())})
	}
	p.Merge = m.summary()
	m.tokenizer(p)
	return p, p.finish(o.FileName, o.MaxShardSize, o.Resources)
}

// check settles names and refuses what no plan can follow.
func (o *MergeOptions) check() error {
	if len(o.Adapters) == 0 {
		return fault.WithHint(fault.Usagef("there is nothing to merge"), "--adapter DIR names an adapter, --adapter DIR=0.5 one that counts half")
	}
	if o.MaxShardSize <= 0 {
		return fault.Usagef("--max-shard-size must be positive, not %d", o.MaxShardSize)
	}
	if o.Rounding != RoundOnce && o.Rounding != RoundPEFTSafe {
		return fault.Usagef("--rounding %q: expected %s or %s", o.Rounding, RoundOnce, RoundPEFTSafe)
	}
	if !slices.Contains([]string{"auto", "base", "adapter"}, o.Tokenizer) {
		return fault.Usagef("--tokenizer %q: expected auto, base or adapter", o.Tokenizer)
	}
	if math.IsNaN(o.MinKept) || o.MinKept < 0 || o.MinKept > 1 {
		return fault.Usagef("--min-delta-kept %v: expected a share between 0 and 1", o.MinKept)
	}
	o.Adapters = slices.Clone(o.Adapters)
	names := map[string]int{}
	for i := range o.Adapters {
		a := &o.Adapters[i]
		if math.IsNaN(a.Weight) || math.IsInf(a.Weight, 0) || a.Weight == 0 {
			return fault.Usagef("--adapter %s: weight %v; expected a number other than 0", a.Adapter.Path(), a.Weight)
		}
		a.Name = filepath.Base(a.Adapter.Path())
		if abs, err := filepath.Abs(a.Adapter.Path()); err == nil { // "." names nothing
			a.Name = filepath.Base(abs)
		}
		if names[a.Name]++; names[a.Name] > 1 {
			a.Name = fmt.Sprintf("%s-%d", a.Name, names[a.Name])
		}
	}
	if q := o.Quantize; q != nil {
		c := *q
		if err := nf4.CheckBlockSize(c.BlockSize); err != nil {
			return err
		}
		c.TypeName, c.MaxShardSize = c.Type.String(), o.MaxShardSize
		o.Quantize = &c
	}
	return nil
}

// openBase opens the base as logical tensors.
func openBase(src *hf.Checkpoint, o *MergeOptions) (*weights.Set, error) {
	set, err := weights.Open(src)
	if err != nil {
		return nil, err
	}
	four := set.Scheme() == "bitsandbytes"
	switch {
	case four && !o.From4Bit:
		return nil, fault.WithHint(
			fault.Inputf("reading %q: the base is quantized to 4 bits, and a delta added to its rounded weights is a delta on another base", src.Path()),
			"merge into the 16-bit original and quantize the sum in the same pass (--quantize nf4); if only the 4-bit checkpoint exists, --from-4bit merges into what it dequantizes to")
	case !four && o.From4Bit:
		return nil, fault.Usagef("--from-4bit: the base %q is not a 4-bit checkpoint", src.Path())
	}
	if arch.Unfused(configMap(src)) {
		switch {
		case four:
			set, err = weights.Fuse(set)
		case o.Quantize != nil:
			set, err = weights.Unfuse(set)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", src.Path(), err)
	}
	return set, nil
}

// selection decides which of the merged tensors become 4-bit.
func (m *merger) selection(cfg *hf.Config, p *Plan) (*bnb.Selection, error) {
	var infos []arch.TensorInfo
	for i := range m.items {
		it := &m.items[i]
		infos = append(infos, arch.TensorInfo{Name: it.name, Shape: it.shape(), Float: isFloating(it.t)})
	}
	var conf map[string]any
	if cfg != nil {
		conf = cfg.Map()
	}
	q := m.o.Quantize
	after, err := arch.Describe(conf, infos, q.StrictArch)
	if err != nil {
		return nil, fmt.Errorf("planning the merged %q: %w", m.src.Path(), err)
	}
	sel, err := bnb.Select(after, bnb.SelectOptions{Include: q.Include, Skip: q.Skip, Loaders: q.Loaders})
	if err != nil {
		return nil, fmt.Errorf("planning %q: %w", m.src.Path(), err)
	}
	if !slices.Contains(sel.FourBit, true) {
		return nil, fault.Inputf("planning %q: nothing is left to quantize", m.src.Path())
	}
	p.Warnings = append(p.Warnings, sel.Warnings...)
	for _, v := range sel.Verdicts {
		p.Loaders = append(p.Loaders, Loader{Name: v.Loader, Loads: v.Loads, Why: v.Why})
	}
	m.after = after
	return sel, nil
}

const untouchedWhy = "kept as it is"

// jobs makes the job of every tensor of the output.
func (m *merger) jobs(p *Plan, sel *bnb.Selection, dtype kernels.Float) error {
	for i := range m.items {
		it := &m.items[i]
		at := it.at
		if m.after != nil {
			at = &m.after.Tensors[i]
		}
		j := newJob(it.t, at.Module, string(at.Role), untouchedWhy)
		j.Name = it.name
		if it.from != "" {
			for k := range j.Inputs {
				j.Inputs[k].File = it.from
			}
		}
		if sel != nil {
			j.Why = sel.Why[i]
			if err := quantizeSteps(&j, it.t, at, sel.FourBit[i], dtype, *m.o.Quantize); err != nil {
				return err
			}
			if isEncodedConv(it.t, m.set) && at.Transposed { // a 4-bit Conv1D weight is read in the order it is written in
				j.Steps = slices.DeleteFunc(j.Steps, func(s Step) bool { return s.Op == OpTranspose })
				j.Shape = slices.Clone(it.t.Shape())
			}
		} else {
			m.plainSteps(&j, it, at, dtype)
		}
		if it.merges() {
			if err := m.mergeSteps(&j, it, dtype); err != nil {
				return err
			}
		}
		switch note := it.note(); {
		case note == "":
		case j.Why == untouchedWhy:
			j.Why = note
		default:
			j.Why += "; " + note
		}
		j.replaced = it.from != ""
		p.Jobs = append(p.Jobs, j)
	}
	return nil
}

// plainSteps are those of a tensor that stays in 16 or 32 bits.
func (m *merger) plainSteps(j *Job, it *item, at *arch.Tensor, dtype kernels.Float) {
	stored, isFloat := j.Inputs[0].DType.Float()
	to := it.to(stored, dtype)
	switch {
	case isEncoded(it.t):
		j.Why = "decoded from " + it.t.Storage()
		j.Steps = append(j.Steps, Step{Op: OpDecode, Scheme: it.t.Storage()})
		if at.Transposed && m.set.Scheme() == "bitsandbytes" {
			j.Steps = append(j.Steps, Step{Op: OpTranspose})
			j.Shape = []int64{j.Shape[1], j.Shape[0]}
		}
		if to != kernels.F32 {
			j.Steps = append(j.Steps, Step{Op: OpCast, To: to.String()})
		}
	case !isFloat || stored == to:
		j.Steps = []Step{{Op: OpCopy}}
	default:
		j.Steps = []Step{{Op: OpCheck}, {Op: OpCast, To: to.String()}}
	}
}

// mergeSteps puts the additions between reading and rounding.
func (m *merger) mergeSteps(j *Job, it *item, dtype kernels.Float) error {
	stored, isFloat := j.Inputs[0].DType.Float()
	if isEncoded(it.t) {
		stored, isFloat = kernels.F32, true
	}
	if !isFloat {
		return fault.Inputf("tensor %q: dtype %s; an adapter is added to F32, BF16 or F16", it.name, j.Inputs[0].DType)
	}
	var head, tail []Step
	to := stored
	transposed := false
	for _, s := range j.Steps {
		switch s.Op {
		case OpCheck, OpDecode:
			head = append(head, s)
		case OpTranspose:
			transposed = true
			head = append(head, s)
		case OpCast:
			to, _ = parseFloat(s.To)
		case OpQuantize:
			tail = append(tail, s)
		}
	}
	if !slices.ContainsFunc(head, func(s Step) bool { return s.Op == OpCheck }) {
		head = append([]Step{{Op: OpCheck}}, head...)
	}
	if it.from != "" && stored != to { // what the adapter holds in place of the base has the base's dtype
		head = append(head, Step{Op: OpCast, To: to.String()})
	}
	if it.rows != nil {
		head = append(head, Step{Op: OpSetRows, Rows: it.rows.rows, Input: len(j.Inputs)})
		j.Inputs = append(j.Inputs, it.rows.ref)
	}
	if len(it.terms) > 0 {
		add := Step{Op: OpAdd, Rounding: m.o.Rounding, To: to.String()}
		if it.terms[0].Layout == layoutBias || it.terms[0].magnitude != nil { // which PEFT rounds once in either mode
			add.Rounding = RoundOnce
		}
		for _, t := range it.terms {
			term := t.Term
			if t.Layout == layoutStored {
				// Of a Conv1D the stored order is the transpose of the factors'; a job that swaps the
				// dimensions, or reads them swapped already, is back in the factors' order.
				term.Layout = layoutTransposed
				if transposed != isEncodedConv(it.t, m.set) {
					term.Layout = layoutLinear
				}
			}
			term.A, term.B = len(j.Inputs), len(j.Inputs)+1
			j.Inputs = append(j.Inputs, t.a, t.b)
			if t.magnitude != nil {
				term.Magnitude = len(j.Inputs)
				j.Inputs = append(j.Inputs, *t.magnitude)
			}
			add.Terms = append(add.Terms, term)
		}
		head = append(head, add)
	}
	if to != kernels.F32 {
		head = append(head, Step{Op: OpCast, To: to.String()})
	}
	j.Steps = append(head, tail...)
	return nil
}

// isEncodedConv tells whether a Conv1D weight is read as [out, in]: 4-bit checkpoints hold
// it so.
func isEncodedConv(t weights.Tensor, set *weights.Set) bool {
	return set.Scheme() == "bitsandbytes" && isEncoded(t)
}
