#!/usr/bin/env python3
"""Hold nf4conv against its consumers: bitsandbytes and two generations of transformers.

  run.py --binary nf4conv --out DIR [--v5 PYTHON] [--v4 PYTHON] [--data DIR] [--seed N] [--only TEXT]

Every fixture, one freshly made random model per architecture (make_models.py), and a matrix of options on one model of
awkward sizes are quantized. Then, for each:

  bytes       every tensor is what bitsandbytes makes of the source (reference.py says how the two inexact numbers are held)
  v5, v4      from_pretrained has no missing, unexpected or mismatched key; exactly the 4-bit weights of the file are
              Linear4bit, with equal bits; outputs equal those of the source quantized on the fly, exactly without double
              quantization (v4 only where it loads the source itself)
  dequantize  is what bitsandbytes reads from the file, bit for bit, and loads; NF4 quantized again is the same

Prints a line per checkpoint. What cannot be run is NOT RUN with its reason, counted, and never a pass. Exit 1 when
anything failed. The seed is printed; --seed repeats a run.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCKS = (32, 64, 128, 256, 4096)
# Architectures in which transformers 5 finds nothing to quantize: refusing them is right, but for transformers 4 alone.
REFUSED = {"falcon": "its linears are a subclass of nn.Linear, which transformers 5 leaves in 16 bit"}

# Fresh models whose way back is one of its own: their fused experts.
DEQUANTIZED = {"llama4_text", "gpt_oss"}


class Worker:
    """One Python with torch, fed jobs over a pipe."""

    def __init__(self, python, log):
        self.log = open(log, "w")
        self.p = subprocess.Popen([python, os.path.join(HERE, "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        hello = self.p.stdout.readline()
        if not hello:
            raise SystemExit(f"{python}: the worker did not start, see {log}")
        self.versions = json.loads(hello)

    def do(self, **job):
        self.p.stdin.write(json.dumps(job) + "\n")
        self.p.stdin.flush()
        answer = self.p.stdout.readline()
        return json.loads(answer) if answer else {"bad": [f"the worker died, see {self.log.name}"]}

    def close(self):
        self.p.stdin.close()
        self.p.wait()
        self.log.close()


class Case:
    """One source with one set of options."""

    def __init__(self, group, name, src, type="nf4", blocksize=64, double_quant=True, extra=(), v5=True, v4=True, dequantize=False):
        self.group, self.name, self.src, self.v5, self.v4, self.dequantize, self.extra = group, name, src, v5, v4, dequantize, list(extra)
        self.expect = {"type": type, "blocksize": blocksize, "double_quant": double_quant}

    def label(self):
        e = self.expect
        return f"{e['type']} {e['blocksize']}{' dq' if e['double_quant'] else ''} {' '.join(self.extra)}".strip()

    def flags(self):
        e = self.expect
        return ["--type", e["type"], "--block-size", str(e["blocksize"]), "--double-quant" if e["double_quant"] else "--no-double-quant", *self.extra]


def checkpoints(root):
    return sorted(d for d in (os.path.join(root, n) for n in os.listdir(root)) if os.path.exists(os.path.join(d, "config.json")))


def cases(a, fresh, matrix):
    for group in ("models", "arch"):
        for d in checkpoints(os.path.join(a.data, group)):
            n = os.path.basename(d)
            yield Case(group, n, d, dequantize=True)
            yield Case(group, n, d, double_quant=False, dequantize=True)
    first = checkpoints(os.path.join(a.data, "models"))[0]
    yield Case("models", os.path.basename(first), first, type="fp4", extra=["--max-shard-size", "1MB"], dequantize=True)
    yield Case("models", os.path.basename(first), first, double_quant=False, extra=["--dtype", "float16"], dequantize=True)
    for d in checkpoints(fresh):
        yield Case("fresh", os.path.basename(d), d)
        yield Case("fresh", os.path.basename(d), d, double_quant=False, dequantize=os.path.basename(d) in DEQUANTIZED)
        if os.path.basename(d) in REFUSED:
            yield Case("fresh", os.path.basename(d), d, extra=["--loader", "transformers4"], v5=False)
    for d in checkpoints(matrix):
        for t in ("nf4", "fp4"):
            for dq in (True, False):
                for b in BLOCKS:
                    yield Case("matrix", os.path.basename(d), d, t, b, dq, v4=b in (64, 4096), dequantize=b in (32, 64, 4096))


class Tally:
    """What was found, in words and in numbers."""

    def __init__(self):
        self.passed, self.failed, self.notrun = 0, [], []

    def add(self, where, result):
        """result: {"bad": [...]} or {"notrun": reason}; returns the cell of the table"""
        if "notrun" in result:
            self.notrun.append((where, result["notrun"]))
            return "NOT RUN"
        if result["bad"]:
            self.failed.append((where, result["bad"]))
            return "FAIL"
        self.passed += 1
        return "ok"


def convert(a, verb, src, out, flags):
    r = subprocess.run([a.binary, verb, src, out, "--quiet", *flags], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return r.returncode, r.stderr.strip()


def run_case(a, c, out, v5, v4, tally):
    """The cells of one line: quantize, bytes, v5, v4, dequantize."""
    where = f"{c.group}/{c.name} [{c.label()}]"
    code, err = convert(a, "quantize", c.src, out, c.flags())
    if c.group == "fresh" and c.name in REFUSED and not c.extra:
        bad = [] if code == 4 and not os.path.exists(out) else [f"exit {code} and not 4, although {REFUSED[c.name]}: {err}"]
        return [tally.add(where + " refusal", {"bad": bad}) + " (refused)"] + ["-"] * 4
    cells = [tally.add(where + " quantize", {"bad": [f"exit {code}: {err}"] if code else []})]
    if code:
        return cells + ["-"] * 4
    job = {"src": c.src, "out": out, "expect": c.expect}
    cells.append(tally.add(where + " bytes", v5.do(kind="bytes", **job)))
    cells.append(tally.add(where + " v5", v5.do(kind="load", **job)) if c.v5 else "-")
    if not c.v4:
        cells.append("-")
    else:
        cells.append(tally.add(where + " v4", v4.do(kind="load", **job) if v4 else {"notrun": "no Python with transformers 4 was given (--v4)"}))
    cells.append(run_dequantize(a, c, out, where, v5, tally) if c.dequantize else "-")
    return cells


def run_dequantize(a, c, out, where, v5, tally):
    deq, again = out + "-16bit", out + "-again"
    code, err = convert(a, "dequantize", out, deq, [])
    if code:
        return tally.add(where + " dequantize", {"bad": [f"exit {code}: {err}"]})
    cell = tally.add(where + " dequantize", v5.do(kind="dequantize", src=c.src, out=out, deq=deq))
    if c.expect["type"] == "nf4" and not c.expect["double_quant"]:
        code, err = convert(a, "quantize", deq, again, c.flags())
        result = {"bad": [f"exit {code}: {err}"]} if code else v5.do(kind="same", out=out, again=again)
        cell += ", " + tally.add(where + " quantize(dequantize)", result)
        shutil.rmtree(again, ignore_errors=True)
    shutil.rmtree(deq, ignore_errors=True)
    return cell


def make(a, script, out, tally):
    """Sources made by a script of this directory; models it cannot make are reported."""
    r = subprocess.run([a.v5, os.path.join(HERE, script), out, "--seed", str(a.seed)], capture_output=True, text=True)
    for line in r.stdout.splitlines():
        if line.startswith("NOT MADE "):
            tally.notrun.append((script, line))
    if r.returncode not in (0, 3):
        tally.failed.append((script, r.stderr.strip().splitlines()[-1:]))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", required=True)
    p.add_argument("--out", required=True, help="working directory; emptied first and left for a look when something failed")
    p.add_argument("--v5", default=sys.executable, help="Python with transformers 5 (default: this one)")
    p.add_argument("--v4", help="Python with transformers 4.57")
    p.add_argument("--data", default=os.environ.get("NF4CONV_DATA") or os.path.join(os.path.dirname(HERE), "fixtures"))
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6), help="of the random models (default: another one every time)")
    p.add_argument("--only", default="", help="only cases whose GROUP/NAME [OPTIONS] contains this")
    a = p.parse_args()
    a.binary = os.path.abspath(a.binary)
    began, tally = time.monotonic(), Tally()
    shutil.rmtree(a.out, ignore_errors=True)
    os.makedirs(a.out)
    fresh = make(a, "make_models.py", os.path.join(a.out, "fresh"), tally)
    matrix = make(a, "make_matrix.py", os.path.join(a.out, "matrix"), tally)
    v5 = Worker(a.v5, os.path.join(a.out, "v5.log"))
    v4 = Worker(a.v4, os.path.join(a.out, "v4.log")) if a.v4 else None
    for w in filter(None, (v5, v4)):
        print(f"transformers {w.versions['transformers']}, torch {w.versions['torch']}" + (f"; {w.versions['note']}" if w.versions["note"] else ""))
    print(f"seed {a.seed}; sources made in {time.monotonic() - began:.0f} s")
    print(f"{'checkpoint':30} {'options':28} {'quantize':14} {'bytes':8} {'v5':8} {'v4':8} dequantize, quantize again", flush=True)
    for i, c in enumerate(cases(a, fresh, matrix)):
        if a.only not in f"{c.group}/{c.name} [{c.label()}]":
            continue
        out, failures = os.path.join(a.out, "q", f"{i:03}-{c.name}"), len(tally.failed)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        q, b, x, y, d = run_case(a, c, out, v5, v4, tally)
        print(f"{c.group + '/' + c.name:30} {c.label():28} {q:14} {b:8} {x:8} {y:8} {d}", flush=True)
        if len(tally.failed) == failures:
            shutil.rmtree(out, ignore_errors=True)
    for w in filter(None, (v5, v4)):
        w.close()
    for where, reason in tally.notrun:
        print(f"NOT RUN {where}: {reason}")
    for where, bad in tally.failed:
        print(f"FAIL {where}: {len(bad)} problems")
        for line in bad[:5]:
            print(f"     {line}")
    print(f"{time.monotonic() - began:.0f} s")
    print(f"interop: {tally.passed} passed, {len(tally.failed)} failed, {len(tally.notrun)} skipped")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
