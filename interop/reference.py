"""What bitsandbytes itself makes of a checkpoint, and where a given one differs.

Packed codes, absmax, tables and JSON come from bitsandbytes' own quantize_4bit, run on the CPU on the weight cast to the
model's dtype. Two numbers of double quantization are no function of the weights there: the offset is a float32 mean whose
order of summation depends on vector width and threads, and the nested codes come from a 65,536-entry table that is one off
now and then. So the offset may be 1 ulp from the float64 mean, and the nested codes are held against the nearest entry
of the map, ties down, given the offset of the file.
"""
import json
import re

import bitsandbytes.functional as F
import numpy as np
import torch

from checkpoint import container_problems, kept_fp32

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Weights of transformers' Conv1D, stored [in, out]; a 4-bit weight is always [out, in].
CONV1D = dict.fromkeys(("gpt2", "openai-gpt", "imagegpt", "decision_transformer"), re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$"))
OFFSET_ULP = 1
CONFIG = {  # what transformers writes: value, or type where the value is an option
    "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": str, "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": str, "bnb_4bit_use_double_quant": bool, "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": list, "llm_int8_threshold": float,
    "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes",
}


def nearest_nested(y, book, block=256):
    """Codes and absmax of the second level: exact nearest entry of y/max|y|, ties to the lower index."""
    n = y.numel()
    v = torch.nn.functional.pad(y, (0, -n % block)).reshape(-1, block)
    absmax = v.abs().max(dim=-1)[0]
    scaled = torch.clamp(v * (1.0 / absmax.clamp(min=1e-38)).view(-1, 1), -1, 1).reshape(-1)[:n]
    return torch.bucketize(scaled, (book[:-1] + book[1:]) / 2, out_int32=True).to(torch.uint8), absmax


def nest(state, offset):
    """The state with its absmax double quantized, given the offset."""
    off = torch.tensor(float(offset))
    book = F.create_dynamic_map()
    codes, absmax = nearest_nested(state.absmax - off, book)
    return F.QuantState(absmax=codes, shape=state.shape, dtype=state.dtype, blocksize=state.blocksize, code=state.code,
                        quant_type=state.quant_type, offset=off,
                        state2=F.QuantState(absmax=absmax, code=book, blocksize=256, dtype=torch.float32))


def mean(absmax):
    """The offset: summed in float64, rounded once."""
    return np.float32(absmax.double().mean().item())


def quantize(w, quant_type, blocksize, offset=None):
    """suffix -> tensor of one weight [out, in] in the model's dtype; offset: double quantization with that offset."""
    packed, state = F.quantize_4bit(w.contiguous(), blocksize=blocksize, quant_type=quant_type, compress_statistics=False)
    if offset is not None:
        state = nest(state, offset)
    return {"": packed, **{"." + k: v for k, v in state.as_dict(packed=True).items()}}


def offset_error(w, quant_type, blocksize, offset):
    """Distance of offset to the float64 mean of absmax, in units in the last place of its float32 value."""
    _, state = F.quantize_4bit(w.contiguous(), blocksize=blocksize, quant_type=quant_type, compress_statistics=False)
    m = mean(state.absmax)
    return abs(float(offset) - float(m)) / float(np.spacing(m)) if m else float(offset != 0)


def dequantize(get, name, quant_type):
    """The weight that bitsandbytes reads from a file: its torch op, two roundings for a nested scale."""
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    meta = json.loads(bytes(get(f"{name}.quant_state.bitsandbytes__{quant_type}").numpy()))
    absmax = get(name + ".absmax")
    if absmax.dtype == torch.uint8:
        scale = get(name + ".nested_absmax").repeat_interleave(meta["nested_blocksize"])[: absmax.numel()]
        absmax = get(name + ".nested_quant_map")[absmax.int()] * scale + torch.tensor(meta["nested_offset"], dtype=torch.float32)
    return _dequantize_4bit_compute(get(name).reshape(-1), absmax, get(name + ".quant_map"), meta["blocksize"], meta["shape"], DTYPES[meta["dtype"]])


def same(a, b):
    """Equal in dtype, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def describe(have, want):
    if have.dtype != want.dtype or have.shape != want.shape:
        return f"{have.dtype}{list(have.shape)}, bitsandbytes has {want.dtype}{list(want.shape)}"
    size = have.element_size()
    a, b = (t.contiguous().reshape(-1).view(torch.uint8).reshape(-1, size) for t in (have, want))
    return f"{int((a != b).any(dim=1).sum())} of {have.numel()} elements differ"


def is_conv1d(config, name):
    pattern = CONV1D.get(config.get("model_type"))
    return bool(pattern and pattern.search(name))


def config_problems(out):
    q, bad = out.config.get("quantization_config"), []
    if not q:
        return ["config.json has no quantization_config"]
    if list(q) != list(CONFIG):
        bad.append(f"quantization_config has keys {list(q)}")
    for k, want in CONFIG.items():
        ok = isinstance(q.get(k), want) if isinstance(want, type) else q.get(k) == want and isinstance(q.get(k), type(want))
        if not ok:
            bad.append(f"quantization_config.{k} is {q.get(k)!r}")
    if q.get("bnb_4bit_compute_dtype") != out.dtype():
        bad.append(f"compute dtype {q.get('bnb_4bit_compute_dtype')} is not the model's {out.dtype()}")
    return bad


def compare(src, out, expect):
    """Differences between out and what bitsandbytes makes of src with the options expect (type, blocksize, double_quant).

    Every tensor of both is looked at: 4-bit weights with their state, and all others, which are the source's, cast to the
    model's dtype where they are floating."""
    bad = container_problems(out) + config_problems(out)
    q = out.config.get("quantization_config") or {}
    if (q.get("bnb_4bit_quant_type"), q.get("bnb_4bit_use_double_quant")) != (expect["type"], expect["double_quant"]):
        bad.append(f"config.json says {q.get('bnb_4bit_quant_type')}, double quantization {q.get('bnb_4bit_use_double_quant')}; asked for {expect}")
    dtype = DTYPES[out.dtype()]
    quantized, mine = out.quantized(), set()
    if not quantized:
        bad.append("no weight is quantized")
    for name, quant_type in sorted(quantized.items()):
        parts = {k for k in out.where if k == name or k.startswith(name + ".")}
        mine |= parts
        if len({out.where[k] for k in parts}) != 1:
            bad.append(f"{name}: the weight and its state are in different files")
        if quant_type != expect["type"]:
            bad.append(f"{name} is {quant_type}")
        meta = json.loads(bytes(out.get(f"{name}.quant_state.bitsandbytes__{quant_type}").numpy()))
        if meta["blocksize"] != expect["blocksize"] or ("nested_offset" in meta) != expect["double_quant"]:
            bad.append(f"{name}: {meta}, asked for {expect}")
        if name not in src.where:
            bad.append(f"{name}: not in the source")
            continue
        w = src.get(name)
        w = (w.t() if is_conv1d(src.config, name) else w).to(dtype)
        if list(w.shape) != meta["shape"]:
            bad.append(f"{name}: the state says {meta['shape']}, the source {list(w.shape)}")
            continue
        offset = meta.get("nested_offset")
        if offset is not None:
            off = offset_error(w, quant_type, meta["blocksize"], offset)
            if not off <= OFFSET_ULP:
                bad.append(f"{name}: nested_offset {offset!r} is {off:.1f} ulp from the mean of absmax")
        want = {name + s: t for s, t in quantize(w, quant_type, meta["blocksize"], offset).items()}
        if set(want) != parts:
            bad.append(f"{name}: tensors {sorted(parts ^ set(want))} missing or too many")
        bad += [f"{k}: {describe(out.get(k), want[k])}" for k in sorted(parts & set(want)) if not same(out.get(k), want[k])]
    for k in sorted(set(out.where) - mine):
        if k not in src.where:
            bad.append(f"{k}: not in the source and no quantization state")
            continue
        t, s = out.get(k), src.get(k)
        cast = s.is_floating_point() and not (s.dtype == torch.float32 and kept_fp32(src.config, k))
        if not same(t, s.to(dtype) if cast else s):
            bad.append(f"{k}: not the source's tensor: {t.dtype}{list(t.shape)}, source {s.dtype}{list(s.shape)}")
    lost = sorted(set(src.where) - set(out.where))
    return bad + ([f"source tensors are missing: {lost[:4]}"] if lost else [])


def compare_dequantized(out, deq, source_config):
    """Differences between deq and the values that bitsandbytes reads from out."""
    bad = container_problems(deq)
    if "quantization_config" in deq.config:
        bad.append("config.json still has a quantization_config")
    quantized = out.quantized()
    state = {k for name in quantized for k in out.where if k.startswith(name + ".")}
    for k in sorted(set(out.where) - state):
        if k not in deq.where:
            bad.append(f"{k}: missing")
            continue
        want = out.get(k)
        if k in quantized:
            want = dequantize(out.get, k, quantized[k])
            want = want.t() if is_conv1d(source_config, k) else want
        if not same(deq.get(k), want):
            bad.append(f"{k}: {describe(deq.get(k), want.contiguous())}")
    extra = sorted(set(deq.where) - set(out.where))
    return bad + ([f"tensors too many: {extra[:4]}"] if extra else [])


def tensors_differ(a, b):
    """Names of tensors that are not the same in two checkpoints, in any order and sharding."""
    bad = sorted(set(a.where) ^ set(b.where))
    return bad + [k for k in sorted(set(a.where) & set(b.where)) if not same(a.get(k), b.get(k))]
