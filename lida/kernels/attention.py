"""The kernels that compute attention, by name. Each equals lida.nn.layers.attention on (B, heads, tokens, d)."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..doors.errors import InputError
from ..nn.layers import Attention
from . import amx


def einsum_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Write the equation out, with the scale in the queries and the weights in their own dtype."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("bhnm,bhmd->bhnd", torch.softmax(scores, dim=-1, dtype=q.dtype), v)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Call xformers' memory-efficient kernel (Rabe and Staats 2021), which wants (B, tokens, heads, d)."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


# sdpa is torch's fused kernel, einsum the equation as it stands, amx lida's own in bfloat16 on CPUs with AMX
ATTENTION: dict[str, Callable[..., Tensor]] = {
    "sdpa": F.scaled_dot_product_attention,
    "xformers": xformers_attention,
    "amx": amx.attention,
    "einsum": einsum_attention,
}


def use_attention(model: nn.Module, name: str) -> None:
    """Let every attention layer of a model run on one kernel of ATTENTION. Raises InputError if it cannot."""
    if name not in ATTENTION:
        raise InputError(f"attention {name!r} is not one of {', '.join(ATTENTION)}")
    if name == "xformers" and find_spec("xformers") is None:
        raise InputError("attention xformers: the package is not installed; pip install lida-aging[xformers]")
    if name == "amx":
        weight = next(model.parameters())
        amx.require_amx(weight.dtype, weight.device)
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel = ATTENTION[name]


def fastest_attention(dtype: torch.dtype, device: str | torch.device, tokens: int) -> str:
    """Return the name of the fastest kernel for training with `tokens` pixels in the largest layer.

    Torch's own kernel takes three times as long as the equation on the way back in bfloat16 on the CPU; the equation keeps
    all scores, so that it is chosen up to 1,024 tokens only.
    """
    device = torch.device(device)
    if amx.has_amx(dtype, device):
        return "amx"
    slow = device.type == "cpu" and dtype == torch.bfloat16
    return "einsum" if slow and tokens <= 1024 else "sdpa"
