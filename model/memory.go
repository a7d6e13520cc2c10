package model

import "github.com/nf4conv/nf4conv/kernels/gemm"

// Memory is what a pass holds, in bytes, but for small tensors and what the Go runtime
// needs for itself.
type Memory struct {
	Stream  int64 // the residual stream of all tokens
	Weights int64 // of the largest layer
	Scratch int64 // activations of a group, packed operands
}

// Memory is what a pass over the sequences takes, with [RunOptions.Group] tokens or 0.
func (m *Model) Memory(sequences []Sequence, group int) Memory {
	s := m.spec
	tokens, longest := 0, 0
	for _, q := range sequences {
		tokens += len(q.IDs)
		longest = max(longest, q.Start+len(q.IDs))
	}
	n := int64(0)
	for _, g := range groups(sequences, group) {
		n = max(n, int64(g.tokens))
	}
	l := m.loader(nil)
	l.expect(s.Layers)
	x := Memory{Stream: 4 * int64(tokens) * int64(s.Hidden), Weights: int64(l.need)}
	for i := range s.Layers {
		floats, widest := s.Layers[i].scratch(int64(s.Hidden), n)
		x.Scratch = max(x.Scratch, 4*floats+gemm.Scratch(m.options.Threads, int(n), int(widest)))
	}
	for _, r := range s.ropes() {
		x.Scratch += 4 * int64(longest) * int64(r.Dim)
	}
	return x
}

// HeadMemory is what [Slices] holds besides the final hidden states of so many tokens, for
// slices of n tokens of the vocabulary and some rows at a time.
func (m *Model) HeadMemory(tokens, n, rows int) int64 {
	h := m.spec.Head
	if h == nil {
		return 0
	}
	size := int64(4)
	if t, _, _, err := m.loader(nil).find(&h.Out); err == nil {
		size = int64(t.Format().Size())
	}
	x := int64(n) * int64(h.Out.In) * size
	products := gemm.Scratch(m.options.Threads, rows, h.Out.In)
	if h.Transform != nil {
		x += 4 * int64(tokens) * int64(h.Transform.Out)
		products = max(products, gemm.Scratch(m.options.Threads, tokens, h.Transform.In))
	}
	return x + products
}

// ropes are the different ones of the layers.
func (s *Spec) ropes() []*Rope {
	var out []*Rope
	seen := map[*Rope]bool{}
	for i := range s.Layers {
		if r := s.Layers[i].Attn.Rope; r != nil && !seen[r] {
			seen[r] = true
			out = append(out, r)
		}
	}
	return out
}

// scratch is what n tokens take in a layer: the elements of the buffers of forward, and the
// widest input of a product.
func (l *Layer) scratch(hidden, n int64) (floats, widest int64) {
	a := &l.Attn
	heads, kv := int64(a.Heads), int64(a.KVHeads)
	floats = n * hidden * 2 // y, x
	if l.Wiring == Parallel {
		floats += n * hidden
	}
	widest = hidden
	for i := range a.Inputs {
		floats += n * int64(a.Inputs[i].Out)
		widest = max(widest, int64(a.Inputs[i].In))
	}
	if a.Latent != nil {
		floats += n * (int64(a.Latent.KVUp.Out) + 2*heads*int64(a.HeadDim))
	}
	floats += n * (heads*int64(a.ValueDim) + kv*int64(a.HeadDim+a.ValueDim))
	widest = max(widest, int64(a.Out.In))
	block := func(m *MLP) {
		if m != nil {
			width := int64(m.Inner)
			if m.Gated {
				width *= 2
			}
			floats += min(n, mlpRows) * width
			widest = max(widest, int64(m.Down.In))
		}
	}
	block(l.MLP)
	if m := l.MoE; m != nil {
		floats += n * (int64(len(m.Experts)) + 2*hidden)
		block(&m.Experts[0])
	}
	return floats, widest
}
