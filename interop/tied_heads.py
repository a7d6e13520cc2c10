#!/usr/bin/env python3
"""Write down which output heads the model classes of the installed transformers tie to an embedding.

  tied_heads.py arch/tied.txt

Such a head has no tensor in a checkpoint, and is a linear layer of the module tree all the same. A class that ties lm_head
and nothing else is not listed: that is the rule. Lines of OUT that are there already are kept and joined, so that it is
run once under every generation of transformers that is supported.
"""
import importlib
import inspect
import re
import sys

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

HEADER = """# Heads that model classes of transformers tie to an embedding, and the model types that transformers has: a class of those that
# is not listed ties lm_head or nothing. Made by interop/tied_heads.py under transformers 5.23 and 4.57.
"""


def head(key):
    """The module that a key of _tied_weights_keys means; regular expressions name what stands before them."""
    plain = re.match(r"(?:[A-Za-z0-9_]|\\?\.)*", key)[0].replace("\\", "")
    if plain != key.replace("\\", ""):
        plain = plain.rstrip("0123456789").rpartition(".")[0]
    elif plain.endswith(".weight"):
        plain = plain.removesuffix(".weight")
    elif plain.rpartition(".")[2] in ("bias", "eoi_embedding", "positional_embedding"):
        return None  # no linear layer's weight
    last = plain.rpartition(".")[2]
    embedding = "embed" in last and last not in ("bbox_embed", "class_embed", "embed_out") or last in ("norm", "relative_attention_bias") or "embed_patches" in plain
    return None if embedding or not plain else plain


def heads():
    out = {}
    for model_type in list(CONFIG_MAPPING_NAMES):
        try:
            module = importlib.import_module("transformers.models." + model_type_to_module_name(model_type))
            classes = [getattr(module, n, None) for n in dir(module)]
        except ImportError:
            continue
        out.setdefault("type", set()).add(model_type)
        for c in classes:
            keys = getattr(c, "_tied_weights_keys", None)
            if inspect.isclass(c) and isinstance(keys, (list, dict)) and c.__module__.startswith(module.__name__ + "."):
                found = {h for h in map(head, keys) if h}
                if found - {"lm_head"}:
                    out[c.__name__] = found
    return out


def main():
    found = heads()
    try:
        for line in open(sys.argv[1]):
            if not line.startswith("#"):
                name, *rest = line.split()
                found.setdefault(name, set()).update(rest)
    except FileNotFoundError:
        pass
    types = sorted(found.pop("type"))
    with open(sys.argv[1], "w") as f:
        f.write(HEADER)
        for name, rest in sorted(found.items()):
            print(name, *sorted(rest), file=f)
        for i in range(0, len(types), 8):
            print("type", *types[i:i + 8], file=f)


main()
