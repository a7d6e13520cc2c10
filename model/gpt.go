package model

import "math"

// gptSizes are sizes under the keys of GPT-2.
func (b *builder) gptSizes() sizes {
	s := sizes{hidden: b.size("n_embd", "hidden_size", "n_embed"), layers: b.count("n_layer", "num_layers", "num_hidden_layers"), heads: b.heads("n_head", "num_heads", "num_attention_heads")}
	s.inner = b.intOr(4*s.hidden, "n_inner", "intermediate_size", "ffn_hidden_size")
	s.kvHeads, s.headDim = s.heads, s.hidden/s.heads
	if s.hidden%s.heads != 0 {
		b.fail("%d heads of a hidden size of %d", s.heads, s.hidden)
		s.headDim = 2
	}
	b.spec.Hidden, b.spec.Vocab = s.hidden, b.size("vocab_size")
	return s
}

// gpt2 is GPT-2 (Radford et al. 2019), whose matrices are stored transposed, and GPTBigCode,
// whose are not and whose heads share one key head.
func gpt2(b *builder, modelType string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_epsilon")
	b.off("add_cross_attention", "scale_attn_by_inverse_layer_idx")
	b.embed("wte")
	b.spec.Embed.Positions = &Positions{Table: "@wpe.weight", Rows: b.intOr(1024, "n_positions")}
	def := "gelu_new"
	if modelType == "gpt_bigcode" {
		def = "gelu_pytorch_tanh"
	}
	act := b.activation(def, "activation_function")
	one := modelType == "gpt_bigcode" && b.boolOr(true, "multi_query")
	if one {
		s.kvHeads = 1
	}
	b.layers(s.layers, "h", func(int) Layer {
		l := Layer{AttnNorm: b.norm("ln_1", s.hidden), MLPNorm: b.norm("ln_2", s.hidden)}
		if modelType == "gpt_bigcode" && !one {
			l.Attn = b.fusedPerHead(s, "attn.c_attn", "attn.c_proj", true)
		} else {
			l.Attn = b.attention(s, []Linear{b.linear("attn.c_attn", s.hidden, s.hidden+2*s.kvHeads*s.headDim, true)}, b.linear("attn.c_proj", s.hidden, s.hidden, true))
		}
		if !b.boolOr(true, "scale_attn_weights") {
			l.Attn.Scale = 1
		}
		l.MLP = b.plainMLP("mlp.c_fc", "mlp.c_proj", s.hidden, s.inner, act, true)
		if modelType == "gpt2" {
			for _, w := range []*Linear{&l.Attn.Inputs[0], &l.Attn.Out, &l.MLP.Up, &l.MLP.Down} {
				w.Transposed = true
			}
		}
		return l
	})
	b.spec.Final = b.norm("ln_f", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
}

// gpt1 is the first GPT (Radford et al. 2018), with norms after the blocks.
func gpt1(b *builder, _ string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_epsilon")
	b.embed("tokens_embed")
	b.spec.Embed.Positions = &Positions{Table: "@positions_embed.weight", Rows: b.intOr(512, "n_positions")}
	act := b.activation("gelu", "afn")
	if act == GELU { // what is called gelu there
		act = GELUTanh
	}
	b.layers(s.layers, "h", func(int) Layer {
		l := Layer{Wiring: PostNorm, AttnPost: b.norm("ln_1", s.hidden), MLPPost: b.norm("ln_2", s.hidden)}
		l.Attn = b.attention(s, []Linear{b.linear("attn.c_attn", s.hidden, 3*s.hidden, true)}, b.linear("attn.c_proj", s.hidden, s.hidden, true))
		l.MLP = b.plainMLP("mlp.c_fc", "mlp.c_proj", s.hidden, 4*s.hidden, act, true)
		for _, w := range []*Linear{&l.Attn.Inputs[0], &l.Attn.Out, &l.MLP.Up, &l.MLP.Down} {
			w.Transposed = true
		}
		return l
	})
	b.spec.Head = b.head("lm_head", true, false)
}

// gptNeo does not scale its scores and has windows in the layers called local.
func gptNeo(b *builder, _ string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_epsilon")
	b.embed("wte")
	b.spec.Embed.Positions = &Positions{Table: "@wpe.weight", Rows: b.intOr(2048, "max_position_embeddings")}
	kinds := b.texts("attention_layers")
	if len(kinds) < s.layers {
		b.fail("attention_layers: %d types for %d layers", len(kinds), s.layers)
	}
	act, window := b.activation("gelu_new", "activation_function"), b.intOr(256, "window_size")
	b.layers(s.layers, "h", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("ln_1", s.hidden), MLPNorm: b.norm("ln_2", s.hidden)}
		l.Attn = b.qkvo(s, "attn.attention.", [4]string{"q_proj", "k_proj", "v_proj", "out_proj"}, false, true)
		l.Attn.Scale = 1
		switch kinds[i] {
		case "global":
		case "local":
			l.Attn.Window = window
		default:
			b.fail("attention_layers: type %q is not implemented", kinds[i])
		}
		l.MLP = b.plainMLP("mlp.c_fc", "mlp.c_proj", s.hidden, s.inner, act, true)
		return l
	})
	b.spec.Final = b.norm("ln_f", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
}

// gptJ is GPT-J, and CodeGen, whose projection has four parts of queries, values and keys.
func gptJ(b *builder, modelType string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_epsilon")
	b.embed("wte")
	dim := b.intOr(64, "rotary_dim")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: float64(dim) / float64(s.headDim)})
	rope.Interleaved = true
	if rope.Dim != dim || rope.Kind != RopeDefault {
		b.fail("rotary_dim %d of heads of %d, rope type %q", dim, s.headDim, rope.Kind)
	}
	act := b.activation("gelu_new", "activation_function")
	b.layers(s.layers, "h", func(int) Layer {
		l := Layer{Wiring: Parallel, AttnNorm: b.norm("ln_1", s.hidden)}
		if modelType == "codegen" {
			l.Attn = b.attention(s, []Linear{b.linear("attn.qkv_proj", s.hidden, 3*s.hidden, false)}, b.linear("attn.out_proj", s.hidden, s.hidden, false))
			b.codegenColumns(&l.Attn, s)
		} else {
			l.Attn = b.qkvo(s, "attn.", [4]string{"q_proj", "k_proj", "v_proj", "out_proj"}, false, false)
		}
		l.Attn.Rope = rope
		l.MLP = b.plainMLP("mlp.fc_in", "mlp.fc_out", s.hidden, s.inner, act, true)
		return l
	})
	b.spec.Final = b.norm("ln_f", s.hidden)
	b.spec.Head = b.head("lm_head", false, true)
}

func (b *builder) codegenColumns(a *Attention, s sizes) {
	const parts = 4
	if s.heads%parts != 0 {
		b.fail("%d heads in %d parts", s.heads, parts)
		return
	}
	each := s.hidden / parts
	for h := range s.heads {
		c := h/(s.heads/parts)*3*each + h%(s.heads/parts)*s.headDim
		a.QCols[h], a.VCols[h], a.KCols[h] = c, c+each, c+2*each
	}
}

// gptNeoX is GPT-NeoX (Black et al. 2022, arXiv 2204.06745), Pythia's architecture.
func gptNeoX(b *builder, _ string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_eps")
	b.embed("embed_in")
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000, partial: 0.25, thetaKey: "rotary_emb_base", partialKey: "rotary_pct"})
	act, bias := b.activation("gelu", "hidden_act"), b.boolOr(true, "attention_bias")
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		if b.boolOr(true, "use_parallel_residual") {
			l.Wiring = Parallel
		}
		l.Attn = b.fusedPerHead(s, "attention.query_key_value", "attention.dense", bias)
		l.Attn.Rope = rope
		l.MLP = b.plainMLP("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", s.hidden, s.inner, act, true)
		return l
	})
	b.spec.Final = b.norm("final_layer_norm", s.hidden)
	b.spec.Head = b.head("embed_out", false, false)
}

// bloom is BLOOM (2022, arXiv 2211.05100), with ALiBi.
func bloom(b *builder, _ string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_epsilon")
	b.off("apply_residual_connection_post_layernorm")
	b.embed("word_embeddings")
	b.spec.Embed.Norm = b.norm("word_embeddings_layernorm", s.hidden)
	b.layers(s.layers, "h", func(int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.fusedPerHead(s, "self_attention.query_key_value", "self_attention.dense", true)
		l.Attn.Slopes = alibi(s.heads)
		l.MLP = b.plainMLP("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", s.hidden, 4*s.hidden, GELUTanh, true)
		return l
	})
	b.spec.Final = b.norm("ln_f", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
}

// falcon is Falcon (2023, arXiv 2311.16867) in its three wirings. Its ALiBi is computed in
// bfloat16 by transformers and not implemented.
func falcon(b *builder, _ string) {
	s := b.gptSizes()
	b.layerNorm(true, 1e-5, "layer_norm_epsilon")
	b.off("alibi")
	b.embed("word_embeddings")
	grouped, parallel, bias := b.boolOr(false, "new_decoder_architecture"), b.boolOr(true, "parallel_attn"), b.boolOr(false, "bias")
	norms := b.intOr(map[bool]int{true: 2, false: 1}[grouped], "num_ln_in_parallel_attn")
	switch {
	case grouped:
		s.kvHeads = b.intOr(s.heads, "num_kv_heads")
	case b.boolOr(true, "multi_query"):
		s.kvHeads = 1
	}
	if s.kvHeads < 1 || s.heads%s.kvHeads != 0 || norms < 1 || norms > 2 || norms == 2 && !grouped || grouped && !parallel {
		b.fail("%d heads share %d, new_decoder_architecture %v, parallel_attn %v, num_ln_in_parallel_attn %d", s.heads, s.kvHeads, grouped, parallel, norms)
		return
	}
	rope := b.rope(s.headDim, "full_attention", ropeDefaults{theta: 10000})
	act := b.activation("gelu", "activation")
	b.layers(s.layers, "h", func(int) Layer {
		var l Layer
		switch {
		case parallel && norms == 2:
			l = Layer{Wiring: Parallel, AttnNorm: b.norm("ln_attn", s.hidden), MLPNorm: b.norm("ln_mlp", s.hidden)}
		case parallel:
			l = Layer{Wiring: Parallel, AttnNorm: b.norm("input_layernorm", s.hidden)}
		default:
			l = Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		}
		l.Attn = b.falconAttention(s, bias)
		l.Attn.Rope = rope
		l.MLP = b.plainMLP("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", s.hidden, s.inner, act, bias)
		return l
	})
	b.spec.Final = b.norm("ln_f", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
}

// falconAttention has the query heads of a group, then its key, then its value.
func (b *builder) falconAttention(s sizes, bias bool) Attention {
	out := b.linear("self_attention.dense", s.hidden, s.hidden, bias)
	a := b.attention(s, []Linear{b.linear("self_attention.query_key_value", s.hidden, s.hidden+2*s.kvHeads*s.headDim, bias)}, out)
	a.groupColumns()
	a.Scale = float32(1 / math.Sqrt(float64(s.headDim)))
	return a
}

// opt is OPT (Zhang et al. 2022, arXiv 2205.01068).
func opt(b *builder, _ string) {
	s := b.gptSizes()
	s.inner = b.size("ffn_dim")
	b.layerNorm(true, 1e-5)
	b.only("layer_norm_elementwise_affine", true)
	b.off("_remove_final_layer_norm")
	b.embed("embed_tokens")
	before, bias := b.boolOr(true, "do_layer_norm_before"), b.boolOr(true, "enable_bias")
	e := &b.spec.Embed
	e.Positions = &Positions{Table: "@embed_positions.weight", Rows: b.intOr(2048, "max_position_embeddings") + 2, Rule: ByToken}
	if e.Dim = b.intOr(s.hidden, "word_embed_proj_dim"); e.Dim != s.hidden {
		e.TokenProject, b.spec.Project = b.linearPtr("project_in", e.Dim, s.hidden, false), b.linearPtr("project_out", s.hidden, e.Dim, false)
	}
	act := b.activation("relu", "activation_function")
	b.layers(s.layers, "layers", func(int) Layer {
		l := Layer{AttnNorm: b.norm("self_attn_layer_norm", s.hidden), MLPNorm: b.norm("final_layer_norm", s.hidden)}
		if !before {
			l.Wiring, l.AttnPost, l.MLPPost, l.AttnNorm, l.MLPNorm = PostNorm, l.AttnNorm, l.MLPNorm, nil, nil
		}
		l.Attn = b.qkvo(s, "self_attn.", [4]string{"q_proj", "k_proj", "v_proj", "out_proj"}, bias, bias)
		l.MLP = b.plainMLP("fc1", "fc2", s.hidden, s.inner, act, bias)
		return l
	})
	if before {
		b.spec.Final = b.norm("final_layer_norm", s.hidden)
	}
	b.spec.Head = b.head("lm_head", true, false)
	b.spec.Head.Out.In = e.Dim
}
