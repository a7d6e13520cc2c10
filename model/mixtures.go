package model

import (
	"fmt"
	"slices"
	"strings"
)

func (b *builder) llamaMLP(l *Layer, s sizes, o llamaOptions, modelType string, i int) {
	if modelType == "apertus" {
		l.MLP = b.apertusMLP(s)
		return
	}
	act := b.activation(o.act, "hidden_act")
	bias := b.boolOr(false, "mlp_bias")
	if strings.HasPrefix(modelType, "ernie4_5") {
		bias = b.boolOr(false, "use_bias")
	}
	switch {
	case modelType == "mixtral":
		l.MoE = b.mixtralMoE(s, act)
	case modelType == "granitemoe" || modelType == "granitemoeshared":
		l.MoE = b.graniteMoE(s, act)
	case modelType == "ernie4_5_moe" && b.ernieSparse(s, i):
		l.MoE = b.ernieMoE(s, act, bias)
	case (modelType == "dots1" || modelType == "glm4_moe") && i >= b.intOr(map[bool]int{true: 1, false: 0}[modelType == "glm4_moe"], "first_k_dense_replace"):
		l.MoE = b.deepseekMoE(s, act, modelType)
	case modelType == "olmoe" || modelType == "flex_olmo" || (modelType == "qwen2_moe" || modelType == "qwen3_moe") && b.isSparse(i):
		l.MoE = b.qwenMoE(s, act, modelType)
	case o.plain:
		l.MLP = b.plainMLP("mlp.up_proj", "mlp.down_proj", s.hidden, s.inner, act, bias)
	default:
		l.MLP = b.gatedMLP("mlp.", s.hidden, s.inner, act, bias)
	}
}

// isSparse tells whether a layer of Qwen's has experts.
func (b *builder) isSparse(i int) bool {
	step := b.intOr(1, "decoder_sparse_step")
	return !slices.Contains(b.ints("mlp_only_layers"), i) && step > 0 && (i+1)%step == 0
}

func (b *builder) experts(keys ...string) (n, top int) {
	n, top = b.count(keys...), b.count("num_experts_per_tok", "moe_k")
	if n*len(b.spec.Layers) > 1<<18 {
		b.fail("%s: %d in each of many layers", keys[0], n)
		n = 1
	}
	if top > n {
		b.fail("num_experts_per_tok %d of %d experts", top, n)
		top = 1
	}
	return n, top
}

func (b *builder) mixtralMoE(s sizes, act Activation) *MoE {
	n, top := b.experts("num_local_experts", "num_experts")
	m := &MoE{Router: b.linear("block_sparse_moe.gate", s.hidden, n, false), TopK: top, Normalize: true, Scale: 1}
	for e := range n {
		p := fmt.Sprintf("block_sparse_moe.experts.%d.", e)
		m.Experts = append(m.Experts, MLP{Gated: true, Act: act, Inner: s.inner, Gate: b.linearPtr(p+"w1", s.hidden, s.inner, false),
			Up: b.linear(p+"w3", s.hidden, s.inner, false), Down: b.linear(p+"w2", s.inner, s.hidden, false)})
	}
	return m
}

func (b *builder) qwenMoE(s sizes, act Activation, modelType string) *MoE {
	n, top := b.experts("num_experts", "num_local_experts")
	inner := s.inner
	if modelType != "olmoe" && modelType != "flex_olmo" {
		inner = b.size("moe_intermediate_size")
	}
	m := &MoE{Router: b.linear("mlp.gate", s.hidden, n, false), TopK: top, Normalize: b.boolOr(false, "norm_topk_prob"), Scale: 1}
	for e := range n {
		m.Experts = append(m.Experts, *b.gatedMLP(fmt.Sprintf("mlp.experts.%d.", e), s.hidden, inner, act, false))
	}
	if modelType == "qwen2_moe" {
		m.Shared = b.gatedMLP("mlp.shared_expert.", s.hidden, b.size("shared_expert_intermediate_size"), act, false)
		m.SharedGate = b.linearPtr("mlp.shared_expert_gate", s.hidden, 1, false)
	}
	return m
}

// graniteMoE has the experts' matrices in one tensor [experts, out, in], gate and up in one.
func (b *builder) graniteMoE(s sizes, act Activation) *MoE {
	n, top := b.experts("num_local_experts")
	m := &MoE{Router: b.linear("block_sparse_moe.router.layer", s.hidden, n, false), Scoring: SoftmaxTop, TopK: top, Scale: 1}
	for e := range n {
		x := MLP{Gated: true, Act: act, Inner: s.inner, Up: b.linear("block_sparse_moe.input_linear", s.hidden, 2*s.inner, false),
			Down: b.linear("block_sparse_moe.output_linear", s.inner, s.hidden, false)}
		x.Up.Stack, x.Up.Index, x.Down.Stack, x.Down.Index = n, e, n, e
		m.Experts = append(m.Experts, x)
	}
	if inner := b.intOr(0, "shared_intermediate_size"); inner > 0 {
		m.Shared = &MLP{Gated: true, Act: act, Inner: inner, Up: b.linear("shared_mlp.input_linear", s.hidden, 2*inner, false),
			Down: b.linear("shared_mlp.output_linear", inner, s.hidden, false)}
	}
	return m
}

// deepseekMoE is also that of GLM-4.5 and dots.llm1, which score experts as the third
// DeepSeek does.
func (b *builder) deepseekMoE(s sizes, act Activation, modelType string) *MoE {
	n, top := b.experts("n_routed_experts", "num_local_experts")
	inner := b.size("moe_intermediate_size")
	m := &MoE{Router: b.linear("mlp.gate", s.hidden, n, false), TopK: top, Scale: float32(b.floatOr(1, "routed_scaling_factor"))}
	if modelType != "deepseek_v2" {
		m.Scoring, m.Correction, m.GroupBest = Sigmoid, b.at+"mlp.gate.e_score_correction_bias", 2
		groups, best := 1, 1
		if modelType == "deepseek_v3" {
			groups, best = 8, 4
		}
		m.Groups, m.TopGroups, m.Normalize = b.intOr(groups, "n_group"), b.intOr(best, "topk_group"), b.boolOr(modelType != "dots1", "norm_topk_prob")
	} else {
		b.off("norm_topk_prob")
		switch method := b.textOr("greedy", "topk_method"); method {
		case "greedy":
		case "group_limited_greedy":
			m.Groups, m.TopGroups, m.GroupBest = b.size("n_group"), b.size("topk_group"), 1
		default:
			b.fail("topk_method %q is not implemented", method)
		}
	}
	if m.Groups < 0 || m.Groups > 0 && (n%m.Groups != 0 || n/m.Groups < m.GroupBest || m.TopGroups*(n/m.Groups) < top) {
		b.fail("%d experts in %d groups, of which %d are eligible for %d places", n, m.Groups, m.TopGroups, top)
		m.Groups = 0
	}
	for e := range n {
		m.Experts = append(m.Experts, *b.gatedMLP(fmt.Sprintf("mlp.experts.%d.", e), s.hidden, inner, act, false))
	}
	if shared := b.intOr(1, "n_shared_experts"); shared > 0 {
		m.Shared = b.gatedMLP("mlp.shared_experts.", s.hidden, shared*inner, act, false)
	}
	return m
}

// ernieSparse tells whether a layer of ERNIE 4.5 has experts.
func (b *builder) ernieSparse(s sizes, i int) bool {
	last := b.intOr(-1, "moe_layer_end_index")
	if last == -1 {
		last = s.layers - 1
	}
	every := b.intOr(1, "moe_layer_interval")
	return every > 0 && (i+1)%every == 0 && i >= b.intOr(1, "moe_layer_start_index") && i <= last
}

func (b *builder) ernieMoE(s sizes, act Activation, bias bool) *MoE {
	n, top := b.experts("moe_num_experts", "num_experts", "num_local_experts")
	inner := b.size("moe_intermediate_size")
	m := &MoE{Router: b.linear("mlp.gate", s.hidden, n, false), TopK: top, Normalize: true, Scale: 1, Correction: b.at + "mlp.moe_statics.e_score_correction_bias"}
	for e := range n {
		m.Experts = append(m.Experts, *b.gatedMLP(fmt.Sprintf("mlp.experts.%d.", e), s.hidden, inner, act, bias))
	}
	if shared := b.intOr(2, "moe_num_shared_experts"); shared > 0 {
		m.Shared = b.gatedMLP("mlp.shared_experts.", s.hidden, shared*inner, act, bias)
	}
	return m
}

// apertusMLP has an activation with parameters of its own.
func (b *builder) apertusMLP(s sizes) *MLP {
	b.only("hidden_act", "xielu")
	m := b.plainMLP("mlp.up_proj", "mlp.down_proj", s.hidden, s.inner, Identity, false)
	p := b.at + "mlp.act_fn."
	m.XIELU = &XIELU{AlphaP: p + "alpha_p", AlphaN: p + "alpha_n", Beta: p + "beta", Eps: p + "eps"}
	return m
}
