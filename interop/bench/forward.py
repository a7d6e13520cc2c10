#!/usr/bin/env python3
"""Measure forward passes on the CPU beside torch and llama.cpp, one after the other in one run.

  forward.py MODEL [--nf4 DIR] [--work DIR] [--bench PROGRAM] [--llama-bench PROGRAM] [--tokens 512] [--threads N] [--rounds 3] [--avx2]

MODEL is a Llama of `internal/bench model`, DIR its conversion to NF4. Printed per row are tokens a second, without the head (torch: logits
of the last token only, as llama.cpp's) and with the logits and the likelihood of every token, medians over the rounds, and the peak of
resident memory. nf4conv reads the weights in every pass, the others hold them. A row "torch bf16, no bf16 dot products" keeps oneDNN
from the instructions that multiply pairs of bfloat16 at twice the rate of float32 and round activations to 8 bits. With --avx2 nf4conv
and torch use what a processor without AVX-512 has; llama.cpp is to be built so.
"""
import argparse
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("model")
ap.add_argument("--nf4")
ap.add_argument("--work", help="where model.gguf is kept, for another run")
ap.add_argument("--bench", help="internal/bench; built when not given")
ap.add_argument("--llama-bench")
ap.add_argument("--tokens", type=int, default=512)
ap.add_argument("--threads", type=int, default=os.cpu_count())
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--avx2", action="store_true")
ap.add_argument("--json")
ap.add_argument("--torch", choices=["float32", "bfloat16"], help=argparse.SUPPRESS)
args = ap.parse_args()


def torch_passes():
    """One round of torch in a process of its own, as one line of JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.torch), attn_implementation="sdpa").eval()
    ids = torch.randint(0, model.config.vocab_size, (1, args.tokens), generator=torch.Generator().manual_seed(1))

    def hidden():
        model(ids, use_cache=False, logits_to_keep=1)

    def logits():
        out = model(ids, use_cache=False).logits[0, :-1].float()
        torch.nn.functional.cross_entropy(out, ids[0, 1:]).item()

    def rate(f):
        f()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return args.tokens / statistics.median(times)

    with torch.no_grad():
        print(json.dumps({"hidden": rate(hidden), "logits": rate(logits), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))


NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def write_gguf(model, path):
    """The model as a GGUF (version 3) of bfloat16, with norms in float32 and no tokenizer."""
    import numpy as np

    with open(os.path.join(model, "config.json")) as f:
        cfg = json.load(f)
    hidden, heads, kv_heads = cfg["hidden_size"], cfg["num_attention_heads"], cfg["num_key_value_heads"]
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for i in range(cfg["num_hidden_layers"]):
        names.update({f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for a, b in NAMES.items()})

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    arch = {"context_length": 4096, "embedding_length": hidden, "block_count": cfg["num_hidden_layers"], "feed_forward_length": cfg["intermediate_size"],
            "attention.head_count": heads, "attention.head_count_kv": kv_heads, "vocab_size": cfg["vocab_size"], "rope.dimension_count": hidden // heads}
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama"), text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("no_vocab"),
            text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, cfg["rms_norm_eps"]), text("llama.rope.freq_base") + struct.pack("<If", 6, cfg["rope_theta"])]
    keys += [text("llama." + k) + struct.pack("<II", 4, v) for k, v in arch.items()]
    infos, plan, at = b"", [], 0
    for file in sorted(f for f in os.listdir(model) if f.endswith(".safetensors")):
        with open(os.path.join(model, file), "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(n))
        for name, t in header.items():
            if name == "__metadata__":
                continue
            if t["dtype"] != "BF16":
                sys.exit(f"forward.py: {name} is {t['dtype']}; expected BF16")
            shape, (begin, end) = t["shape"], t["data_offsets"]
            wide = len(shape) == 1
            infos += text(names[name]) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in reversed(shape)) + struct.pack("<IQ", 0 if wide else 30, at)
            plan.append((name, os.path.join(model, file), 8 + n + begin, (end - begin) // 2, shape, at))
            at += -(-(end - begin) * (2 if wide else 1) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(plan), len(keys)) + b"".join(keys) + infos
    start = -(-len(head) // 32) * 32
    with open(path + ".part", "wb") as out:
        out.write(head)
        for name, file, begin, count, shape, at in plan:
            v = np.fromfile(file, dtype="<u2", count=count, offset=begin)
            if len(shape) == 1:
                v = v.astype("<u4") << 16
            elif ".q_proj." in name or ".k_proj." in name:  # pairs of a rotation side by side
                n = heads if ".q_proj." in name else kv_heads
                v = v.reshape(n, 2, shape[0] // n // 2, shape[1]).swapaxes(1, 2)
            out.seek(start + at)
            out.write(np.ascontiguousarray(v).tobytes())
    os.replace(path + ".part", path)


def run(*command, **env):
    p = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    lines = [x for x in p.stdout.splitlines() if x.startswith("{")]
    if p.returncode or not lines:
        sys.exit(f"forward.py: {command[0]}: exit {p.returncode}: {p.stderr[-500:]}")
    return json.loads(lines[-1])


def main():
    work = args.work or tempfile.mkdtemp()
    bench = args.bench
    if not bench:
        bench = os.path.join(work, "bench")
        subprocess.run(["go", "build", "-o", bench, "./internal/bench"], check=True, cwd=os.path.join(HERE, "..", ".."))
    rows, gemm = {}, []

    def ours(model):
        def go():
            out = {}
            for key, flags in (("hidden", []), ("logits", ["-logits"])):
                r = run(bench, "forward", model, "-tokens", args.tokens, "-threads", args.threads, *flags)
                gemm.append(r["gemm_gflops"])
                out.update({key: r["tok_per_s"], "mib": max(out.get("mib", 0), r["resident_mib"]), "share_" + key: r["share_of_gemm"]})
            return out
        return go

    def torch(dtype, **env):
        return lambda: run(sys.executable, __file__, args.model, "--torch", dtype, "--tokens", args.tokens, "--threads", args.threads, OMP_NUM_THREADS=str(args.threads), **env)

    todo = {"nf4conv, bfloat16 weights": ours(args.model)}
    if args.nf4:
        todo["nf4conv, NF4 weights"] = ours(args.nf4)
    todo["torch float32"] = torch("float32")
    todo["torch bfloat16"] = torch("bfloat16")
    if args.avx2:
        os.environ.update(NF4CONV_DISABLE="avx512", ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2", MKL_ENABLE_INSTRUCTIONS="AVX2")
    else:
        todo["torch bfloat16, no bf16 dot products"] = torch("bfloat16", ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    if args.llama_bench:
        gguf = os.path.join(work, "model.gguf")
        if not os.path.exists(gguf):
            write_gguf(args.model, gguf)

        def llama():
            r = run(args.llama_bench, "-m", gguf, "-p", args.tokens, "-n", 0, "-t", args.threads, "-r", 3, "-o", "jsonl",
                    LD_LIBRARY_PATH=os.path.dirname(os.path.abspath(args.llama_bench)))
            return {"hidden": r["avg_ts"]}
        todo["llama.cpp BF16"] = llama
    for _ in range(args.rounds):
        for name, go in todo.items():
            for key, v in go().items():
                rows.setdefault(name, {}).setdefault(key, []).append(v)
    print(f"{args.tokens} tokens, {args.threads} threads, {args.rounds} rounds; products alone {statistics.median(gemm):.0f} GFLOP/s ({min(gemm):.0f} to {max(gemm):.0f})")
    print(f"{'':38s}{'tokens/s, no head':>20s}{'with logits':>20s}{'MiB':>8s}")
    for name, r in rows.items():
        def cell(key, r=r):
            return f"{statistics.median(r[key]):.1f} ({min(r[key]):.0f}-{max(r[key]):.0f})" if key in r else ""
        print(f"{name:38s}{cell('hidden'):>20s}{cell('logits'):>20s}{max(r['mib']) if 'mib' in r else '':>8}")
        if "share_hidden" in r:
            print(f"{'  of the products alone':38s}{100 * statistics.median(r['share_hidden']):>18.0f} %{100 * statistics.median(r['share_logits']):>18.0f} %")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f)


if __name__ == "__main__":
    torch_passes() if args.torch else main()
