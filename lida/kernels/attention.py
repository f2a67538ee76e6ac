"""The kernels that compute attention, by name. Each equals lida.nn.layers.attention on (B, heads, tokens, d)."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..doors.errors import InputError
from ..nn.layers import Attention
from . import flash_cpu
from .convolution import use_few_pixels_convolutions
from .feed_forward import use_blocked_feed_forward
from .linear import use_convolution_linear


def einsum_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute the equation as it stands, with the scale in the queries and the softmax in the queries' dtype."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("bhnm,bhmd->bhnd", torch.softmax(scores, dim=-1, dtype=q.dtype), v)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Call xformers' memory-efficient kernel (Rabe and Staats 2021), which takes (B, tokens, heads, d)."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


# sdpa is torch's fused kernel, einsum the equation as it stands, flash_cpu lida's own kernel (bfloat16 on newer CPUs)
ATTENTION: dict[str, Callable[..., Tensor]] = {
    "sdpa": F.scaled_dot_product_attention,
    "xformers": xformers_attention,
    "flash_cpu": flash_cpu.attention,
    "einsum": einsum_attention,
}


def use_attention(model: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Give every attention layer of a model one kernel of ATTENTION. Raises InputError if the kernel cannot run here.

    `dtype` is the dtype in which attention is computed, if it differs from that of the weights, as under autocast.
    """
    if name not in ATTENTION:
        raise InputError(f"attention {name!r} is not one of {', '.join(ATTENTION)}")
    if name == "xformers" and find_spec("xformers") is None:
        raise InputError("attention xformers: the package is not installed; pip install lida-aging[xformers]")
    if name == "flash_cpu":
        weight = next(model.parameters())
        flash_cpu.require(dtype or weight.dtype, weight.device)
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel = ATTENTION[name]


def fastest_attention(dtype: torch.dtype, device: str | torch.device, tokens: int) -> str:
    """Return the name of the fastest kernel with `tokens` pixels in the largest layer.

    That is flash_cpu where it runs. Elsewhere, in bfloat16 on the CPU, the backward pass of torch's kernel takes three times as
    long as that of the equation. The equation keeps all scores, so it is chosen up to 1,024 tokens only.
    """
    device = torch.device(device)
    if flash_cpu.available(dtype, device):
        return "flash_cpu"
    return "einsum" if device.type == "cpu" and dtype == torch.bfloat16 and tokens <= 1024 else "sdpa"


def use_fastest(model: nn.Module, tokens: int) -> None:
    """Prepare a UNet or a VAE for sampling, with `tokens` pixels in its largest layer of attention."""
    weight = next(model.parameters())
    name = fastest_attention(weight.dtype, weight.device, tokens)
    one_head = any(module.heads == 1 for module in model.modules() if isinstance(module, Attention))
    if name == "flash_cpu" and one_head and flash_cpu.cpu_has("amx_bf16"):
        name = "sdpa"  # with AMX, torch's kernel is faster for the one wide head of a VAE
    use_attention(model, name)
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = True  # nothing else reads what the norm before it returns
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and flash_cpu.cpu_has("AuthenticAMD"):
        use_convolution_linear(model)
    elif weight.device.type == "cpu":
        use_few_pixels_convolutions(model)
        use_blocked_feed_forward(model)
    if weight.dtype != torch.float32 or weight.device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
