package model

// bert is BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa and ELECTRA's generator.
func bert(b *builder, modelType string) {
	s := b.sizes()
	b.layerNorm(true, 1e-12, "layer_norm_eps")
	b.off("is_decoder", "add_cross_attention")
	b.only("position_embedding_type", "absolute")
	b.embed("embeddings.word_embeddings")
	e := &b.spec.Embed
	if modelType == "electra" {
		if e.Dim = b.intOr(128, "embedding_size"); e.Dim != s.hidden {
			e.Project = b.linearPtr("embeddings_project", e.Dim, s.hidden, true)
		}
	}
	e.Positions = &Positions{Table: "@embeddings.position_embeddings.weight", Rows: b.intOr(512, "max_position_embeddings")}
	if modelType != "bert" && modelType != "electra" {
		e.Positions.Rule, e.Positions.Pad = AfterPad, b.intOr(1, "pad_token_id")
	}
	e.Types, e.TypeRows = "@embeddings.token_type_embeddings.weight", b.intOr(2, "type_vocab_size")
	e.Norm = b.norm("embeddings.LayerNorm", e.Dim)
	act := b.activation("gelu", "hidden_act")
	b.layers(s.layers, "encoder.layer", func(int) Layer {
		l := Layer{Wiring: PostNorm, AttnPost: b.norm("attention.output.LayerNorm", s.hidden), MLPPost: b.norm("output.LayerNorm", s.hidden)}
		l.Attn = b.qkvo(s, "attention.", [4]string{"self.query", "self.key", "self.value", "output.dense"}, true, true)
		l.MLP = b.plainMLP("intermediate.dense", "output.dense", s.hidden, s.inner, act, true)
		return l
	})
	b.maskedHead(s, modelType, act)
}

// maskedHead is a linear layer, an activation, a norm and the tied embedding with a bias.
func (b *builder) maskedHead(s sizes, modelType string, act Activation) {
	parts := map[string][4]string{
		"bert":    {"cls.predictions.decoder", "cls.predictions.bias", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"},
		"electra": {"generator_lm_head", "generator_lm_head.bias", "generator_predictions.dense", "generator_predictions.LayerNorm"},
	}
	p, ok := parts[modelType]
	if !ok {
		p = [4]string{"lm_head.decoder", "lm_head.bias", "lm_head.dense", "lm_head.layer_norm"}
	}
	h := b.head(p[0], true, false)
	b.at = ""
	dim := b.spec.Embed.Dim
	h.Out.Bias, h.Out.In = p[1], dim
	h.Transform, h.Act, h.Norm = b.linearPtr(p[2], s.hidden, dim, true), GELU, b.norm(p[3], dim)
	if modelType == "bert" {
		h.Act = act
	}
	b.at = "@"
	b.spec.Head = h
	b.spec.ignored = append(b.spec.ignored, "cls.predictions.decoder.bias", "lm_head.decoder.bias")
}

// distilbert is DistilBERT (Sanh et al. 2019, arXiv 1910.01108).
func distilbert(b *builder, _ string) {
	s := sizes{hidden: b.size("dim"), inner: b.size("hidden_dim"), layers: b.count("n_layers"), heads: b.heads("n_heads")}
	s.kvHeads, s.headDim = s.heads, max(1, s.hidden/s.heads)
	b.spec.Hidden, b.spec.Vocab = s.hidden, b.size("vocab_size")
	b.layerNorm(true, 1e-12)
	b.embed("embeddings.word_embeddings")
	b.spec.Embed.Positions = &Positions{Table: "@embeddings.position_embeddings.weight", Rows: b.intOr(512, "max_position_embeddings")}
	b.spec.Embed.Norm = b.norm("embeddings.LayerNorm", s.hidden)
	act := b.activation("gelu", "activation")
	b.layers(s.layers, "transformer.layer", func(int) Layer {
		l := Layer{Wiring: PostNorm, AttnPost: b.norm("sa_layer_norm", s.hidden), MLPPost: b.norm("output_layer_norm", s.hidden)}
		l.Attn = b.qkvo(s, "attention.", [4]string{"q_lin", "k_lin", "v_lin", "out_lin"}, true, true)
		l.MLP = b.plainMLP("ffn.lin1", "ffn.lin2", s.hidden, s.inner, act, true)
		return l
	})
	h := b.head("vocab_projector", true, true)
	b.at = ""
	h.Transform, h.Act, h.Norm = b.linearPtr("vocab_transform", s.hidden, s.hidden, true), act, b.norm("vocab_layer_norm", s.hidden)
	b.at = "@"
	b.spec.Head = h
}
