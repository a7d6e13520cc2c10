#!/usr/bin/env python3
"""Make one small Llama of awkward sizes in three dtypes, for the matrix of options.

  make_matrix.py OUT_DIR [--seed N]

Rows of 72 and 100 weights divide into no block, and 36 x 72 weights leave a short last block at every block size. The
three hold the same random values, which float32 alone holds exactly.
"""
import argparse
import os

import torch

import make_models

ap = argparse.ArgumentParser()
ap.add_argument("out")
ap.add_argument("--seed", type=int, default=1)
a = ap.parse_args()
config = make_models.decoder(hidden_size=72, intermediate_size=100)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    name = str(dtype).replace("torch.", "")
    make_models.make("LlamaForCausalLM", "LlamaConfig", config, dtype, os.path.join(a.out, name), a.seed, "5GB")
