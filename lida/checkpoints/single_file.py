"""Single-file checkpoints, with the module names of latent diffusion (Rombach et al. 2022).

Model sites offer Stable Diffusion 1.5 as one .safetensors file in this layout. It has no config, so SD1.5's is used.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..diffusion.schedule import NoiseScheduleConfig
from ..doors.errors import InputError
from ..doors.tensors import read_tensors
from ..nn.layers import ResnetBlock
from ..nn.unet import UNet, UNetConfig
from ..nn.vae import VAE, PixelAttention, VAEConfig
from .configs import TextConfig

SCHEDULE = NoiseScheduleConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False
)
CONFIGS: dict[str, Any] = {
    "unet": UNetConfig(sample_size=64, cross_attention_dim=768),
    "vae": VAEConfig((128, 256, 512, 512), layers_per_block=2, sample_size=512),
    "text_encoder": TextConfig(hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12),
}
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."}
# Not read: the averaged weights, the tables of the schedule, which is SD1.5's, and CLIP's weights for comparing images
IGNORED = re.compile(
    r"model_ema\..+|cond_stage_model\.(logit_scale|text_projection)|scale_factor|logvar|lvlb_weights|betas"
    r"|(sqrt_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def read_part(path: Path, part: str) -> tuple[dict[str, Tensor], Any]:
    """Return a part's tensors under latent diffusion's names, and its config.

    Raises InputError for tensors that belong to no part of SD1.5.
    """
    tensors, config = read_tensors(path), CONFIGS[part]
    unknown = [n for n in tensors if not n.startswith(tuple(PREFIXES.values())) and not IGNORED.fullmatch(n)]
    if unknown:
        some = ", ".join(name[:100] for name in sorted(unknown)[:5])
        raise InputError(f"{path}: has {len(unknown)} tensors that are no part of SD1.5: {some}")
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIXES[part])}
    first = tensors.get(f"{PREFIXES['unet']}input_blocks.0.0.weight")
    inpaints = first is not None and first.shape[1:2] == (9,)
    return tensors, replace(config, in_channels=9) if inpaints else config


def unet_blocks(config: UNetConfig) -> dict[str, str]:
    """Map our path to theirs for each block of the UNet. They number all blocks in one sequence, samplers included."""
    names = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    for i in range(len(config.block_out_channels)):
        for layer in range(config.layers_per_block + 1):
            number = i * (config.layers_per_block + 1) + layer
            for kind, place in (("resnets", 0), ("attentions", 1)):
                names[f"down_blocks.{i}.{kind}.{layer}"] = f"input_blocks.{number + 1}.{place}"
                names[f"up_blocks.{i}.{kind}.{layer}"] = f"output_blocks.{number}.{place}"
        place = 2 if config.up_block_types[i].startswith("CrossAttn") else 1  # after the attention, if there is any
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number + 1}.0.op"
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
    return names


def vae_blocks(config: VAEConfig) -> dict[str, str]:
    """Map our path to theirs for each block of the VAE. They number the decoder's resolutions from high to low."""
    names = {name: name for name in ("quant_conv", "post_quant_conv")}
    count = len(config.block_out_channels)
    for half, way, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        names |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        names[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        names |= {f"{half}.mid_block.resnets.{k}": f"{half}.mid.block_{k + 1}" for k in (0, 1)}
        for i in range(count):
            level = i if way == "down" else count - 1 - i
            for layer in range(config.layers_per_block + (way == "up")):
                names[f"{half}.{way}_blocks.{i}.resnets.{layer}"] = f"{half}.{way}.{level}.block.{layer}"
            names[f"{half}.{way}_blocks.{i}.{sampler}rs.0.conv"] = f"{half}.{way}.{level}.{sampler}.conv"
    return names


def key_map(model: UNet | VAE) -> dict[str, str]:
    """Map our key to theirs (without the prefix) for each tensor of the model, one to one."""
    blocks = unet_blocks(model.config) if isinstance(model, UNet) else vae_blocks(model.config)
    names = {}
    for path, module in model.named_modules():
        if path not in blocks:
            continue
        inner = inner_names(model, module)
        for key in module.state_dict():
            name, dot, kind = key.rpartition(".")
            names[f"{path}.{key}"] = f"{blocks[path]}.{inner.get(name, name)}{dot}{kind}"
    assert names.keys() == model.state_dict().keys() and len(set(names.values())) == len(names), "not a bijection"
    return names


def inner_names(model: UNet | VAE, module: nn.Module) -> dict[str, str]:
    """Map our names to theirs within a block. Transformers and single layers have the same names in both."""
    if isinstance(module, ResnetBlock):
        return UNET_RESNET if isinstance(model, UNet) else VAE_RESNET
    return VAE_ATTENTION if isinstance(module, PixelAttention) else {}
