"""Judges checkpoints in one process, because importing torch and transformers takes seconds.

Reads jobs from standard input, one JSON object a line, and answers each with a line of JSON on the descriptor that was
its standard output; what the libraries print goes to standard error.
"""
import json
import os
import sys
import traceback
import warnings

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402

import loading  # noqa: E402
import reference  # noqa: E402
from checkpoint import Checkpoint, source  # noqa: E402

sources = {}


def bytes_job(j):
    return reference.compare(source(j["src"]), Checkpoint(j["out"]), j["expect"])


def load_job(j):
    src, dtype = j["src"], Checkpoint(j["out"]).dtype()
    if (src, dtype) not in sources:
        sources[src, dtype] = loading.source_loads(src, dtype)
    if sources[src, dtype]:
        return {"notrun": f"transformers {transformers.__version__} does not run the source itself: {sources[src, dtype]}"}
    return loading.check(src, j["out"], j["expect"]["blocksize"])


def dequantize_job(j):
    out, deq = Checkpoint(j["out"]), source(j["deq"])
    bad = reference.compare_dequantized(out, deq, source(j["src"]).config)
    return bad or loading.dequantized_loads(j["deq"])


def same_job(j):
    differ = reference.tensors_differ(Checkpoint(j["out"]), Checkpoint(j["again"]))
    return [f"quantized again, {len(differ)} tensors differ: {differ[:3]}"] if differ else []


JOBS = {"bytes": bytes_job, "load": load_job, "dequantize": dequantize_job, "same": same_job}


def main():
    torch.set_num_threads(1)
    loading.quiet()
    note = loading.use_torch_op()
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "note": note}), file=answers, flush=True)
    for line in sys.stdin:
        j = json.loads(line)
        try:
            r = JOBS[j["kind"]](j)
            r = r if isinstance(r, dict) else {"bad": r}
        except Exception as e:  # a loader that raises is a result
            traceback.print_exc()
            r = {"bad": [f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"]}
        print(json.dumps(r), file=answers, flush=True)


main()
