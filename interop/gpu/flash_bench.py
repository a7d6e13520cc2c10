#!/usr/bin/env python3
"""Our FlashAttention kernels on a GPU: accuracy against float64, and speed beside torch's.

  flash_bench.py --image kernels.cubin [--family sm80] [--json FILE] STEP...

  check    the gates of accuracy over shapes, masks, distributions and types
  repeat   100 launches of one problem give the same bits
  speed    TFLOP/s, forward, 16k tokens, hidden size 2048, beside torch's SDPA backends
  textbook softmax(QK^T)V written out in fp16, and torch's math backend, with their memory
  sparse   block-sparse attention, TFLOP/s on the blocks that exist; 64k tokens
  flex     the same with flex_attention (compiles for a minute)
  memory   what a launch takes beyond its tensors

FLOPs are counted as in the FlashAttention papers: 4*Sq*Sk*dim*heads*batch, half when causal.
Prints a table; exits 1 when a gate fails.
"""
import argparse
import json
import math
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flash_launch import FAMILIES, BlockMask

failures = []
records = []


def record(**row):
    records.append(row)


def visible(sq, sk, causal=False, window=(-1, -1), mask=None, **_):
    """Bool [sq, sk], or None when everything is."""
    if not causal and window == (-1, -1) and mask is None:
        return None
    p = torch.arange(sq, device="cuda")[:, None] + sk - sq
    j = torch.arange(sk, device="cuda")[None, :]
    ok = torch.ones(sq, sk, dtype=torch.bool, device="cuda")
    left, right = window
    if causal:
        right = 0
    if right >= 0:
        ok &= j <= p + right
    if left >= 0:
        ok &= j >= p - left
    if mask is not None:
        ok &= mask.dense(sq, sk)
    return ok


def attention(q, k, v, dtype, softcap=0.0, scale=None, **options):
    """The textbook, one sequence [S, H, D], every step in dtype. Returns o, lse [H, Sq]."""
    group = q.shape[1] // k.shape[1]
    scale = scale if scale is not None else 1 / math.sqrt(q.shape[2])
    ok = visible(q.shape[0], k.shape[0], **options)
    out, lses = [], []
    for h in range(q.shape[1]):
        x = (q[:, h].to(dtype) * scale) @ k[:, h // group].to(dtype).T
        if softcap:
            x = softcap * torch.tanh(x / softcap)
        if ok is not None:
            x = x.masked_fill(~ok, -math.inf)
        prob = torch.softmax(x, -1)
        if ok is not None:
            prob = prob.masked_fill(~ok.any(-1, keepdim=True), 0)
        out.append(prob @ v[:, h // group].to(dtype))
        lses.append(torch.logsumexp(x, -1) if dtype == torch.float64 else None)
    return torch.stack(out, 1), torch.stack(lses) if dtype == torch.float64 else None


def judge(group, what, o, lse, ref, ref_lse, naive):
    """FlashAttention-3's gate on the maximum, 1.5 on the mean, 1e-4 on LSE."""
    err, base = (o.double() - ref).abs(), (naive.double() - ref).abs()
    low = ref.to(o.dtype)
    atol = 2 * ((low + 0.3 - 0.3).double() - low.double()).abs().max().item()
    rtol = 3 if "softcap" in what else 2
    worst = err.max().item() / (rtol * base.max().item() + atol + 1e-30)
    mean = err.mean().item() / (1.5 * base.mean().item() + atol / 4 + 1e-30)
    finite = torch.isfinite(ref_lse)
    same = torch.equal(lse[~finite], ref_lse[~finite].float())
    dead = o.transpose(0, 1)[~finite]
    zero = bool((dead.view(torch.int16) == 0).all())
    dl = ((lse.double() - ref_lse)[finite].abs() / ref_lse[finite].abs().clamp(min=1)).max().item() if finite.any() else 0.0
    ok = worst <= 1 and mean <= 1 and dl <= 1e-4 and same and zero and not torch.isnan(err).any()
    if not ok:
        failures.append(what)
        if len(failures) <= 20:
            print(f"FAIL {what}: error/gate {worst:.3g}, mean {mean:.3g}, lse {dl:.2e}, masked rows {same} {zero}")
    g = groups.setdefault(group, [0, 0.0, 0.0, 0.0])
    g[0] += 1
    g[1], g[2], g[3] = max(g[1], worst), max(g[2], mean), max(g[3], dl)


groups = {}


def draw(kind, *shape, dtype, gen):
    x = torch.randn(*shape, device="cuda", generator=gen)
    if kind == "outliers":
        x += 10 * torch.randn(*shape, device="cuda", generator=gen) * (torch.rand(*shape, device="cuda", generator=gen) < 0.001)
    if kind == "constant":
        x = torch.ones_like(x) * x[..., :1]
    if kind == "x30":
        x *= 30
    return x.to(dtype)


def one(run, group, what, sq, sk, hq, hkv, d, dtype, gen, kinds=("normal",) * 3, **options):
    q = draw(kinds[0], sq, hq, d, dtype=dtype, gen=gen)
    k = draw(kinds[1], sk, hkv, d, dtype=dtype, gen=gen)
    v = draw(kinds[2], sk, hkv, d, dtype=dtype, gen=gen)
    o = torch.full_like(q, math.nan)
    lse = torch.full((hq, sq), math.nan, device="cuda")
    run(q, k, v, o, lse, **options)
    ref, ref_lse = attention(q, k, v, torch.float64, **options)
    naive, _ = attention(q, k, v, dtype, **options)
    judge(group, f"{what} {sq}x{sk} hd {d} {dtype} heads {hq}/{hkv} {options and {n: v for n, v in options.items() if n != 'mask'}}", o, lse, ref, ref_lse, naive)


def check(run, dims):
    gen = torch.Generator("cuda").manual_seed(1)
    sizes = (1, 3, 64, 113, 128, 203, 239, 256, 799, 1024, 2048, 4097)
    masks = {"full": {}, "causal": {"causal": True}, "window": {"window": (100, 57)}}
    for dtype in (torch.float16, torch.bfloat16):
        for d in dims:
            name = f"{'fp16' if dtype == torch.float16 else 'bf16'} hd {d}"
            for sq in sizes:
                for sk in sizes:
                    if d not in (64, 128) and (sq + sk) % 3:
                        continue
                    for m, options in masks.items():
                        one(run, name + " shapes", m, sq, sk, 2, 1, d, dtype, gen, **options)
            for kinds in (("outliers",) * 3, ("x30", "normal", "normal"), ("constant",) * 3, ("x30", "outliers", "x30")):
                for m, options in masks.items():
                    for s in (1024, 4097):
                        one(run, name + " distributions", "/".join(kinds), s, s, 2, 2, d, dtype, gen, kinds, **options)
            for cap in (15.0, 50.0):
                for kinds in (("normal",) * 3, ("x30", "normal", "normal")):
                    one(run, name + " softcap", f"softcap {kinds[0]}", 799, 1024, 4, 2, d, dtype, gen, kinds, softcap=cap, causal=True)
            for left, right in ((0, 0), (-1, 5), (17, -1), (300, 0), (0, 300)):
                one(run, name + " windows", "window", 799, 520, 4, 1, d, dtype, gen, window=(left, right))
            for b in (8, 16):
                bitmap = torch.rand(b, b) < 0.3
                bitmap[2] = False
                mask = BlockMask(bitmap)
                for options in ({}, {"causal": True}, {"window": (200, 70)}):
                    one(run, name + " blocks", "blocks", b * 128 - 51, b * 128 - 3, 4, 2, d, dtype, gen, mask=mask, **options)
            # Sequences of different lengths, some without keys or queries.
            ql, kl = [100, 1, 0, 517, 64, 3], [100, 333, 7, 0, 700, 129]
            qs = torch.tensor([0] + ql, device="cuda").cumsum(0).int()
            ks = torch.tensor([0] + kl, device="cuda").cumsum(0).int()
            q, k, v = (draw("normal", sum(n), 4, d, dtype=dtype, gen=gen) for n in (ql, kl, kl))
            for m, options in masks.items():
                o, lse = torch.full_like(q, math.nan), torch.full((4, sum(ql)), math.nan, device="cuda")
                run(q, k, v, o, lse, q_starts=qs, k_starts=ks, max_q=max(ql), max_k=max(kl), **options)
                for b in range(len(ql)):
                    i, j = slice(qs[b], qs[b + 1]), slice(ks[b], ks[b + 1])
                    if ql[b] == 0:
                        continue
                    ref, ref_lse = attention(q[i], k[j], v[j], torch.float64, **options)
                    naive, _ = attention(q[i], k[j], v[j], dtype, **options)
                    judge(name + " sequences", f"sequence {b} {m} hd {d} {dtype}", o[i], lse[:, i], ref, ref_lse, naive)
    print("gate (1 = at the limit)              cases  max err  mean err  LSE (limit 1e-4)")
    for name, (n, worst, mean, dl) in groups.items():
        print(f"{name:36s} {n:5d}  {worst:7.3f}  {mean:8.3f}  {dl:.1e}")
        record(step="check", group=name, cases=n, max=worst, mean=mean, lse=dl)


def repeat(run, dims):
    gen = torch.Generator("cuda").manual_seed(2)
    for d in dims:
        for options in ({}, {"causal": True}):
            q, k, v = (draw("normal", 2, 2048, 8, d, dtype=torch.float16, gen=gen) for _ in range(3))
            first = None
            for _ in range(100):
                o, lse = torch.full_like(q, math.nan), torch.full((8, 4096), math.nan, device="cuda")
                run(q, k, v, o, lse, **options)
                if first is None:
                    first = (o, lse)
                elif not (torch.equal(o, first[0]) and torch.equal(lse, first[1])):
                    failures.append(f"repeat hd {d} {options}")
                    break
    print("100 repeats:", "differ" if any(f.startswith("repeat") for f in failures) else "bit-identical")


def milliseconds(f, budget=0.12):
    """The median time of a call, of batches that fill the budget (seconds)."""
    for _ in range(3):
        f()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    f()
    end.record()
    torch.cuda.synchronize()
    once = begin.elapsed_time(end)
    per, batches = max(1, int(8 / max(once, 0.01))), max(5, int(budget * 1000 / 8))
    times = []
    for _ in range(batches):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(per):
            f()
        end.record()
        times.append((begin, end, per))
    torch.cuda.synchronize()
    times = sorted(b.elapsed_time(e) / n for b, e, n in times)
    return times[len(times) // 2]


LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def shapes(d, s, dtype):
    b, h = 16384 // s, 2048 // d
    return [torch.randn(b, h, s, d, device="cuda", dtype=torch.float32).to(dtype) for _ in range(3)]


def ours(run, q, k, v, o, lse, **options):
    """[B, H, S, D] as one sequence of B*H heads."""
    run(*(t.flatten(0, 1).transpose(0, 1) for t in (q, k, v, o)), lse, **options)


def speed(run, dims, peers, dtypes):
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    print("TFLOP/s                    " + "".join(f"{s:>7d}" for s in LENGTHS))
    for dtype in dtypes:
        for d in dims:
            for causal in (False, True):
                rows = {}
                for s in LENGTHS:
                    q, k, v = shapes(d, s, dtype)
                    flops = 4 * s * s * 16384 // s * 2048 / (2 if causal else 1)
                    o, lse = torch.empty_like(q), torch.empty(q.shape[0] * q.shape[1], s, device="cuda")
                    rows.setdefault("ours", []).append(flops / milliseconds(lambda: ours(run, q, k, v, o, lse, causal=causal)) / 1e9)
                    for name in peers:
                        try:
                            with sdpa_kernel(backends[name]):
                                rows.setdefault(name, []).append(flops / milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal)) / 1e9)
                        except RuntimeError:
                            rows.setdefault(name, []).append(math.nan)
                for name, row in rows.items():
                    print(f"{name:6s} {str(dtype)[6:]:8s} hd {d:<3d} {'causal' if causal else 'full':6s}" + "".join(f"{x:7.0f}" for x in row))
                    record(step="speed", name=name, dtype=str(dtype), dim=d, causal=causal, lengths=LENGTHS, tflops=row)


def textbook(run, dims):
    for d in dims:
        for s in LENGTHS:
            q, k, v = shapes(d, s, torch.float16)
            o = torch.empty_like(q)
            flops = 4 * s * s * 16384 // s * 2048

            def book():
                return torch.softmax((q * (1 / math.sqrt(d))) @ k.transpose(-1, -2), -1) @ v

            def math_backend():
                with sdpa_kernel(SDPBackend.MATH):
                    return F.scaled_dot_product_attention(q, k, v)

            row = {}
            for name, f in (("ours", lambda: ours(run, q, k, v, o, None)), ("textbook", book), ("math", math_backend)):
                try:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    ms = milliseconds(f, 0.05)
                    row[name] = (flops / ms / 1e9, (torch.cuda.max_memory_allocated() - before) / 2**20)
                except torch.OutOfMemoryError:
                    row[name] = (math.nan, math.nan)
            print(f"fp16 hd {d} S {s:5d} " + ", ".join(f"{n} {r:.1f} TFLOP/s +{m:.0f} MiB" for n, (r, m) in row.items()))
            record(step="textbook", dim=d, length=s, rows=row)


def butterfly_band(n, radius):
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    x = i ^ j
    return ((x & (x - 1)) == 0) | ((i - j).abs() <= radius)


def masks(n):
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return {
        "butterfly+band": butterfly_band(n, 1),
        "local 8": (i - j).abs() <= 8,
        "local 2": (i - j).abs() <= 2,
        "strided 16": (i - j) % 16 == 0,
        "global 2+local 4": (i < 2) | (j < 2) | ((i - j).abs() <= 4),
        "random 0.1": torch.rand(n, n) < 0.1,
        "all": torch.ones(n, n, dtype=torch.bool),
    }


def sparse(run, dims):
    for d in dims:
        dense = {}
        for s in (16384, 65536):
            q, k, v = (torch.randn(s, 2048 // d, d, device="cuda").half() for _ in range(3))
            o = torch.empty_like(q)
            flops = 4 * s * s * 2048
            if s == 16384:
                dense = flops / milliseconds(lambda: run(q, k, v, o)) / 1e9
                print(f"sparse hd {d} S {s}: dense {dense:.0f} TFLOP/s")
            for name, bitmap in masks(s // 128).items():
                if s > 16384 and name == "all":
                    continue
                mask = BlockMask(bitmap)
                density = mask.blocks / bitmap.numel()
                ms = milliseconds(lambda: run(q, k, v, o, mask=mask), 0.06)
                rate = flops * density / ms / 1e9
                print(f"sparse hd {d} S {s} {name:16s} density {density:.3f} {ms:7.3f} ms {rate:6.0f} TFLOP/s on blocks, {100 * rate / dense:3.0f} % of dense")
                record(step="sparse", dim=d, length=s, mask=name, density=density, ms=ms, tflops=rate, of_dense=rate / dense)


def flex(dims):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    for d in dims:
        s = 16384
        q, k, v = (torch.randn(1, 2048 // d, s, d, device="cuda").half() for _ in range(3))
        for name in ("butterfly+band", "local 8", "all"):
            bitmap = masks(s // 128)[name]
            on = bitmap.cuda()
            block = create_block_mask(lambda b, h, i, j: on[i // 128, j // 128], None, None, s, s, device="cuda", BLOCK_SIZE=128)
            density = bitmap.sum().item() / bitmap.numel()
            ms = milliseconds(lambda: compiled(q, k, v, block_mask=block), 0.06)
            rate = 4 * s * s * 2048 * density / ms / 1e9
            print(f"flex   hd {d} S {s} {name:16s} density {density:.3f} {ms:7.3f} ms {rate:6.0f} TFLOP/s on blocks")
            record(step="flex", dim=d, mask=name, density=density, ms=ms, tflops=rate)


def memory(run):
    for s in (4096, 16384, 65536):
        q, k, v = (torch.randn(s, 16, 128, device="cuda").half() for _ in range(3))
        o, lse = torch.empty_like(q), torch.empty(16, s, device="cuda")
        run(q[:128], k, v, o[:128], lse[:, :128].contiguous())
        torch.cuda.synchronize()
        free = torch.cuda.mem_get_info()[0]
        run(q, k, v, o, lse)
        torch.cuda.synchronize()
        taken = free - torch.cuda.mem_get_info()[0]
        tensors = sum(t.numel() * t.element_size() for t in (q, k, v, o, lse))
        print(f"memory S {s}: tensors {tensors / 2**20:.0f} MiB, a launch takes {taken / 2**20:.1f} MiB more")
        record(step="memory", length=s, tensors=tensors, taken=taken)
        if taken > 32 << 20:
            failures.append(f"memory: a launch of {s} tokens takes {taken} bytes")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--image", required=True)
    a.add_argument("--family", default="sm80", choices=FAMILIES)
    a.add_argument("--geometry", type=json.loads, help='JSON: {"dim": [queries, threads, shared bytes]}')
    a.add_argument("--dims", type=lambda s: [int(x) for x in s.split(",")])
    a.add_argument("--peers", default="flash,cudnn")
    a.add_argument("--dtypes", default="float16,bfloat16")
    a.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",")])
    a.add_argument("--json")
    a.add_argument("steps", nargs="+")
    o = a.parse_args()
    global LENGTHS
    LENGTHS = o.lengths or LENGTHS
    run = FAMILIES[o.family](o.image, **({"geometry": o.geometry} if o.geometry else {}))
    print(torch.cuda.get_device_name(), torch.__version__, o.family, o.image)
    for step in o.steps:
        if step == "check":
            check(run, o.dims or [64, 96, 128, 256, 80])
        elif step == "repeat":
            repeat(run, o.dims or [64, 96, 128, 256])
        elif step == "speed":
            speed(run, o.dims or [64, 128], [p for p in o.peers.split(",") if p], [getattr(torch, t) for t in o.dtypes.split(",")])
        elif step == "textbook":
            textbook(run, o.dims or [64, 128])
        elif step == "sparse":
            sparse(run, o.dims or [64, 128])
        elif step == "flex":
            flex(o.dims or [64, 128])
        elif step == "memory":
            memory(run)
        else:
            a.error(f"no step {step}")
    if o.json:
        json.dump(records, open(o.json, "w"))
    print(f"{len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
