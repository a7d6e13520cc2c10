package adapters

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"sync"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/lora"
)

// Combination is what a combination is going to do, or has done.
type Combination struct {
	Schema   string            `json:"schema"`
	DryRun   bool              `json:"dry_run"` // nothing was computed: layers have no figures
	Out      string            `json:"out"`
	Options  CombineOptions    `json:"options"`
	Adapters []CombinedAdapter `json:"adapters"`
	Layers   []CombinedLayer   `json:"layers"` // in the order of their names
	Totals   CombineTotals     `json:"totals"`
	Warnings []string          `json:"warnings"`
}

// CombinedAdapter is one of the inputs.
type CombinedAdapter struct {
	Name   string          `json:"name"`
	Weight float64         `json:"weight"`
	Base   string          `json:"base"`          // that it names
	Pairs  int             `json:"pairs"`         // of factors
	Config treehash.Digest `json:"config_blake3"` // of adapter_config.json
	Header treehash.Digest `json:"header_blake3"` // of adapter_model.safetensors
	Size   int64           `json:"size"`          // of adapter_model.safetensors
}

// CombinedLayer is what became of one layer. D is the weighted sum of the deltas of the adapters that have it.
type CombinedLayer struct {
	Module   string  `json:"module"`
	Adapters int     `json:"adapters"`   // that have it
	RanksIn  int     `json:"ranks_in"`   // sum of their ranks
	Rank     int     `json:"rank"`       // of the output
	Delta    float64 `json:"delta"`      // |D|, Frobenius
	Energy   float64 `json:"energy"`     // share of the square that the svd kept: of D, or of what the method made of the deltas; 1 without svd
	Residual float64 `json:"residual"`   // relative norm of what the svd left out; 0 without svd
	Distance float64 `json:"distance"`   // |B A - D| / |D|, measured on the factors as written; 0 where D is 0
	Biased   bool    `json:"lora_bias"`  // lora_B has a bias
	Written  float64 `json:"delta_norm"` // |B A|
}

// CombineTotals sum up a combination.
type CombineTotals struct {
	Pairs    int     `json:"pairs"`    // of factors
	Replaced int     `json:"replaced"` // tensors taken over as they are
	Params   int64   `json:"params"`
	MaxRank  int     `json:"max_rank"`
	Distance float64 `json:"distance"` // |B A - D| / |D| over all layers
}

// Describe is the plan as a document.
func (p *CombinePlan) Describe(out string) *Combination {
	c := p.document(out)
	c.DryRun = true
	for _, l := range p.layers {
		c.Layers = append(c.Layers, CombinedLayer{Module: l.module, Adapters: len(l.from), RanksIn: l.ranks(), Biased: l.hasBias()})
	}
	c.Totals.Pairs, c.Totals.Replaced = len(p.layers), len(p.held)+len(p.rows)
	return c
}

func (l *layerPairs) ranks() (n int) {
	for _, t := range l.targets {
		n += int(t.A.Shape[0])
	}
	return n
}

func (p *CombinePlan) document(out string) *Combination {
	c := &Combination{Schema: "nf4conv.combine/1", Out: out, Options: p.o, Adapters: []CombinedAdapter{}, Layers: []CombinedLayer{}, Warnings: append([]string{}, p.warnings...)}
	for i := range p.inputs {
		a := p.inputs[i].Adapter
		h := a.File().Header()
		c.Adapters = append(c.Adapters, CombinedAdapter{Name: a.Path(), Weight: p.inputs[i].Weight, Base: a.Config().Base, Pairs: len(a.Targets()),
			Config: a.ConfigDigest(), Header: h.Digest, Size: h.FileSize})
	}
	return c
}

// combining is one run of a plan.
type combining struct {
	*CombinePlan
	doc     *Combination
	tensors map[string]safetensors.View
}

// layerResult is what one layer became.
type layerResult struct {
	figures CombinedLayer
	f       *lora.Factors
	bias    []float32
	err     error
}

// Run reads the adapters and writes the combination. All factors are in memory, and for
// the svd forms other than svd itself one matrix of the size of the largest layer. Nothing
// is left behind when it fails or is interrupted. Errors are classified.
func (p *CombinePlan) Run(ctx context.Context, out string) (*Combination, error) {
	if err := peft.CheckOutput(out); err != nil {
		return nil, err
	}
	r := &combining{CombinePlan: p, doc: p.document(out), tensors: map[string]safetensors.View{}}
	results, err := r.all(ctx)
	if err != nil {
		return nil, err
	}
	ranks, biased, err := r.collect(results)
	if err != nil {
		return nil, err
	}
	if err := r.put(); err != nil {
		return nil, err
	}
	for _, v := range r.tensors {
		n := int64(1)
		for _, d := range v.Shape() {
			n *= d
		}
		r.doc.Totals.Params += n
	}
	return r.doc, peft.Write(out, r.output(ranks, biased))
}

// all computes the layers: on all threads at once where only factors are multiplied, one
// by one where whole matrices are decomposed.
func (r *combining) all(ctx context.Context) ([]layerResult, error) {
	results := make([]layerResult, len(r.layers))
	workers := max(1, r.o.Threads)
	dc := lora.NewDecomposer(workers)
	if r.o.svd() && r.o.Method != "svd" {
		workers = 1
	}
	next := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range next {
				if ctx.Err() == nil {
					results[i] = r.compute(r.layers[i], dc)
				}
			}
		})
	}
	for i := range r.layers {
		next <- i
	}
	close(next)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for i := range results {
		if err := results[i].err; err != nil {
			return nil, fmt.Errorf("combining module %q: %w", r.layers[i].module, err)
		}
	}
	return results, nil
}

func (r *combining) compute(l *layerPairs, dc *lora.Decomposer) (res layerResult) {
	var pairs []lora.Pair
	for k, t := range l.targets {
		p := lora.Pair{Rank: int(t.A.Shape[0]), Scale: l.scales[k], Weight: r.inputs[l.from[k]].Weight}
		if p.A, res.err = peft.ReadAll(&t.A); res.err != nil {
			return res
		}
		if p.B, res.err = peft.ReadAll(&t.B); res.err != nil {
			return res
		}
		pairs = append(pairs, p)
	}
	res.f = r.factors(l, pairs, dc)
	if !finite(res.f.L) || !finite(res.f.R) {
		res.err = fault.Inputf("the combined factors are not finite")
		return res
	}
	if l.hasBias() {
		if res.bias, res.err = r.biasOf(l); res.err != nil {
			return res
		}
	}
	delta := lora.Norm(l.out, l.in, pairs)
	res.figures = CombinedLayer{Module: l.module, Adapters: len(l.from), RanksIn: l.ranks(), Rank: res.f.Rank, Delta: delta, Energy: 1, Biased: res.bias != nil,
		Written: lora.Norm(l.out, l.in, []lora.Pair{{Rank: res.f.Rank, A: res.f.R, B: res.f.L, Scale: 1, Weight: 1}})}
	if r.o.svd() {
		res.figures.Energy, res.figures.Residual = res.f.Energy(), res.f.Relative()
	}
	if delta > 0 {
		res.figures.Distance = lora.Distance(l.out, l.in, pairs, res.f) / delta
	}
	return res
}

// factors applies the method to one layer.
func (r *combining) factors(l *layerPairs, pairs []lora.Pair, dc *lora.Decomposer) *lora.Factors {
	want := lora.Rank{N: r.o.Rank, Energy: r.o.Energy}
	if want.N == 0 && want.Energy == 0 {
		want.N = r.rank
	}
	switch b := r.masked(l); {
	case r.o.Method == "cat":
		return lora.Cat(l.out, l.in, pairs)
	case r.o.Method == "svd":
		return lora.Truncate(l.out, l.in, pairs, want)
	case !r.o.svd():
		return b.Factors(l.out, l.in, pairs)
	default:
		d := make([]float32, l.out*l.in)
		b.Delta(d, l.out, l.in, pairs)
		f := dc.Decompose(d, l.out, l.in, want)
		if f.Rank == 0 { // of a matrix of zeros
			f.Rank, f.L, f.R = 1, make([]float32, l.out), make([]float32, l.in)
		}
		return f
	}
}

// masked is the method with the masks of a layer. The key of a mask names the adapter by
// its place among the inputs, from 0.
func (r *combining) masked(l *layerPairs) lora.Blend {
	b := r.o.blend()
	b.Mask = func(i int, part lora.Part) lora.Mask {
		return lora.Keep(lora.MaskKey(r.o.Seed, fmt.Sprintf("%d/%s/%s", l.from[i], l.module, part)), r.o.Density)
	}
	return b
}

// biasOf combines lora_B.bias, which adds s b to the bias of the layer: a delta of its own,
// that the method combines as it would whole deltas.
func (r *combining) biasOf(l *layerPairs) ([]float32, error) {
	var tasks [][]float32
	var weights []float32
	masks := &layerPairs{module: l.module}
	for k, t := range l.targets {
		if t.Bias == nil {
			continue
		}
		v, err := peft.ReadAll(t.Bias)
		if err != nil {
			return nil, err
		}
		for j := range v {
			v[j] = float32(l.scales[k] * float64(v[j]))
		}
		tasks, weights, masks.from = append(tasks, v), append(weights, float32(r.inputs[l.from[k]].Weight)), append(masks.from, l.from[k])
	}
	out := make([]float32, l.out)
	b := r.masked(masks)
	b.Apply(out, tasks, weights, lora.PartBias)
	return out, nil
}

// collect puts the layers into the output. An adapter that adds nothing is an error.
func (r *combining) collect(results []layerResult) (ranks map[string]int, biased bool, err error) {
	ranks = map[string]int{}
	var delta2, apart2 float64
	something := false
	for i := range results {
		l, res := r.layers[i], &results[i]
		r.doc.Layers = append(r.doc.Layers, res.figures)
		ranks[l.module] = res.f.Rank
		r.doc.Totals.MaxRank = max(r.doc.Totals.MaxRank, res.f.Rank)
		d := res.figures.Delta
		apart := res.figures.Distance * d
		delta2, apart2 = delta2+d*d, apart2+apart*apart
		something = something || res.figures.Written > 0 || res.bias != nil
		r.putFactors(l, res)
		biased = biased || res.bias != nil
	}
	r.doc.Totals.Pairs = len(results)
	if delta2 > 0 {
		r.doc.Totals.Distance = math.Sqrt(apart2 / delta2)
	}
	if !something && len(r.held)+len(r.rows) == 0 {
		return nil, false, fault.WithHint(fault.Inputf("nothing is left: the combined factors add nothing to any layer"), "do the adapters cancel each other, or is --density too small?")
	}
	return ranks, biased, nil
}

func (r *combining) putFactors(l *layerPairs, res *layerResult) {
	a, b := ".lora_A.weight", ".lora_B.weight"
	if l.embedding {
		a, b = ".lora_embedding_A", ".lora_embedding_B"
	}
	as := []int64{int64(res.f.Rank), int64(l.in)}
	bs := []int64{int64(l.out), int64(res.f.Rank)}
	if len(l.kernel) > 0 {
		as = append([]int64{as[0]}, l.targets[0].A.Shape[1:]...)
		for range l.kernel {
			bs = append(bs, 1)
		}
	}
	r.tensors[peft.Key(l.module+a)] = floats{as, res.f.R}
	r.tensors[peft.Key(l.module+b)] = floats{bs, res.f.L}
	if res.bias != nil {
		r.tensors[peft.Key(l.module+".lora_B.bias")] = floats{[]int64{int64(l.out)}, res.bias}
	}
}

// output is the adapter. Scales are in the factors: alpha is the rank, of every layer, and
// use_rslora is false.
func (r *combining) output(ranks map[string]int, biased bool) *peft.Output {
	var modules, saved []string
	for _, l := range r.layers {
		modules = append(modules, l.module)
	}
	c := peft.NewConfig(r.inputs[0].Adapter.Config().Base, r.taskType, r.doc.Totals.MaxRank, modules)
	pattern := map[string]int{}
	for module, n := range ranks {
		if n != r.doc.Totals.MaxRank {
			pattern[module] = n
		}
	}
	c["rank_pattern"], c["alpha_pattern"], c["lora_bias"], c["bias"] = pattern, pattern, biased, r.bias
	for k := range r.held {
		h := &r.held[k]
		for _, i := range h.from {
			if h.trained && (h.param != "bias" || r.inputs[i].Adapter.Config().Saves(h.module)) {
				saved = append(saved, h.module)
			}
		}
	}
	if slices.Sort(saved); len(saved) > 0 {
		c["modules_to_save"] = slices.Compact(saved)
	}
	r.tokenIndices(c)
	for i := range r.inputs {
		if r.inputs[i].Adapter.Config().FanInFanOut {
			c["fan_in_fan_out"] = true
		}
	}
	sort.Slice(r.base, func(i, j int) bool { return r.base[i].Tensor < r.base[j].Tensor })
	base := append([]peft.BaseTensor{}, r.base...)
	record := map[string]any{
		"schema": peft.RecordSchema, "base": base, "options": r.o, "adapters": r.doc.Adapters, "totals": r.doc.Totals, "layers": r.doc.Layers,
	}
	return &peft.Output{Config: c, Tensors: r.tensors, Record: record, Side: r.sideFiles()}
}

func (r *combining) tokenIndices(c map[string]any) {
	switch {
	case len(r.rows) == 0:
	case r.rowList && len(r.rows) == 1:
		c["trainable_token_indices"] = r.rows[0].rows[0].Rows
	default:
		table := map[string][]int64{}
		for k := range r.rows {
			table[r.rows[k].module] = r.rows[k].rows[0].Rows
		}
		c["trainable_token_indices"] = table
	}
}

// sideFiles are the tokenizer of the first adapter that has one.
func (r *combining) sideFiles() []hf.SideFile {
	for i := range r.inputs {
		if files := r.inputs[i].Adapter.TokenizerFiles(); len(files) > 0 {
			return files
		}
	}
	return nil
}
