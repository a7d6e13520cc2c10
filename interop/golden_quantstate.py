#!/usr/bin/env python3
"""Writes formats/bnb/testdata/quantstate.jsonl: what Python's json.dumps makes of quant states.

  golden_quantstate.py OUT.jsonl     needs nothing but Python

Lines {"state": TEXT} hold the JSON of whole quant states, with the keys that bitsandbytes writes in its order. Lines
{"offsets": {BITS: TEXT}} hold the text of one float32 each, by the hexadecimal of its bits: a float32 widened to a double,
which is what torch's item() gives bitsandbytes for nested_offset. Whether bits are random matters less than that every exponent
and the edges between Python's two notations (1e-4, 1e16) are there.
"""
import itertools
import json
import math
import random
import struct
import sys


def widen(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


rng = random.Random(4)
patterns = {0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF}
for exponent in range(255):  # of every binade the ends, and something between
    patterns.update((exponent << 23, exponent << 23 | 1, exponent << 23 | 0x7FFFFF, exponent << 23 | rng.getrandbits(23)))
for power in range(-45, 39):  # neighbours of the powers of ten
    at = bits(float(f"1e{power}"))
    patterns.update(p for p in (at - 1, at, at + 1) if p >= 0)
for _ in range(600):  # subnormals
    patterns.add(rng.getrandbits(1) << 31 | rng.getrandbits(rng.randint(1, 23)))
for _ in range(1200):  # where offsets lie: means of absmax
    patterns.add(bits(10 ** rng.uniform(-6, 2)))
while len(patterns) < 5000:
    p = rng.getrandbits(32)
    if math.isfinite(widen(p)):
        patterns.add(p)

shapes = [[], [1], [128, 64], [64, 128], [1, 1], [0, 8], [151936, 896], [4096, 14336], [2147483648, 2], [7, 3, 5]]
blocks = [32, 64, 128, 256, 512, 1024, 2048, 4096]
offsets = [0x3D0249A1, 0, 0x80000000, 1, 0x38D1B717, 0x38D1B716, 0x5A0E1BC9, 0x5A0E1BCA, 0x3F800000, 0x7F7FFFFF, 0xFF7FFFFF]
states = []
for k, (t, d, s) in enumerate(itertools.product(["nf4", "fp4"], ["float32", "bfloat16", "float16"], shapes)):
    plain = {"quant_type": t, "blocksize": blocks[k % len(blocks)], "dtype": d, "shape": s}
    nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": widen(offsets[k % len(offsets)])}
    states += [plain, plain | nested]

with open(sys.argv[1], "w", encoding="ascii") as out:
    for s in states:
        out.write(json.dumps({"state": json.dumps(s)}) + "\n")
    ordered = sorted(patterns)
    for i in range(0, len(ordered), 100):
        line = {f"{p:08x}": json.dumps(widen(p)) for p in ordered[i : i + 100]}
        out.write(json.dumps({"offsets": line}, separators=(",", ":")) + "\n")
