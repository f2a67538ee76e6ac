"""The layers that the UNet and the VAE of Stable Diffusion share.

Module names are the keys of diffusers' checkpoints, so that loading a file is `load_state_dict(strict=True)`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding (B, dim) of timesteps (B,) in float32, cosines first (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies  # (B, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def named_layers(**layers: nn.Module) -> nn.Sequential:
    """Return a Sequential of the layers, under these names."""
    return nn.Sequential(OrderedDict(layers))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v over (B, heads, tokens, d) (Vaswani et al. 2017, equation 1)."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, heads, N, M)
    return scores.softmax(dim=-1) @ v


class CachedContext:
    """A prompt's hidden states (B, M, C), and the keys and values that each attention layer computed from them.

    One context serves all steps of a generation, as long as the weights of the attention layers do not change.
    """

    def __init__(self, hidden: Tensor):
        self.hidden = hidden
        self.cache: dict[Attention, tuple[Tensor, Tensor]] = {}

    def keys_values(self, attention: "Attention") -> tuple[Tensor, Tensor]:
        """Return the layer's keys and values, computed at the first call."""
        if attention not in self.cache:
            self.cache[attention] = attention.keys_values(self.hidden)
        return self.cache[attention]


class Attention(nn.Module):
    """Multi-head attention from (B, N, C) to `context` (B, M, C_context), or self-attention without a context.

    Returns (B, N, C). `kernel` computes the same as the function `attention`. It is torch's fused kernel, which has no second
    derivatives on the CPU; `attention` itself has them. lida.kernels has other kernels. Raises ValueError if `heads` does not
    divide `dim`.
    """

    kernel: Callable[..., Tensor] = staticmethod(F.scaled_dot_product_attention)

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
        """Return the keys and values of `context` (B, M, C_context), each (B, heads, M, d)."""
        k, v = (rearrange(t, "b m (h d) -> b h m d", h=self.heads) for t in (self.to_k(context), self.to_v(context)))
        return k, v

    def forward(self, x: Tensor, context: Tensor | CachedContext | None = None) -> Tensor:
        context = x if context is None else context
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = context.keys_values(self) if isinstance(context, CachedContext) else self.keys_values(context)
        return self.to_out[0](rearrange(self.kernel(q, k, v), "b h n d -> b n (h d)"))


class GEGLU(nn.Module):
    """x W_1 * gelu(x W_2), with the exact gelu (Shazeer 2020, section 2)."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt and a feed-forward network, each added to its input."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = named_layers(
            net=nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))
        )  # keys net.0 and net.2

    def forward(self, x: Tensor, context: Tensor | CachedContext) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """A transformer over the pixels of (B, C, H, W), conditioned on (B, M, C_context) (Rombach et al. 2022, section 3.3)."""

    def __init__(self, channels: int, heads: int, context_dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # the checkpoint was trained with this, not with the UNet's norm_eps
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | CachedContext) -> Tensor:
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))


class ResnetBlock(nn.Module):
    """Two normalised convolutions, added to their input: (B, C, H, W) -> (B, C_out, H, W).

    The UNet's blocks also add the time embedding (B, temb_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, temb_channels: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels) if temb_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.silu = nn.SiLU()

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(self.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert temb is not None
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve height and width by a convolution of stride 2. The VAE pads only right and bottom, the UNet all sides."""

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double height and width, or resize to `size` (H, W), by the nearest pixel; then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return self.conv(F.interpolate(x, size=size or [2 * side for side in x.shape[2:]], mode="nearest"))
