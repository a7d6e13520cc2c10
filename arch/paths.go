package arch

import (
	"slices"
	"strings"
)

// Paths are the module paths under which the weight of tensor i may be known to a program
// that loaded the checkpoint, its own first: adapters name modules as they were in memory.
func (m *Model) Paths(i int) []string {
	t := &m.Tensors[i]
	out := []string{t.Module}
	add := func(path string) {
		if path != "" && !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	for _, l := range []Loader{Transformers5, Transformers4} {
		add(m.path(l, t.Module))
	}
	for _, p := range slices.Clone(out) {
		if m.entry.prefix != "" { // trained on the bare model without a head
			add(strings.TrimPrefix(p, m.entry.prefix+"."))
		}
		// Mixture-of-experts blocks of several families have one name in transformers 5.
		add(strings.Replace(p, ".block_sparse_moe.", ".mlp.", 1))
	}
	return out
}

// inputEmbeddings are the last elements of the paths of token embeddings.
var inputEmbeddings = []string{"embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "tok_embeddings"}

// InputEmbedding is the index of the token embedding's weight, or -1.
func (m *Model) InputEmbedding() int {
	return slices.IndexFunc(m.Tensors, func(t Tensor) bool {
		last := t.Module[strings.LastIndexByte(t.Module, '.')+1:]
		return t.Role == RoleEmbedding && t.param == "weight" && slices.Contains(inputEmbeddings, last)
	})
}

// TiedHead is the module path of the output head that shares the token embedding and has
// no weight of its own in the file, or empty.
func (m *Model) TiedHead() string {
	if !m.Tied {
		return ""
	}
	for _, h := range m.tied() {
		if !slices.ContainsFunc(m.Tensors, func(t Tensor) bool { return t.Module == h.path && t.param == "weight" }) {
			return h.path
		}
	}
	return ""
}

// OutputHead is the index of the weight of the head that maps to the vocabulary, or -1.
func (m *Model) OutputHead() int {
	return slices.IndexFunc(m.Tensors, func(t Tensor) bool {
		last := t.Module[strings.LastIndexByte(t.Module, '.')+1:]
		return t.Role == RoleHead && t.param == "weight" && slices.Contains([]string{"lm_head", "embed_out", "decoder", "generator_lm_head", "vocab_projector"}, last)
	})
}

// Param is the last element of the tensor's name.
func (t *Tensor) Param() string { return t.param }
