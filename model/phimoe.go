package model

import "math"

// phimoe is Phi-3.5-MoE (Abdin et al. 2024, arXiv 2404.14219): LayerNorm, and experts chosen
// by SparseMixer-v2 (Liu et al. 2024, arXiv 2409.12136).
func phimoe(b *builder, _ string) {
	s := b.sizes()
	b.layerNorm(true, 1e-5, "rms_norm_eps")
	b.embed("embed_tokens")
	windows := b.windows(s.layers, b.window(0), always)
	rope := b.phimoeRope(s.headDim)
	act, bias := b.activation("silu", "hidden_act"), b.boolOr(false, "attention_bias")
	if n := b.intOr(2, "num_experts_per_tok"); n != 2 {
		b.fail("num_experts_per_tok %d is not implemented: expected 2", n)
	}
	jitter := float32(b.floatOr(0.01, "router_jitter_noise"))
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{AttnNorm: b.norm("input_layernorm", s.hidden), MLPNorm: b.norm("post_attention_layernorm", s.hidden)}
		l.Attn = b.qkvo(s, "self_attn.", projNames, bias, bias)
		l.Attn.Rope, l.Attn.Window = rope, windows[i]
		l.MoE = b.mixtralMoE(s, act)
		l.MoE.Scoring, l.MoE.Jitter, l.MoE.Normalize = SparseMixer, jitter, false
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	b.spec.Head = b.head("lm_head", false, b.boolOr(false, "lm_head_bias"))
}

// phimoeRope has factors of its own for cosines and sines of short and long rows, and, in
// transformers 5, the frequencies of short rows for all.
func (b *builder) phimoeRope(headDim int) *Rope {
	r := b.rope(headDim, "full_attention", ropeDefaults{theta: 1e6})
	switch r.Kind {
	case RopeDefault:
	case RopeLong:
		p := &config{tree: b.ropeParameters("full_attention", false)}
		r.Long = r.Short
		r.Attention, r.LongAttention = p.floatOr(0, "short_mscale"), p.floatOr(0, "long_mscale")
		if !(r.Attention > 0) || !(r.LongAttention > 0) {
			b.fail("rope type %q: short_mscale %v and long_mscale %v; expected positive numbers", r.Kind, r.Attention, r.LongAttention)
		}
	default:
		b.fail("rope type %q is not implemented for this architecture", r.Kind)
	}
	return r
}

// sparseMixer chooses the experts one after the other: of those whose scores are within a
// part of 2*jitter of the largest one left, that one, with its part of their softmax.
func (m *MoE) sparseMixer(scores []float32, do func(expert int, weight float32)) {
	left := make([]bool, len(scores))
	for i := range left {
		left[i] = true
	}
	for range m.TopK {
		best := -1
		for i, v := range scores {
			if left[i] && (best < 0 || v > scores[best]) {
				best = i
			}
		}
		top, sum := scores[best], 0.0
		for i, v := range scores {
			if left[i] && !((top-v)/max(top, float32(math.Abs(float64(v)))) > 2*m.Jitter) {
				sum += math.Exp(float64(v - top))
			}
		}
		do(best, float32(1/sum))
		left[best] = false
	}
}
