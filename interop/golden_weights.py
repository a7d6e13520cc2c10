#!/usr/bin/env python3
"""Writes weights/testdata/dequantize.jsonl: what the real tools read out of small quantized tensors.

  golden_weights.py OUT.jsonl     needs torch, numpy, transformers and bitsandbytes

The first line holds the versions. Every other line is a checkpoint with one quantized weight:
  "scheme", "config": quantization_config or null; "tensors": name, dtype, shape and data (base64) of what is stored;
  "name", "shape", "values": the weight as the tool reads it, its float32 bits (base64)

fp8 is Fp8Dequantize of transformers, asked for float32; mxfp4 its convert_moe_packed_tensors; nf4 and fp4 are
dequantize_4bit of bitsandbytes on what its own quantize_4bit and QuantState.as_dict made, asked for one row (with
several rows that are not whole blocks the AVX-512 code of bitsandbytes 0.50 reads wrong scales).
"""
import base64
import json
import sys

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import torch
import transformers
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3"}
rng = np.random.default_rng(20)


def b64(t):
    return base64.b64encode(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).decode()


def stored(name, t):
    return {"name": name, "dtype": NAMES[t.dtype], "shape": list(t.shape), "data": b64(t)}


def line(scheme, config, tensors, name, values):
    return {"scheme": scheme, "config": config, "tensors": [stored(n, t) for n, t in tensors], "name": name,
            "shape": list(values.shape), "values": b64(values.to(torch.float32))}


def fp8(rows, cols, block_rows, block_cols, scale_dtype, codes):
    w = torch.from_numpy(codes.reshape(rows, cols)).view(torch.float8_e4m3fn)
    s = torch.from_numpy(rng.lognormal(-6, 2, (rows // block_rows, cols // block_cols)).astype(np.float32)).to(scale_dtype)
    out = Fp8Dequantize(None)._dequantize_one(w, s, output_dtype=torch.float32)
    config = {"quant_method": "fp8", "weight_block_size": [block_rows, block_cols]}
    return line("fp8", config, [("m.q_proj.weight", w), ("m.q_proj.weight_scale_inv", s)], "m.q_proj.weight", out)


def finite(n):
    """codes of float8_e4m3fn without its two NaN"""
    c = rng.integers(0, 254, n)
    return (c + (c >= 127)).astype(np.uint8)


def mxfp4(experts, out, groups, lo, hi):
    blocks = torch.from_numpy(rng.integers(0, 256, (experts, out, groups, 16), dtype=np.uint8))
    scales = torch.from_numpy(rng.integers(lo, hi, (experts, out, groups), dtype=np.uint8))
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    name = "m.experts.down_proj"
    return line("mxfp4", {"quant_method": "mxfp4"}, [(name + "_blocks", blocks), (name + "_scales", scales)], name, values)


def four(quant_type, rows, cols, block, nested, dtype):
    x = torch.from_numpy(rng.normal(0, 0.02, (rows, cols)).astype(np.float32)).to(dtype)
    q, state = F.quantize_4bit(x, blocksize=block, quant_type=quant_type, compress_statistics=nested)
    name = "m.q_proj.weight"
    parts = [(name, q)] + [(f"{name}.{k}", v) for k, v in state.as_dict(packed=True).items()]
    state.shape = torch.Size([1, rows * cols])
    values = F.dequantize_4bit(q, state).reshape(rows, cols)
    return line(quant_type, None, parts, name, values)


def main():
    torch.set_num_threads(1)
    lines = [{"program": "interop/golden_weights.py", "torch": torch.__version__, "transformers": transformers.__version__,
              "bitsandbytes": bnb.__version__, "numpy": np.__version__}]
    every = np.arange(256, dtype=np.uint8)
    lines.append(fp8(16, 16, 4, 8, torch.float32, every[rng.permutation(256)]))
    lines.append(fp8(24, 36, 8, 12, torch.bfloat16, finite(24 * 36)))
    lines.append(fp8(6, 40, 3, 4, torch.float16, finite(240)))
    lines.append(fp8(5, 7, 1, 1, torch.float32, finite(35)))
    lines.append(fp8(9, 11, 9, 11, torch.float32, finite(99)))
    lines.append(mxfp4(2, 5, 3, 110, 140))
    lines.append(mxfp4(1, 64, 2, 0, 255))  # 2^-127 to 2^127: subnormal numbers and infinities, too; 255 is NaN
    for quant_type in ("nf4", "fp4"):
        for rows, cols, block, nested, dtype in [(5, 13, 32, False, torch.float32), (6, 64, 64, False, torch.bfloat16),
                                                 (9, 33, 64, True, torch.float16), (96, 100, 32, True, torch.bfloat16), (3, 3, 4096, True, torch.float32)]:
            lines.append(four(quant_type, rows, cols, block, nested, dtype))
    with open(sys.argv[1], "w") as f:
        f.writelines(json.dumps(x) + "\n" for x in lines)
    print(f"{sys.argv[1]}: {len(lines) - 1} weights")


if __name__ == "__main__":
    main()
