package model

// internlm2 is InternLM2 (Cai et al. 2024, arXiv 2403.17297), whose code comes with its
// checkpoints: a Llama by other names, with the query heads of a group, their key and their
// value side by side in one matrix.
func internlm2(b *builder, _ string) {
	s := b.sizes()
	b.rms(1e-6, "rms_norm_eps")
	b.embed("tok_embeddings")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000})
	switch rope.Kind {
	case RopeDefault, RopeLinear, RopeDynamic:
	default:
		b.fail("rope type %q is not implemented for this architecture", rope.Kind)
	}
	act, bias := b.activation("silu", "hidden_act"), b.boolOr(false, "bias")
	q, kv := s.heads*s.headDim, s.kvHeads*s.headDim
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{AttnNorm: b.norm("attention_norm", s.hidden), MLPNorm: b.norm("ffn_norm", s.hidden)}
		l.Attn = b.attention(s, []Linear{b.linear("attention.wqkv", s.hidden, q+2*kv, bias)}, b.linear("attention.wo", q, s.hidden, bias))
		l.Attn.groupColumns()
		l.Attn.Rope = rope
		l.MLP = &MLP{Gated: true, Act: act, Inner: s.inner, Gate: b.linearPtr("feed_forward.w1", s.hidden, s.inner, false),
			Up: b.linear("feed_forward.w3", s.hidden, s.inner, false), Down: b.linear("feed_forward.w2", s.inner, s.hidden, false)}
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("output", false, false)
}

// groupColumns says that the query heads of a group stand before its key, and that before its
// value.
func (a *Attention) groupColumns() {
	group := a.Heads / a.KVHeads
	for h := range a.Heads {
		a.QCols[h] = (h/group*(group+2) + h%group) * a.HeadDim
	}
	for g := range a.KVHeads {
		a.KCols[g] = (g*(group+2) + group) * a.HeadDim
		a.VCols[g] = a.KCols[g] + a.HeadDim
	}
}
