"""FlashAttention-2 (Dao 2023) in bf16 on the CPU, forward and backward.

The kernel is flash_cpu.cpp; the first use compiles it, in about a second, for the matrix tiles of Intel's server CPUs (AMX,
from Sapphire Rapids on) or for vectors with products of bf16 (AVX512-BF16, as AMD's CPUs have them from Zen 4 on).
"""

import ctypes
import platform
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..doors.errors import InputError

FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
ARCHITECTURES = {"amx_bf16": "sapphirerapids", "avx512_bf16": "cooperlake"}  # Linux's word about the CPU: the compiler's -march


class Heads(ctypes.Structure):
    """flash_cpu.cpp's view of a tensor (B, heads, tokens, d) whose last axis is contiguous."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_long), ("head", ctypes.c_long), ("token", ctypes.c_long)]

    @classmethod
    def of(cls, x: Tensor) -> "Heads":
        """Return the view of a tensor, which must outlive it."""
        return cls(x.data_ptr(), *x.stride()[:3])


def compiler() -> str | None:
    """Return the path of the C++ compiler, or None."""
    return shutil.which("c++") or shutil.which("g++")


@cache
def cpu_words() -> frozenset[str]:
    """Return the words of Linux's report about the CPU; none on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text().split() if cpuinfo.exists() else ())


def cpu_has(word: str) -> bool:
    """Return whether Linux on x86-64 reports this about the CPU, such as "amx_bf16" or "AuthenticAMD"."""
    return platform.machine() == "x86_64" and word in cpu_words()


def architectures() -> list[str]:
    """Return the compiler's names of the architectures that this CPU has and the kernel is written for, the best first."""
    return [name for word, name in ARCHITECTURES.items() if cpu_has(word)]


def require_kind(dtype: torch.dtype, device: torch.device) -> None:
    """Raise InputError (a ValueError) unless the numbers are bfloat16 on the CPU; the kernel would misread others."""
    if dtype != torch.bfloat16 or device.type != "cpu":
        kind = f"{str(dtype).removeprefix('torch.')} on {device.type}"
        raise InputError(f"attention flash_cpu: is for bfloat16 on the CPU, not {kind}; use sdpa")


def require(dtype: torch.dtype, device: torch.device) -> None:
    """Raise InputError if a model of this dtype and device cannot use the kernel."""
    require_kind(dtype, device)
    library()


def available(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a model of this dtype and device can use the kernel. Warns if only the compilation fails."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not architectures():
        return False
    try:
        library()
    except InputError as error:
        warnings.warn(str(error))
        return False
    return True


@cache
def library() -> ctypes.CDLL:
    """Return the kernel for the best architecture for which it runs here. Raises InputError with the last error if it is none."""
    error = InputError("attention flash_cpu: needs Linux on a CPU with AMX or AVX512-BF16; use sdpa")
    for architecture in architectures():
        try:
            return compiled_for(architecture)
        except InputError as reason:
            error = reason
    raise error


def compiled_for(architecture: str) -> ctypes.CDLL:
    """Return flash_cpu.cpp, compiled for an architecture. Raises InputError with the compiler's error."""
    if (program := compiler()) is None:
        raise InputError("attention flash_cpu: needs a C++ compiler; install g++, or use sdpa, which is slower")
    with TemporaryDirectory() as place:
        built = Path(place, "flash_cpu.so")
        source = Path(__file__).with_suffix(".cpp")
        command = [program, *FLAGS, f"-march={architecture}", str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            cure = "install g++ 11 or later, or use sdpa"
            raise InputError(f"attention flash_cpu: {command[0]} cannot compile it ({said}); {cure}")
        try:
            kernel = ctypes.CDLL(str(built))
        except OSError as error:
            cure = "set TMPDIR, or use sdpa"
            raise InputError(f"attention flash_cpu: what was compiled cannot be loaded ({error}); {cure}") from None
    if kernel.ready():
        raise InputError("attention flash_cpu: the system gives this process no AMX registers; use sdpa")
    return kernel


def like(x: Tensor) -> Tensor:
    """Return an empty tensor like x (B, heads, tokens, d), a token's heads side by side, as the next projection reads them."""
    b, heads, tokens, d = x.shape
    return x.new_empty(b, tokens, heads, d).transpose(1, 2)


def call(name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], lse: Tensor) -> None:
    """Call one of flash_cpu.cpp's two functions. The first two inputs are queries and keys."""
    inputs = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in inputs)
    q, k = inputs[:2]
    sizes = map(ctypes.c_long, (*q.shape[:3], k.shape[2], q.shape[3]))
    getattr(library(), name)(*map(Heads.of, (*inputs, *outputs)), ctypes.c_void_p(lse.data_ptr()), *sizes)


@torch.library.custom_op("lida::flash_cpu", mutates_args=(), tags=torch.Tag.flexible_layout)
def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of q, k and v (B, heads, tokens, d), and its log-sum-exp (B, heads, tokens) in float32."""
    out, lse = like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    call("attention_forward", (q, k, v), (out,), lse)
    return out, lse


@torch.library.custom_op("lida::flash_cpu_backward", mutates_args=(), tags=torch.Tag.flexible_layout)
def backward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    changes = like(q), like(k), like(v)
    call("attention_backward", (q, k, v, out, gradient), changes, lse)
    return changes


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return like(q), like(k), like(v)


forward.register_autograd(
    lambda ctx, gradient, _: backward(*ctx.saved_tensors, gradient),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output),
)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v over (B, heads, tokens, d) in bf16 on the CPU. Raises ValueError for anything else."""
    for x in (q, k, v):
        require_kind(x.dtype, x.device)
    if k.shape != v.shape or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(f"attention flash_cpu: {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)} do not fit together")
    return forward(q, k, v)[0]
