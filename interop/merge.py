#!/usr/bin/env python3
"""Hold `nf4conv merge` against the real PEFT, on adapters made afresh.

  merge.py --binary nf4conv --out DIR [--data DIR] [--seed N] [--only TEXT]

For every base and every way of training below, PEFT makes an adapter, its values are drawn at random, and PEFT saves it.
Then:

  once        equals merge_and_unload() on the base in its stored dtype, where that rounds once
  peft-safe   equals merge_and_unload(safe_merge=True)
  function    transformers loads the output without a missing or unexpected key, and its logits, with the base in float32, are
              those of the base with the adapter attached: the only judge of tied embeddings, which PEFT's own merge changes
  nf4         with --quantize nf4 the output has the bytes of quantizing the merged checkpoint, and transformers loads it
  refused     what is trained against another base is refused with exit code 4, and nothing is written

An element counts as equal when it is at most one unit in the last place off, or within the error of a float32 sum of the
same terms in another order; fewer than one in a thousand may be. Exit 1 when anything failed. The seed is printed.
"""
import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

HERE = Path(__file__).resolve().parent
QV = ["q_proj", "v_proj"]
ALL7 = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ways(rng):
    """(name, base, LoraConfig keys, refused) of every case; ranks and scales are drawn."""
    r = lambda: rng.randint(1, 9)  # noqa: E731
    a = lambda: rng.choice([rng.randint(1, 32), rng.uniform(0.5, 20)])  # noqa: E731
    for base in ("arch/llama", "arch/mistral", "arch/qwen3", "arch/gemma2", "models/kjv-llama"):
        yield "plain", base, dict(r=r(), lora_alpha=a(), target_modules=ALL7), False
    yield "rslora", "arch/mistral", dict(r=r(), lora_alpha=a(), target_modules=ALL7, use_rslora=True), False
    yield "dora", "arch/mistral", dict(r=r(), lora_alpha=a(), target_modules=ALL7, use_dora=True), False
    yield "dora rslora", "arch/qwen3", dict(r=r(), lora_alpha=a(), target_modules=QV, use_dora=True, use_rslora=True), False
    yield "patterns", "arch/qwen2", dict(r=r(), lora_alpha=a(), target_modules=ALL7,
                                         rank_pattern={"q_proj": r(), r"layers\.1\.mlp\.\w+_proj": r()}, alpha_pattern={"layers.0.self_attn.k_proj": a(), "down_proj": a()}), False
    yield "lora_bias", "arch/qwen2", dict(r=r(), lora_alpha=a(), target_modules=["q_proj", "k_proj"], lora_bias=True), False
    yield "bias all", "arch/phi", dict(r=r(), lora_alpha=a(), target_modules=["q_proj", "fc1"], bias="all"), False
    yield "bias lora_only", "arch/opt", dict(r=r(), lora_alpha=a(), target_modules=["q_proj", "fc2"], bias="lora_only"), False
    yield "conv1d", "arch/gpt2", dict(r=r(), lora_alpha=a(), target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), False
    yield "conv1d dora", "arch/gpt2", dict(r=r(), lora_alpha=a(), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True), False
    yield "fused", "arch/gpt_neox", dict(r=r(), lora_alpha=a(), target_modules=["query_key_value", "dense_h_to_4h"]), False
    yield "fused", "arch/phi3", dict(r=r(), lora_alpha=a(), target_modules="all-linear"), False
    yield "embeddings", "arch/mistral", dict(r=r(), lora_alpha=a(), target_modules=["embed_tokens", "lm_head", "v_proj"]), False
    yield "embeddings dora", "arch/mistral", dict(r=r(), lora_alpha=a(), target_modules=["embed_tokens"], use_dora=True), False
    yield "tied embedding", "arch/llama", dict(r=r(), lora_alpha=a(), target_modules=["embed_tokens", "q_proj"]), False
    yield "tied head", "arch/gemma2", dict(r=r(), lora_alpha=a(), target_modules=["lm_head", "q_proj"]), False
    yield "tied wte", "arch/gpt2", dict(r=r(), lora_alpha=a(), target_modules=["wte", "c_attn"], fan_in_fan_out=True), False
    yield "tied as one", "arch/llama", dict(r=r(), lora_alpha=a(), target_modules=["embed_tokens", "lm_head", "q_proj"], ensure_weight_tying=True), False
    yield "modules_to_save", "arch/mistral", dict(r=r(), lora_alpha=a(), target_modules=QV, modules_to_save=["embed_tokens", "lm_head", "norm"]), False
    yield "tied saved head", "arch/llama", dict(r=r(), lora_alpha=a(), target_modules=QV, modules_to_save=["lm_head"]), False
    yield "tied saved embedding", "arch/qwen3", dict(r=r(), lora_alpha=a(), target_modules=QV, modules_to_save=["embed_tokens"]), False
    yield "token rows", "arch/mistral", dict(r=r(), lora_alpha=a(), target_modules=QV, trainable_token_indices=[9, 3, 100]), False
    yield "tied token rows", "arch/llama", dict(r=r(), lora_alpha=a(), target_modules=QV, trainable_token_indices={"embed_tokens": [11, 2]}), False
    for base in ("arch/mixtral", "arch/qwen3_moe"):
        yield "experts", base, dict(r=r(), lora_alpha=a(), target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]), False
        yield "expert down", base, dict(r=r(), lora_alpha=a(), target_modules=["o_proj"], target_parameters=["experts.down_proj"]), False
    for init in ("pissa", "olora"):
        yield init, "arch/mistral", dict(r=2, lora_alpha=4, target_modules=QV, init_lora_weights=init), True
    yield "alora", "arch/mistral", dict(r=2, lora_alpha=4, target_modules=QV, alora_invocation_tokens=[5, 6]), True


def load(path, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@torch.no_grad()
def draw(model, seed):
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        low = name.lower()
        if "original_module" in low:
            continue
        x = torch.randn(p.shape, generator=g).to(p.dtype)
        if "lora_b." in low and low.endswith("bias"):
            p.copy_(0.1 * x)
        elif "lora_magnitude" in low:
            p.mul_(1 + 0.1 * x)
        elif "lora_a" in low or "lora_b" in low or "lora_embedding" in low:
            p.copy_(x / math.sqrt(p.shape[-1]) if "lora_a" in low else 0.1 * x)
        elif "token_adapter" in low or "modules_to_save" in low or (p.requires_grad and "bias" in low):
            p.add_(0.05 * x)


def mirror(path):
    """Factors that were trained as one are equal; drawing them made them differ."""
    from safetensors.torch import save_file
    f = path / "adapter_model.safetensors"
    t = load_file(f)
    p = "base_model.model."
    t[p + "lm_head.lora_A.weight"] = t[p + "model.embed_tokens.lora_embedding_B"].T.contiguous().clone()
    t[p + "lm_head.lora_B.weight"] = t[p + "model.embed_tokens.lora_embedding_A"].T.contiguous().clone()
    save_file(t, f, metadata={"format": "pt"})


def disk(path):
    out = {}
    for f in sorted(Path(path).glob("model*.safetensors")):
        out.update(load_file(f))
    return out


def peft_merge(base, adapter, safe):
    merged = PeftModel.from_pretrained(load(base), adapter).merge_and_unload(safe_merge=safe)
    with tempfile.TemporaryDirectory() as t:
        merged.save_pretrained(t)
        return {k: v.clone() for k, v in disk(t).items()}


def steps(t):
    i = t.contiguous().view(torch.int16 if t.element_size() == 2 else torch.int32).to(torch.int64)
    return torch.where(i < 0, -(i + (1 << (t.element_size() * 8 - 1))), i)


def b_signed(base, k, y):
    return base[k].double() if k in base and base[k].shape == y.shape else torch.zeros(y.shape, dtype=torch.float64)


def differences(got, want, base, safe=False):
    bad = [f"{k} is missing" for k in want if k not in got] + [f"{k} is not PEFT's" for k in got if k not in want]
    for k in sorted(set(got) & set(want)):
        x, y = got[k], want[k]
        if x.dtype != y.dtype or x.shape != y.shape:
            bad.append(f"{k}: {x.dtype} {tuple(x.shape)}, PEFT has {y.dtype} {tuple(y.shape)}")
            continue
        u = (steps(x) - steps(y)).abs()
        if not int(u.max()):
            continue
        b = b_signed(base, k, y).abs()
        # The terms of a sum are of the size of the deltas around it, also where they cancel each other and the weight.
        terms = (y.double() - b_signed(base, k, y)).square().mean().sqrt()
        near = (u <= 1) | ((x.double() - y.double()).abs() <= 4e-6 * (b + y.double().abs()) + 1e-6 * terms)
        if safe:  # a delta at the edge of two roundings is off by one of its own units, which may be many of a small sum, and that is rounded again
            near |= (x.double() - y.double()).abs() <= torch.finfo(y.dtype).eps * ((y.double() - b_signed(base, k, y)).abs() + y.double().abs())
        n = int((u > 0).sum())
        # In float32 every other sum may differ in its last bit: there is no share to be held.
        if not bool(near.all()) or (x.element_size() == 2 and n > max(1, u.numel() / 1000)):
            bad.append(f"{k}: {n} of {u.numel()} elements differ, {int((~near).sum())} of them by more than rounding, largest {int(u.max())} ulp")
    return bad


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


class Run:
    def __init__(self, args):
        self.a, self.failed, self.passed = args, 0, 0

    def tool(self, *args, code=0):
        r = subprocess.run([self.a.binary, *map(str, args), "-q"], capture_output=True, text=True)
        return [] if r.returncode == code else [f"exit code {r.returncode} instead of {code}: {r.stderr.strip()}"]

    def report(self, what, bad):
        print(f"{what:46s} {'ok' if not bad else 'FAIL'}", flush=True)
        for b in bad[:6]:
            print("    ", b)
        self.failed += bool(bad)
        self.passed += not bad

    def case(self, i, name, base, keys, refused):
        src, d = Path(self.a.data) / base, Path(self.a.out) / f"{i:02d}"
        shutil.rmtree(d, ignore_errors=True)
        d.mkdir(parents=True)
        seed = self.a.seed * 1000 + i
        torch.manual_seed(seed)
        adapter = d / "adapter"
        model = get_peft_model(load(src, torch.float32), LoraConfig(task_type="CAUSAL_LM", **keys))
        if not refused:
            draw(model, seed)
        model.save_pretrained(adapter)
        if name == "tied as one":
            mirror(adapter)
        label = f"{name}, {base.split('/')[1]}, r {keys['r']}"
        if refused:
            bad = self.tool("merge", src, d / "out", "--adapter", adapter, code=4)
            self.report(label + ": refused", bad + [f"{p} was written" for p in d.iterdir() if p.name != "adapter"])
            return
        bad = self.tool("merge", src, d / "once", "--adapter", adapter) + self.tool("merge", src, d / "safe", "--adapter", adapter, "--rounding", "peft-safe")
        if bad:
            return self.report(label, bad)
        b = disk(src)
        if not name.startswith("tied"):
            if not name.startswith(("embeddings", "expert")) or "dora" in name:
                self.report(label + ": once", differences(disk(d / "once"), peft_merge(src, adapter, False), b))
            self.report(label + ": peft-safe", differences(disk(d / "safe"), peft_merge(src, adapter, True), b, True))
        self.report(label + ": function", self.function(src, d, adapter, seed))
        bad = self.tool("merge", src, d / "nf4", "--adapter", adapter, "--quantize", "nf4") + self.tool("quantize", d / "once", d / "two")
        if not bad:
            x, y = disk(d / "nf4"), disk(d / "two")
            bad = [f"{k} differs" for k in sorted(set(x) | set(y)) if k not in x or k not in y or not torch.equal(x[k].view(-1).view(torch.uint8), y[k].view(-1).view(torch.uint8))]
            bad += self.loads(d / "nf4", "auto")
        self.report(label + ": nf4", bad)
        if not self.a.keep:
            shutil.rmtree(d)

    def convolutions(self, seed):
        """Layers that no causal language model has."""
        from safetensors.torch import save_file

        class Layers(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.one = torch.nn.Conv1d(6, 10, 3)
                self.two = torch.nn.Conv2d(5, 7, (3, 2))
                self.point = torch.nn.Conv2d(8, 4, 1)
                self.linear = torch.nn.Linear(9, 11)

        for dtype in (torch.float32, torch.bfloat16):
            for keys in (dict(), dict(use_rslora=True), dict(use_dora=True), dict(lora_bias=True)):
                d = Path(self.a.out) / "conv"
                shutil.rmtree(d, ignore_errors=True)
                (d / "base").mkdir(parents=True)
                torch.manual_seed(seed)
                base = Layers().to(dtype)
                save_file(base.state_dict(), d / "base" / "model.safetensors", metadata={"format": "pt"})
                (d / "base" / "config.json").write_text(json.dumps({"model_type": "layers", "dtype": str(dtype).split(".")[1]}))
                before = {k: v.clone() for k, v in base.state_dict().items()}
                model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["one", "two", "point", "linear"], **keys))
                draw(model, seed)
                model.save_pretrained(d / "adapter")
                want = {k: v.clone() for k, v in model.merge_and_unload().state_dict().items()}
                bad = self.tool("merge", d / "base", d / "out", "--adapter", d / "adapter")
                self.report(f"convolutions, {dtype}, {' '.join(keys) or 'plain'}", bad or differences(disk(d / "out"), want, before))

    def loads(self, path, dtype):
        _, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
        return [f"{k}: {sorted(v)[:3]}" for k, v in info.items() if v and k != "error_msgs"]

    def function(self, src, d, adapter, seed):
        """The base widened to float32, so that what is left is the order of sums."""
        wide = d / "wide"
        model = load(src, torch.float32)
        model.save_pretrained(wide)
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, min(model.config.vocab_size, 250), (2, 12), generator=g)
        want = logits(PeftModel.from_pretrained(load(src, torch.float32), adapter).eval(), ids)
        bad = self.tool("merge", wide, d / "function", "--adapter", adapter)
        if bad:
            return bad
        bad = self.loads(d / "function", torch.float32)
        gap = (logits(load(d / "function", torch.float32), ids) - want).abs().max().item()
        effect = (logits(model, ids) - want).abs().max().item()
        # Sums in another order, through a few layers: seen up to 2e-5 of the largest logit.
        if not gap <= 1e-4 * max(2, want.abs().max().item()) or not effect > 1e-2:
            bad.append(f"largest difference of a logit {gap:.2g}; the adapter's own effect is {effect:.2g}")
        return bad


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
    run, n = Run(a), 0
    for i, (name, base, keys, refused) in enumerate(ways(random.Random(a.seed))):
        if a.only in f"{name} {base}":
            n += 1
            run.case(i, name, base, keys, refused)
    if a.only in "convolutions":
        run.convolutions(a.seed)
        n += 1
    print(json.dumps({"seed": a.seed, "cases": n, "passed": run.passed, "failed": run.failed}))
    sys.exit(1 if run.failed or not run.passed else 0)


if __name__ == "__main__":
    main()
