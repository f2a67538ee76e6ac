"""The noise predictor of Stable Diffusion 1.5 (Rombach et al. 2022, appendix E), at any width and depth."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..doors.json import Range
from .layers import CachedContext, Downsample, ResnetBlock, Transformer2D, Upsample, named_layers, timestep_embedding

Width = Annotated[int, Range(1, 8192)]


@dataclass(frozen=True)
class UNetConfig:
    """The fields of diffusers' unet/config.json, with its defaults. `fixed` has the fields that must have one value.

    `attention_head_dim` is the number of heads; diffusers' name for it is a historical mistake that files keep.
    """

    sample_size: Annotated[int, Range(1, 512)] | None = None
    in_channels: Annotated[int, Range(1, 64)] = 4
    out_channels: Annotated[int, Range(1, 64)] = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[Width, ...] = (320, 640, 1280, 1280)
    layers_per_block: Annotated[int, Range(1, 16)] = 2
    norm_num_groups: Width = 32
    norm_eps: Annotated[float, Range(0, 1)] = 1e-5
    cross_attention_dim: Width = 1280
    attention_head_dim: Annotated[int, Range(1, 256)] = 8

    fixed: ClassVar[dict] = {
        "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_type": "UNetMidBlock2DCrossAttn",
        "only_cross_attention": False, "downsample_padding": 1, "mid_block_scale_factor": 1, "dropout": 0.0, "act_fn": "silu",
        "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None,
        "encoder_hid_dim_type": None, "num_attention_heads": None, "dual_cross_attention": False,
        "use_linear_projection": False, "class_embed_type": None, "addition_embed_type": None,
        "addition_time_embed_dim": None, "num_class_embeds": None, "upcast_attention": False,
        "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
        "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "projection_class_embeddings_input_dim": None, "attention_type": "default", "class_embeddings_concat": False,
        "mid_block_only_cross_attention": None, "cross_attention_norm": None, "addition_embed_type_num_heads": 64,
    }  # fmt: skip

    advisory: ClassVar[tuple] = ()

    def __post_init__(self):
        for name in ("down_block_types", "up_block_types"):
            types, kind = getattr(self, name), "DownBlock2D" if name.startswith("down") else "UpBlock2D"
            if len(types) != len(self.block_out_channels) or set(types) - {kind, f"CrossAttn{kind}"}:
                raise ValueError(f"{name} {types}: one of {kind}, CrossAttn{kind} for each of block_out_channels")


class Stage(nn.Module):
    """The layers at one resolution: resnets, each followed by a transformer that attends to the prompt, if the stage has any."""

    checkpointing = False

    def __init__(self, config: UNetConfig, widths: list[tuple[int, int]], cross_attention: bool):
        super().__init__()
        groups, temb_channels = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList([ResnetBlock(a, b, groups, config.norm_eps, temb_channels) for a, b in widths])
        self.attentions = nn.ModuleList()
        if cross_attention:
            heads, context_dim = config.attention_head_dim, config.cross_attention_dim
            self.attentions.extend(Transformer2D(b, heads, context_dim, groups) for _, b in widths)

    def layer(self, i: int, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        def run(x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
            x = self.resnets[i](x, temb)
            return self.attentions[i](x, context) if len(self.attentions) else x

        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, x, temb, context, use_reentrant=False)
        return run(x, temb, context)


class DownBlock(Stage):
    """Resnets, each of which appends a skip; except at the lowest resolution, a downsampler then appends one more."""

    def __init__(self, config: UNetConfig, i: int):
        widths = config.block_out_channels
        pairs = [(widths[max(i - 1, 0)], widths[i])] + [(widths[i], widths[i])] * (config.layers_per_block - 1)
        super().__init__(config, pairs, config.down_block_types[i].startswith("CrossAttn"))
        self.downsamplers = nn.ModuleList([Downsample(widths[i])] if i < len(widths) - 1 else [])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> list[Tensor]:
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb, context)
            skips.append(x)
        for downsample in self.downsamplers:
            skips.append(downsample(x))
        return skips


class MidBlock(Stage):
    """Resnet, cross-attention, resnet at the lowest resolution."""

    def __init__(self, config: UNetConfig):
        width = config.block_out_channels[-1]
        super().__init__(config, [(width, width)] * 2, cross_attention=True)
        del self.attentions[1]

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        return self.resnets[1](self.layer(0, x, temb, context), temb)


class UpBlock(Stage):
    """Resnets, each of which takes a skip; except at the input's resolution, an upsampler to the next skip's size follows."""

    def __init__(self, config: UNetConfig, i: int):
        widths = config.block_out_channels[::-1]  # from the lowest resolution up
        width, layers = widths[i], config.layers_per_block + 1
        below = widths[min(i + 1, len(widths) - 1)]  # the width of the last skip: the downward block's input
        inputs = [widths[max(i - 1, 0)]] + [width] * (layers - 1)
        skips = [width] * (layers - 1) + [below]
        pairs = [(a + s, width) for a, s in zip(inputs, skips)]
        super().__init__(config, pairs, config.up_block_types[i].startswith("CrossAttn"))
        self.upsamplers = nn.ModuleList([Upsample(width)] if i < len(widths) - 1 else [])

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor, context: Tensor) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), temb, context)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])  # an odd size was rounded up on the way down
        return x


class UNet(nn.Module):
    """Diffusers' UNet2DConditionModel, as Stable Diffusion 1.5 uses it."""

    fingerprint = ""  # of the file that it was loaded from

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        temb = 4 * widths[0]
        self.time_embedding = named_layers(linear_1=nn.Linear(widths[0], temb), silu=nn.SiLU(), linear_2=nn.Linear(temb, temb))
        self.down_blocks = nn.ModuleList([DownBlock(config, i) for i in range(len(widths))])
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList([UpBlock(config, i) for i in range(len(widths))])
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    @property
    def inpaints(self) -> bool:
        """Return whether the input is latents, mask and masked image, C + 1 + C channels (Rombach et al. 2022, section 4.5)."""
        return self.config.in_channels == 2 * self.config.out_channels + 1

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Turn activation checkpointing (Chen et al. 2016) on or off: less memory, but the forward pass is computed twice."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = on

    def forward(self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor | CachedContext) -> Tensor:
        """Predict the noise (B, C, h, w) in `latents` (B, C, h, w) at `timesteps` (B,), given the prompts (B, M, C_text)."""
        temb = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(latents.dtype)
        temb = self.time_embedding(temb)  # (B, 4 C)
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], temb, encoder_hidden_states)
        x = self.mid_block(skips[-1], temb, encoder_hidden_states)
        for block in self.up_blocks:
            x = block(x, skips, temb, encoder_hidden_states)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
