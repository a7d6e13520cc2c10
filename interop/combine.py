#!/usr/bin/env python3
"""Hold `nf4conv combine` against PEFT's add_weighted_adapter, on adapters made afresh.

  combine.py --binary nf4conv --out DIR [--data DIR] [--seed N] [--only TEXT]

For every combination type and several kinds of layers PEFT makes two or three adapters with random values, of plain and of
rsLoRA scaling, and combines them; the masks of DARE are those that nf4conv documents (SplitMix64), put in the place of
torch.bernoulli. Then:

  delta    scaling * B A of every layer is PEFT's, and for the svd forms of whole matrices leaves at most 1.01 of what PEFT's leaves. Where an
           adapter has rsLoRA, PEFT's own result is larger by the square root of the new rank (peft issue 3761), by which it is divided.
  loads    PeftModel loads the combination with every key used, none missing, and its layers have the delta of the file
  sum      of cat: nf4conv merge of the combination and of the adapters with their weights are equal but for rounding, by
           the rule of merge.py: one unit in the last place, or what float32 loses where weight and deltas cancel

Exit 1 when anything failed. The seed is printed.
"""
import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from peft.tuners.lora.layer import LoraLayer  # noqa: E402
from peft.utils import merge_utils  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from merge import differences, disk, draw, steps  # noqa: E402

HERE = Path(__file__).resolve().parent
METHODS = ["cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"]
BASES = [("arch/mistral", ["q_proj", "v_proj", "down_proj"], False), ("arch/mistral", ["embed_tokens", "lm_head", "o_proj"], False), ("arch/gpt2", ["c_attn", "c_fc"], False),
         ("arch/qwen2", ["q_proj", "up_proj"], True)]


def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def keep(seed, name, n, density):
    h = 14695981039346656037
    for c in name.encode():
        h = ((h ^ c) * 1099511628211) % 2**64
    with np.errstate(over="ignore"):
        key = mix(np.array([(seed + h) % 2**64], dtype=np.uint64))
        z = mix(key + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy(((z >> np.uint64(11)) < np.uint64(int(density * 2**53))).astype(np.float32))


class Masks:
    """Puts our masks in the place of PEFT's, which come from the global generator."""

    def __init__(self, model, names, seed):
        self.seed, self.at, self.held = seed, {}, []
        for module, layer in model.base_model.model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            for i, name in enumerate(names):
                for table, part in ((layer.lora_A, "A"), (layer.lora_B, "B")):
                    if name in table:
                        self.at[table[name].weight.data_ptr()] = (f"{i}/{module}/{part}", False)
                for table, part in ((layer.lora_embedding_A, "A"), (layer.lora_embedding_B, "B")):
                    if name in table:
                        self.at[table[name].data_ptr()] = (f"{i}/{module}/{part}", False)
            self.wrap(layer, module, names)

    def wrap(self, layer, module, names):
        plain = layer.get_delta_weight

        def delta(name):
            d = plain(name).clone(memory_format=torch.contiguous_format)
            self.held.append(d)  # so that no other tensor gets its address
            turned = bool(layer.lora_embedding_A) or getattr(layer, "fan_in_fan_out", False)
            self.at[d.data_ptr()] = (f"{names.index(name)}/{module}/delta", turned)
            return d

        layer.get_delta_weight = delta

    def prune(self, tensor, density, rescale):
        name, turned = self.at[tensor.data_ptr()]
        m = keep(self.seed, name, tensor.numel(), density)
        m = m.view(tuple(reversed(tensor.shape))).T if turned else m.view(tensor.shape)
        out = tensor * m
        return out / density if rescale else out


def delta_of(path):
    from peft import PeftConfig
    cfg = PeftConfig.from_pretrained(path)
    t = load_file(path / "adapter_model.safetensors")
    out = {}
    for k, a in t.items():
        for x, y in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if k.endswith(x):
                module = k.removesuffix(x).removeprefix("base_model.model.")
                r = a.shape[0]
                assert cfg.rank_pattern.get(module, cfg.r) == r and cfg.alpha_pattern.get(module, cfg.lora_alpha) == r and not cfg.use_rslora, f"scaling of {module} is not 1"
                out[module] = t[k.removesuffix(x) + y].double() @ a.double()
    return out


def attached(model, name, rs):
    """scaling * B A [out, in] of every layer of a loaded model."""
    out = {}
    for module, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.scaling:
            e = name in layer.lora_embedding_A
            a = layer.lora_embedding_A[name] if e else layer.lora_A[name].weight
            b = layer.lora_embedding_B[name] if e else layer.lora_B[name].weight
            out[module] = b.detach().double() @ a.detach().double() * layer.scaling[name] / rs
    return out


class Run:
    def __init__(self, args):
        self.a, self.failed, self.passed = args, 0, 0

    def tool(self, *args):
        r = subprocess.run([self.a.binary, *map(str, args), "-q"], capture_output=True, text=True)
        return [f"exit code {r.returncode}: {r.stderr.strip()}"] if r.returncode else []

    def report(self, what, bad):
        print(f"{what:60s} {'ok' if not bad else 'FAIL'}", flush=True)
        for b in bad[:6]:
            print("    ", b)
        self.failed += bool(bad)
        self.passed += not bad

    def case(self, i, rng, base, targets, rs, method):
        src, d = Path(self.a.data) / base, Path(self.a.out) / f"{i:02d}"
        shutil.rmtree(d, ignore_errors=True)
        d.mkdir(parents=True)
        load = lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(src, dtype=dtype).eval()  # noqa: E731
        same = method in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
        names, r = [f"n{k}" for k in range(rng.choice([2, 3]))], rng.randint(2, 7)
        weights = [rng.choice([-1, 1]) * rng.uniform(0.2, 1.5) for _ in names]
        density, seed, sign = rng.uniform(0.2, 0.9), rng.randrange(2**63), rng.choice(["total", "frequency"])
        model = None
        for k, name in enumerate(names):
            cfg = LoraConfig(task_type="CAUSAL_LM", r=r if same else rng.randint(1, 7), lora_alpha=rng.randint(1, 16), target_modules=targets, use_rslora=rs)
            if model is None:
                model = get_peft_model(load(), cfg, adapter_name=name)
            else:
                model.add_adapter(name, cfg)
        draw(model, self.a.seed * 100 + i)
        model.save_pretrained(d)
        args = ["--method", method]
        if method not in ("cat", "linear", "svd"):
            args += ["--density", repr(density)]
        if "ties" in method:
            args += ["--majority-sign", sign]
        if "dare" in method:
            args += ["--seed", seed]
        inputs = [x for n, w in zip(names, weights) for x in ("--adapter", f"{d / n}={w!r}")]
        label = f"{method}, {base.split('/')[1]} {targets[0]}{', rsLoRA' if rs else ''}"
        bad = self.tool("combine", d / "out", *inputs, *args)
        if bad:
            return self.report(label, bad)
        targets_of, plain_svd = [], torch.linalg.svd
        torch.linalg.svd = lambda x, **k: (targets_of.append(x.detach().double()), plain_svd(x, **k))[1]
        merge_utils.random_pruning = Masks(model, names, seed).prune
        model.add_weighted_adapter(names, weights, "mixed", combination_type=method, density=density, majority_sign_method=sign)
        torch.linalg.svd = plain_svd
        got, new = delta_of(d / "out"), model.peft_config["mixed"].r
        want = attached(model, "mixed", math.sqrt(new) if rs else 1)
        # Of matrices of full rank the best of a lower one may hang on singular values that are all but equal: then what counts
        # is how much either leaves of the matrix that PEFT decomposed. A cut of the sum of products (svd) turns directions by
        # the rounding of PEFT's float32 over the distance of the values: seen up to 3e-6.
        whole = dict(zip(want, targets_of)) if method.endswith("_svd") else {}
        bad = [f"layers {sorted(set(got) ^ set(want))}"] if set(got) != set(want) else []
        worst = 0.0
        for m in sorted(set(got) & set(want)):
            gap, limit = ((got[m] - want[m]).norm() / want[m].norm()).item(), 1e-4 if method == "svd" else 2e-6
            if m in whole:
                t = whole[m]
                gap, limit = ((got[m] - t).norm() / (want[m] - t).norm().clamp_min(1e-5 * t.norm())).item(), 1.01
            worst = max(worst, gap)
            if not gap <= limit:
                bad.append(f"{m}: {gap:.3g}{' times what PEFT leaves' if m in whole else ' away from PEFT'}")
        self.report(f"{label}: delta, {worst:.4g}", bad)
        loaded = PeftModel.from_pretrained(load(), d / "out", adapter_name="loaded")
        res = loaded.load_adapter(d / "out", adapter_name="again")
        bad = [f"missing {k}" for k in res.missing_keys if "lora" in k and "again" in k] + [f"unexpected {k}" for k in res.unexpected_keys]
        held = attached(loaded, "again", 1)
        bad += [f"{m} differs when it is loaded" for m in set(held) | set(got) if m not in held or m not in got or not torch.equal(held[m], got[m])]
        self.report(label + ": loads", bad)
        if method == "cat" and "lm_head" not in targets:  # with it PEFT saves the base, which merge takes with the weight 1 only
            bad = self.tool("merge", src, d / "one", "--adapter", d / "out") + self.tool("merge", src, d / "sum", *inputs)
            if not bad:
                x, y = disk(d / "one"), disk(d / "sum")
                u = torch.cat([(steps(x[k]) - steps(y[k])).abs().flatten() for k in x])
                n, most = int((u > 0).sum()), int(u.max())
                print(f"     {n} of {u.numel()} elements differ, by {most} ulp at most")
                bad = differences(x, y, disk(src))  # a sum that all but cancels the weight is off by more of its own small units
            self.report(label + ": sum", bad)
        if not self.a.keep:
            shutil.rmtree(d)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--binary", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--data", default=HERE.parent / "fixtures")
    ap.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 20))
    ap.add_argument("--only", default="")
    ap.add_argument("--keep", action="store_true", help="leave adapters and outputs")
    a = ap.parse_args()
    import peft
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"seed {a.seed}; peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    run, rng = Run(a), random.Random(a.seed)
    cases = [(b, t, rs, m) for b, t, rs in BASES for m in METHODS]
    for i, (b, t, rs, m) in enumerate(cases):
        own = random.Random(rng.randrange(1 << 60))
        if a.only in f"{m} {b}":
            run.case(i, own, b, t, rs, m)
    print(json.dumps({"seed": a.seed, "passed": run.passed, "failed": run.failed}))
    sys.exit(1 if run.failed or not run.passed else 0)


if __name__ == "__main__":
    main()
