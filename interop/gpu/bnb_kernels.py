#!/usr/bin/env python3
"""bitsandbytes' CUDA kernels on the standard case of `nf4conv bench`: 8192 x 8192 bfloat16, nf4, blocks of 64."""
import bitsandbytes.functional as F
import torch

N = 8192
w = (torch.randn(N, N, device="cuda") * 0.02).bfloat16()
dst = torch.empty_like(w)


def median(f, n=20, runs=7):
    times = []
    for _ in range(runs + 1):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for _ in range(n):
            f()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b) / n * 1e-3)
    return sorted(times[1:])[runs // 2]


per = 2 + 0.5 + 4 / 64
for name, nested in (("plain", False), ("double quantization", True)):
    packed, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=nested)
    q = median(lambda: F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=nested))
    d = median(lambda: F.dequantize_4bit(packed, state))
    print(f"bitsandbytes {name}: quantize {q * 1e6:.0f} us, {per * N * N / q / 1e9:.0f} GB/s; dequantize {d * 1e6:.0f} us, {per * N * N / d / 1e9:.0f} GB/s")
c = median(lambda: dst.copy_(w))
print(f"copy within the device: {c * 1e6:.0f} us, {4 * N * N / c / 1e9:.0f} GB/s")
