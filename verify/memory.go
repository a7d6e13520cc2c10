package verify

import (
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/model"
)

// plan is how the forward passes are cut to a size.
type plan struct {
	group  int   // tokens that go through a layer together
	rows   int   // whose logits are in memory, of a slice of the vocabulary
	memory int64 // bytes, at most
}

// ownMemory is what the program takes besides: its code, two opened checkpoints.
const ownMemory = 64 << 20

// planPasses takes groups and slices as large as makes them fast, or as fit.
func planPasses(base, candidate *model.Model, o Options) (plan, error) {
	p := plan{group: 1920, rows: 960}
	for {
		p.memory = p.need(base, candidate, o.Text)
		if o.Memory <= 0 || p.memory <= o.Memory {
			return p, nil
		}
		if p.rows <= 48 {
			return p, fault.WithHint(
				fault.Usagef("--memory %s is too little for the forward passes over %d tokens: they need at least %s", units.IBytes(o.Memory), o.Text.Tokens, units.IBytes(p.memory)),
				"the residual streams of all tokens are in memory: use fewer sequences (--sequences N), or leave the forward passes out with --stage container,weights")
		}
		p.group, p.rows = p.group/2, p.rows/2
	}
}

// need counts the residual streams of both models, the weights and scratch of a layer that
// they use in turn, then the heads beside these, as nothing says when that is given back.
func (p plan) need(base, candidate *model.Model, text *IDs) int64 {
	a, b := base.Memory(text.Sequences, p.group), candidate.Memory(text.Sequences, p.group)
	n := int64(ownMemory) + a.Stream + b.Stream + max(a.Weights, b.Weights) + max(a.Scratch, b.Scratch)
	for _, m := range []*model.Model{base, candidate} {
		rows, width := min(p.rows, text.Tokens), min(sliceTokens, m.Spec().Vocab)
		n += m.HeadMemory(text.Tokens, width, rows) + 4*int64(width)*int64(rows)
	}
	return n + 400*int64(text.Tokens) // figures of tokens and rows
}
