#!/usr/bin/env python3
"""Make one small random model per architecture and head, as transformers saves it.

  make_models.py OUT_DIR [--seed N] [--only NAME,...] [--list]

Each goes to OUT_DIR/NAME with its config.json. Dimensions are multiples of 64, so that
bitsandbytes' CPU kernels can run the result on any machine; sizes, layer counts, dtypes and
shard sizes vary with the seed. Names that the installed transformers does not have, or that
it fails to build, are reported with the reason and make the exit status 3.
"""
import argparse
import os
import random
import sys

import torch
import transformers as tf

VOCAB = 320
COMMON = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=1, pad_token_id=2)


def decoder(**kw):
    d = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=128, **COMMON)
    d.update(kw)
    return d


def encoder(**kw):
    d = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
             max_position_embeddings=128, type_vocab_size=2)
    d.update(kw)
    return d


VISION = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
MLA = dict(q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, num_key_value_heads=4,
           n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1)
T5 = dict(d_model=128, d_kv=32, d_ff=192, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=VOCAB, pad_token_id=0, decoder_start_token_id=0)


def table():
    """name -> (class, config class, config, dtype)"""
    B, H, F = torch.bfloat16, torch.float16, torch.float32
    dense = {
        "llama": ("Llama", {}, B), "llama-tied": ("Llama", dict(tie_word_embeddings=True, hidden_size=64), F), "mistral": ("Mistral", {}, B),
        "qwen2": ("Qwen2", {}, B), "qwen3": ("Qwen3", dict(head_dim=64, tie_word_embeddings=True), B), "gemma": ("Gemma", dict(head_dim=64), B),
        "gemma2": ("Gemma2", dict(head_dim=64), B), "phi3": ("Phi3", {}, B), "phi": ("Phi", {}, H), "starcoder2": ("Starcoder2", {}, B),
        "cohere": ("Cohere", {}, B), "cohere2": ("Cohere2", {}, B), "olmo2": ("Olmo2", {}, F), "olmo": ("Olmo", {}, B), "granite": ("Granite", {}, B),
        "stablelm": ("StableLm", {}, H), "mixtral": ("Mixtral", dict(num_local_experts=4), B),
        "qwen2_moe": ("Qwen2Moe", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=128), B),
        "qwen3_moe": ("Qwen3Moe", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=32), B),
        "olmoe": ("Olmoe", dict(num_experts=4, num_experts_per_tok=2), B), "phimoe": ("Phimoe", dict(num_local_experts=4), B),
        "granitemoe": ("GraniteMoe", dict(num_local_experts=4, num_experts_per_tok=2), B),
        "deepseek_v2": ("DeepseekV2", MLA, B), "deepseek_v3": ("DeepseekV3", MLA, B),
        "gpt_oss": ("GptOss", dict(num_local_experts=4, head_dim=64), B),
    }
    out = {}
    for name, (cls, kw, dt) in dense.items():
        out[name] = (cls + "ForCausalLM", cls + "Config", decoder(**kw), dt)
    out["gemma3_text"] = ("Gemma3ForCausalLM", "Gemma3TextConfig", decoder(head_dim=64), B)
    out["llama4_text"] = ("Llama4ForCausalLM", "Llama4TextConfig", decoder(intermediate_size_mlp=192, num_local_experts=2, head_dim=32, interleave_moe_layer_step=2), B)
    out["gpt2"] = ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, **COMMON), H)
    out["gpt2-base"] = ("GPT2Model", "GPT2Config", dict(n_embd=64, n_layer=1, n_head=4, n_positions=128, **COMMON), F)
    out["gpt_neo"] = ("GPTNeoForCausalLM", "GPTNeoConfig", dict(hidden_size=128, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4, max_position_embeddings=128, **COMMON), F)
    out["gptj"] = ("GPTJForCausalLM", "GPTJConfig", dict(n_embd=128, n_layer=2, n_head=4, rotary_dim=16, n_positions=128, tie_word_embeddings=False, **COMMON), H)
    out["gpt_neox"] = ("GPTNeoXForCausalLM", "GPTNeoXConfig", decoder(intermediate_size=256), H)
    out["gpt_bigcode"] = ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, **COMMON), B)
    out["opt"] = ("OPTForCausalLM", "OPTConfig", dict(hidden_size=128, ffn_dim=192, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64, **COMMON), F)
    out["bloom"] = ("BloomForCausalLM", "BloomConfig", dict(hidden_size=128, n_layer=2, n_head=4, **COMMON), B)
    out["falcon"] = ("FalconForCausalLM", "FalconConfig", dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, **COMMON), B)
    out["t5"] = ("T5ForConditionalGeneration", "T5Config", T5, F)
    out["t5-gated"] = ("T5ForConditionalGeneration", "T5Config", dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False), B)
    out["mt5"] = ("MT5ForConditionalGeneration", "MT5Config", T5, B)
    out["bart"] = ("BartForConditionalGeneration", "BartConfig", dict(d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, vocab_size=VOCAB, max_position_embeddings=128), F)
    for name, cls, kw in [("bert", "Bert", {}), ("roberta", "Roberta", dict(pad_token_id=1, max_position_embeddings=130)), ("electra", "Electra", dict(embedding_size=64)),
                          ("deberta", "Deberta", dict(relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=0)),
                          ("deberta_v2", "DebertaV2", dict(relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=0))]:
        out[name] = (cls + "ForMaskedLM", cls + "Config", encoder(**kw), H if name != "deberta_v2" else F)
        out[name + "-seq"] = (cls + "ForSequenceClassification", cls + "Config", encoder(num_labels=3, **kw), F)
    out["bert-qa"] = ("BertForQuestionAnswering", "BertConfig", encoder(), F)
    out["bert-base"] = ("BertModel", "BertConfig", encoder(), F)
    out["bert-pretraining"] = ("BertForPreTraining", "BertConfig", encoder(), F)
    out["distilbert"] = ("DistilBertForMaskedLM", "DistilBertConfig", dict(dim=128, hidden_dim=192, n_layers=2, n_heads=4, vocab_size=VOCAB, max_position_embeddings=128), F)
    out["llama-seq"] = ("LlamaForSequenceClassification", "LlamaConfig", decoder(num_labels=3), B)
    out["qwen2-tokens"] = ("Qwen2ForTokenClassification", "Qwen2Config", decoder(num_labels=3), B)
    out["gpt2-seq"] = ("GPT2ForSequenceClassification", "GPT2Config", dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, num_labels=3, **COMMON), F)
    text = dict(model_type="llama", **decoder())
    clip = dict(model_type="clip_vision_model", **VISION)
    siglip = dict(model_type="siglip_vision_model", **VISION)
    out["llava"] = ("LlavaForConditionalGeneration", "LlavaConfig", dict(text_config=text, vision_config=clip, image_token_index=5), B)
    out["gemma3"] = ("Gemma3ForConditionalGeneration", "Gemma3Config", dict(text_config=dict(model_type="gemma3_text", **decoder(head_dim=64)), vision_config=siglip, mm_tokens_per_image=4, image_token_index=5, boi_token_index=6, eoi_token_index=7), B)
    out["paligemma"] = ("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", dict(text_config=dict(model_type="gemma", **decoder(head_dim=64)), vision_config=dict(siglip, projection_dim=128), projection_dim=128, image_token_index=5), B)
    out["mistral3"] = ("Mistral3ForConditionalGeneration", "Mistral3Config", dict(text_config=dict(model_type="mistral", **decoder()), vision_config=dict(model_type="pixtral", **VISION), image_token_index=5), B)
    out["idefics3"] = ("Idefics3ForConditionalGeneration", "Idefics3Config", dict(text_config=text, vision_config=dict(VISION, model_type="idefics3_vision"), image_token_id=5, scale_factor=2), B)
    qv = dict(depth=2, embed_dim=64, num_heads=2, hidden_size=128, mlp_ratio=2, patch_size=14)
    out["qwen2_vl"] = ("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", dict(text_config=dict(model_type="qwen2_vl_text", **decoder(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}, rope_scaling={"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]})), vision_config=qv, image_token_id=5, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8), B)
    # Output heads of other names, tied and in no file; modules that a loader must not touch; classes that no table lists.
    out["openai-gpt"] = ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, vocab_size=VOCAB), F)
    out["gpt2-double"] = ("GPT2DoubleHeadsModel", "GPT2Config", dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, **COMMON), F)
    out["gpt2-cross"] = ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=128, n_layer=2, n_head=4, n_positions=128, n_inner=192, add_cross_attention=True, **COMMON), F)
    out["imagegpt"] = ("ImageGPTForCausalImageModeling", "ImageGPTConfig", dict(vocab_size=VOCAB, n_positions=64, n_embd=128, n_layer=2, n_head=4), F)
    out["decision_transformer"] = ("DecisionTransformerModel", "DecisionTransformerConfig", dict(hidden_size=128, n_layer=2, n_head=4, n_positions=64, max_ep_len=16), F)
    sequence = dict(d_model=128, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
    out["whisper"] = ("WhisperForConditionalGeneration", "WhisperConfig", dict(sequence, num_mel_bins=16, max_source_positions=64, max_target_positions=64), F)
    modern = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    out["modernbert"] = ("ModernBertForMaskedLM", "ModernBertConfig", modern, F)
    out["modernbert-decoder"] = ("ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", modern, F)
    out["albert"] = ("AlbertForMaskedLM", "AlbertConfig", encoder(embedding_size=64), F)
    out["xlm"] = ("XLMWithLMHeadModel", "XLMConfig", dict(vocab_size=VOCAB, emb_dim=128, n_layers=2, n_heads=4), F)
    out["mobilebert"] = ("MobileBertForMaskedLM", "MobileBertConfig", dict(vocab_size=VOCAB, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, embedding_size=64, true_hidden_size=64, intra_bottleneck_size=64), F)
    out["xlnet"] = ("XLNetLMHeadModel", "XLNetConfig", dict(vocab_size=VOCAB, d_model=128, n_layer=2, n_head=4, d_inner=192), F)
    out["mamba"] = ("MambaForCausalLM", "MambaConfig", dict(hidden_size=64, num_hidden_layers=2, state_size=16, **COMMON), B)
    out["gpt_neox_japanese"] = ("GPTNeoXJapaneseForCausalLM", "GPTNeoXJapaneseConfig", dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_multiple_size=2, **COMMON), F)
    out["vit"] = ("ViTForImageClassification", "ViTConfig", dict(VISION, num_labels=4), F)
    out["vit-base"] = ("ViTModel", "ViTConfig", VISION, F)
    out["siglip-vision"] = ("SiglipVisionModel", "SiglipVisionConfig", VISION, F)
    out["clip"] = ("CLIPModel", "CLIPConfig", dict(text_config=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=VOCAB, max_position_embeddings=32), vision_config=VISION, projection_dim=64), F)
    out["blip"] = ("BlipForConditionalGeneration", "BlipConfig", dict(text_config=dict(vocab_size=VOCAB, hidden_size=128, encoder_hidden_size=64, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4), vision_config=VISION), F)
    return out


@torch.no_grad()
def make(cls, ccls, kw, dtype, path, seed, shard):
    cfg = getattr(tf, ccls)(**kw)
    model = getattr(tf, cls)(cfg)
    g = torch.Generator().manual_seed(seed)
    seen = set()
    for name, p in model.named_parameters():
        if id(p) in seen or not p.is_floating_point():
            continue
        seen.add(id(p))
        r = torch.randn(p.shape, generator=g)
        if p.dim() >= 2:
            p.copy_(r / p.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            p.copy_(0.05 * r)
        else:
            p.copy_(1 + 0.1 * r)
    model.to(dtype).save_pretrained(path, max_shard_size=shard)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--only", default="")
    ap.add_argument("--list", action="store_true")
    a = ap.parse_args()
    todo = table()
    if a.list:
        print("\n".join(todo))
        return 0
    failed = 0
    for i, (name, (cls, ccls, kw, dtype)) in enumerate(todo.items()):
        if a.only and name not in a.only.split(","):
            continue
        rng = random.Random(a.seed * 1000 + i)
        try:
            make(cls, ccls, kw, dtype, os.path.join(a.out, name), a.seed * 1000 + i, rng.choice(["5GB", "200KB"]))
            print(f"made {name}", flush=True)
        except Exception as e:  # the reason is the result
            failed += 1
            print(f"NOT MADE {name}: {type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}", flush=True)
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
