package model

// gptOSS has a learned sink in every head's softmax and alternating windows.
func gptOSS(b *builder, _ string) {
	if _, ok := b.get("head_dim"); !ok {
		b.tree = with(b.tree, "head_dim", float64(64))
	}
	s := b.sizes()
	b.rms(1e-5, "rms_norm_eps")
	b.embed("embed_tokens")
	windows := b.windows(s.layers, b.window(128), func(i int) bool { return i%2 == 0 })
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 150000})
	n, top := b.experts("num_local_experts")
	b.only("hidden_act", "silu")
	clamp := &GLUClamp{Alpha: b.positiveOr(1.702, "swiglu_alpha"), Limit: b.positiveOr(7, "swiglu_limit")}
	bias := b.boolOr(true, "attention_bias")
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.qkvo(s, "self_attn.", projNames, bias, bias)
		l.Attn.Rope, l.Attn.Window, l.Attn.Sinks = rope, windows[i], b.at+"self_attn.sinks"
		l.MoE = &MoE{Router: b.linear("mlp.router", s.hidden, n, true), Scoring: SoftmaxTop, TopK: top, Scale: 1}
		for e := range n {
			stacked := func(name string, in, out int) Linear {
				p := b.at + "mlp.experts." + name
				return Linear{Weight: p, Bias: p + "_bias", In: in, Out: out, Transposed: true, Stack: n, Index: e}
			}
			l.MoE.Experts = append(l.MoE.Experts, MLP{Gated: true, Clamp: clamp, Inner: s.inner, Up: stacked("gate_up_proj", s.hidden, 2*s.inner), Down: stacked("down_proj", s.inner, s.hidden)})
		}
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", false, false)
}
