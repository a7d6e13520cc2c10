package adapters

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/lora"
)

// CombineOptions are the options that the bytes of a combined adapter depend on.
type CombineOptions struct {
	Method       string  `json:"method"`        // one of Methods
	Rank         int     `json:"rank"`          // of every layer, at most (svd forms); 0: the largest of the adapters, or as Energy asks for
	Energy       float64 `json:"energy"`        // share of the squared delta that every layer keeps at least (svd forms); 0: Rank alone counts
	Density      float64 `json:"density"`       // share of elements that pruning keeps; 0 where the method does not prune
	MajoritySign string  `json:"majority_sign"` // total or frequency (ties forms); empty for others
	Seed         uint64  `json:"seed"`          // of the masks of DARE
	Threads      int     `json:"-"`
}

// Methods are PEFT's combination types.
var Methods = []string{
	"cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd",
}

func (o *CombineOptions) svd() bool { return strings.HasSuffix(o.Method, "svd") }

// Prunes tells whether a method needs a density.
func Prunes(method string) bool { return !slices.Contains([]string{"cat", "linear", "svd"}, method) }

// Elects tells whether a method elects signs.
func Elects(method string) bool { return strings.Contains(method, "ties") }

// CombineInput is an adapter and how much of it counts.
type CombineInput struct {
	Adapter *peft.Adapter
	Weight  float64
}

// layerPairs is a layer of the output before its values are read.
type layerPairs struct {
	module    string
	embedding bool
	out, in   int
	kernel    []int64 // of a convolution, after the channels
	from      []int   // adapters
	targets   []*peft.Target
	scales    []float64
}

// CombinePlan is a combination before anything but headers has been read.
type CombinePlan struct {
	o        CombineOptions
	inputs   []CombineInput
	layers   []*layerPairs
	rank     int // of the svd forms
	base     []peft.BaseTensor
	taskType string
	bias     string
	held     []held
	rows     []heldRows
	rowList  bool
	warnings []string
}

// Combine plans one adapter of several. They must stay open until the plan has been run.
// Errors are classified: fault.Usage for options, fault.Input for adapters that no single
// adapter can stand for.
func Combine(inputs []CombineInput, o CombineOptions) (*CombinePlan, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if len(inputs) == 0 {
		return nil, fault.WithHint(fault.Usagef("combine: no adapter was given"), "--adapter DIR names one; it may be repeated")
	}
	p := &CombinePlan{o: o, inputs: inputs, bias: "none", rowList: true}
	for i := range inputs {
		w := inputs[i].Weight
		if w == 0 || math.IsNaN(w) || math.IsInf(float64(float32(w)), 0) {
			return nil, fault.Usagef("adapter %q: a weight of %v; expected a number other than 0", inputs[i].Adapter.Path(), w)
		}
		if err := p.add(i); err != nil {
			return nil, fmt.Errorf("combining %q: %w", inputs[i].Adapter.Path(), err)
		}
	}
	if len(p.layers) == 0 {
		return nil, fault.Inputf("none of the adapters has factors, and PEFT has no LoRA adapter without them")
	}
	slices.SortFunc(p.layers, func(a, b *layerPairs) int { return strings.Compare(a.module, b.module) })
	return p, p.checkLayers()
}

func (o *CombineOptions) check() error {
	switch {
	case !slices.Contains(Methods, o.Method):
		return fault.Usagef("--method %q: expected one of %s", o.Method, strings.Join(Methods, ", "))
	case o.Rank < 0 || o.Rank > 1<<16:
		return fault.Usagef("--rank %d: expected 1 to 65536", o.Rank)
	case !(o.Energy >= 0 && o.Energy <= 1):
		return fault.Usagef("--energy %v: expected a share above 0 and up to 1", o.Energy)
	case (o.Rank > 0 || o.Energy > 0) && !o.svd():
		return fault.WithHint(fault.Usagef("--rank and --energy have an effect only with the svd forms, not with --method %s", o.Method), "--method svd makes a smaller adapter")
	case Prunes(o.Method) && !(o.Density > 0 && o.Density <= 1):
		return fault.WithHint(fault.Usagef("--method %s needs --density, a share above 0 and up to 1", o.Method), "--density 0.5 keeps half of the elements")
	case !Prunes(o.Method) && o.Density != 0:
		return fault.Usagef("--density has no effect with --method %s", o.Method)
	case !Elects(o.Method) && o.MajoritySign != "":
		return fault.Usagef("--majority-sign has no effect with --method %s", o.Method)
	case Elects(o.Method) && o.MajoritySign != "total" && o.MajoritySign != "frequency":
		return fault.Usagef("--majority-sign %q: expected total or frequency", o.MajoritySign)
	}
	return nil
}

// Warnings are what the user should know before the plan is run.
func (p *CombinePlan) Warnings() []string { return p.warnings }

func (p *CombinePlan) warn(format string, a ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, a...))
}

// add takes in adapter i.
func (p *CombinePlan) add(i int) error {
	a := p.inputs[i].Adapter
	cfg := a.Config()
	for _, w := range cfg.Warnings {
		p.warn("%s: %s", a.Path(), w)
	}
	switch {
	case cfg.DoRA:
		return fault.WithHint(fault.Inputf("use_dora: DoRA scales the sum of weight and delta, so that no adapter stands for a sum of it and others"), "merge the adapters one after the other")
	case len(cfg.TargetParameters) > 0:
		return fault.WithHint(fault.Inputf("target_parameters %q: factors of whole stacks of experts are not combined, as in PEFT", cfg.TargetParameters), "merge sums them: give merge both adapters with their weights")
	case cfg.TiedTraining:
		return fault.WithHint(fault.Inputf("ensure_weight_tying: the factors of the two embeddings are one, which a combination would part"), "merge sums them: give merge both adapters with their weights")
	}
	if err := p.sameModel(i); err != nil {
		return err
	}
	for _, name := range a.Ignored() {
		p.warn("%s: tensor %q has no effect on the layer and is left out", a.Path(), name)
	}
	ts := a.Targets()
	for k := range ts {
		if err := p.target(i, &ts[k]); err != nil {
			return fmt.Errorf("module %q: %w", ts[k].Module, err)
		}
	}
	return p.replacements(i)
}

// sameModel compares what the adapters say of their base.
func (p *CombinePlan) sameModel(i int) error {
	a, first := p.inputs[i].Adapter, p.inputs[0].Adapter
	digests, err := a.BaseDigests()
	if err != nil {
		return err
	}
	known := map[string]treehash.Digest{}
	for _, d := range p.base {
		known[d.Tensor] = d.BLAKE3
	}
	for _, d := range digests {
		if was, there := known[d.Tensor]; there && was != d.BLAKE3 {
			return fault.WithHint(fault.Inputf("%s records BLAKE3 %v for the tensor %q of its base, the adapters before it %v", peft.RecordName, d.BLAKE3, d.Tensor, was),
				"the adapters were made from different bases, and a sum of their deltas belongs to neither")
		} else if !there {
			p.base = append(p.base, d)
		}
	}
	cfg, was := a.Config(), first.Config()
	if cfg.Base != "" && was.Base != "" && filepath.Base(cfg.Base) != filepath.Base(was.Base) {
		p.warn("%s was trained on %q, %s on %q: only shapes can tell whether they are the same", a.Path(), cfg.Base, first.Path(), was.Base)
	}
	if cfg.TaskType != "" && p.taskType != "" && cfg.TaskType != p.taskType {
		return fault.Inputf("task_type is %q, of the adapters before it %q: they belong to different kinds of models", cfg.TaskType, p.taskType)
	}
	p.taskType = cmp.Or(p.taskType, cfg.TaskType)
	return nil
}

// target puts a pair of factors with those of the same layer.
func (p *CombinePlan) target(i int, t *peft.Target) error {
	a := p.inputs[i].Adapter
	levels := strings.Count("."+t.A.Name, ".base_layer.")
	if t.Nested > 0 || levels > 0 {
		return fault.Inputf("tensor %q: factors within another wrapper are not combined", t.A.Name)
	}
	out, in, kernel := int(t.B.Shape[0]), 1, t.A.Shape[2:]
	for _, d := range t.A.Shape[1:] {
		in *= int(d)
	}
	at := slices.IndexFunc(p.layers, func(l *layerPairs) bool { return l.module == t.Module })
	if at < 0 {
		at = len(p.layers)
		p.layers = append(p.layers, &layerPairs{module: t.Module, embedding: t.Embedding, out: out, in: in, kernel: kernel})
	}
	l := p.layers[at]
	if l.embedding != t.Embedding || l.out != out || l.in != in || !slices.Equal(l.kernel, kernel) {
		return fault.WithHint(fault.Inputf("factors A %v and B %v; %s has factors for a layer of %d outputs and %d inputs", t.A.Shape, t.B.Shape, p.inputs[l.from[0]].Adapter.Path(), l.out, l.in),
			"the adapters were trained on different bases")
	}
	rank := t.A.Shape[0]
	if _, warning := a.Config().AlphaOf(t.Module); warning != "" {
		p.warn("%s: %s", a.Path(), warning)
	}
	scale := a.Config().ScaleOf(t.Module, rank)
	if c := scale * p.inputs[i].Weight; math.IsNaN(c) || math.IsInf(float64(float32(c)), 0) {
		return fault.Inputf("its scale is %v", c)
	}
	l.from, l.targets, l.scales = append(l.from, i), append(l.targets, t), append(l.scales, scale)
	p.rank = max(p.rank, int(rank))
	return nil
}

// checkLayers holds what every layer must have against what it has.
func (p *CombinePlan) checkLayers() error {
	biased := slices.ContainsFunc(p.layers, (*layerPairs).hasBias)
	for _, l := range p.layers {
		if biased && !l.hasBias() {
			return fault.WithHint(fault.Inputf("module %q: other layers have a lora_B.bias and this one has none in any adapter; PEFT gives every layer one or none", l.module),
				"merge the adapters, which needs no adapter for their sum")
		}
		if p.o.svd() || p.o.Method == "cat" {
			continue
		}
		for k, t := range l.targets {
			if r := l.targets[0].A.Shape[0]; t.A.Shape[0] != r {
				return fault.WithHint(fault.Inputf("module %q: rank %d in %q, %d in %q: --method %s combines factors element by element", l.module, r, p.inputs[l.from[0]].Adapter.Path(),
					t.A.Shape[0], p.inputs[l.from[k]].Adapter.Path(), p.o.Method), "--method cat and the svd forms take any ranks")
			}
		}
	}
	return p.checkHeld()
}

func (l *layerPairs) hasBias() bool {
	return slices.ContainsFunc(l.targets, func(t *peft.Target) bool { return t.Bias != nil })
}

// layer finds the layer of a module, or nil.
func (p *CombinePlan) layer(module string) *layerPairs {
	for _, l := range p.layers {
		if l.module == module {
			return l
		}
	}
	return nil
}

// blend is the method as package lora knows it.
func (o *CombineOptions) blend() lora.Blend {
	b := lora.Blend{Density: o.Density}
	switch {
	case strings.HasPrefix(o.Method, "dare"):
		b.Prune = lora.PruneRandom
	case Prunes(o.Method):
		b.Prune = lora.PruneMagnitude
	}
	if Elects(o.Method) {
		b.Elect = lora.ElectTotal
		if o.MajoritySign == "frequency" {
			b.Elect = lora.ElectFrequency
		}
	}
	return b
}
