package verify

import (
	"fmt"
	"slices"

	"github.com/nf4conv/nf4conv/compare"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/inspect"
)

// container is the first stage. Offsets, dtypes and headers were checked when the
// checkpoints were opened, quant states when their tensors were matched.
//
//	container.findings   how many findings there are
//	loaders.disagree     how many simulated loaders expect 4 bits elsewhere
func (r *Result) container(candidate *hf.Checkpoint, pairs *compare.Pairing) error {
	for _, n := range pairs.OnlyA {
		r.find(n, "the candidate has no such tensor")
	}
	for _, n := range pairs.OnlyB {
		r.find(n, "the base has no such tensor")
	}
	for i := range pairs.Pairs {
		p := &pairs.Pairs[i]
		if !slices.Equal(p.A.Shape(), p.B.Shape()) {
			r.find(p.A.Name(), fmt.Sprintf("shape %v; expected %v", p.B.Shape(), p.A.Shape()))
		}
	}
	info, err := inspect.Checkpoint(candidate, false)
	if err != nil {
		return err
	}
	if info.Refused != "" {
		r.find(candidate.Path(), info.Refused)
	}
	for _, w := range info.Warnings {
		r.find("config.json", w)
	}
	disagree := 0
	for _, l := range info.Loaders {
		r.Loaders = append(r.Loaders, l)
		if !l.Agrees {
			disagree++
		}
	}
	r.count("container.findings", float64(len(r.Findings)), int64(pairs.A.Tensors))
	if len(r.Loaders) > 0 {
		r.count("loaders.disagree", float64(disagree), int64(len(r.Loaders)))
	}
	return nil
}
