"""Trains tokenizers, makes texts, and holds formats/tokenizer against the real tokenizers.

    .venv/v5/bin/python interop/tokenizer_ids.py --binary TOKENIDS [--seed N] [--texts N]

TOKENIDS is internal/tokenids, built. Every tokenizer of tokenizer_models.py is trained on a fresh part of the
King James text and must give the same ids on every text, or a refusal with its reason; more than one text in a hundred refused
is a failure, too.
"""
import argparse
import json
import os
import random
import subprocess
import sys

import tokenizer_models as tm

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--binary", required=True)
    ap.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    ap.add_argument("--texts", type=int, default=600)
    args = ap.parse_args()
    rng = random.Random(args.seed)
    lines = tm.corpus(os.path.join(HERE, "../fixtures/models/kjv-llama/calib.txt"))
    with open(os.path.join(HERE, "charsmap.bin"), "rb") as f:
        charsmap = f.read()
    sample = rng.sample(lines, min(len(lines), 250)) + [p for p in tm.PIECES if rng.random() < 0.5]
    cases = []
    for name, t in tm.build(sample, charsmap).items():
        texts = tm.texts_for(rng, tm.added_of(t), lines, args.texts)
        cases.append((name, t, texts))
    feed = "".join(json.dumps([json.loads(t.to_str()), texts]) + "\n" for _, t, texts in cases)
    run = subprocess.run([args.binary], input=feed.encode(), stdout=subprocess.PIPE, check=True)
    bad = 0
    for (name, t, texts), line in zip(cases, run.stdout.splitlines(), strict=True):
        got = json.loads(line)
        if "error" in got:
            print(f"{name}: refused: {got['error']}")
            bad += 1
            continue
        want = tm.ids_of(t, texts)
        refused = sum(g is None for g in got["ids"])
        wrong = [(s, w, g) for s, w, g in zip(texts, want, got["ids"], strict=True) if g is not None and g != w]
        print(f"{name}: {len(texts)} texts, {sum(map(len, want))} ids, {refused} refused, {len(wrong)} differ")
        for s, w, g in sorted(wrong, key=lambda x: len(x[0]))[:3]:
            at = next((i for i, (a, b) in enumerate(zip(w, g)) if a != b), min(len(w), len(g)))
            print(f"    {s!r}: at {at} want {[t.id_to_token(i) for i in w[at:at + 6]]} got {[t.id_to_token(i) for i in g[at:at + 6]]}")
        if refused * 100 > len(texts):
            print("    " + "\n    ".join(sorted(set(got["errors"]))[:3]))
        bad += bool(wrong) or refused * 100 > len(texts)
    if bad:
        sys.exit(f"{bad} tokenizers differ; --seed {args.seed}")


main()
