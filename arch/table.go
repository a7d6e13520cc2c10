package arch

import (
	"slices"
	"strings"
)

// entry is one family of architectures. Patterns are endings of module paths.
type entry struct {
	types       []string // model_type values
	prefix      string   // attribute under which head classes keep the base model
	linear      []string
	conv1ds     []string // Conv1D layers
	heads       []string // modules that map to vocabulary or labels
	routers     []string
	towers      []string // first elements of tower paths
	projectors  []string
	fp32        []string // _keep_in_fp32_modules
	renames     []rename // file names -> module paths of transformers 5
	renames4    []rename // and of transformers 4, where it differs
	tiedDefault bool     // tie_word_embeddings when config.json does not say
	unfuse      bool     // loaders of 4-bit checkpoints want fused experts as one linear layer per expert
	subclass    bool     // its layers are subclasses of nn.Linear that 4-bit layers may replace
	subclasses  []string // subclasses of nn.Linear that they may not
	sized       bool     // q_proj ... o_proj and gate_proj ... down_proj have the sizes of config.json
	stacks      bool     // more than one stack of layers: encoder and decoder
	note        string   // what people should know before they convert one
	generic     bool     // every matrix is taken for a linear layer
}

// rename replaces a prefix of a module path.
type rename struct{ from, to string }

func join(lists ...[]string) []string { return slices.Concat(lists...) }

func under(parent string, leaves ...string) []string {
	var out []string
	for _, l := range leaves {
		out = append(out, parent+"."+l)
	}
	return out
}

// Parts that many families share.
var (
	qkvo        = under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
	gatedMLP    = under("mlp", "gate_proj", "up_proj", "down_proj")
	latentQKV   = under("self_attn", "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
	sharedMLP   = join(under("shared_expert", "gate_proj", "up_proj", "down_proj"), under("shared_experts", "gate_proj", "up_proj", "down_proj"), under("shared_mlp", "input_linear", "output_linear"))
	bertLayer   = join(under("attention.self", "query", "key", "value"), under("crossattention.self", "query", "key", "value"), []string{"attention.output.dense", "crossattention.output.dense", "intermediate.dense", "output.dense", "pooler.dense"})
	t5Layer     = join(under("SelfAttention", "q", "k", "v", "o"), under("EncDecAttention", "q", "k", "v", "o"), under("DenseReluDense", "wi", "wi_0", "wi_1", "wo"))
	bartLayer   = join(under("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"), under("encoder_attn", "q_proj", "k_proj", "v_proj", "out_proj"), []string{"fc1", "fc2"})
	gptLayer    = []string{"attn.c_attn", "attn.c_proj", "attn.q_attn", "crossattention.c_attn", "crossattention.c_proj", "crossattention.q_attn", "mlp.c_fc", "mlp.c_proj"}
	neoxLayer   = []string{"attention.query_key_value", "attention.dense", "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}
	causalHeads = []string{"lm_head", "score"}
	// Heads of sequence, token and question-answering classes.
	taskHeads  = []string{"score", "classifier", "classifier.dense", "classifier.out_proj", "qa_outputs", "qa_classifier", "pre_classifier", "classification_head", "classification_head.dense", "classification_head.out_proj", "seq_relationship", "summary", "v_head", "regression_head"}
	towerParts = []string{"vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder", "image_tower", "audio_tower", "audio_encoder", "vit", "vision_embed_tokens", "embed_vision", "embed_audio", "vision_backbone"}
	projParts  = []string{"multi_modal_projector", "connector", "merger", "modality_projection", "mm_projector", "mlp1", "aligner", "image_newline"}
	vlmRenames = []rename{
		{"language_model.model.", "model.language_model."}, {"language_model.lm_head", "lm_head"}, {"vision_tower.", "model.vision_tower."},
		{"multi_modal_projector.", "model.multi_modal_projector."}, {"visual.", "model.visual."}, {"vision_model.", "model.vision_model."},
	}
)

// table lists what is known. Order matters to nobody.
var table = []entry{
	{types: []string{"llama", "mistral", "qwen2", "qwen3", "granite", "olmo", "olmo2", "olmo3", "smollm3", "helium", "ministral", "seed_oss"}, prefix: "model", linear: join(qkvo, gatedMLP), heads: causalHeads, sized: true},
	{types: []string{"stablelm", "arcee", "exaone4", "hunyuan_v1_dense", "ernie4_5", "glm", "internlm2", "nemotron", "apertus", "persimmon"},
		prefix: "model", linear: join(qkvo, gatedMLP, []string{"mlp.gate_up_proj", "self_attn.query_key_value", "self_attn.dense"}), heads: causalHeads},
	{types: []string{"gemma", "gemma2", "gemma3_text", "cohere", "cohere2"}, prefix: "model", linear: join(qkvo, gatedMLP), heads: causalHeads, tiedDefault: true, sized: true},
	{types: []string{"phi3", "phi4"}, prefix: "model", linear: []string{"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}, heads: causalHeads},
	{types: []string{"phi"}, prefix: "model", linear: join(under("self_attn", "q_proj", "k_proj", "v_proj", "dense"), []string{"mlp.fc1", "mlp.fc2"}), heads: causalHeads},
	{types: []string{"starcoder2"}, prefix: "model", linear: join(qkvo, []string{"mlp.c_fc", "mlp.c_proj"}), heads: causalHeads, tiedDefault: true},
	{types: []string{"gpt2"}, prefix: "transformer", conv1ds: gptLayer, heads: causalHeads, tiedDefault: true},
	{types: []string{"openai-gpt", "imagegpt"}, prefix: "transformer", conv1ds: gptLayer, heads: join(causalHeads, []string{"multiple_choice_head.summary"}), tiedDefault: true},
	{types: []string{"decision_transformer"}, conv1ds: gptLayer, heads: []string{"embed_return", "embed_state", "embed_action", "predict_state", "predict_action.0", "predict_return"}},
	{types: []string{"gpt_neo"}, prefix: "transformer", linear: join(under("attn.attention", "q_proj", "k_proj", "v_proj", "out_proj"), []string{"mlp.c_fc", "mlp.c_proj"}), heads: causalHeads, tiedDefault: true},
	{types: []string{"gptj", "codegen"}, prefix: "transformer", linear: join(under("attn", "q_proj", "k_proj", "v_proj", "out_proj", "qkv_proj"), []string{"mlp.fc_in", "mlp.fc_out"}), heads: causalHeads},
	{types: []string{"gpt_bigcode"}, prefix: "transformer", linear: []string{"attn.c_attn", "attn.q_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}, heads: causalHeads, tiedDefault: true},
	{types: []string{"gpt_neox"}, prefix: "gpt_neox", linear: neoxLayer, heads: []string{"embed_out", "lm_head", "score"}, renames: []rename{{"embed_out", "lm_head"}}},
	{types: []string{"opt"}, prefix: "model", linear: join(bartLayer, []string{"project_in", "project_out"}), heads: causalHeads, tiedDefault: true},
	{types: []string{"falcon"}, prefix: "transformer", linear: neoxLayer, heads: causalHeads, tiedDefault: true, subclass: true},
	{types: []string{"bloom"}, prefix: "transformer", linear: neoxLayer, heads: causalHeads, tiedDefault: true},
	{types: []string{"mixtral", "phimoe"}, prefix: "model", linear: qkvo, heads: causalHeads, routers: []string{"block_sparse_moe.gate", "mlp.gate"}},
	{types: []string{"qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared", "ernie4_5_moe"}, prefix: "model", linear: join(qkvo, gatedMLP, sharedMLP), heads: causalHeads,
		routers: []string{"mlp.gate", "mlp.shared_expert_gate", "block_sparse_moe.router", "block_sparse_moe.router.layer"}},
	{types: []string{"deepseek_v2", "deepseek_v3", "glm4_moe", "dots1"}, prefix: "model", linear: join(latentQKV, qkvo, gatedMLP, sharedMLP), heads: causalHeads, routers: []string{"mlp.gate"}},
	{types: []string{"gpt_oss"}, prefix: "model", linear: qkvo, heads: causalHeads, routers: []string{"mlp.router"}, fp32: []string{"post_attention_layernorm", "input_layernorm", "norm"}},
	{types: []string{"llama4_text"}, prefix: "model", linear: join(qkvo, under("feed_forward", "gate_proj", "up_proj", "down_proj"), sharedMLP), heads: causalHeads, routers: []string{"feed_forward.router"}, unfuse: true},
	{types: []string{"t5", "mt5", "umt5"}, linear: t5Layer, heads: join(causalHeads, taskHeads), fp32: []string{"wo"}, tiedDefault: true, prefix: "transformer", stacks: true},
	{types: []string{"bart", "mbart", "m2m_100", "marian", "pegasus"}, prefix: "model", linear: bartLayer, heads: join([]string{"lm_head"}, taskHeads), tiedDefault: true, stacks: true},
	{types: []string{"bert"}, prefix: "bert", linear: join(bertLayer, []string{"cls.predictions.transform.dense"}), heads: join([]string{"cls.predictions.decoder", "cls.seq_relationship"}, taskHeads), tiedDefault: true},
	{types: []string{"roberta", "xlm-roberta", "camembert"}, prefix: "roberta", linear: bertLayer, heads: join([]string{"lm_head", "lm_head.dense", "lm_head.decoder"}, taskHeads), tiedDefault: true},
	{types: []string{"electra"}, prefix: "electra", linear: join(bertLayer, []string{"embeddings_project"}), heads: join([]string{"generator_predictions.dense", "generator_lm_head", "discriminator_predictions.dense", "discriminator_predictions.dense_prediction"}, taskHeads), tiedDefault: true},
	{types: []string{"distilbert"}, prefix: "distilbert", linear: join(under("attention", "q_lin", "k_lin", "v_lin", "out_lin"), []string{"ffn.lin1", "ffn.lin2"}), heads: join([]string{"vocab_transform", "vocab_projector"}, taskHeads), tiedDefault: true},
	{types: []string{"deberta", "deberta-v2"}, prefix: "deberta", linear: join(under("attention.self", "in_proj", "pos_proj", "pos_q_proj", "query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj"), bertLayer),
		heads: join([]string{"cls.predictions.decoder", "cls.predictions.transform.dense", "lm_predictions.lm_head", "lm_predictions.lm_head.dense"}, taskHeads), tiedDefault: true,
		note: "transformers (5.23 and 4.57) computes DeBERTa's first version in float32 only: a 16-bit one, quantized or not, stops at the first attention layer"},
	{types: []string{"llava", "llava_next", "gemma3", "paligemma", "mistral3", "idefics3", "smolvlm", "internvl", "llava_onevision", "vipllava", "aya_vision", "got_ocr2"},
		prefix: "model", linear: join(qkvo, gatedMLP), heads: []string{"lm_head", "language_model.lm_head"}, towers: towerParts, projectors: projParts, renames: vlmRenames, renames4: vlmRenames},
	{types: []string{"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}, prefix: "model", linear: join(qkvo, gatedMLP), heads: causalHeads, towers: towerParts, projectors: projParts,
		renames:  []rename{{"visual.", "model.visual."}, {"model.layers.", "model.language_model.layers."}, {"model.embed_tokens", "model.language_model.embed_tokens"}, {"model.norm", "model.language_model.norm"}},
		renames4: []rename{{"visual.", "model.visual."}, {"model.layers.", "model.language_model.layers."}, {"model.embed_tokens", "model.language_model.embed_tokens"}, {"model.norm", "model.language_model.norm"}}},
	{types: []string{"mllama"}, prefix: "model", linear: join(qkvo, gatedMLP, under("cross_attn", "q_proj", "k_proj", "v_proj", "o_proj")), heads: []string{"lm_head", "language_model.lm_head"}, towers: towerParts, projectors: projParts, renames: vlmRenames, renames4: vlmRenames},
	{types: []string{"llama4"}, prefix: "model", linear: join(qkvo, under("feed_forward", "gate_proj", "up_proj", "down_proj"), sharedMLP), heads: []string{"lm_head", "language_model.lm_head"}, routers: []string{"feed_forward.router"}, towers: towerParts, projectors: projParts, unfuse: true},
}

// direct are linear layers whose weight the model uses without calling them: the head of
// MobileBERT and RemBERT, the time step of Mamba, the position bias of LayoutLM.
var direct = []string{"cls.predictions.dense", "dt_proj", "rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"}

// unknown is the generic rule.
var unknown = entry{generic: true, heads: join([]string{"lm_head", "embed_out", "output", "language_model.lm_head"}, taskHeads), routers: []string{"gate", "router", "shared_expert_gate"}, towers: towerParts, projectors: projParts}

// partly lists types of which only a peculiarity is known; the generic rule does the rest.
var partly = []entry{
	{types: []string{"clvp", "clvp_decoder"}, conv1ds: []string{"mlp.c_fc", "mlp.c_proj"}},
	{types: []string{"deepseek_v4"}, subclasses: []string{"self_attn.o_a_proj"}},
	{types: []string{"esm"}, subclasses: []string{"trunk."}},
}

func (e entry) withGeneric() *entry {
	g := unknown
	g.types, g.conv1ds, g.subclasses = e.types, e.conv1ds, e.subclasses
	return &g
}

var byType = func() map[string]*entry {
	m := map[string]*entry{}
	for i := range table {
		for _, t := range table[i].types {
			m[t] = &table[i]
		}
	}
	for _, e := range partly {
		for _, t := range e.types {
			m[t] = e.withGeneric()
		}
	}
	return m
}()

func lookup(modelType string) (*entry, bool) {
	if e, ok := byType[modelType]; ok {
		return e, !e.generic
	}
	return &unknown, false
}

// Types are the model types of the table, sorted.
func Types() []string {
	var out []string
	for t, e := range byType {
		if !e.generic {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out
}

// in tells whether one of the first elements of path, after an outer "model", is listed.
func (e *entry) in(path string, names []string) bool {
	return slices.ContainsFunc(strings.Split(path, "."), func(s string) bool { return slices.Contains(names, s) })
}

func (e *entry) isRouter(path, last string) bool {
	return matchSuffix(path, e.routers) || last == "router" || last == "shared_expert_gate" ||
		strings.HasSuffix(path, "moe.gate") || strings.Contains(path, ".router.")
}

// isSubclass tells whether a module is of a subclass of nn.Linear with a forward of its
// own. A pattern that ends in a dot is what a path starts with.
func (e *entry) isSubclass(path string) bool {
	return matchSuffix(path, e.subclasses) || slices.ContainsFunc(e.subclasses, func(p string) bool { return strings.HasSuffix(p, ".") && strings.HasPrefix(path, p) })
}

func (e *entry) conv1d(path string) bool { return matchSuffix(path, e.conv1ds) }
