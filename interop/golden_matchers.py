#!/usr/bin/env python3
"""Writes formats/bnb/testdata/matchers.jsonl: which modules transformers skips for given skip lists.

  golden_matchers.py OUT.jsonl --v4 PYTHON     run by a Python with transformers 5; PYTHON has transformers 4.57

The first line holds the versions and the module paths. Every other line holds a skip list ("keys") and, for each loader, one
character per path: 1 where it stays 16-bit, 0 where it becomes 4-bit. "v5" is should_convert_module itself and null where it raises;
"v4" is replace_with_bnb_linear on a tree of linear layers with these paths.
"""
import json
import random
import subprocess
import sys

LEAVES = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "mlp.gate", "mlp.shared_expert_gate"]
PATHS = ["lm_head", "score", "embed_out", "model.lm_head"]
PATHS += [f"model.layers.{i}.{leaf}" for i in (0, 1, 10, 11) for leaf in LEAVES]
PATHS += [f"model.layers.1.block_sparse_moe.{leaf}" for leaf in ("gate", "experts.0.w1", "experts.0.w2", "experts.10.w1")]
PATHS += [f"model.language_model.layers.0.{leaf}" for leaf in LEAVES[:3]]
PATHS += ["model.vision_tower.encoder.layers.1.self_attn.q_proj", "vision_tower.blocks.1.mlp.fc1", "model.visual.merger.mlp.0"]
PATHS += ["model.multi_modal_projector.linear_1", "transformer.h.1.attn.c_attn", "transformer.h.11.mlp.c_proj", "decoder.block.0.layer.1.DenseReluDense.wo"]
PATHS += ["bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.1.output.dense", "cls.predictions.decoder", "bert.pooler.dense"]

# Keys that people write, those that the loaders read in different ways, and regular expressions.
KEYS = ["lm_head", "score", "gate", "mlp.gate", "model.layers.0.mlp.gate", "model.layers.1", "model.layers.10", "self_attn", "vision_tower", "experts",
        "model.vision_tower", "visual", "merger", "multi_modal_projector", "block_sparse_moe.gate", "shared_expert_gate", "proj", "_proj", "layers", "model", "1"]
KEYS += ["", ".", "model.", "layers.1.", "q_proj.", "h", "wo", "dense", "output.dense", "predictions", "experts.0", "experts.1", "decoder", "Model", "weight"]
KEYS += ["model.layers.*", ".*", "model..*gate", r"model\.layers\.[01]", "model.layers.1|lm_head", "(model|transformer).+", "model.layers.1+", r".*\d", "[", "(", "*"]
KEYS += [".*mlp", ".*mlp.", "model.layers.(0|10).mlp", "model.layers.1?0", ".*experts.0.w[12]", "^model.layers.1", "x{2}", "lm_heads?", "lm_hea", "head", "m|model.l"]
KEYS += ["model$", "model.layers.0$", "model.layers.0.mlp.gate$", r"model\b", r"model.layers.1\b", r"model\B", "model.laye{,2}rs.0", r"\Qmodel\E", "(?!lm_head).*", "(?i)MODEL"]


def lists():
    rng = random.Random(7)
    out = [[]] + [[k] for k in KEYS] + [[p] for p in PATHS]
    for _ in range(150):  # pieces of paths, at any character
        p = rng.choice(PATHS)
        i = rng.randrange(len(p))
        out.append([p[i : rng.randint(i + 1, len(p))]])
        out.append([p[: rng.randint(1, len(p))]])
    out += [rng.sample(KEYS[:30] + PATHS, 3) for _ in range(60)]
    return out


def row(skipped):
    return "".join("01"[s] for s in skipped)


def four():
    """the answers of transformers 4, one JSON string a line"""
    import torch
    import transformers
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    transformers.logging.set_verbosity_error()  # it warns where nothing is left to replace
    print(json.dumps(transformers.__version__))
    for keys in lists():
        tree = torch.nn.Module()
        for path in PATHS:
            *parents, leaf = path.split(".")
            at = tree
            for name in parents:
                if not hasattr(at, name):
                    at.add_module(name, torch.nn.Module())
                at = getattr(at, name)
            at.add_module(leaf, torch.nn.Linear(1, 1, bias=False))
        config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=keys)
        replace_with_bnb_linear(tree, modules_to_not_convert=keys, quantization_config=config)
        print(json.dumps(row(type(tree.get_submodule(p)) is torch.nn.Linear for p in PATHS)))


def five(keys):
    from transformers.quantizers.quantizers_utils import should_convert_module

    try:
        return row(not should_convert_module(p, keys) for p in PATHS)
    except Exception:  # re.error and what else a key may do
        return None


def main():
    if sys.argv[1] == "--answer-v4":
        return four()
    out, v4 = sys.argv[1], sys.argv[sys.argv.index("--v4") + 1]
    import transformers

    answers = subprocess.run([v4, __file__, "--answer-v4"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    with open(out, "w", encoding="ascii") as f:
        f.write(json.dumps({"transformers": [transformers.__version__, json.loads(answers[0])], "paths": PATHS}) + "\n")
        for keys, a in zip(lists(), answers[1:], strict=True):
            f.write(json.dumps({"keys": keys, "v5": five(keys), "v4": json.loads(a)}) + "\n")


main()
