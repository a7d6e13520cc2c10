#!/usr/bin/env python3
"""The peer: transformers and bitsandbytes on a GPU, from page cache to a saved checkpoint.

  peer.py SRC OUT

Prints seconds from the start of loading to the last write, peak memory of the process and of the GPU.
"""
import json
import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

src, out = sys.argv[1:3]
torch.cuda.init()
began = time.monotonic()
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(src, quantization_config=config, device_map={"": "cuda"}, dtype=torch.bfloat16)
model.save_pretrained(out)
print(json.dumps({
    "seconds": round(time.monotonic() - began, 3), "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "gpu_bytes": torch.cuda.max_memory_reserved(),
}))
