"""Rates of bitsandbytes' quantize_4bit and dequantize_4bit on one thread of the CPU.

    .venv/v5/bin/python interop/bench_quant4.py [ELEMENTS]

Bytes of the bfloat16 side a second, on the wall and of the thread's own time; of seven runs the
median. docs/benchmarks.md sets them beside kernels/quant4.
"""
import statistics
import sys
import time

import bitsandbytes
import bitsandbytes.functional as F
import torch


def rate(run, size):
    wall, cpu = [], []
    for _ in range(7):
        w, c = time.perf_counter(), time.thread_time()
        result = run()
        wall.append(size / (time.perf_counter() - w) / 1e9)
        cpu.append(size / (time.thread_time() - c) / 1e9)
    return result, statistics.median(wall), statistics.median(cpu)


def main():
    torch.set_num_threads(1)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 22
    x = (torch.randn(n) * 0.02).to(torch.bfloat16).reshape(-1, 64)
    print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, {torch.get_num_threads()} thread, {n} elements")
    (packed, state), wall, cpu = rate(lambda: F.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=False), 2 * n)
    print(f"quantize    {wall:.3f} GB/s on the wall, {cpu:.3f} GB/cpu-s")
    _, wall, cpu = rate(lambda: F.dequantize_4bit(packed, state), 2 * n)
    print(f"dequantize  {wall:.2f} GB/s on the wall, {cpu:.2f} GB/cpu-s")


main()
