#!/usr/bin/env python3
"""Writes nf4/testdata/quant4.jsonl.zst: what bitsandbytes makes of generated tensors.

  golden_quant4.py OUT.jsonl.zst     needs torch, numpy, bitsandbytes and the zstd program

The first line holds the versions. Then one line per tensor:
  "quant": type, dtype, block, kind, n, seed; sha256 of source, packed, absmax and dequantized bytes; for small
           tensors packed and absmax themselves (base64)
  "nested": count and seed of a list of absmax; offset (float32 bits), codes, nested absmax, sha256 of the
           reconstructed absmax

Sources are made from integers, so that the test makes the same ones: see source() and scales(). quantize_4bit is the
real operation. Dequantization is the real one too, asked for one row of n elements (with several rows that are not
whole blocks the AVX-512 code of bitsandbytes 0.50 reads wrong scales), and must equal table[code]*absmax in torch.
Nested codes are the exact nearest entries of bitsandbytes' own map, by torch.bucketize, since its native code on CPUs
looks them up in a table that is one off for 0.1 % of values; the reconstruction is its real dequantize_blockwise.
"""
import base64
import hashlib
import json
import subprocess
import sys

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ["bell", "zeros", "subnormal", "bits", "ties"]
BLOCKS = [32, 64, 128, 256, 512, 1024, 2048, 4096]
SMALL = 700


def words(seed, n):
    """splitmix64: word i is the hash of seed * 2^32 + i + 1"""
    with np.errstate(over="ignore"):
        z = (np.uint64(seed) << np.uint64(32)) + np.arange(1, n + 1, dtype=np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def bell(z):
    """the sum of four 16-bit integers, centred: exact in float32"""
    s = sum((z >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(4)).astype(np.int64) - 131070
    return (s.astype(np.float32) * np.float32(2.0**-22)).astype(np.float32)


def thresholds(quant_type):
    v = np.sort(F.get_4bit_type(quant_type, device="cpu").numpy())
    return ((v[:-1] + v[1:]) / np.float32(2)).astype(np.float32)


def source(kind, quant_type, dtype, block, n, seed):
    z = words(seed, n)
    i = np.arange(n)
    dt = DTYPES[dtype]
    if kind in ("subnormal", "bits"):  # raw bits, finite; "subnormal" keeps sign and fraction only
        ut, frac, exp = {"float32": (np.uint32, 23, 8), "bfloat16": (np.uint16, 7, 8), "float16": (np.uint16, 10, 5)}[dtype]
        ones = ((1 << exp) - 1) << frac
        b = z & np.uint64((1 << (frac + exp + 1)) - 1)
        if kind == "subnormal":
            b &= ~np.uint64(ones)
        else:  # a full exponent loses its lowest bit
            b = np.where(b & np.uint64(ones) == np.uint64(ones), b & ~np.uint64(1 << frac), b)
        it = torch.int32 if ut is np.uint32 else torch.int16
        return torch.from_numpy(b.astype(ut).view(np.int32 if it == torch.int32 else np.int16)).view(dt)
    x = bell(z)
    if kind == "zeros":  # every third block holds zeros of both signs
        x = np.where(i // block % 3 == 1, np.where(i % 2 == 1, np.float32(-0.0), np.float32(0)), x)
    if kind == "ties":  # the scale is 2^-5, the others are thresholds and their neighbours
        t = thresholds(quant_type)[(z % np.uint64(15)).astype(np.int64)]
        step = ((z >> np.uint64(8)) % np.uint64(3)).astype(np.int64) - 1
        t = np.where(t == 0, t, (t.view(np.int32) + step).astype(np.int32).view(np.float32))
        x = np.where(i % block == 0, np.float32(1), t) * np.float32(2.0**-5)
    return torch.from_numpy(x.astype(np.float32)).to(dt)


def scales(n, seed):
    """absmax: positive integers over 2^20; all equal for odd seeds below 4"""
    z = words(seed, n)
    if seed in (1, 3):
        return np.full(n, 0.125, np.float32)
    return ((z & np.uint64(0xFFFFF)).astype(np.float32) * np.float32(2.0**-20)).astype(np.float32)


def fixed_sum(a):
    """per 4096 values 64 strided sums, folded by halves; then the sums in the same way"""
    while True:
        out = []
        for k in range(0, a.size, 4096):
            g = a[k: k + 4096]
            acc = np.zeros(64)
            for j in range(0, g.size, 64):
                acc[: g[j: j + 64].size] += g[j: j + 64]
            while acc.size > 1:
                acc = acc[: acc.size // 2] + acc[acc.size // 2:]
            out.append(acc[0])
        a = np.array(out)
        if a.size == 1:
            return a[0]


def raw(t):
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sha(b):
    return hashlib.sha256(b).hexdigest()


def b64(b):
    return base64.b64encode(b).decode()


def quant(quant_type, dtype, block, kind, n, seed):
    x = source(kind, quant_type, dtype, block, n, seed)
    q, st = F.quantize_4bit(x, blocksize=block, quant_type=quant_type, compress_statistics=False)
    st.shape = torch.Size([1, n])
    d = F.dequantize_4bit(q, st).reshape(-1)
    table = F.get_4bit_type(quant_type, device="cpu")
    codes = torch.stack([q.reshape(-1) >> 4, q.reshape(-1) & 15], 1).reshape(-1)[:n].long()
    want = (table[codes] * st.absmax.repeat_interleave(block)[:n]).to(x.dtype)
    if raw(d) != raw(want):
        print(f"real dequantize differs from the formula: {quant_type} {dtype} block {block} {kind} n {n}", file=sys.stderr)
    out = {"op": "quant", "type": quant_type, "dtype": dtype, "block": block, "kind": kind, "n": n, "seed": seed,
           "source_sha256": sha(raw(x)), "packed_sha256": sha(raw(q)), "absmax_sha256": sha(raw(st.absmax)),
           "dequantized_sha256": sha(raw(want)), "real_dequantize_equal": raw(d) == raw(want)}
    if n <= SMALL:
        out["packed"], out["absmax"] = b64(raw(q)), b64(raw(st.absmax))
    return out


def nested(n, seed):
    a = scales(n, seed)
    offset = np.float32(fixed_sum(a.astype(np.float64)) / n)
    code = F.create_dynamic_map()
    y = torch.from_numpy(a) - torch.tensor(offset)
    v = torch.nn.functional.pad(y, (0, -n % 256)).reshape(-1, 256)
    am = v.abs().max(dim=-1)[0]
    s = torch.clamp(v * (1.0 / am.clamp(min=1e-38)).view(-1, 1), -1, 1).reshape(-1)[:n]
    codes = torch.bucketize(s, (code[:-1] + code[1:]) / 2, out_int32=True).to(torch.uint8)
    back = F.dequantize_blockwise(codes, absmax=am, code=code, blocksize=256) + torch.tensor(offset)
    return {"op": "nested", "n": n, "seed": seed, "offset": f"{offset.view(np.uint32):08x}", "source_sha256": sha(a.tobytes()),
            "codes_sha256": sha(raw(codes)), "nested": b64(raw(am)), "absmax_sha256": sha(raw(back))}


def main():
    torch.set_num_threads(1)
    lines = [{"op": "about", "program": "interop/golden_quant4.py", "bitsandbytes": bnb.__version__, "torch": torch.__version__,
              "numpy": np.__version__, "simd": torch.backends.cpu.get_cpu_capability()}]
    seed = 10
    for quant_type in ("nf4", "fp4"):
        for dtype in DTYPES:
            for block in BLOCKS:
                lengths = [1, 2, 3, block - 1, block, block + 1, 2 * block, 3 * block + block // 2 + 1, 4 * block - 2, 4 * block + 7]
                for kind in KINDS:
                    for more in range(2 if block <= 64 else 1):
                        n = lengths[seed % len(lengths)] if seed % 3 else lengths[-1 - more]
                        lines.append(quant(quant_type, dtype, block, kind, n, seed))
                        seed += 1
    for k, n in enumerate([1, 200, 256, 257, 300, 511, 512, 1000, 4095, 4096, 4097, 20000, 70001]):
        lines.append(nested(n, k))
    text = "".join(json.dumps(x) + "\n" for x in lines)
    subprocess.run(["zstd", "-q", "-19", "-f", "-o", sys.argv[1]], input=text.encode(), check=True)
    print(f"{sys.argv[1]}: {len(lines) - 1} tensors, {sum(not x.get('real_dequantize_equal', True) for x in lines)} of them dequantized otherwise")


if __name__ == "__main__":
    main()
