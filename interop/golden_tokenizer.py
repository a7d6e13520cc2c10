"""Writes formats/tokenizer/testdata/golden.jsonl.zst: small tokenizers, hard texts, and the ids of the real tokenizers.

    .venv/v5/bin/python interop/golden_tokenizer.py OUT.jsonl.zst      needs the zstd program

The first line holds the versions. Every other line is {"name", "tokenizer", "texts", "ids"}; the ids are
those of encode(text, add_special_tokens=True). interop/charsmap.bin is the character map that SentencePiece 0.2.3
compiled from twenty rules of normalization.
"""
import json
import os
import random
import subprocess
import sys

import tokenizers

import tokenizer_models as tm

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    lines = tm.corpus(os.path.join(HERE, "../fixtures/models/kjv-llama/calib.txt"))
    with open(os.path.join(HERE, "charsmap.bin"), "rb") as f:
        charsmap = f.read()
    out = [{"tokenizers": tokenizers.__version__, "command": "golden_tokenizer.py"}]
    rng = random.Random(11)
    for name, t in tm.build(lines[:400] + tm.PIECES, charsmap).items():
        texts = tm.texts_for(rng, tm.added_of(t), lines, 250)
        out.append({"name": name, "tokenizer": json.loads(t.to_str()), "texts": texts, "ids": tm.ids_of(t, texts)})
    text = "".join(json.dumps(o, separators=(",", ":")) + "\n" for o in out)
    subprocess.run(["zstd", "-q", "-19", "-f", "-o", sys.argv[1]], input=text.encode(), check=True)


main()
