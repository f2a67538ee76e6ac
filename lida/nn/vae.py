"""The autoencoder of Stable Diffusion: pixels <-> scaled latents (Kingma & Welling 2014; Rombach et al. 2022, section 3.1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from ..doors.json import Range
from .layers import Attention, Downsample, ResnetBlock, Upsample, named_layers

EPS = 1e-6  # of every GroupNorm here
Width = Annotated[int, Range(1, 8192)]


@dataclass(frozen=True)
class VAEConfig:
    """The fields of diffusers' vae/config.json, with its defaults. `fixed` has the fields that must have one value."""

    block_out_channels: tuple[Width, ...]
    in_channels: Annotated[int, Range(1, 64)] = 3
    out_channels: Annotated[int, Range(1, 64)] = 3
    layers_per_block: Annotated[int, Range(1, 16)] = 1
    latent_channels: Annotated[int, Range(1, 64)] = 4
    norm_num_groups: Width = 32
    sample_size: Annotated[int, Range(1, 4096)] = 32
    scaling_factor: Annotated[float, Range(1e-4, 1e4)] = 0.18215

    fixed: ClassVar[dict] = {
        "act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None,
        "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
    }  # fmt: skip
    # Ignored: StableDiffusion.load chooses the dtype, and the weights' names show the types of the blocks
    advisory: ClassVar[tuple] = ("force_upcast", "down_block_types", "up_block_types")


class PixelAttention(Attention):
    """Single-head self-attention over the pixels of (B, C, H, W), added to its input."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, qkv_bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # it has no context
        h = super().forward(rearrange(self.group_norm(x), "b c h w -> b (h w) c"))
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups, EPS) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


def resolutions(widths: Sequence[int], layers: int, groups: int, name: str, sampler: Callable[[int], nn.Module]) -> nn.Sequential:
    """Return a block of resnets for each resolution. Each but the last ends in a sampler, under `name`."""
    blocks: list[nn.Module] = []
    for before, width in zip([widths[0], *widths], widths):
        inputs = [before] + [width] * (layers - 1)
        block = named_layers(resnets=nn.Sequential(*(ResnetBlock(channels, width, groups, EPS) for channels in inputs)))
        if len(blocks) < len(widths) - 1:
            block.add_module(name, nn.Sequential(sampler(width)))
        blocks.append(block)
    return nn.Sequential(*blocks)


def encoder(config: VAEConfig) -> nn.Sequential:
    """Return the encoder: pixels (B, 3, H, W) -> mean and log-variance (B, 2 * latent_channels, H / f, W / f)."""
    widths, groups, halve = config.block_out_channels, config.norm_num_groups, partial(Downsample, asymmetric=True)
    return named_layers(
        conv_in=nn.Conv2d(config.in_channels, widths[0], 3, padding=1),
        down_blocks=resolutions(widths, config.layers_per_block, groups, "downsamplers", halve),
        mid_block=MidBlock(widths[-1], groups),
        conv_norm_out=nn.GroupNorm(groups, widths[-1], eps=EPS),
        silu=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1),
    )


def decoder(config: VAEConfig) -> nn.Sequential:
    """Return the decoder: latents (B, latent_channels, h, w) -> pixels (B, 3, f h, f w)."""
    widths, groups = config.block_out_channels[::-1], config.norm_num_groups
    return named_layers(
        conv_in=nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
        mid_block=MidBlock(widths[0], groups),
        up_blocks=resolutions(widths, config.layers_per_block + 1, groups, "upsamplers", Upsample),
        conv_norm_out=nn.GroupNorm(groups, widths[-1], eps=EPS),
        silu=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], config.out_channels, 3, padding=1),
    )


class VAE(nn.Module):
    """Diffusers' AutoencoderKL. Outside this class, latents are always scaled to about unit variance.

    Inputs are converted to the dtype of the weights. `tiling` bounds the memory of decode().
    """

    tiling = False
    fingerprint = ""  # of the file that it was loaded from

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        latents = config.latent_channels
        self.encoder = encoder(config)
        self.decoder = decoder(config)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Return the floating-point type of the weights."""
        return self.quant_conv.weight.dtype

    @property
    def factor(self) -> int:
        """Return the pixels per latent, along each axis."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def posterior(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), unscaled, for (B, 3, H, W) in [-1, 1].

        Raises ValueError unless H and W are multiples of `factor`.
        """
        height, width = pixel_values.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"the VAE takes sizes that are multiples of {self.factor}, not {width}x{height}")
        mean, logvar = self.quant_conv(self.encoder(pixel_values.to(self.dtype))).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def encode(self, pixel_values: Tensor, generator: Generator | None = None, sample: bool = True) -> Tensor:
        """Return scaled latents (B, C, H / f, W / f) of pixels (B, 3, H, W) in [-1, 1]: a posterior sample, or the mean."""
        mean, logvar = self.posterior(pixel_values)
        if not sample:
            return mean * self.config.scaling_factor
        device = mean.device if generator is None else generator.device  # one CPU seed gives the same noise on every device
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=device).to(mean.device)
        return self.draw(mean, logvar, noise)

    def draw(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """Return scaled latents drawn from a posterior with standard normal noise (Kingma and Welling 2014, section 2.4)."""
        return (mean + (0.5 * logvar).exp() * noise) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w), about [-1, 1] and not clamped, of scaled latents (B, C, h, w).

        With `tiling`, latents larger than those of training are decoded tile by tile, in bounded memory. Each tile is normalised
        on its own, so its tones differ slightly from those of an undivided picture.
        """
        z, side = latents.to(self.dtype) / self.config.scaling_factor, self.config.sample_size // self.factor
        if not self.tiling or max(z.shape[2:]) <= side:
            return self.decoder(self.post_quant_conv(z))
        f, (height, width) = self.factor, z.shape[2:]
        pixels = z.new_zeros(len(z), self.config.out_channels, f * height, f * width)
        total = z.new_zeros(f * height, f * width)
        for top, bottom in tiles(height, side):
            for left, right in tiles(width, side):
                tile = self.decoder(self.post_quant_conv(z[:, :, top:bottom, left:right]))
                weight = fading(tile.shape[2], f * side // 4).to(z)[:, None] * fading(tile.shape[3], f * side // 4).to(z)
                pixels[:, :, f * top : f * bottom, f * left : f * right] += weight * tile
                total[f * top : f * bottom, f * left : f * right] += weight
        return pixels.div_(total)


def tiles(length: int, side: int) -> list[tuple[int, int]]:
    """Return intervals of at most `side` that cover `length`, evenly spread; neighbours share a quarter or more."""
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - side) / (side - side // 4)) + 1
    return [(start, start + side) for start in (round(k * (length - side) / (count - 1)) for k in range(count))]


def fading(length: int, overlap: int) -> Tensor:
    """Return weights (length,) that rise linearly over `overlap` at both ends and are never 0."""
    position = torch.arange(length) + 0.5
    return torch.minimum(position, length - position).div(overlap).clamp(max=1)
