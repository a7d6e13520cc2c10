#!/usr/bin/env python3
"""Write model/testdata/parts.json: what transformers' own functions give for the parts of a forward pass.

  golden_parts.py [FILE]

ropes        inverse frequencies and the factor of cosines and sines, for every rope type and two widths of a row
activations  every name of config.json that package model knows, on a grid
alibi        slopes of several numbers of heads (BLOOM)
routers      weights of chosen experts for given scores (Mixtral, Qwen, GraniteMoE, DeepSeek-V2 and V3)
"""
import json
import sys

import torch
import transformers as tf
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

TEN = [1.0 + i / 10 for i in range(8)]
ROPES = [
    dict(rope_type="default", rope_theta=10000.0), dict(rope_type="default", rope_theta=1e6),
    dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
    dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0),
    dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=32),
    dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0, truncate=False),
    dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.0),
    dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=32, attention_factor=1.25),
    dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=32, short_factor=TEN, long_factor=[x * x for x in TEN]),
    dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=32, factor=3.0, short_factor=TEN, long_factor=[x * x for x in TEN]),
    dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    dict(rope_type="proportional", rope_theta=10000.0, partial_rotary_factor=0.5, factor=2.0),
]


def ropes():
    out = []
    for p in ROPES:
        for width in (20, 100):
            cfg = tf.LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=64, rope_parameters=dict(p))
            seq = width if p["rope_type"] in ("dynamic", "longrope") else None
            f = LlamaRotaryEmbedding.compute_default_rope_parameters if p["rope_type"] == "default" else ROPE_INIT_FUNCTIONS[p["rope_type"]]
            inv, scale = f(cfg, device="cpu", seq_len=seq)
            out.append(dict(parameters=p, head_dim=16, max_position_embeddings=64, width=width, inv_freq=inv.tolist(), attention=float(scale)))
    return out


def activations():
    x = torch.linspace(-6, 6, 49)
    return dict(x=x.tolist(), y={n: ACT2FN[n](x).tolist() for n in ("silu", "swish", "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "relu2", "tanh", "linear")})


def alibi():
    out = {}
    for heads in (1, 2, 6, 8, 12):
        a = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)  # slopes times positions 0, 1
        out[heads] = a.reshape(heads, 2)[:, 1].tolist()
    return out


def dense(n, top, weights, index):
    """weights of all experts, in their order"""
    return torch.zeros(len(weights), n).scatter(1, index, weights.float()).tolist()


@torch.no_grad()
def routers():
    g, n, rows = torch.Generator().manual_seed(5), 8, 6
    scores = torch.randn(rows, n, generator=g)
    bias = 0.3 * torch.randn(n, generator=g)
    out = []

    def add(name, top, weights, index, **options):
        out.append(dict(name=name, top=top, scores=scores.tolist(), weights=dense(n, top, weights, index), **options))

    for norm in (False, True):
        r = Qwen2MoeTopKRouter(tf.Qwen2MoeConfig(hidden_size=n, num_experts=n, num_experts_per_tok=3, norm_topk_prob=norm))
        r.weight.copy_(torch.eye(n))
        _, w, i = r(scores)
        add("softmax over all", 3, w, i, normalize=norm)
    top = torch.topk(scores, 3, dim=-1)
    add("softmax over the chosen", 3, top.values.softmax(-1), top.indices)
    for groups, best, norm, scale in ((1, 1, True, 1.0), (4, 2, True, 2.5), (4, 2, False, 1.0), (2, 1, True, 1.5)):
        cfg = tf.DeepseekV3Config(hidden_size=n, n_routed_experts=n, num_experts_per_tok=3, n_group=groups, topk_group=best, norm_topk_prob=norm, routed_scaling_factor=scale)
        r = DeepseekV3TopkRouter(cfg)
        r.weight.copy_(torch.eye(n))
        r.e_score_correction_bias.copy_(bias)
        _, w, i = r(scores)
        add("sigmoid", 3, w, i, normalize=norm, scale=scale, groups=groups, top_groups=best, correction=bias.tolist())
    return out


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "model/testdata/parts.json"
    data = dict(transformers=tf.__version__, torch=torch.__version__.split("+")[0], ropes=ropes(), activations=activations(), alibi=alibi(), routers=routers())
    with open(path, "w") as f:
        json.dump(data, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
