package model

func phi3(b *builder, _ string) {
	s := b.sizes()
	b.rms(1e-5, "rms_norm_eps")
	b.embed("embed_tokens")
	windows := b.windows(s.layers, b.window(0), always)
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: 1})
	act := b.activation("silu", "hidden_act")
	q, kv := s.heads*s.headDim, s.kvHeads*s.headDim
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.attention(s, []Linear{b.linear("self_attn.qkv_proj", s.hidden, q+2*kv, false)}, b.linear("self_attn.o_proj", q, s.hidden, false))
		l.Attn.Rope, l.Attn.Window = rope, windows[i]
		l.MLP = b.fusedMLP("mlp.", s, act)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", false, false)
}

func (b *builder) fusedMLP(parent string, s sizes, act Activation) *MLP {
	return &MLP{Gated: true, Act: act, Inner: s.inner, Up: b.linear(parent+"gate_up_proj", s.hidden, 2*s.inner, false), Down: b.linear(parent+"down_proj", s.inner, s.hidden, false)}
}

func glm(b *builder, _ string) {
	if _, ok := b.get("head_dim"); !ok {
		b.tree = with(b.tree, "head_dim", float64(128))
	}
	s := b.sizes()
	b.rms(1.5625e-7, "rms_norm_eps")
	b.embed("embed_tokens")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: 0.5})
	rope.Interleaved = true
	act := b.activation("silu", "hidden_act")
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.qkvo(s, "self_attn.", projNames, b.boolOr(true, "attention_bias"), false)
		l.Attn.Rope = rope
		l.MLP = b.fusedMLP("mlp.", s, act)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", false, false)
}

func phi(b *builder, _ string) {
	s := b.sizes()
	b.layerNorm(true, 1e-5, "layer_norm_eps")
	b.embed("embed_tokens")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: 0.5})
	act := b.activation("gelu_new", "hidden_act")
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{Wiring: Parallel, AttnNorm: b.norm("input_layernorm", s.hidden)}
		l.Attn = b.qkvo(s, "self_attn.", [4]string{"q_proj", "k_proj", "v_proj", "dense"}, true, true)
		l.Attn.Rope = rope
		if b.boolOr(false, "qk_layernorm") {
			l.Attn.QNorm, l.Attn.KNorm = b.norm("self_attn.q_layernorm", s.headDim), b.norm("self_attn.k_layernorm", s.headDim)
		}
		l.MLP = b.plainMLP("mlp.fc1", "mlp.fc2", s.hidden, s.inner, act, true)
		return l
	})
	b.spec.Final = b.norm("final_layernorm", s.hidden)
	b.spec.Head = b.head("lm_head", false, true)
}

func starcoder2(b *builder, _ string) {
	s := b.sizes()
	b.layerNorm(true, 1e-5, "norm_epsilon")
	b.embed("embed_tokens")
	windows := b.windows(s.layers, b.window(0), always)
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000})
	act, bias := b.activation("gelu_pytorch_tanh", "hidden_act"), b.boolOr(true, "use_bias")
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.qkvo(s, "self_attn.", projNames, bias, bias)
		l.Attn.Rope, l.Attn.Window = rope, windows[i]
		l.MLP = b.plainMLP("mlp.c_fc", "mlp.c_proj", s.hidden, s.inner, act, bias)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
}

func stablelm(b *builder, _ string) {
	s := b.sizes()
	b.layerNorm(true, 1e-5, "layer_norm_eps")
	b.off("qk_layernorm")
	b.embed("embed_tokens")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: 0.25})
	act, parallel := b.activation("silu", "hidden_act"), b.boolOr(false, "use_parallel_residual")
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden)}
		if parallel {
			l.Wiring = Parallel
		} else {
			l.MLPNorm = b.norm("post_attention_layernorm", s.hidden)
		}
		l.Attn = b.qkvo(s, "self_attn.", projNames, b.boolOr(false, "use_qkv_bias"), false)
		l.Attn.Rope = rope
		l.MLP = b.gatedMLP("mlp.", s.hidden, s.inner, act, false)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", false, false)
}
