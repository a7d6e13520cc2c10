package model

import (
	"fmt"
	"math"
)

// deepseek is DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437).
func deepseek(b *builder, modelType string) {
	third := modelType == "deepseek_v3"
	nope, ropeDim, value := b.count("qk_nope_head_dim"), b.count("qk_rope_head_dim"), b.count("v_head_dim")
	b.tree = with(b.tree, "head_dim", float64(nope+ropeDim))
	b.tree = with(b.tree, "num_key_value_heads", b.tree["num_attention_heads"])
	s := b.sizes()
	b.rms(1e-6, "rms_norm_eps")
	b.embed("embed_tokens")
	rope := b.rope(ropeDim, "full_attention", ropeDefaults{theta: 10000})
	rope.First, rope.Interleaved = nope, !third || b.boolOr(true, "rope_interleave")
	scale := 1 / math.Sqrt(float64(nope+ropeDim))
	if m := b.ropeOption("mscale_all_dim"); m != 0 && rope.Kind != RopeDefault {
		scale *= yarnScale(rope.Factor, m) * yarnScale(rope.Factor, m)
	}
	act, bias := b.activation("silu", "hidden_act"), b.boolOr(false, "attention_bias")
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.latentAttention(s, nope, ropeDim, value, bias)
		l.Attn.Rope, l.Attn.Scale = rope, float32(scale)
		if i < b.intOr(map[bool]int{true: 3, false: 0}[third], "first_k_dense_replace") {
			l.MLP = b.gatedMLP("mlp.", s.hidden, s.inner, act, b.boolOr(false, "mlp_bias"))
		} else {
			l.MoE = b.deepseekMoE(s, act, modelType)
		}
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", false, false)
	if n := b.intOr(0, "num_nextn_predict_layers", "num_mtp_layers"); third && n > 0 { // layers that predict tokens further on
		for i := range n {
			b.spec.ignored = append(b.spec.ignored, fmt.Sprintf("@layers.%d.", s.layers+i))
		}
	}
}

// ropeOption is a number among the rope parameters, or 0.
func (b *builder) ropeOption(key string) float64 {
	p := &config{tree: b.ropeParameters("full_attention", false)}
	return p.floatOr(0, key)
}

func (b *builder) latentAttention(s sizes, nope, ropeDim, value int, bias bool) Attention {
	kvRank, qRank, dim := b.size("kv_lora_rank"), b.intOr(0, "q_lora_rank"), nope+ropeDim
	a := Attention{Heads: s.heads, KVHeads: s.heads, HeadDim: dim, ValueDim: value, Causal: true}
	m := &Latent{QRank: qRank, KVRank: kvRank, NopeDim: nope, RopeDim: ropeDim}
	// The norms of the compressed vectors have an epsilon of their own.
	eps := b.norms.Eps
	b.norms.Eps = 1e-6
	if qRank > 0 {
		a.Inputs = append(a.Inputs, b.linear("self_attn.q_a_proj", s.hidden, qRank, bias))
		m.QNorm, m.QUp = b.norm("self_attn.q_a_layernorm", qRank), b.linearPtr("self_attn.q_b_proj", qRank, s.heads*dim, false)
	} else {
		a.Inputs = append(a.Inputs, b.linear("self_attn.q_proj", s.hidden, s.heads*dim, false))
		a.QCols = columns(0, dim, s.heads)
	}
	a.Inputs = append(a.Inputs, b.linear("self_attn.kv_a_proj_with_mqa", s.hidden, kvRank+ropeDim, bias))
	m.KVNorm, m.KVUp = b.norm("self_attn.kv_a_layernorm", kvRank), b.linear("self_attn.kv_b_proj", kvRank, s.heads*(nope+value), false)
	b.norms.Eps = eps
	a.Latent, a.Out = m, b.linear("self_attn.o_proj", s.heads*value, s.hidden, bias)
	return a
}
