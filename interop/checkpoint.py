"""Reading a checkpoint directory as loaders do, and the rules of its files."""
import json
import os
import re

from safetensors import safe_open

STATE = re.compile(r"^(.*)\.quant_state\.bitsandbytes__(nf4|fp4)$")
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


class Checkpoint:
    """All tensors of a directory: those of the index where there is one, else model.safetensors."""

    def __init__(self, path):
        self.path, self.where, self.files, self.problems, self.index = path, {}, {}, [], None
        names = sorted(f for f in os.listdir(path) if f.endswith(".safetensors"))
        index = os.path.join(path, "model.safetensors.index.json")
        if os.path.exists(index):
            with open(index) as fh:
                self.index = json.load(fh)
            used = sorted(set(self.index["weight_map"].values()))
        else:
            used = ["model.safetensors"]
        if set(names) - set(used):
            self.problems.append(f"weight files beside the checkpoint: {sorted(set(names) - set(used))}")
        for f in used:
            h = safe_open(os.path.join(path, f), framework="pt")
            self.files[f] = h
            for k in h.keys():
                if k in self.where:
                    self.problems.append(f"tensor twice: {k}")
                self.where[k] = f
        if self.index and self.index["weight_map"] != self.where:
            both = set(self.index["weight_map"].items()) ^ set(self.where.items())
            self.problems.append(f"index and files differ: {sorted(both)[:4]}")
        with open(os.path.join(path, "config.json")) as fh:
            self.config = json.load(fh)

    def get(self, name):
        return self.files[self.where[name]].get_tensor(name)

    def quantized(self):
        """name of every 4-bit weight -> nf4 or fp4"""
        return {m.group(1): m.group(2) for m in map(STATE.match, self.where) if m}

    def dtype(self):
        """the name of the model's dtype, bare"""
        text = self.config.get("text_config") or {}
        for c in (self.config, text):
            for key in ("dtype", "torch_dtype"):
                if c.get(key):
                    return c[key].replace("torch.", "")
        return None

    def header(self, file):
        with open(os.path.join(self.path, file), "rb") as fh:
            n = int.from_bytes(fh.read(8), "little")
            return json.loads(fh.read(n)), n


# Modules that nf4conv keeps in float32 because the model's class does (_keep_in_fp32_modules).
KEPT_FP32 = {"t5": re.compile(r"\.wo\.weight$"), "mt5": re.compile(r"\.wo\.weight$"), "umt5": re.compile(r"\.wo\.weight$")}


def kept_fp32(config, name):
    pattern = KEPT_FP32.get(config.get("model_type"))
    return bool(pattern and pattern.search(name))


class Unfused(Checkpoint):
    """A Llama 4 source as transformers wants it in 4 bits: every expert a gate_proj, up_proj and down_proj, each the
    transpose of its columns of the fused matrices [expert, in, out]."""

    FUSED = re.compile(r"^(.*\.experts)\.(gate_up_proj|down_proj)$")

    def __init__(self, path):
        super().__init__(path)
        self.parts = {}
        for name in [k for k in self.where if self.FUSED.match(k)]:
            prefix, leaf = self.FUSED.match(name).groups()
            names = ["gate_proj", "up_proj"] if leaf == "gate_up_proj" else ["down_proj"]
            experts, _, columns = super().get(name).shape
            width = columns // len(names)
            for e in range(experts):
                for i, n in enumerate(names):
                    part = f"{prefix}.{e}.{n}.weight"
                    self.parts[part] = (name, e, slice(i * width, (i + 1) * width))
                    self.where[part] = self.where[name]
            del self.where[name]

    def get(self, name):
        if name not in self.parts:
            return super().get(name)
        fused, expert, columns = self.parts[name]
        return self.files[self.where[name]].get_tensor(fused)[expert][:, columns].t().contiguous()


def source(path):
    """A source as its 4-bit form names its tensors."""
    with open(os.path.join(path, "config.json")) as fh:
        return Unfused(path) if json.load(fh).get("model_type") == "llama4_text" else Checkpoint(path)


def container_problems(c):
    """What is wrong with the files as safetensors files and as a set."""
    bad, total = list(c.problems), 0
    for f in c.files:
        header, n = c.header(f)
        if header.pop("__metadata__", {}).get("format") != "pt":
            bad.append(f"{f}: __metadata__.format is not pt")
        if n % 8:
            bad.append(f"{f}: header length {n} is not a multiple of 8")
        at = 0
        for k, v in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"]):
            begin, end = v["data_offsets"]
            if begin != at:
                bad.append(f"{f}: gap or overlap at {k}")
            if (8 + n + begin) % BYTES.get(v["dtype"], 1):
                bad.append(f"{f}: {k} ({v['dtype']}) is not aligned")
            at = end
        total += at
        if os.path.getsize(os.path.join(c.path, f)) != 8 + n + at:
            bad.append(f"{f}: the file is not header and data")
    if c.index and c.index.get("metadata", {}).get("total_size") != total:
        bad.append(f"index total_size {c.index.get('metadata')} is not {total}")
    return bad
