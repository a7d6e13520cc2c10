#!/usr/bin/env python3
"""Hold the 4-bit codes of a checkpoint against bitsandbytes' CUDA kernels.

  cuda_codes.py SRC OUT [SRC OUT ...]

OUT was made from SRC by `nf4conv quantize`. Every weight is quantized again by bitsandbytes on the GPU. Its kernels differ
from its own definition on the CPU in five ways, which are counted apart: all-zero blocks (code 0 for that of 0.0), the
short last block (a reciprocal for a division), the two codes of fp4 that stand for 0.0 (the CPU's goes by the sign of
the weight the other way), ties of fp4 (weights that lie on a threshold, whose decimal literals in the kernel are one unit
in the last place away), and an approximate reciprocal, which shows in float16 and float32 sources alone. Everything else
must be equal: exit 1 when it is not.
"""
import json
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import bitsandbytes.functional as F  # noqa: E402

import reference  # noqa: E402
from checkpoint import Checkpoint, source  # noqa: E402


def nibbles(packed):
    p = packed.reshape(-1)
    return torch.stack([p >> 4, p & 15], dim=1).reshape(-1)


def on_threshold(w, block, bs):
    """Whether |w|/absmax is within two units in the last place of the midpoint of two levels of fp4."""
    levels = torch.unique(F.get_4bit_type("fp4", device="cpu").double().abs())
    middle = (levels[1:] + levels[:-1]) / 2
    padded = torch.nn.functional.pad(w.abs(), (0, -w.numel() % bs)).reshape(-1, bs)
    v = w.abs() / padded.max(dim=1)[0][block].clamp(min=1e-38)
    near = (v[:, None] - middle[None, :]).abs() <= 2.0**-23 * middle[None, :]
    return near.any(dim=1)


def compare(src, out):
    """(weights, codes, differing codes by cause, differing absmax) of a checkpoint"""
    differ = {"zero block": 0, "short block": 0, "zeros of fp4": 0, "ties of fp4": 0, "reciprocal": 0, "other": 0}
    weights = codes = scales = 0
    dtype = reference.DTYPES[out.dtype()]
    for name, quant_type in out.quantized().items():
        meta = json.loads(bytes(out.get(f"{name}.quant_state.bitsandbytes__{quant_type}").numpy()))
        w = src.get(name)
        w = (w.t() if reference.is_conv1d(src.config, name) else w).to(dtype).contiguous().reshape(-1)
        bs, n = meta["blocksize"], w.numel()
        packed, state = F.quantize_4bit(w.cuda(), blocksize=bs, quant_type=quant_type, compress_statistics=False)
        theirs, ours = nibbles(packed.cpu())[:n], nibbles(out.get(name))[:n]
        wrong = theirs != ours
        block = torch.arange(n) // bs
        zero = torch.zeros((n + bs - 1) // bs, dtype=torch.bool).index_put_((block[w != 0],), torch.tensor(True)).logical_not()[block]
        short = block == n // bs
        differ["zero block"] += int((wrong & zero & ~short).sum())
        differ["short block"] += int((wrong & short).sum())
        zeros = wrong & ~zero & ~short & (quant_type == "fp4") & (theirs & 7 == 0) & (ours & 7 == 0)
        differ["zeros of fp4"] += int(zeros.sum())
        ties = wrong & ~zero & ~short & ~zeros & (quant_type == "fp4") & on_threshold(w.double(), block, bs)
        differ["ties of fp4"] += int(ties.sum())
        rest = int((wrong & ~zero & ~short & ~zeros & ~ties).sum())
        differ["other" if dtype == torch.bfloat16 else "reciprocal"] += rest
        if out.get(name + ".absmax").dtype == torch.float32:
            whole = n // bs
            scales += int((out.get(name + ".absmax")[:whole] != state.absmax.cpu()[:whole]).sum())
        weights, codes = weights + 1, codes + n
    return weights, codes, differ, scales


def main():
    bad, total = 0, {}
    verbose = len(sys.argv) < 10
    for src, out in zip(sys.argv[1::2], sys.argv[2::2]):
        weights, codes, differ, scales = compare(source(src), Checkpoint(out))
        wrong = differ["other"] or scales or differ["reciprocal"] > 1e-5 * codes + 2
        bad += bool(wrong)
        seen = ", ".join(f"{k} {v}" for k, v in differ.items() if v) or "none"
        if wrong or verbose:
            print(f"{'FAIL' if wrong else 'ok':4} {os.path.basename(out):40} {weights} weights, {codes} codes; differing codes: {seen}; absmax: {scales}")
        for k, v in differ.items():
            total[k] = total.get(k, 0) + v
        total["codes"] = total.get("codes", 0) + codes
    print(f"differing codes in all: {total}")
    print(f"{(len(sys.argv) - 1) // 2 - bad} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
