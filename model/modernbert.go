package model

// modernbert is ModernBERT (Warner et al. 2024, arXiv 2412.13663): a bidirectional model with
// rotary positions, GeGLU, windows in most layers, and norms before the blocks.
func modernbert(b *builder, _ string) {
	s := b.sizes()
	if s.kvHeads, s.headDim = s.heads, s.hidden/s.heads; s.hidden%s.heads != 0 {
		b.fail("%d heads of a hidden size of %d", s.heads, s.hidden)
		return
	}
	b.norms = Norm{Layer: true, Eps: b.floatOr(1e-5, "norm_eps")}
	if b.boolOr(false, "norm_bias") {
		b.norms.Bias = "bias"
	}
	b.embed("embeddings.tok_embeddings")
	b.spec.Embed.Norm = b.norm("embeddings.norm", s.hidden)
	every := b.intOr(3, "global_attn_every_n_layers")
	windows := b.windows(s.layers, b.intOr(128, "local_attention")/2+1, func(i int) bool { return every > 0 && i%every != 0 })
	full := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 160000, thetaKey: "global_rope_theta"})
	local := b.rope(s.headDim, "sliding_attention", ropeDefaults{theta: 10000, thetaKey: "local_rope_theta"})
	act := b.activation("gelu", "hidden_activation")
	attnBias, mlpBias := b.boolOr(false, "attention_bias"), b.boolOr(false, "mlp_bias")
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{MLPNorm: b.norm("mlp_norm", s.hidden)}
		if i > 0 {
			l.AttnNorm = b.norm("attn_norm", s.hidden)
		}
		l.Attn = b.attention(s, []Linear{b.linear("attn.Wqkv", s.hidden, 3*s.hidden, attnBias)}, b.linear("attn.Wo", s.hidden, s.hidden, attnBias))
		l.Attn.Rope, l.Attn.Window = full, windows[i]
		if windows[i] > 0 {
			l.Attn.Rope = local
		}
		l.MLP = &MLP{Gated: true, Act: act, Inner: s.inner, Up: b.linear("mlp.Wi", s.hidden, 2*s.inner, mlpBias), Down: b.linear("mlp.Wo", s.inner, s.hidden, mlpBias)}
		return l
	})
	b.spec.Final = b.norm("final_norm", s.hidden)
	h := b.head("decoder", true, b.boolOr(true, "decoder_bias"))
	b.at = ""
	h.Transform, h.Act = b.linearPtr("head.dense", s.hidden, s.hidden, b.boolOr(false, "classifier_bias")), b.activation("gelu", "classifier_activation")
	h.Norm = b.norm("head.norm", s.hidden)
	b.at = "@"
	b.spec.Head = h
}
