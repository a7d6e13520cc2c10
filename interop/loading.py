"""Loading a 4-bit checkpoint with the installed transformers, and what must hold then."""
import hashlib
import inspect
import json
import logging
import os
import shutil
import tempfile

import bitsandbytes as bnb
import torch
import transformers
from transformers import AutoConfig, BitsAndBytesConfig

import checkpoint
import reference
from checkpoint import Checkpoint

V5 = int(transformers.__version__.split(".")[0]) >= 5
PICTURE_AND_TEXT = {"clip", "blip"}  # neither goes without the other
INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def use_torch_op():
    """Where the CPU has AVX-512, bitsandbytes 0.50 dequantizes wrongly unless in_features divides into blocks, and asserts
    on out_features % 32 with AVX512-BF16. There its own torch op stands in, for every model alike. Returns why, or None."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.backends.utils import _get_4bit_code

    def dequantize(A, absmax, blocksize, quant_type, shape, dtype):
        return _dequantize_4bit_compute(A.view(torch.uint8).reshape(-1), absmax.float(), _get_4bit_code(quant_type, A.device), blocksize, shape, dtype)

    use_torch_op.library = torch.library.Library("bitsandbytes", "IMPL")  # undone when it is collected
    use_torch_op.library.impl("dequantize_4bit", dequantize, "CPU", allow_override=True)
    bnb.nn.modules.has_avx512bf16 = lambda: False
    return "AVX-512: bitsandbytes' torch op stands in for its native dequantize, which is wrong here for some shapes"


def model_class(config):
    name = (config.architectures or [None])[0]
    return getattr(transformers, name, None) or transformers.AutoModel


def load(path, dtype, **kw):
    """(model, what was wrong)"""
    kw["dtype" if V5 else "torch_dtype"] = dtype
    cls = model_class(AutoConfig.from_pretrained(path))
    model, info = cls.from_pretrained(path, device_map="cpu", output_loading_info=True, local_files_only=True, **kw)
    return model.eval(), [f"{k}: {len(info[k])}, {sorted(map(str, info[k]))[:3]}" for k in INFO if info.get(k)]


def linear4bit(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}


def fingerprint(tensors):
    h = hashlib.sha256()
    for k, t in sorted(tensors.items()):
        t = t.detach().cpu().contiguous()
        h.update(f"{k} {t.dtype} {list(t.shape)} ".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.digest()


def state_problems(model, out):
    """Every Linear4bit holds exactly the tensors of one 4-bit weight of the file, and none is left over. Loaders rename
    modules, so they are paired by content; the last two components of the name must agree."""
    stored = {}
    for name in out.quantized():
        parts = {k[len(name):]: out.get(k) for k in out.where if k == name or k.startswith(name + ".")}
        stored.setdefault(fingerprint(parts), []).append(name)
    bad, modules = [], linear4bit(model)
    for n, m in modules.items():
        if m.weight.quant_state is None:
            bad.append(f"{n}: Linear4bit without a quant state")
            continue
        held = {"": m.weight.data, **{"." + k: v for k, v in m.weight.quant_state.as_dict(packed=True).items()}}
        names = stored.get(fingerprint(held))
        if not names:
            bad.append(f"{n}: holds no weight of the file, bit for bit")
            continue
        match = [s for s in names if s.removesuffix(".weight").split(".")[-2:] == n.split(".")[-2:]] or names
        names.remove(match[0])
    left = [s for names in stored.values() for s in names]
    if left:
        bad.append(f"{len(left)} 4-bit weights of the file are in no Linear4bit: {sorted(left)[:3]}")
    return bad


def inputs(model, g):
    """Some input of the kind that the model takes first, and of every other kind that it wants."""
    config, takes = model.config, inspect.signature(model.forward).parameters
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    ids, kw = lambda n: torch.randint(16, text.vocab_size, (2, n), generator=g), {}
    if config.model_type == "decision_transformer":
        kw = {k: torch.randn(2, 4, n, generator=g).to(dtype) for k, n in [("states", config.state_dim), ("actions", config.act_dim), ("returns_to_go", 1)]}
        return {**kw, "rewards": None, "timesteps": torch.arange(4)[None].expand(2, 4), "attention_mask": torch.ones(2, 4, dtype=dtype)}
    if "input_features" in takes:
        kw["input_features"] = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=g).to(dtype)
    elif model.main_input_name != "pixel_values" or config.model_type in PICTURE_AND_TEXT:
        kw["input_ids"] = ids(12)
    if model.main_input_name == "pixel_values" or config.model_type in PICTURE_AND_TEXT:
        vision = getattr(config, "vision_config", config)
        kw["pixel_values"] = torch.randn(2, 3, vision.image_size, vision.image_size, generator=g).to(dtype)
    if getattr(config, "is_encoder_decoder", False):
        kw["decoder_input_ids"] = kw["input_ids"][:, :6] if "input_ids" in kw else ids(6)
    return kw


def forward(model, seed=0):
    with torch.no_grad():
        out = model(**inputs(model, torch.Generator().manual_seed(seed)))
    return {k: v.float() for k, v in out.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


class Quantizer:
    """Within it, bitsandbytes quantizes on the fly with another block size than its default 64, which no configuration can
    ask for, and with the second level as reference.py defines it: bitsandbytes' own nested codes on a CPU come from a
    table that is one code off in 0.1 % of the blocks, and its offset depends on the order of a float32 sum."""

    def __init__(self, blocksize):
        self.blocksize = blocksize

    def __enter__(self):
        self.original = original = bnb.functional.quantize_4bit

        def quantize_4bit(A, absmax=None, out=None, blocksize=None, compress_statistics=False, **kw):
            packed, state = original(A, absmax, out, self.blocksize, compress_statistics=False, **kw)
            return packed, reference.nest(state, reference.mean(state.absmax)) if compress_statistics else state

        bnb.functional.quantize_4bit = quantize_4bit

    def __exit__(self, *_):
        bnb.functional.quantize_4bit = self.original


def on_the_fly(src, out):
    """src quantized by transformers and bitsandbytes as it is loaded, with out's options and skip list."""
    q = out.config["quantization_config"]
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=q["bnb_4bit_quant_type"], bnb_4bit_use_double_quant=q["bnb_4bit_use_double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, q["bnb_4bit_compute_dtype"]), llm_int8_skip_modules=q["llm_int8_skip_modules"])
    s = checkpoint.source(src)
    if not isinstance(s, checkpoint.Unfused):
        model, bad = load(src, getattr(torch, out.dtype()), quantization_config=config)
    else:
        model, bad = unfused_on_the_fly(s, getattr(torch, out.dtype()), config)
    # transformers 5 casts what the class keeps in float32 for float16 alone; transformers 4 keeps it for every dtype.
    for name, p in model.named_parameters():
        if checkpoint.kept_fp32(s.config, name) and name in s.where and s.get(name).dtype == torch.float32:
            p.data = s.get(name)
    return model, bad


def unfused_on_the_fly(s, dtype, config):
    """Transformers unfuses experts when it loads what is 4-bit already, and leaves them fused in 16 bits on the fly. Here
    the model is unfused on the fly too, from a copy of the source that is."""
    from safetensors.torch import save_file
    from transformers.quantizers.base import HfQuantizer
    unfuse = getattr(HfQuantizer, "_convert_model_for_quantization")
    original = HfQuantizer.preprocess_model

    def preprocess_model(self, model, *a, **kw):
        unfuse(self, model)
        return original(self, model, *a, **kw)

    HfQuantizer.preprocess_model = preprocess_model
    try:
        with tempfile.TemporaryDirectory() as d:
            save_file({k: s.get(k) for k in s.where}, os.path.join(d, "model.safetensors"), {"format": "pt"})
            shutil.copy(os.path.join(s.path, "config.json"), d)
            return load(d, dtype, quantization_config=config)
    finally:
        HfQuantizer.preprocess_model = original


def check(src, path, blocksize):
    """What is wrong with the 4-bit checkpoint at path, made from src, under this transformers."""
    out = Checkpoint(path)
    model, bad = load(path, "auto")
    bad += state_problems(model, out)
    have = forward(model)
    bad += [f"{k} is not finite" for k, v in have.items() if not torch.isfinite(v).all()]
    names = set(linear4bit(model))
    del model
    with Quantizer(blocksize):
        reference, problems = on_the_fly(src, out)
    bad += [f"on the fly: {p}" for p in problems]
    other = set(linear4bit(reference))
    if other != names:
        bad.append(f"on the fly {len(other)} modules are quantized, here {len(names)}: {sorted(other ^ names)[:3]}")
    sizes = {m.weight.quant_state.blocksize for m in linear4bit(reference).values()}
    if sizes != {blocksize}:
        bad.append(f"the reference has block sizes {sizes}, not {blocksize}: the comparison says nothing")
    want = forward(reference)
    if not want or set(want) != set(have):
        bad.append(f"outputs {sorted(have)}, on the fly {sorted(want)}")
    for k in sorted(set(want) & set(have)):
        if not torch.equal(want[k], have[k]):
            bad.append(f"{k} differ by {(want[k] - have[k]).abs().max().item():.3g} from on the fly")
    return bad


def source_loads(src, dtype):
    """Why this transformers does not load the source itself or does not compute in the dtype of the output, or None."""
    try:
        forward(load(src, getattr(torch, dtype))[0])
        model, bad = load(src, "auto")
        forward(model)
    except Exception as e:  # the reason is the result
        return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    return "; ".join(bad) or None


def dequantized_loads(path):
    if "quantization_config" in json.dumps(Checkpoint(path).config):
        return ["still quantized"]
    model, bad = load(path, "auto")
    return bad + [f"{k} is not finite" for k, v in forward(model).items() if not torch.isfinite(v).all()]


def quiet():
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
