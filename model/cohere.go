package model

// cohere is Command R: LayerNorm without bias, one norm for both blocks of a layer, rotary
// pairs side by side; in the second version layers without a window have no positions.
func cohere(b *builder, modelType string) {
	s := b.sizes()
	b.layerNorm(false, 1e-5, "layer_norm_eps")
	b.embed("embed_tokens")
	theta, window := 500000.0, 0
	if modelType == "cohere2" {
		theta, window = 10000, b.window(4096)
	}
	windows := b.windows(s.layers, window, func(i int) bool {
		return modelType == "cohere2" && (i+1)%b.intOr(4, "sliding_window_pattern", "_sliding_window_pattern") != 0
	})
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: theta})
	rope.Interleaved = true
	act, bias := b.activation("silu", "hidden_act"), b.boolOr(false, "attention_bias")
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{Wiring: Parallel, AttnNorm: b.norm("input_layernorm", s.hidden)}
		l.Attn = b.qkvo(s, "self_attn.", projNames, bias, bias)
		l.Attn.Window = windows[i]
		if modelType == "cohere" || windows[i] > 0 {
			l.Attn.Rope = rope
		}
		if modelType == "cohere" && b.boolOr(false, "use_qk_norm") {
			l.Attn.QNorm, l.Attn.KNorm = b.norm("self_attn.q_norm", s.headDim), b.norm("self_attn.k_norm", s.headDim)
			l.Attn.QNorm.Groups, l.Attn.KNorm.Groups = s.heads, s.kvHeads
		}
		l.MLP = b.gatedMLP("mlp.", s.hidden, s.inner, act, false)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
	b.spec.Head.Scale = b.positiveOr(0.0625, "logit_scale")
}

// nemotron has LayerNorm with 1+w; persimmon its projections fused per head.
func nemotron(b *builder, modelType string) {
	s := b.sizes()
	b.layerNorm(true, 1e-5, "norm_eps", "layer_norm_eps")
	b.norms.PlusOne = modelType == "nemotron"
	b.embed("embed_tokens")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: 0.5})
	act := b.activation("relu2", "hidden_act")
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		if modelType == "persimmon" {
			l.Attn = b.fusedPerHead(s, "self_attn.query_key_value", "self_attn.dense", true)
			if b.boolOr(true, "qk_layernorm") {
				l.Attn.QNorm, l.Attn.KNorm = b.norm("self_attn.q_layernorm", s.headDim), b.norm("self_attn.k_layernorm", s.headDim)
			}
			l.MLP = b.plainMLP("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", s.hidden, s.inner, act, true)
		} else {
			bias := b.boolOr(false, "attention_bias")
			l.Attn = b.qkvo(s, "self_attn.", projNames, bias, bias)
			l.MLP = b.plainMLP("mlp.up_proj", "mlp.down_proj", s.hidden, s.inner, act, b.boolOr(false, "mlp_bias"))
		}
		l.Attn.Rope = rope
		return l
	})
	name := "norm"
	if modelType == "persimmon" {
		name = "final_layernorm"
	}
	b.spec.Final = b.norm(name, s.hidden)
	b.spec.Head = b.head("lm_head", false, false)
}
