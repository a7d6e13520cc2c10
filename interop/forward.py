#!/usr/bin/env python3
"""Hold nf4conv's forward passes against transformers: fresh random models of many architectures and options.

  forward.py --forward PROGRAM --out DIR [--seed N] [--only TEXT] [--keep]

PROGRAM is internal/forward, built. Each model is saved, computed by transformers in float32 with eager attention on a padded
batch, and by PROGRAM; every hidden state and the logits must differ by at most 2e-4 of the largest value (1e-5 is usual: only
the order of sums differs). Models that must be refused are named with the words that the refusal must have. Prints a line per
model. Exit 1 when anything failed. Another --seed makes other models; of one seed in fifty or so a mixture of experts has two
experts whose scores are equal to the last bits, and which of them is taken is not defined.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402

from safetensors.torch import load_file, save_file  # noqa: E402

import make_models  # noqa: E402

tf.logging.set_verbosity_error()
tf.logging.disable_progress_bar()
LIMIT = 2e-4
B, H, F = torch.bfloat16, torch.float16, torch.float32
decoder, encoder = make_models.decoder, make_models.encoder


def lm(name, dtype=B, **kw):
    return name + "ForCausalLM", name + "Config", decoder(**kw), dtype


def rope(kind, **kw):
    return dict(rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **kw})


def gpt(**kw):
    return dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, **make_models.COMMON, **kw)


def variants():
    """name -> (class, config class, config, dtype): options that make_models.py does not have"""
    long = dict(original_max_position_embeddings=16, short_factor=[1 + i / 30 for i in range(16)], long_factor=[1 + i / 3 for i in range(16)])
    moe = dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=48)
    layers = ["sliding_attention", "full_attention"]
    mla = dict(make_models.MLA, num_hidden_layers=3)
    v = {
        "llama-bias": lm("Llama", attention_bias=True, mlp_bias=True, head_dim=48, num_key_value_heads=1, hidden_size=96),
        "llama-odd": lm("Llama", hidden_size=72, intermediate_size=111, num_attention_heads=6, num_key_value_heads=3, head_dim=10, num_hidden_layers=3, dtype=F),
        "llama-mha": lm("Llama", num_key_value_heads=4, hidden_act="gelu", dtype=H),
        "llama-linear": lm("Llama", **rope("linear", factor=4.0)),
        "llama-dynamic": lm("Llama", **rope("dynamic", factor=4.0), max_position_embeddings=16),
        "llama-dynamic-short": lm("Llama", **rope("dynamic", factor=4.0), max_position_embeddings=64),
        "llama-yarn": lm("Llama", **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
        "llama-yarn-mscale": lm("Llama", **rope("yarn", factor=8.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.0, beta_fast=16.0, beta_slow=2.0, truncate=False)),
        "llama-yarn-factor": lm("Llama", **rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.3)),
        "llama-longrope": lm("Llama", **rope("longrope", **long)),
        "llama-longrope-short": lm("Llama", **rope("longrope", **dict(long, original_max_position_embeddings=64, factor=8.0))),
        "llama-llama3": lm("Llama", **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
        "llama-proportional": lm("Llama", **rope("proportional", partial_rotary_factor=0.5, factor=2.0)),
        "llama-proportional-odd": lm("Llama", head_dim=24, **rope("proportional", partial_rotary_factor=0.3)),
        "phi3-partial": lm("Phi3", pad_token_id=2, original_max_position_embeddings=16, **rope("longrope", partial_rotary_factor=0.75, original_max_position_embeddings=16, short_factor=long["short_factor"][:12], long_factor=long["long_factor"][:12])),
        "mistral-window": lm("Mistral", sliding_window=7),
        "mistral-full": lm("Mistral", sliding_window=None, head_dim=16),
        "ministral": lm("Ministral", sliding_window=9, layer_types=layers, head_dim=32),
        "qwen2-window": lm("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "qwen3-window": lm("Qwen3", head_dim=64, use_sliding_window=True, sliding_window=8, max_window_layers=1, attention_bias=True),
        "gemma": lm("Gemma", head_dim=64, num_key_value_heads=1),
        "gemma2-options": lm("Gemma2", head_dim=32, sliding_window=8, query_pre_attn_scalar=48, attn_logit_softcapping=3.0, final_logit_softcapping=5.0, num_hidden_layers=3),
        "gemma2-nocap": lm("Gemma2", head_dim=32, sliding_window=8, attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True),
        "gemma3_text-linear": ("Gemma3ForCausalLM", "Gemma3TextConfig", decoder(head_dim=32, sliding_window=8, layer_types=layers, query_pre_attn_scalar=48, final_logit_softcapping=5.0, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}), B),
        "olmo3-yarn": lm("Olmo3", sliding_window=8, layer_types=layers, rope_parameters={
            "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}}),
        "phi3-window": lm("Phi3", sliding_window=10, pad_token_id=2, num_key_value_heads=4),
        "phi-qknorm": lm("Phi", qk_layernorm=True, num_key_value_heads=2, **rope("default", partial_rotary_factor=0.25)),
        "starcoder2-window": lm("Starcoder2", sliding_window=8, use_bias=False),
        "cohere-qknorm": lm("Cohere", use_qk_norm=True, logit_scale=0.3),
        "cohere2-window": lm("Cohere2", sliding_window=8, layer_types=layers),
        "olmo2-gqa": lm("Olmo2", num_key_value_heads=2),
        "olmo-clip": lm("Olmo", clip_qkv=0.8),
        "olmo3": lm("Olmo3", sliding_window=8, layer_types=layers),
        "granite-scaled": lm("Granite", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.1, attention_bias=True, mlp_bias=True),
        "stablelm-parallel": lm("StableLm", use_parallel_residual=True, use_qkv_bias=True),
        "seed_oss": lm("SeedOss", head_dim=32, attention_out_bias=True),
        "arcee": lm("Arcee"),
        "smollm3": lm("SmolLM3", no_rope_layers=[1, 0], pad_token_id=2),
        "helium": lm("Helium", head_dim=32),
        "exaone4": lm("Exaone4", sliding_window=8, layer_types=layers),
        "exaone4-full": lm("Exaone4", sliding_window=None, layer_types=["full_attention"] * 2),
        "ernie4_5": lm("Ernie4_5", head_dim=32, use_bias=True),
        "hunyuan_v1_dense": lm("HunYuanDenseV1", head_dim=32),
        "glm": lm("Glm", head_dim=32, pad_token_id=2),
        "nemotron": lm("Nemotron", head_dim=32),
        "persimmon": lm("Persimmon"),
        "persimmon-plain": lm("Persimmon", qk_layernorm=False),
        "mixtral-window": lm("Mixtral", num_local_experts=4, num_experts_per_tok=3, sliding_window=8, dtype=F),
        "qwen2_moe-norm": lm("Qwen2Moe", shared_expert_intermediate_size=96, norm_topk_prob=True, mlp_only_layers=[0], **moe),
        "qwen3_moe-step": lm("Qwen3Moe", norm_topk_prob=True, decoder_sparse_step=2, head_dim=32, num_hidden_layers=4, **moe),
        "olmoe-clip": lm("Olmoe", num_experts=5, num_experts_per_tok=2, clip_qkv=0.9, norm_topk_prob=True),
        "granitemoe-scaled": lm("GraniteMoe", num_local_experts=5, num_experts_per_tok=2, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.1),
        "granitemoeshared": lm("GraniteMoeShared", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=96),
        "deepseek_v2-groups": lm("DeepseekV2", **dict(mla, topk_method="group_limited_greedy", n_routed_experts=8, n_group=4, topk_group=2, q_lora_rank=None, routed_scaling_factor=1.5)),
        "deepseek_v3-groups": lm("DeepseekV3", **dict(mla, n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, v_head_dim=48, **rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0))),
        "flex_olmo": lm("FlexOlmo", num_experts=5, num_experts_per_tok=2, pad_token_id=2),
        "dots1": lm("Dots1", n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=48, n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.5, norm_topk_prob=True, head_dim=32, sliding_window=8, layer_types=layers),
        "glm4_moe": lm("Glm4Moe", n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=48, n_group=2, topk_group=1, use_qk_norm=True, attention_bias=True, head_dim=32, routed_scaling_factor=1.5),
        "ernie4_5_moe": lm("Ernie4_5_Moe", moe_num_experts=6, moe_k=2, moe_intermediate_size=48, moe_num_shared_experts=1, num_hidden_layers=3, use_bias=False),
        "apertus": lm("Apertus", head_dim=32),
        "gpt_oss-window": lm("GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=32, sliding_window=8),
        "gpt_neox-sequential": lm("GPTNeoX", use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new", intermediate_size=256, **rope("default", partial_rotary_factor=0.5)),
        "bloom-heads": ("BloomForCausalLM", "BloomConfig", dict(hidden_size=96, n_layer=2, n_head=6, **make_models.COMMON), F),
        "codegen": ("CodeGenForCausalLM", "CodeGenConfig", gpt(rotary_dim=16, tie_word_embeddings=False), H),
        "gpt_bigcode-mha": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", gpt(multi_query=False), B),
        "gpt_neo-window": ("GPTNeoForCausalLM", "GPTNeoConfig", dict(hidden_size=128, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4, max_position_embeddings=128, window_size=6, **make_models.COMMON), F),
        "gpt2-inner": ("GPT2LMHeadModel", "GPT2Config", gpt(n_inner=200, activation_function="relu", scale_attn_weights=False), F),
        "opt-postnorm": ("OPTForCausalLM", "OPTConfig", dict(hidden_size=128, ffn_dim=192, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64, do_layer_norm_before=False, **make_models.COMMON), F),
        "opt-nobias": ("OPTForCausalLM", "OPTConfig", dict(hidden_size=128, ffn_dim=192, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, enable_bias=False, activation_function="gelu", **make_models.COMMON), F),
    }
    for name, kw in [("falcon-new", dict(new_decoder_architecture=True, num_kv_heads=2, bias=True)), ("falcon-new-one-norm", dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
                     ("falcon-mha", dict(multi_query=False)), ("falcon-sequential", dict(parallel_attn=False, multi_query=False))]:
        v[name] = ("FalconForCausalLM", "FalconConfig", dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, **kw, **make_models.COMMON), B)
    v["internlm2"] = lm("Llama", attention_bias=True, head_dim=32, **rope("dynamic", factor=2.0), max_position_embeddings=24)
    v["internlm2-plain"] = lm("Llama", num_attention_heads=6, num_key_value_heads=3, hidden_size=96, head_dim=16, dtype=F)
    v["phimoe-options"] = lm("Phimoe", num_local_experts=6, router_jitter_noise=0.3, attention_bias=True, lm_head_bias=True, sliding_window=9, dtype=F)
    v["phimoe-long"] = lm("Phimoe", num_local_experts=4, original_max_position_embeddings=16, dtype=F, rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_mscale": 1.1, "long_mscale": 1.3,
        "factor": 8.0, "original_max_position_embeddings": 16, "short_factor": long["short_factor"], "long_factor": long["long_factor"]})
    modern = make_models.table()["modernbert"][2]
    v["modernbert-window"] = ("ModernBertForMaskedLM", "ModernBertConfig", dict(modern, num_hidden_layers=4, local_attention=10, attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, decoder_bias=False, hidden_activation="silu"), F)
    v["modernbert-seq"] = ("ModernBertForSequenceClassification", "ModernBertConfig", dict(modern, num_labels=4), F)
    v["modernbert-tokens"] = ("ModernBertForTokenClassification", "ModernBertConfig", dict(modern, num_labels=5), F)
    for cls, config, kw in [("Mistral", "Mistral", decoder(num_labels=5)), ("Gemma2", "Gemma2", decoder(head_dim=32, num_labels=2)), ("Phi3", "Phi3", decoder(pad_token_id=2, num_labels=3)),
                            ("Mixtral", "Mixtral", decoder(num_local_experts=4, num_labels=3)), ("GPTNeoX", "GPTNeoX", decoder(num_labels=3)), ("OPT", "OPT", dict(hidden_size=128, ffn_dim=192, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64, num_labels=3, **make_models.COMMON))]:
        v[config.lower() + "-seq"] = (cls + "ForSequenceClassification", config + "Config", kw, F)
    v["gpt2-tokens"] = ("GPT2ForTokenClassification", "GPT2Config", gpt(num_labels=3), F)
    v["llama-tokens"] = ("LlamaForTokenClassification", "LlamaConfig", decoder(num_labels=3), F)
    for cls, kw in [("Bert", {}), ("Roberta", dict(pad_token_id=1, max_position_embeddings=130)), ("Electra", dict(embedding_size=64))]:
        v[cls.lower() + "-tokens"] = (cls + "ForTokenClassification", cls + "Config", encoder(num_labels=3, **kw), F)
        v[cls.lower() + "-qa"] = (cls + "ForQuestionAnswering", cls + "Config", encoder(**kw), F)
    distil = make_models.table()["distilbert"][2]
    for task in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
        v["distilbert-" + task] = ("DistilBertFor" + task, "DistilBertConfig", dict(distil, pad_token_id=0), F)
    v["openai-gpt-relu"] = ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", dict(make_models.table()["openai-gpt"][2], afn="relu"), F)
    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vision = make_models.table()["qwen2_vl"][2]["vision_config"]
    v["qwen2_5_vl"] = ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", dict(text_config=dict(model_type="qwen2_5_vl_text", **decoder(rope_parameters=sections)), image_token_id=5, video_token_id=6, vision_start_token_id=7,
        vision_config=dict(depth=1, hidden_size=64, num_heads=2, intermediate_size=96, out_hidden_size=128, patch_size=14, fullatt_block_indexes=[0])), B)
    v["qwen3_vl"] = ("Qwen3VLForConditionalGeneration", "Qwen3VLConfig", dict(text_config=dict(model_type="qwen3_vl_text", **decoder(head_dim=32, rope_parameters=dict(sections, mrope_interleaved=True))), image_token_id=5, video_token_id=6, vision_start_token_id=7,
        vision_config=dict(depth=1, hidden_size=64, num_heads=2, intermediate_size=96, out_hidden_size=128, patch_size=14, num_position_embeddings=16, deepstack_visual_indexes=[0])), B)
    siglip, idefics = make_models.table()["gemma3"][2]["vision_config"], make_models.table()["idefics3"][2]
    qwen = dict(model_type="qwen2", **decoder())
    v["smolvlm"] = ("SmolVLMForConditionalGeneration", "SmolVLMConfig", dict(idefics, vision_config=dict(idefics["vision_config"], model_type="smolvlm_vision")), B)
    v["internvl"] = ("InternVLForConditionalGeneration", "InternVLConfig", dict(text_config=qwen, vision_config=dict(model_type="internvl_vision", hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        image_size=[28, 28], patch_size=[14, 14]), image_token_id=5), B)
    v["aya_vision"] = ("AyaVisionForConditionalGeneration", "AyaVisionConfig", dict(text_config=dict(model_type="cohere2", **decoder(sliding_window=8, layer_types=layers)), vision_config=siglip, image_token_index=5), B)
    v["got_ocr2"] = ("GotOcr2ForConditionalGeneration", "GotOcr2Config", dict(text_config=qwen, image_token_index=5,
        vision_config=dict(hidden_size=32, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16, global_attn_indexes=[0], mlp_dim=48)), B)
    v["llava_next"] = ("LlavaNextForConditionalGeneration", "LlavaNextConfig", dict(make_models.table()["llava"][2]), B)
    v["vipllava"] = ("VipLlavaForConditionalGeneration", "VipLlavaConfig", dict(make_models.table()["llava"][2], vision_feature_layers=[-1]), B)
    v["llava_onevision"] = ("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionConfig", dict(text_config=qwen, vision_config=siglip, image_token_index=5, video_token_index=6), B)
    v["electra-same"] = ("ElectraForMaskedLM", "ElectraConfig", encoder(embedding_size=128), F)
    v["xlm-roberta"] = ("XLMRobertaForMaskedLM", "XLMRobertaConfig", encoder(pad_token_id=1, max_position_embeddings=130), F)
    v["camembert"] = ("CamembertForMaskedLM", "CamembertConfig", encoder(pad_token_id=1, max_position_embeddings=130), F)
    return v


# Models whose refusal is right, and what it must say. Those of a model type that the program does not know are refused for that.
REFUSED = {
    "gpt2-double": "multiple_choice_head", "gpt2-cross": "add_cross_attention", "falcon-alibi": "alibi", "gpt2-inverse": "scale_attn_by_inverse_layer_idx", "bloom-residual": "apply_residual_connection_post_layernorm", "gemma3-both": "use_bidirectional_attention",
    "bert-choice": "BertForMultipleChoice", "llama-qa": "LlamaForQuestionAnswering", "llama-act": "mish", "stablelm-qknorm": "qk_layernorm", "bert-decoder": "is_decoder",
}


def refusals():
    return {
        "bert-choice": ("BertForMultipleChoice", "BertConfig", encoder(), F), "llama-qa": ("LlamaForQuestionAnswering", "LlamaConfig", decoder(), B),
        "falcon-alibi": ("FalconForCausalLM", "FalconConfig", dict(hidden_size=128, num_hidden_layers=1, num_attention_heads=4, alibi=True, **make_models.COMMON), B),
        "gpt2-inverse": ("GPT2LMHeadModel", "GPT2Config", gpt(scale_attn_by_inverse_layer_idx=True), F),
        "bloom-residual": ("BloomForCausalLM", "BloomConfig", dict(hidden_size=96, n_layer=1, n_head=6, apply_residual_connection_post_layernorm=True, **make_models.COMMON), F),
        "gemma3-both": ("Gemma3ForCausalLM", "Gemma3TextConfig", decoder(head_dim=64, use_bidirectional_attention=True), B),
        "llama-act": lm("Llama", hidden_act="mish"), "stablelm-qknorm": lm("StableLm", qk_layernorm=True),
        "bert-decoder": ("BertForMaskedLM", "BertConfig", encoder(is_decoder=True), F),
    }


@torch.no_grad()
def randomize(model, seed):
    """Large enough for every option to matter: matrices N(0, 2/fan_in), norm gains and biases spread."""
    g = torch.Generator().manual_seed(seed)
    seen = set()
    for name, p in model.named_parameters():
        if id(p) in seen or not p.is_floating_point():
            continue
        seen.add(id(p))
        r = torch.randn(p.shape, generator=g)
        if p.dim() >= 2:
            fan = p.shape[-1] if not name.endswith(("gate_up_proj", "down_proj")) or p.dim() == 2 else p.shape[-2]
            p.copy_(r * (2 / fan) ** 0.5)
        elif name.endswith("bias") or name.endswith("sinks"):
            p.copy_(0.2 * r)
        else:
            p.copy_(p.mean().round() + 0.2 * r)
    for name, b in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            b.copy_(0.1 * torch.randn(b.shape, generator=g))


def to_internlm2(path):
    """A Llama by the names of InternLM2, whose code is not in transformers: query heads of a group, key and value in one matrix."""
    f, t = os.path.join(path, "config.json"), {}
    with open(f) as fh:
        c = json.load(fh)
    for name in sorted(n for n in os.listdir(path) if n.endswith(".safetensors")):
        t.update(load_file(os.path.join(path, name)))
        os.remove(os.path.join(path, name))
    index = os.path.join(path, "model.safetensors.index.json")
    if os.path.exists(index):
        os.remove(index)
    out, d, kv = {}, c["head_dim"], c["num_key_value_heads"]
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for end in ("weight", "bias"):
            if p + "self_attn.q_proj." + end in t:
                q, k, v = (t.pop(f"{p}self_attn.{x}_proj.{end}").unflatten(0, (kv, -1, d)) for x in "qkv")
                out[f"{p}attention.wqkv.{end}"] = torch.cat([q, k, v], 1).flatten(0, 2).contiguous()
    names = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
             "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output"}
    for name, v in t.items():
        for a, b in names.items():
            name = name.replace(a, b)
        out[name] = v
    save_file(out, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    p = c.pop("rope_parameters")
    c.update(model_type="internlm2", architectures=["InternLM2ForCausalLM"], bias=c.pop("attention_bias"), rope_theta=p.pop("rope_theta"))
    c["rope_scaling"] = None if p["rope_type"] == "default" else {"type": p["rope_type"], "factor": p["factor"]}
    with open(f, "w") as fh:
        json.dump(c, fh)


def to_v4(path):
    """config.json as transformers 4 wrote it."""
    f = os.path.join(path, "config.json")
    with open(f) as fh:
        c = json.load(fh)
    if c["model_type"] in ("qwen2_vl", "qwen2_5_vl"):  # flat, and ropes of a type of their own
        text = c.pop("text_config")
        p = text.pop("rope_parameters")
        c = {**text, **c, "rope_theta": p["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": p["mrope_section"]}}
    p = c.get("rope_parameters")
    if p and not any(isinstance(v, dict) for v in p.values()):
        del c["rope_parameters"]
        c["rope_theta"] = p.pop("rope_theta")
        if c["model_type"] == "gpt_neox":
            c["rotary_emb_base"], c["rotary_pct"] = c.pop("rope_theta"), p.pop("partial_rotary_factor")
        elif "partial_rotary_factor" in p:
            c["partial_rotary_factor"] = p.pop("partial_rotary_factor")
        c["rope_scaling"] = None if p["rope_type"] == "default" else p
    elif p:
        del c["rope_parameters"]
        full, local = p["full_attention"], p["sliding_attention"]
        c["rope_theta"] = full.pop("rope_theta")
        c["rope_scaling"] = None if full["rope_type"] == "default" else full
        if c["model_type"] == "gemma3_text":
            c["rope_local_base_freq"] = local["rope_theta"]
    c["torch_dtype"] = c.pop("dtype", None)
    if c["model_type"] == "gemma3_text":
        c["sliding_window_pattern"] = (c["layer_types"] + ["full_attention"]).index("full_attention") + 1
    for k in ("layer_types", "_sliding_window_pattern"):
        if c["model_type"] in ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3"):
            c.pop(k, None)
    with open(f, "w") as fh:
        json.dump(c, fh)


def batch(cfg, rng, side):
    text = cfg.get_text_config()
    pad = text.pad_token_id if text.pad_token_id is not None else 2
    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    ids = torch.randint(8, text.vocab_size, (3, 40), generator=g)
    mask = torch.ones_like(ids)
    for row, n in ((1, 7), (2, 22)):
        s = slice(0, n) if side == "left" else slice(40 - n, 40)
        ids[row, s], mask[row, s] = pad, 0
    return ids, mask


@torch.no_grad()
def reference(cls, path, ids, mask):
    model = getattr(tf, cls).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    keep = mask.bool()
    logits = rows_of(out, ids, keep)
    return [h[keep].numpy() for h in out.hidden_states], None if logits is None else logits.numpy()


def rows_of(out, ids, mask):
    """the logits of a model's output, one row per token that the mask has, or per sequence"""
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1)[mask]
    logits = out.get("logits", out.get("prediction_logits"))
    return logits if logits is None or logits.dim() == 2 else logits[mask]


def worst(what, got, want):
    if got.shape != want.shape:
        return [f"{what}: shape {got.shape}; expected {want.shape}"], 0
    d, top = float(np.abs(got - want).max()), float(np.abs(want).max())
    return ([] if d <= LIMIT * top else [f"{what}: off by {d:.3g}, largest value {top:.3g}"]), d / top


COMPOSITE = ("llava", "gemma3", "mistral3", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "got_ocr2", "aya_vision", "smolvlm", "llava_next", "vipllava", "llava_onevision")


def known(cfg, types):
    """whether the program computes models of this configuration: its text model, for composites that have a tower beside it"""
    return cfg.model_type in types or cfg.model_type in COMPOSITE and cfg.get_text_config().model_type in types


class Forward:
    def __init__(self, program):
        self.p = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, **job):
        self.p.stdin.write(json.dumps(job) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        return json.loads(line) if line else {"error": "the program died", "class": -1}


def compare(a, out, hidden, logits):
    values, at, bad, most = np.fromfile(out, dtype="<f4"), 0, [], 0
    if len(a["hidden"]) != len(hidden):
        return [f"{len(a['hidden'])} hidden states; expected {len(hidden)}"], 0
    sides = [(f"hidden state {i}", w, a["tokens"], h) for i, (w, h) in enumerate(zip(a["hidden"], hidden))]
    if (logits is None) != (not a.get("vocab")):
        return ["one side has logits"], 0
    if logits is not None:
        sides.append(("logits", a["vocab"], a["rows"], logits))
    for what, width, rows, want in sides:
        n = rows * width
        b, rel = worst(what, values[at:at + n].reshape(rows, width), want)
        bad, most, at = bad + b, max(most, rel), at + n
    return bad + ([] if at == len(values) else [f"{len(values)} values; expected {at}"]), most


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--forward", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--only", default="")
    ap.add_argument("--keep", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(2)
    print(f"seed {a.seed}, transformers {tf.__version__}, torch {torch.__version__}")
    program, failed, passed, refused, most, computed = Forward(a.forward), [], 0, 0, 0, set()
    types = set(program.do(types=True)["types"])
    todo = {**make_models.table(), **variants(), **refusals()}
    for i, (name, (cls, ccls, kw, dtype)) in enumerate(todo.items()):
        if a.only and a.only not in name:
            continue
        rng = random.Random(a.seed * 1000 + i)
        path, out, v4 = os.path.join(a.out, name), os.path.join(a.out, name + ".f32"), rng.random() < 0.4
        note, rel, words = "", 0, ""
        try:
            cfg = getattr(tf, ccls)(**kw)
            model = getattr(tf, cls)(cfg)
            randomize(model, a.seed * 1000 + i)
            model.to(dtype).save_pretrained(path, max_shard_size=rng.choice(["5GB", "200KB"]))
            encoder_like = any(s in cls for s in ("MaskedLM", "Bert", "Roberta", "Electra"))
            ids = mask = torch.ones(1, 1, dtype=torch.long)
            if known(cfg, types):
                ids, mask = batch(cfg, rng, "right" if encoder_like else rng.choice(["left", "right"]))
            words = REFUSED.get(name) or ("" if known(cfg, types) else f'no forward pass is implemented for model_type "{cfg.model_type}"')
            if not words:
                hidden, logits = reference(cls, path, ids, mask)
                if v4 and not name.startswith("internlm2"):
                    to_v4(path)
                    note = " (transformers-4 config)"
                computed.add(cfg.get_text_config().model_type)
                if name.startswith("internlm2"):
                    to_internlm2(path)
                    computed.add("internlm2")
            answer = program.do(model=path, ids=ids.tolist(), mask=mask.tolist(), out=out)
            if words:
                bad = [] if answer.get("class") == 4 and words in answer["error"] else [f"expected a refusal that says {words!r}: {answer}"]
            elif "error" in answer:
                bad = [answer["error"]]
            else:
                bad, rel = compare(answer, out, hidden, logits)
        except Exception as e:
            bad = [f"{type(e).__name__}: {str(e).splitlines()[0][:300] if str(e) else ''}"]
        if bad:
            failed.append(name)
        elif words:
            refused += 1
        else:
            passed, most = passed + 1, max(most, rel)
        print(f"{'FAIL' if bad else 'refused' if words else f'ok {rel:.1e}':12s} {name}{note}{': ' + '; '.join(bad[:3]) if bad else ''}", flush=True)
        if not a.keep:
            shutil.rmtree(path, ignore_errors=True)
            if os.path.exists(out):
                os.remove(out)
    if not a.only and types - computed:
        failed += sorted(types - computed)
        print(f"FAIL         no model of the types {sorted(types - computed)} was tried")
    print(f"{passed} models equal (worst {most:.1e} of the largest value; allowed {LIMIT:.0e}), {refused} refused as they must be, {len(failed)} failed: {' '.join(failed)}")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
