#!/usr/bin/env python3
"""Measure GEMM and attention on the CPU beside torch.

  attention.py [--binary KERNELBENCH] [--threads 1 N] [--rounds 9] [--lengths 512 1024 ...] [--only gemm|attention|sparse|weights]
               [--clock wall|cpu] [--calls N] [--json FILE]

For every case, a round is: multiply-adds in registers (the roof), nf4conv (internal/kernelbench), torch.matmul or torch's
scaled_dot_product_attention with its flash kernel, the roof again; one after the other, with a pause after each, as idle
threads of one may spin while the next is timed. Printed are medians over the rounds: GFLOP/s of both, nf4conv as a part of
the roof, and the ratio torch/nf4conv of times, with the ratio of the shortest times behind it. A machine that others use
makes both slower, not always alike: look at the spread (--json keeps every time). There, with one thread, --clock cpu
counts the processor time of each process instead, from which what other processes take is left out. The first call after the
pause finds little in the caches; with --calls 10 it is one of ten that are timed together.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("--binary", help="kernelbench; built when not given")
ap.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count()}))
ap.add_argument("--rounds", type=int, default=9)
ap.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
ap.add_argument("--only", choices=["gemm", "attention", "sparse", "weights"])
ap.add_argument("--clock", choices=["wall", "cpu"], default="wall")
ap.add_argument("--calls", type=int, default=1, help="timed together, at least")
ap.add_argument("--json")
args = ap.parse_args()
if args.clock == "cpu" and args.threads != [1]:
    sys.exit("attention.py: --clock cpu: waiting threads use processor time: expected --threads 1")

import torch  # after the arguments: --help needs no torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PAUSE = 0.03  # seconds: idle OpenMP threads spin for some milliseconds
SHORTEST = 0.004  # seconds: shorter calls are repeated and timed together


class Kernelbench:
    def __init__(self, binary):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("attention.py: kernelbench ended")
        return json.loads(line)


FIELD, CLOCK = {"wall": ("seconds", time.perf_counter), "cpu": ("cpu", time.process_time)}[args.clock]


def timed(call, repeated):
    start = CLOCK()
    for _ in range(repeated):
        call()
    return (CLOCK() - start) / repeated


rows = []


def case(ours, roofs, name, threads, request, peer=None):
    torch.set_num_threads(threads)
    first = ours.ask(threads=threads, **request)
    repeated = max(args.calls, round(SHORTEST / max(1e-6, first[FIELD])))
    peer_repeated = 1
    if peer:
        peer()
        peer_repeated = max(args.calls, round(SHORTEST / max(1e-6, timed(peer, 1))))
    mine, theirs, share = [], [], []
    for _ in range(args.rounds):
        time.sleep(PAUSE)
        before = roofs.ask(op="peak", threads=threads, repeated=4)
        got = ours.ask(threads=threads, repeated=repeated, **request)
        after = roofs.ask(op="peak", threads=threads, repeated=4)
        mine.append(got[FIELD])
        share.append(got["flop"] / got[FIELD] / ((before["flop"] / before[FIELD] + after["flop"] / after[FIELD]) / 2))
        if peer:
            time.sleep(PAUSE)
            theirs.append(timed(peer, peer_repeated))
    row = dict(case=name, threads=threads, tier=first["tier"], gflops=round(first["flop"] / statistics.median(mine) / 1e9, 1),
               best_gflops=round(first["flop"] / min(mine) / 1e9, 1), peak_percent=round(100 * statistics.median(share), 1), seconds=mine)
    text = f"{name:42} threads {threads}  {row['gflops']:7.1f} GFLOP/s (best {row['best_gflops']:.1f}), {row['peak_percent']:.1f} % of the roof"
    if peer:
        row.update(torch_gflops=round(first["flop"] / statistics.median(theirs) / 1e9, 1),
                   ratio=round(statistics.median(t / m for t, m in zip(theirs, mine)), 3), best_ratio=round(min(theirs) / min(mine), 3), torch_seconds=theirs)
        text += f"; torch {row['torch_gflops']:.1f}; {row['ratio']:.2f} x (best to best {row['best_ratio']:.2f} x)"
    rows.append(row)
    print(text, flush=True)
    return row


def main():
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
        binary = args.binary
        if not binary:
            binary = os.path.join(tmp, "kernelbench")
            subprocess.run(["go", "build", "-o", binary, "./internal/kernelbench"], check=True, cwd=os.path.dirname(os.path.dirname(HERE)))
        ours, roofs = Kernelbench(binary), Kernelbench(binary)  # two, so that tensors are kept while the roof is measured
        print(f"torch {torch.__version__}, {os.cpu_count()} processors, medians of {args.rounds} rounds, {args.clock} clock")
        for threads in args.threads:
            if args.only in (None, "gemm"):
                n = 2048
                a, w = torch.randn(n, n), torch.randn(n, n)
                case(ours, roofs, f"gemm {n}^3 float32", threads, dict(op="gemm", m=n, n=n, k=n), lambda: torch.matmul(a, w.T))
            if args.only in (None, "weights"):
                n, k = 8192, 2048
                read = [ask["flop"] / ask[FIELD] / 1e9 for ask in (roofs.ask(op="read") for _ in range(args.rounds))]
                print(f"one thread reads {statistics.median(read):.1f} GB/s")
                for m in (1, 2, 4, 8, 16, 512):
                    for weights, bytes_of in (("float32", 4), ("bfloat16", 2), ("nf4", 0.5 + 4 / 64)):
                        row = case(ours, roofs, f"gemm {m} x {k} x {n}, {weights} weights", threads, dict(op="gemm", m=m, n=n, k=k, weights=weights))
                        if m <= 16:
                            rate = n * k * bytes_of / statistics.median(row["seconds"]) / 1e9
                            print(f"    {rate:.1f} GB/s of weights, {100 * rate / statistics.median(read):.0f} % of one thread's reading")
            if args.only in (None, "attention"):
                for d in (64, 128):
                    for s in args.lengths:
                        heads = max(1, 4096 // s)
                        q, k, v = (torch.randn(1, heads, s, d) for _ in range(3))
                        for causal in (False, True):
                            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                                case(ours, roofs, f"attention d {d}, S {s}, {heads} heads, {'causal' if causal else 'full'}", threads,
                                     dict(op="attention", heads=heads, s=s, d=d, causal=causal),
                                     lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
            if args.only in (None, "sparse"):
                for d in (64, 128):
                    for block in (64, 128):
                        for density in (1.0, 0.5, 0.2, 0.1, 0.05):
                            case(ours, roofs, f"attention d {d}, S 4096, {block}-blocks, density {density}", threads,
                                 dict(op="attention", heads=2, s=4096, d=d, block=block, density=density))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


main()
