"""Launches our FlashAttention kernels on torch tensors, through ctypes and the driver, without Go.

The parameter block is FlashParams of kernels/cuda/src/flash_params.h, which has the semantics too.
"""
import ctypes as C
import math

import torch

cuda = C.CDLL("libcuda.so.1")


def call(name, *args):
    code = getattr(cuda, name)(*args)
    if code != 0:
        text = C.c_char_p()
        cuda.cuGetErrorString(code, C.byref(text))
        raise RuntimeError(f"{name}: {code} {text.value and text.value.decode()}")


class Params(C.Structure):
    _fields_ = (
        [(n, C.c_void_p) for n in "q k v o lse q_starts k_starts k_lens mask_offsets mask_cols counter".split()]
        + [(n, C.c_int64) for n in "q_token q_head k_token k_head v_token v_head o_token o_head total_q".split()]
        + [(n, C.c_int32) for n in "sequences max_q max_k q_heads kv_heads dim window_left window_right mask_block_q mask_block_k".split()]
        + [(n, C.c_float) for n in ("scale", "softcap")]
    )


assert C.sizeof(Params) == 208


class BlockMask:
    """The blocks that exist, from a bool matrix [rows, cols] on the CPU."""

    def __init__(self, bitmap, block_q=128, block_k=128):
        offsets, cols = [0], []
        for row in bitmap.tolist():
            cols += [j for j, has in enumerate(row) if has]
            offsets.append(len(cols))
        self.bitmap, self.block_q, self.block_k = bitmap, block_q, block_k
        self.blocks = len(cols)
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device="cuda")
        self.cols = torch.tensor(cols or [0], dtype=torch.int32, device="cuda")

    def dense(self, sq, sk):
        m = self.bitmap.repeat_interleave(self.block_q, 0).repeat_interleave(self.block_k, 1)
        return m[:sq, :sk].cuda()


def params(q, k, v, o, lse, *, q_starts=None, k_starts=None, k_lens=None, max_q=None, max_k=None, causal=False, window=(-1, -1), softcap=0.0, scale=None, mask=None):
    """Tensors are [B, S, H, D] (any strides over [B*S, H, D]) or, with starts, [total, H, D]."""
    p = Params()
    sequences = 1
    if q_starts is not None:
        sequences = len(q_starts) - 1
        p.q_starts, p.k_starts = q_starts.data_ptr(), k_starts.data_ptr()
    elif q.dim() == 4:
        sequences, max_q, max_k = q.shape[0], q.shape[1], k.shape[1]
        q, k, v, o = (t.flatten(0, 1) if t.is_contiguous() else t.view(-1, *t.shape[2:]) for t in (q, k, v, o))
    else:
        max_q, max_k = q.shape[0], k.shape[0]
    if k_lens is not None:
        p.k_lens = k_lens.data_ptr()
    p.q, p.k, p.v, p.o = (t.data_ptr() for t in (q, k, v, o))
    p.lse = lse.data_ptr() if lse is not None else None
    for name, t in zip("qkvo", (q, k, v, o)):
        assert t.stride(2) == 1
        setattr(p, name + "_token", t.stride(0))
        setattr(p, name + "_head", t.stride(1))
    p.total_q, p.sequences, p.max_q, p.max_k = q.shape[0], sequences, max_q, max_k
    p.q_heads, p.kv_heads, p.dim = q.shape[1], k.shape[1], q.shape[2]
    p.window_left, p.window_right = window
    if causal:
        p.window_right = 0
    if mask is not None:
        p.mask_offsets, p.mask_cols = mask.offsets.data_ptr(), mask.cols.data_ptr()
        p.mask_block_q, p.mask_block_k = mask.block_q, mask.block_k
    p.scale = scale if scale is not None else 1 / math.sqrt(q.shape[2])
    p.softcap = softcap
    return p


class Module:
    def __init__(self, path):
        torch.cuda.init()
        torch.zeros(1, device="cuda")  # makes the primary context current
        self.image = open(path, "rb").read() + b"\0"
        self.handle = C.c_void_p()
        call("cuModuleLoadData", C.byref(self.handle), self.image)
        self.functions = {}

    def function(self, name, shared):
        if name not in self.functions:
            f = C.c_void_p()
            call("cuModuleGetFunction", C.byref(f), self.handle, name.encode())
            call("cuFuncSetAttribute", f, 8, shared)  # MAX_DYNAMIC_SHARED_SIZE_BYTES
            call("cuFuncSetAttribute", f, 9, 100)  # PREFERRED_SHARED_MEMORY_CARVEOUT
            self.functions[name] = f
        return self.functions[name]

    def launch(self, name, grid, block, shared, args):
        """Launches on torch's stream; args are ctypes objects."""
        f = self.function(name, shared)
        pointers = (C.c_void_p * len(args))(*[C.cast(C.byref(a), C.c_void_p) for a in args])
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        call("cuLaunchKernel", f, *[C.c_uint(g) for g in grid], C.c_uint(block), C.c_uint(1), C.c_uint(1), C.c_uint(shared), stream, pointers, None)


DIMS = (64, 96, 128, 256)
SHORT = {torch.float16: "f16", torch.bfloat16: "bf16"}


class Sm80:
    """flash_sm80.cu as built for 9.0. geometry: {dim: (queries of a block, threads, shared bytes)}."""

    geometry = {64: (128, 128, 81920), 96: (128, 128, 73728), 128: (128, 128, 65536), 256: (64, 128, 98304)}
    prefix = "flash_sm80"

    def __init__(self, path, geometry=None):
        self.module = Module(path)
        self.geometry = {**self.geometry, **{int(d): g for d, g in (geometry or {}).items()}}

    def __call__(self, q, k, v, o, lse=None, **options):
        p = params(q, k, v, o, lse, **options)
        dim = next(d for d in DIMS if p.dim <= d)
        rows, threads, shared = self.geometry[dim]
        self.module.launch(f"{self.prefix}_{SHORT[q.dtype]}_{dim}", (-(-p.max_q // rows), p.q_heads, p.sequences), threads, shared, [p])


FAMILIES = {"sm80": Sm80}
