package verify

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nf4conv/nf4conv/compare"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// Options are options of a verification.
type Options struct {
	// Stages are the stages to run; none: all.
	Stages []string
	// Text is what the models run on; the stages layers and logits need it.
	Text *IDs
	// Mask restricts the attention of the candidate to blocks, and Attention is what the
	// report calls that; empty: dense.
	Mask      *flash.BlockMask
	Attention string
	// Adapters are what the candidate runs with, not merged; OfBase, what the base does.
	Adapters, OfBase []Adapter
	// Threads compute; 0: one per CPU. It changes no results.
	Threads int
	// Memory caps what the forward passes hold, in bytes; 0: what they take at their fastest.
	// It changes no results. Less than they need is an error of class fault.Usage.
	Memory int64
	// Planned is called before the first stage with what the forward passes hold at most, in
	// bytes; nil: not. It is not called when they cannot be computed.
	Planned func(memory int64)
	// Rederive repeats the conversion that made the candidate; nil: that stage does not run.
	Rederive func(ctx context.Context) (*Rederived, error)
	// Begin is called as a stage begins; nil: not.
	Begin func(stage string)
}

// asks tells whether a stage is to run: to repeat the conversion, it is enough to say how.
func (o *Options) asks(stage string) bool {
	if stage == StageRederive {
		return o.Rederive != nil
	}
	return len(o.Stages) == 0 || slices.Contains(o.Stages, stage)
}

// ParseStages reads a list of stages, separated by commas. Errors are of class fault.Usage.
func ParseStages(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	var out []string
	for _, name := range strings.Split(s, ",") {
		if !slices.Contains(Stages, name) {
			return nil, fault.Usagef("stage %q: expected %s", name, strings.Join(Stages, ", "))
		}
		out = append(out, name)
	}
	return out, nil
}

// NeedsText tells whether one of the stages, all if there are none, computes the models.
func NeedsText(stages []string) bool {
	return len(stages) == 0 || slices.Contains(stages, StageLayers) || slices.Contains(stages, StageLogits)
}

// Run measures candidate against base. A candidate that does not fit, or cannot be
// computed, is a finding or a stage that did not run, with the reason; errors are of class
// fault.Input for checkpoints that cannot be read at all, and fault.IO.
func Run(ctx context.Context, base, candidate *hf.Checkpoint, o Options) (*Result, error) {
	if o.Threads < 1 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	pairs, err := compare.Match(base, candidate)
	if err != nil {
		return nil, err
	}
	r := &Result{
		Schema: Schema, Base: pairs.A, Candidate: pairs.B, Diverges: -1, Findings: []Finding{}, Loaders: []Loader{}, Metrics: []Metric{},
		Tensors: []Tensor{}, Layers: []Layer{}, Histogram: []Bin{}, Outcomes: []Outcome{}, Kind: kind(pairs), Causal: true,
	}
	if err := r.attention(&o); err != nil {
		return nil, err
	}
	if o.Text != nil {
		r.Text.Name, r.Text.Context = o.Text.Name, o.Text.Context
		r.Text.Sequences, r.Text.Tokens, r.Text.BLAKE3 = len(o.Text.Sequences), o.Text.Tokens, o.Text.BLAKE3
	}
	states := &states{}
	if states.lowRank, err = r.adapters(base, candidate, &o); err != nil {
		return nil, err
	}
	if o.Text != nil && NeedsText(o.Stages) {
		switch err := states.open(base, candidate, o); {
		case err == nil && o.Planned != nil:
			o.Planned(states.plan.memory)
		case err != nil && fault.ClassOf(err) != fault.Input: // which the stages report
			return nil, err
		}
	}
	for _, s := range []struct {
		name string
		run  func() (notRun string, err error)
	}{
		{StageContainer, func() (string, error) { return "", r.container(candidate, pairs) }},
		{StageWeights, func() (string, error) { return "", r.weights(ctx, candidate, pairs, o.Threads) }},
		{StageLayers, func() (string, error) { return r.layers(ctx, base, candidate, states, o) }},
		{StageLogits, func() (string, error) { return r.logits(ctx, base, candidate, states, o) }},
		{StageRederive, func() (string, error) { return r.rederive(ctx, o) }},
	} {
		st := Stage{Name: s.name}
		if !o.asks(s.name) {
			st.Why = "not asked for"
			r.Stages = append(r.Stages, st)
			continue
		}
		if o.Begin != nil {
			o.Begin(s.name)
		}
		if st.Why, err = s.run(); err != nil {
			return nil, err
		}
		st.Ran = st.Why == ""
		r.Stages = append(r.Stages, st)
	}
	return r, nil
}

// kind is what most gates depend on.
func kind(p *compare.Pairing) string {
	k := "16-bit"
	for i := range p.Pairs {
		switch p.Pairs[i].B.Storage() {
		case "nf4", "fp4", "mxfp4":
			return "4-bit"
		case "fp8-block":
			k = "8-bit"
		}
	}
	return k
}

// each calls do for 0 to n-1 on some threads.
func each(threads, n int, do func(i int)) {
	const grain = 8
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(1, min(threads, (n+grain-1)/grain)) {
		wg.Go(func() {
			for at := int(next.Add(grain)) - grain; at < n; at = int(next.Add(grain)) - grain {
				for i := at; i < min(n, at+grain); i++ {
					do(i)
				}
			}
		})
	}
	wg.Wait()
}
