package model

import (
	"slices"
	"strings"
)

// llamaOptions is how the relatives of Llama (Touvron et al. 2023) differ.
type llamaOptions struct {
	sections         bool // see ropeDefaults
	eps              float64
	theta            float64
	attnBias         bool // default of attention_bias
	qkNorm           bool // per head
	qkNormAll        bool // over all heads
	qkNames          [2]string
	window           int // default of sliding_window
	interleaved      bool
	postOnly         bool // norms after the blocks and none before
	tied             bool
	headDim          int
	partial          float64 // part of a head that is rotated, where the architecture can
	plain            bool    // no gate
	act              string
	fourthNoRope     bool
	normAfterRope    bool
	ropeSlidingPlain bool // layers with a window have the default rope, whatever rope_scaling says
	hybridRope       bool // no rope in full layers where there are windows
}

func llamaOptionsOf(modelType string) llamaOptions {
	o := llamaOptions{eps: 1e-6, theta: 10000, qkNames: [2]string{"q_norm", "k_norm"}, act: "silu"}
	switch modelType {
	case "mistral", "ministral":
		o.window = 4096
	case "qwen3", "qwen3_moe":
		o.qkNorm = true
		if modelType == "qwen3" {
			o.headDim = 128
		}
	case "arcee":
		o.eps, o.plain, o.act = 1e-5, true, "relu2"
	case "smollm3":
		o.theta, o.tied, o.fourthNoRope = 2000000, true, true
	case "helium":
		o.eps, o.theta, o.interleaved, o.headDim = 1e-8, 100000, true, 128
	case "olmo2":
		o.eps, o.qkNormAll, o.postOnly = 1e-5, true, true
	case "olmo3":
		o.eps, o.theta, o.qkNormAll, o.postOnly, o.window, o.ropeSlidingPlain = 1e-5, 500000, true, true, 4096, true
	case "olmoe":
		o.eps, o.qkNormAll = 1e-5, true
	case "flex_olmo":
		o.theta, o.qkNormAll, o.postOnly = 500000, true, true
	case "dots1":
		o.qkNorm, o.window = true, 4096
	case "glm4_moe":
		o.eps, o.partial = 1e-5, 0.5
	case "ernie4_5_moe":
		o.eps, o.theta, o.interleaved, o.tied = 1e-5, 500000, true, true
	case "apertus":
		o.eps, o.theta, o.qkNorm, o.plain, o.act = 1e-5, 12000000, true, true, "xielu"
	case "exaone4":
		o.eps, o.qkNorm, o.postOnly, o.window, o.hybridRope = 1e-5, true, true, 4096, true
	case "ernie4_5":
		o.eps, o.theta, o.interleaved, o.tied, o.headDim = 1e-5, 500000, true, true, 128
	case "hunyuan_v1_dense":
		o.eps, o.qkNorm, o.normAfterRope, o.qkNames = 1e-5, true, true, [2]string{"query_layernorm", "key_layernorm"}
	case "seed_oss":
		o.attnBias, o.headDim = true, 128
	case "mixtral":
		o.eps, o.theta = 1e-5, 1000000
	}
	return o
}

func llamaLike(b *builder, modelType string) {
	b.llamaFamily(llamaOptionsOf(modelType), modelType)
}

// qwenVL is the text model of Qwen2-VL (Wang et al. 2024, arXiv 2409.12191) and its
// successors, for text alone.
func qwenVL(b *builder, modelType string) {
	base := "qwen2"
	if strings.HasPrefix(modelType, "qwen3") {
		base = "qwen3"
	}
	o := llamaOptionsOf(base)
	o.sections = true
	if o.theta = 1000000; base == "qwen2" {
		o.eps = 1e-5
	} else {
		o.theta = 500000
	}
	b.llamaFamily(o, base)
}

func (b *builder) llamaFamily(o llamaOptions, modelType string) {
	if _, ok := b.get("head_dim"); !ok && o.headDim != 0 {
		b.tree = with(b.tree, "head_dim", float64(o.headDim))
	}
	s := b.sizes()
	b.rms(o.eps, "rms_norm_eps")
	if modelType == "olmo" {
		b.norms = Norm{Layer: true, Eps: 1e-5}
	}
	b.embed("embed_tokens")
	if strings.HasPrefix(modelType, "granite") {
		b.spec.Embed.Scale = b.positiveOr(1, "embedding_multiplier")
	}
	windows := b.windows(s.layers, b.llamaWindow(o, modelType), b.llamaSliding(modelType))
	full := b.rope(s.headDim, "full_attention", ropeDefaults{theta: o.theta, partial: o.partial, sections: o.sections})
	full.Interleaved = o.interleaved
	sliding := full
	if o.ropeSlidingPlain {
		sliding = b.slidingRope(s, o)
	}
	noRope := b.noRope(o, s.layers)
	b.layers(s.layers, "layers", func(i int) Layer {
		l := Layer{Residual: 1}
		if strings.HasPrefix(modelType, "granite") {
			l.Residual = b.positiveOr(1, "residual_multiplier")
		}
		if o.postOnly {
			l.AttnPost, l.MLPPost = b.norm("post_attention_layernorm", s.hidden), b.norm("post_feedforward_layernorm", s.hidden)
		} else if modelType == "apertus" {
			l.AttnNorm, l.MLPNorm = b.norm("attention_layernorm", s.hidden), b.norm("feedforward_layernorm", s.hidden)
		} else {
			l.AttnNorm, l.MLPNorm = b.norm("input_layernorm", s.hidden), b.norm("post_attention_layernorm", s.hidden)
		}
		l.Attn = b.llamaAttention(s, o, modelType)
		l.Attn.Window = windows[i]
		l.Attn.Rope = full
		if windows[i] > 0 {
			l.Attn.Rope = sliding
		}
		if noRope[i] || o.hybridRope && windows[i] == 0 && slices.Max(windows) > 0 {
			l.Attn.Rope = nil
		}
		b.llamaMLP(&l, s, o, modelType, i)
		return l
	})
	b.spec.Final = b.norm("norm", s.hidden)
	if modelType == "olmo" {
		b.withoutWeights()
	}
	b.spec.Head = b.head("lm_head", o.tied, false)
	if strings.HasPrefix(modelType, "granite") {
		b.spec.Head.Scale = 1 / b.positiveOr(1, "logits_scaling")
	}
}

func with(tree map[string]any, key string, v any) map[string]any {
	out := map[string]any{key: v}
	for k, v := range tree {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// withoutWeights makes the norms of OLMo, which have no parameters.
func (b *builder) withoutWeights() {
	b.spec.Final.Weight = ""
	for i := range b.spec.Layers {
		b.spec.Layers[i].AttnNorm.Weight, b.spec.Layers[i].MLPNorm.Weight = "", ""
	}
}

func (b *builder) llamaWindow(o llamaOptions, modelType string) int {
	switch modelType {
	case "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3":
		if !b.boolOr(false, "use_sliding_window") {
			return 0
		}
		return b.window(4096)
	case "mistral", "ministral", "mixtral", "olmo3", "exaone4", "dots1":
		return b.window(o.window)
	}
	return 0
}

func (b *builder) llamaSliding(modelType string) func(int) bool {
	first := b.intOr(map[bool]int{true: 62, false: 28}[modelType == "dots1"], "max_window_layers")
	switch modelType {
	case "mistral", "mixtral", "qwen3_moe", "ministral":
		return always
	case "qwen2", "qwen3", "qwen2_moe", "dots1":
		return func(i int) bool { return i >= first }
	case "olmo3":
		return func(i int) bool { return (i+1)%4 != 0 }
	case "exaone4":
		if _, ok := b.get("layer_types"); !ok && b.window(4096) > 0 {
			b.fail("layer_types is missing")
		}
	}
	return never
}

// slidingRope is the rope of layers with a window where it is another one.
func (b *builder) slidingRope(s sizes, o llamaOptions) *Rope {
	if _, ok := b.get("rope_parameters"); ok {
		return b.rope(s.headDim, "sliding_attention", ropeDefaults{theta: o.theta})
	}
	return b.rope(s.headDim, "sliding_attention", ropeDefaults{theta: o.theta, noScaling: true})
}

// noRope tells which layers have no positions: no_rope_layers of SmolLM3 has 1 where there
// is a rope.
func (b *builder) noRope(o llamaOptions, layers int) []bool {
	out := make([]bool, layers)
	if !o.fourthNoRope {
		return out
	}
	list, every := b.ints("no_rope_layers"), b.intOr(4, "no_rope_layer_interval")
	for i := range out {
		out[i] = every > 0 && (i+1)%every == 0
		if list != nil {
			if len(list) < layers {
				b.fail("no_rope_layers: %d values for %d layers", len(list), layers)
				return out
			}
			out[i] = list[i] == 0
		}
	}
	return out
}

func (b *builder) llamaAttention(s sizes, o llamaOptions, modelType string) Attention {
	bias := b.boolOr(o.attnBias, "attention_bias")
	outBias := bias
	switch modelType {
	case "qwen2":
		bias, outBias = true, false
	case "qwen2_moe":
		bias, outBias = b.boolOr(true, "qkv_bias"), false
	case "mistral", "mixtral", "ministral", "exaone4":
		bias, outBias = false, false
	case "seed_oss":
		outBias = b.boolOr(false, "attention_out_bias")
	case "ernie4_5", "ernie4_5_moe":
		bias = b.boolOr(false, "use_bias")
		outBias = bias
	case "helium", "glm4_moe":
		outBias = false
	}
	a := b.qkvo(s, "self_attn.", projNames, bias, outBias)
	switch {
	case o.qkNormAll:
		a.QNorm, a.KNorm = b.norm("self_attn.q_norm", s.heads*s.headDim), b.norm("self_attn.k_norm", s.kvHeads*s.headDim)
	case o.qkNorm || modelType == "glm4_moe" && b.boolOr(false, "use_qk_norm"):
		a.QNorm, a.KNorm = b.norm("self_attn."+o.qkNames[0], s.headDim), b.norm("self_attn."+o.qkNames[1], s.headDim)
	}
	a.NormAfterRope = o.normAfterRope
	if strings.HasPrefix(modelType, "granite") {
		a.Scale = b.positiveOr(1, "attention_multiplier")
	}
	if modelType == "olmo" || modelType == "olmoe" {
		if _, ok := b.get("clip_qkv"); ok {
			a.Clip = b.positiveOr(1, "clip_qkv")
		}
	}
	return a
}
