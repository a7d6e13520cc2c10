package adapters

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/lora"
	"github.com/nf4conv/nf4conv/weights"
)

// Extraction is what an extraction is going to do, or has done.
type Extraction struct {
	Schema   string         `json:"schema"`
	DryRun   bool           `json:"dry_run"` // nothing was computed: every tensor is listed, without figures
	Base     string         `json:"base"`
	Tuned    string         `json:"tuned"`
	Out      string         `json:"out"`
	Options  ExtractOptions `json:"options"`
	Layers   []Layer        `json:"layers"` // that differ, in the order of the tuned checkpoint
	Totals   LayerTotals    `json:"totals"`
	Warnings []string       `json:"warnings"`
}

// Layer is what became of one tensor.
type Layer struct {
	Tensor   string  `json:"tensor"`   // in the tuned checkpoint
	Module   string  `json:"module"`   // path in memory
	Part     string  `json:"part"`     // factors, bias (the new values) or whole (modules_to_save)
	Shape    []int64 `json:"shape"`    // as stored
	Rank     int     `json:"rank"`     // of the factors; 0 without
	Energy   float64 `json:"energy"`   // share of the squared delta that is kept
	Residual float64 `json:"residual"` // |delta - B A| / |delta|, measured on the factors as written
	Delta    float64 `json:"delta"`    // |delta|, Frobenius
	Relative float64 `json:"relative"` // |delta| / |weight of the base|; 0 where the base has none of that shape
}

// LayerTotals sum up an extraction.
type LayerTotals struct {
	Compared  int     `json:"compared"`  // tensors
	Unchanged int     `json:"unchanged"` // of them
	Factors   int     `json:"factors"`   // layers with A and B
	Replaced  int     `json:"replaced"`  // tensors saved with their new values
	Params    int64   `json:"params"`    // of the adapter
	MaxRank   int     `json:"max_rank"`
	Energy    float64 `json:"energy"`   // kept, over all layers with factors
	Residual  float64 `json:"residual"` // over all layers with factors
}

// Progress counts elements of the tuned checkpoint.
type Progress struct{ Done, Total atomic.Int64 }

// Describe is the plan as a document.
func (p *ExtractPlan) Describe(out string) *Extraction {
	e := p.document(out)
	e.DryRun = true
	for i := range p.parts {
		x := &p.parts[i]
		kind := x.kind
		if kind == "" {
			kind = "experts"
		}
		e.Layers = append(e.Layers, Layer{Tensor: x.name, Module: x.module, Part: kind, Shape: x.tuned.Shape()})
	}
	e.Totals.Compared = len(p.parts)
	return e
}

func (p *ExtractPlan) document(out string) *Extraction {
	return &Extraction{
		Schema: "nf4conv.extract/1", Base: p.base.Path(), Tuned: p.tuned.Path(), Out: out, Options: p.o,
		Layers: []Layer{}, Warnings: append([]string{}, p.warnings...),
	}
}

// run is one run of a plan.
type run struct {
	*ExtractPlan
	doc     *Extraction
	dc      *lora.Decomposer
	tensors map[string]safetensors.View
	ranks   map[string]int // by module
	whole   map[string]bool
	biases  bool
	base    []peft.BaseTensor
	norm2   float64
	rest2   float64
}

// Run reads both checkpoints tensor by tensor and writes the adapter. It keeps two float32
// copies of the largest matrix and all factors in memory. Nothing is left behind when it
// fails or is interrupted. Errors are classified; a difference of nothing is one.
func (p *ExtractPlan) Run(ctx context.Context, out string, progress *Progress) (*Extraction, error) {
	if err := peft.CheckOutput(out); err != nil {
		return nil, err
	}
	r := &run{
		ExtractPlan: p, doc: p.document(out), dc: lora.NewDecomposer(p.o.Threads),
		tensors: map[string]safetensors.View{}, ranks: map[string]int{}, whole: map[string]bool{},
	}
	for i := range p.parts {
		progress.Total.Add(elems(p.parts[i].tuned))
	}
	changed := make([]bool, len(p.parts))
	for i := range p.parts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var err error
		if changed[i], err = r.part(&p.parts[i]); err != nil {
			return nil, fmt.Errorf("extracting %q: tensor %q: %w", p.tuned.Path(), p.parts[i].name, err)
		}
		progress.Done.Add(elems(p.parts[i].tuned))
	}
	r.doc.Totals.Compared = len(p.parts)
	if err := r.replacements(changed); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	r.finish()
	return r.doc, peft.Write(out, r.output())
}

func elems(t weights.Tensor) int64 {
	n := int64(1)
	for _, d := range t.Shape() {
		n *= d
	}
	return n
}

// part computes the delta of a tensor and decomposes it where it gets factors.
func (r *run) part(x *part) (changed bool, err error) {
	shape := x.tuned.Shape()
	l := Layer{Tensor: x.name, Module: x.module, Part: x.kind, Shape: shape, Energy: 1}
	if x.base == nil || elems(x.base) != elems(x.tuned) { // a head of its own, or another vocabulary
		r.doc.Layers = append(r.doc.Layers, l)
		return true, nil
	}
	d, norm, err := x.delta()
	if err != nil {
		return false, err
	}
	var sum float64
	for _, v := range d {
		sum += float64(float64(v) * float64(v))
	}
	switch {
	case math.IsNaN(sum) || math.IsInf(sum, 0):
		return false, fault.Inputf("there are values that are not finite, which have no difference")
	case sum == 0:
		r.doc.Totals.Unchanged++
		return false, nil
	case x.kind == "":
		return false, fault.WithHint(fault.Inputf("it was trained, and transformers 5 has the experts of a layer as one parameter, for which no adapter is extracted"),
			"extract works where experts were left as they are")
	}
	if l.Delta = math.Sqrt(sum); norm > 0 {
		l.Relative = l.Delta / norm
	}
	if x.kind == PartFactors {
		rows, cols := int(shape[0]), int(shape[1])
		f := r.dc.Decompose(d, rows, cols, r.o.rule())
		l.Rank, l.Energy, l.Residual = f.Rank, f.Energy(), f.Relative()
		r.norm2, r.rest2 = r.norm2+f.Norm*f.Norm, r.rest2+f.Residual*f.Residual
		r.addFactors(x, f)
		if err := r.recordBase(x.base); err != nil {
			return false, err
		}
	}
	r.doc.Layers = append(r.doc.Layers, l)
	return true, nil
}

// addFactors puts a pair into the adapter.
func (r *run) addFactors(x *part, f *lora.Factors) {
	a, b := f.R, f.L
	in, out := f.Cols, f.Rows
	if x.conv1D {
		a, b = lora.Transpose(f.L, f.Rows, f.Rank), lora.Transpose(f.R, f.Rank, f.Cols)
		in, out = f.Rows, f.Cols
	}
	r.tensors[peft.Key(x.module+".lora_A.weight")] = floats{[]int64{int64(f.Rank), int64(in)}, a}
	r.tensors[peft.Key(x.module+".lora_B.weight")] = floats{[]int64{int64(out), int64(f.Rank)}, b}
	r.ranks[x.module] = f.Rank
}

// delta returns tuned minus base in the order of the tuned tensor, and the norm of the base.
func (x *part) delta() (d []float32, norm float64, err error) {
	d = make([]float32, elems(x.tuned))
	if err := x.tuned.ReadF32(d, 0); err != nil {
		return nil, 0, err
	}
	w := make([]float32, len(d))
	if err := x.base.ReadF32(w, 0); err != nil {
		return nil, 0, err
	}
	if x.baseTransposed {
		s := x.base.Shape()
		w = lora.Transpose(w, int(s[0]), int(s[1]))
	}
	var sum float64
	for i, v := range w {
		sum += float64(float64(v) * float64(v))
		d[i] -= v
	}
	return d, math.Sqrt(sum), nil
}

// replacements puts tensors with their new values into the adapter. A module of which a
// part differs is saved with all its tensors: PEFT misses those that are not there.
func (r *run) replacements(changed []bool) error {
	for i := range r.parts {
		if x := &r.parts[i]; changed[i] && x.kind == PartWhole {
			if x.param != "weight" && x.param != "bias" {
				return fault.Inputf("tensor %q differs and is no weight or bias of a module, which is all that an adapter can replace", x.name)
			}
			r.whole[x.module] = true
		}
	}
	for i := range r.parts {
		x := &r.parts[i]
		name := x.module + "." + x.param
		switch {
		case x.kind == PartWhole && r.whole[x.module]:
		case x.kind == PartBias && changed[i]:
			r.biases = true
			if _, adapted := r.ranks[x.module]; adapted {
				name = x.module + ".base_layer." + x.param
			}
		default:
			continue
		}
		v, err := stored(x.tuned)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", x.name, err)
		}
		r.tensors[peft.Key(name)] = v
		r.doc.Totals.Replaced++
		if head := r.tiedHead(); head != "" && x.name == r.model.Tensors[r.model.InputEmbedding()].Name {
			r.tensors[peft.Key(head+".weight")] = v
			r.whole[head] = true
		}
		if x.base != nil {
			if err := r.recordBase(x.base); err != nil {
				return err
			}
		}
	}
	return nil
}

// tiedHead is the path of the output head that shares the token embedding, or empty. PEFT
// parts the two when it wraps the embedding: the new matrix must be there for both.
func (r *run) tiedHead() string {
	if !r.tied {
		return ""
	}
	head := r.model.TiedHead()
	if h := r.model.OutputHead(); h >= 0 {
		head = r.model.Tensors[h].Module
	}
	return r.model.LoaderPath(arch.Transformers5, head)
}

// check refuses what would be no adapter.
func (r *run) check() error {
	switch {
	case len(r.tensors) == 0:
		return fault.WithHint(fault.Inputf("extracting %q: it has the values of the base %q, and there is nothing to extract", r.tuned.Path(), r.base0()), "are these the two checkpoints you meant?")
	case len(r.ranks) == 0:
		return fault.Inputf("extracting %q: no weight of a linear layer differs from the base %q, and PEFT has no LoRA adapter without factors", r.tuned.Path(), r.base0())
	}
	return nil
}

func (r *run) base0() string { return r.ExtractPlan.base.Path() }

func (r *run) finish() {
	t := &r.doc.Totals
	t.Factors, t.Energy = len(r.ranks), 1
	for _, n := range r.ranks {
		t.MaxRank = max(t.MaxRank, n)
	}
	for _, v := range r.tensors {
		n := int64(1)
		for _, d := range v.Shape() {
			n *= d
		}
		t.Params += n
	}
	if r.norm2 > 0 {
		t.Energy, t.Residual = 1-r.rest2/r.norm2, math.Sqrt(r.rest2/r.norm2)
	}
}

// output is the adapter.
func (r *run) output() *peft.Output {
	class := ""
	if cfg := r.tuned.Config(); cfg != nil {
		class = cfg.Architecture()
	}
	c := peft.NewConfig(r.base0(), taskType(class), r.doc.Totals.MaxRank, slices.Sorted(maps.Keys(r.ranks)))
	pattern := map[string]int{}
	for module, n := range r.ranks {
		if n != r.doc.Totals.MaxRank {
			pattern[module] = n
		}
	}
	c["rank_pattern"], c["alpha_pattern"] = pattern, pattern
	if len(r.whole) > 0 {
		c["modules_to_save"] = slices.Sorted(maps.Keys(r.whole))
	}
	if r.biases {
		c["bias"] = "all"
	}
	for i := range r.parts {
		if r.parts[i].conv1D && r.ranks[r.parts[i].module] > 0 {
			c["fan_in_fan_out"] = true
		}
	}
	sort.Slice(r.base, func(i, j int) bool { return r.base[i].Tensor < r.base[j].Tensor })
	record := map[string]any{
		"schema": peft.RecordSchema, "base": r.base, "options": r.o, "totals": r.doc.Totals, "layers": r.doc.Layers,
	}
	return &peft.Output{Config: c, Tensors: r.tensors, Record: record, Side: r.sideFiles()}
}

// recordBase takes the digests of the stored tensors behind a weight of the base.
func (r *run) recordBase(t weights.Tensor) error {
	for _, s := range t.Sources() {
		b, err := bytesOf(s)
		if err != nil {
			return err
		}
		r.base = append(r.base, peft.BaseTensor{Tensor: s.Name, BLAKE3: treehash.Sum(b)})
	}
	return nil
}

func bytesOf(t hf.Tensor) ([]byte, error) {
	b := make([]byte, t.Bytes())
	return b, t.ReadAt(b, 0)
}

// stored is a tensor as the tuned checkpoint has it.
func stored(t weights.Tensor) (safetensors.View, error) {
	s := t.Sources()[0]
	b, err := bytesOf(s)
	return raw{s.DType, s.Shape, b}, err
}

// floats shows factors as float32.
type floats struct {
	shape []int64
	v     []float32
}

func (f floats) DType() safetensors.DType { return "F32" }
func (f floats) Shape() []int64           { return f.shape }
func (f floats) DataLen() int64           { return int64(len(f.v)) * 4 }
func (f floats) Data() []byte {
	b := make([]byte, len(f.v)*4)
	cast.FromF32(b, f.v, kernels.F32)
	return b
}

type raw struct {
	dtype safetensors.DType
	shape []int64
	b     []byte
}

func (r raw) DType() safetensors.DType { return r.dtype }
func (r raw) Shape() []int64           { return r.shape }
func (r raw) DataLen() int64           { return int64(len(r.b)) }
func (r raw) Data() []byte             { return r.b }
