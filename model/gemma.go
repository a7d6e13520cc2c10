package model

import (
	"math"
)

// gemma is Gemma (2024, arXiv 2403.08295) and its successors: norms with 1+w, embeddings
// times the root of their width.
func gemma(b *builder, modelType string) {
	if _, ok := b.get("head_dim"); !ok {
		b.tree = with(b.tree, "head_dim", float64(256))
	}
	s := b.sizes()
	b.rms(1e-6, "rms_norm_eps")
	b.norms.PlusOne = true
	b.off("use_bidirectional_attention")
	b.embed("embed_tokens")
	b.spec.Embed.Scale = float32(math.Sqrt(float64(s.hidden)))
	first := modelType == "gemma"
	act := b.activation("gelu_pytorch_tanh", "hidden_activation", "hidden_act")
	if first && act == GELU { // transformers: models/gemma/configuration_gemma.py
		act = GELUTanh
	}
	window, pattern := 0, 2
	if !first {
		window = b.window(4096)
	}
	if modelType == "gemma3_text" {
		pattern = b.intOr(6, "sliding_window_pattern", "_sliding_window_pattern")
		b.only("attn_logit_softcapping")
	}
	windows := b.windows(s.layers, window, func(i int) bool { return !first && (i+1)%pattern != 0 })
	full := b.rope(s.headDim, "full_attention", ropeDefaults{theta: map[bool]float64{true: 1000000, false: 10000}[modelType == "gemma3_text"]})
	sliding := full
	if modelType == "gemma3_text" {
		if _, ok := b.get("rope_parameters"); ok {
			sliding = b.rope(s.headDim, "sliding_attention", ropeDefaults{theta: 10000})
		} else {
			sliding = b.rope(s.headDim, "sliding_attention", ropeDefaults{theta: 10000, thetaKey: "rope_local_base_freq", noScaling: true})
		}
	}
	bias := b.boolOr(false, "attention_bias")
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		if !first {
			l.AttnPost, l.MLPNorm, l.MLPPost = l.MLPNorm, b.norm("pre_feedforward_layernorm", s.hidden), b.norm("post_feedforward_layernorm", s.hidden)
		}
		l.Attn = b.qkvo(s, "self_attn.", projNames, bias, bias)
		l.Attn.Rope, l.Attn.Window = full, windows[i]
		if windows[i] > 0 {
			l.Attn.Rope = sliding
		}
		if !first {
			l.Attn.Scale = float32(1 / math.Sqrt(float64(b.positiveOr(256, "query_pre_attn_scalar"))))
		}
		if modelType == "gemma3_text" {
			l.Attn.QNorm, l.Attn.KNorm = b.norm("self_attn.q_norm", s.headDim), b.norm("self_attn.k_norm", s.headDim)
		}
		l.MLP = b.gatedMLP("mlp.", s.hidden, s.inner, act, false)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", true, false)
	if modelType == "gemma2" {
		for i := range b.spec.Layers {
			b.spec.Layers[i].Attn.Softcap = b.softcap("attn_logit_softcapping", 50)
		}
		b.spec.Head.Softcap = b.softcap("final_logit_softcapping", 30)
	} else if !first {
		b.spec.Head.Softcap = b.softcap("final_logit_softcapping", 0)
	}
}

// softcap is def when the key is absent, and none when it is null.
func (b *builder) softcap(key string, def float32) float32 {
	if _, ok := b.get(key); ok {
		return b.positiveOr(1, key)
	}
	if b.said(key) {
		return 0
	}
	return def
}
