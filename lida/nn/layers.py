"""The layers that the UNet and the VAE of Stable Diffusion share.

Module names are the keys of diffusers' checkpoints, so that loading a file is `load_state_dict(strict=True)`.
"""

import math
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..kernels import amx
from ..doors.errors import InputError

ATTENTION_BACKENDS = ("sdpa", "xformers", "amx", "einsum")


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of (B,) timesteps as (B, dim) float32, cosines first (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies  # (B, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, heads, tokens, d) (Vaswani et al. 2017, equation 1).

    `backend` is one of ATTENTION_BACKENDS: torch's fused kernel, xformers', lida's own in bf16 for CPUs with AMX, or the
    equation as it stands, which takes the most memory. That also stands in where torch's kernel is slow: backward in bf16 on
    the CPU it takes three times as long.
    """
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)  # (B, tokens, heads, d)
    if backend == "amx":
        return amx.attention(q, k, v)
    small = q.shape[-2] * k.shape[-2] <= 1024**2
    slow = small and q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if backend == "einsum" or slow:
        scores = torch.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
        return torch.einsum("bhnm,bhmd->bhnd", torch.softmax(scores, dim=-1, dtype=q.dtype), v)
    return F.scaled_dot_product_attention(q, k, v)


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Let every attention in a model run on one of ATTENTION_BACKENDS; raises InputError for one that is not there."""
    if backend not in ATTENTION_BACKENDS:
        raise InputError(f"attention {backend!r} is not one of {', '.join(ATTENTION_BACKENDS)}")
    if backend == "xformers" and find_spec("xformers") is None:
        raise InputError("attention xformers: the package is not installed; pip install lida-aging[xformers]")
    if backend == "amx":
        weight = next(model.parameters())
        amx.require_amx(weight.dtype, weight.device)
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = backend


class Prompt:
    """A prompt's hidden states (B, M, C) for many steps: what each attention makes of them is computed at the first."""

    def __init__(self, hidden: Tensor):
        self.hidden, self.kept = hidden, {}

    def keys_values(self, attention: "Attention") -> tuple[Tensor, Tensor]:
        """The attention's keys and values, while its weights stay as they are."""
        if id(attention) not in self.kept:
            self.kept[id(attention)] = attention.keys_values(self.hidden)
        return self.kept[id(attention)]


class Attention(nn.Module):
    """Multi-head attention from (B, N, C) to `context` (B, M, C_context), or to itself without one.

    Returns (B, N, C). Raises ValueError where the width does not divide into the heads.
    """

    backend = "sdpa"

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, qkv_bias: bool = False):
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: {dim} channels do not divide into {heads} heads")
        self.heads = heads
        context_dim = dim if context_dim is None else context_dim
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim, dim, bias=qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # the checkpoint's key is to_out.0

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, C_context) -> twice (B, heads, M, d)."""
        k, v = (rearrange(t, "b m (h d) -> b h m d", h=self.heads) for t in (self.to_k(context), self.to_v(context)))
        return k, v

    def forward(self, x: Tensor, context: Tensor | Prompt | None = None) -> Tensor:
        context = x if context is None else context
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = context.keys_values(self) if isinstance(context, Prompt) else self.keys_values(context)
        return self.to_out[0](rearrange(attention(q, k, v, self.backend), "b h n d -> b n (h d)"))


class GEGLU(nn.Module):
    """x W_1 * gelu(x W_2), with the exact gelu (Shazeer 2020, section 2)."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    """The position-wise network of a transformer block, four times as wide inside: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))  # keys net.0 and net.2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt and a feed-forward network, each added to its input."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """A transformer over the pixels of (B, C, H, W), conditioned on (B, M, C_context) (Rombach et al. 2022, section 3.3)."""

    def __init__(self, channels: int, heads: int, context_dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # not the UNet's norm_eps: the checkpoint was trained so
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))


class FrozenConvolution(torch.autograd.Function):
    """A convolution of 3 x 3 whose weight stays, with its way back as one product, dx = dy's neighbourhoods times W.

    Torch's own lays the weight out anew at each call, on the CPU in bf16, which takes longer than a product with few pixels.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        height, width = dy.shape[2:]
        around = F.pad(dy.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # einops would break torch.compile's graph here
        shifted = [around[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width] for i in range(3) for j in range(3)]
        rows = torch.stack(shifted, dim=-1).flatten(3)  # (B, H, W, 9 out)
        dx = rows @ weight.permute(0, 2, 3, 1).flatten(0, 2)  # (9 out, C), where channels_last weights lie already
        return dx.permute(0, 3, 1, 2), None, None


class Conv3x3(nn.Conv2d):
    """A convolution of 3 x 3 that keeps the size: (B, C, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frozen = x.requires_grad and not self.weight.requires_grad and x.device.type == "cpu"
        few = x.shape[0] * x.shape[2] * x.shape[3] < self.in_channels
        if frozen and few and x.dtype == self.weight.dtype == torch.bfloat16:
            return FrozenConvolution.apply(x, self.weight, self.bias)
        return super().forward(x)


class ResnetBlock(nn.Module):
    """Two normalised convolutions added to their input; the UNet's also hear the time: (B, C, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, temb_channels: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels) if temb_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2. The VAE pads right and below only, the UNet on all sides."""

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """The nearest pixel's value at twice the size, or at `size` (H, W), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        b, c, h, w = x.shape
        size = (2 * h, 2 * w) if size is None else size
        if torch.compiler.is_compiling() and tuple(size) == (2 * h, 2 * w):
            # The same values; of interpolate's own, torch 2.11's compiled backward loses the gradient in bf16 on the CPU
            return self.conv(x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
