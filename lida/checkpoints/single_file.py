"""Single-file checkpoints: the names that latent diffusion (Rombach et al. 2022) gave the modules, and configs read off shapes.

Model sites offer Stable Diffusion 1.5 as one .safetensors file in that layout. It has no config. Values that no shape shows
(heads, groups, the scaling factor) are taken from SD1.5.
"""

import re
from collections import Counter
from collections.abc import Mapping

from torch import nn

from ..diffusion.schedule import NoiseScheduleConfig
from ..nn.layers import ResnetBlock
from ..nn.unet import UNet, UNetConfig
from ..nn.vae import VAE, PixelAttention, VAEConfig

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
# The averaged copy of the weights, the tables of the schedule, which is SD1.5's, and CLIP's weights for comparing images
IGNORED = re.compile(
    r"model_ema\..+|cond_stage_model\.(logit_scale|text_projection)|scale_factor|logvar|lvlb_weights|betas|(sqrt_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

SCHEDULE = NoiseScheduleConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False
)
MOST = 200  # blocks that are looked for
Shapes = Mapping[str, tuple[int, ...]]


def unet_blocks(config: UNetConfig) -> dict[str, str]:
    """Map our path to theirs for each block of the UNet. They number all blocks in one row, samplers included."""
    names = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    last, number = len(config.block_out_channels) - 1, 1
    for i in range(last + 1):
        for layer in range(config.layers_per_block):
            names[f"down_blocks.{i}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{i}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    for i in range(last + 1):
        for layer in range(config.layers_per_block + 1):
            number = i * (config.layers_per_block + 1) + layer
            names[f"up_blocks.{i}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{i}.attentions.{layer}"] = f"output_blocks.{number}.1"
        place = 2 if config.up_block_types[i].startswith("CrossAttn") else 1  # after the attention, where there is one
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
    return names


def vae_blocks(config: VAEConfig) -> dict[str, str]:
    """Map our path to theirs for each block of the VAE. They number the decoder's resolutions from the highest to the lowest."""
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


def widths_at(shapes: Shapes, pattern: str) -> int:
    """Return the most frequent first dimension of the tensors whose name matches the pattern; 0 if there are none."""
    found = Counter(shape[0] for name, shape in shapes.items() if shape and re.fullmatch(pattern, name))
    return found.most_common(1)[0][0] if found else 0


def unet_config(shapes: Shapes) -> UNetConfig:
    """Return the UNet's config from its tensors' shapes, names without the prefix.

    It tolerates a missing or misshapen tensor, so that the strict comparison that follows can name that tensor.
    """
    widths, layers, attends, number = [], [1], [], 1
    while number < MOST and (width := widths_at(shapes, rf"input_blocks\.{number}\.0\.(in_layers\.2|out_layers\.[03])\.\w+")):
        if len(widths) < len(layers):
            widths.append(width)
            attends.append(any(name.startswith(f"input_blocks.{number}.1.") for name in shapes))
        else:
            layers[-1] += 1
        number += 1
        if any(name.startswith(f"input_blocks.{number}.0.op.") for name in shapes):
            layers.append(1)
            number += 1
    if not widths:
        raise ValueError("has no input_blocks of a UNet")
    keys = ("attn2.to_k.weight", "attn2.to_v.weight")
    text = Counter(shape[1] for name, shape in shapes.items() if len(shape) == 2 and name.endswith(keys))
    conv_in = shapes.get("input_blocks.0.0.weight", ())
    return UNetConfig(
        sample_size=64, in_channels=conv_in[1] if len(conv_in) == 4 else 4, out_channels=4,
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in attends[::-1]),
        block_out_channels=tuple(widths), layers_per_block=layers[0],
        cross_attention_dim=text.most_common(1)[0][0] if text else 768,
    )  # fmt: skip


def vae_config(shapes: Shapes) -> VAEConfig:
    """Return the VAE's config from its tensors' shapes, names without the prefix."""
    widths, layers = [], 0
    pattern = r"encoder\.down\.{}\.block\.\d+\.(conv1|conv2|norm2)\.\w+"
    while len(widths) < MOST and (width := widths_at(shapes, pattern.format(len(widths)))):
        widths.append(width)
    while layers < MOST and widths_at(shapes, rf"encoder\.down\.0\.block\.{layers}\..+"):
        layers += 1
    if not widths:
        raise ValueError("has no encoder of a VAE")
    return VAEConfig(block_out_channels=tuple(widths), layers_per_block=layers, sample_size=512)


def text_config(shapes: Shapes) -> dict:
    """Return the fields of a TextConfig, names without the prefix and `text_model.`. Heads are 64 wide, as CLIP's are."""
    layers = 0
    while layers < MOST and widths_at(shapes, rf"encoder\.layers\.{layers}\..+"):
        layers += 1
    width = widths_at(shapes, r"(final_layer_norm|encoder\.layers\.\d+\.layer_norm[12])\.\w+")
    if not layers or not width:
        raise ValueError("has no layers of a CLIP text encoder")
    return {
        "vocab_size": (shapes.get("embeddings.token_embedding.weight") or (49408,))[0], "hidden_size": width,
        "intermediate_size": widths_at(shapes, r"encoder\.layers\.\d+\.mlp\.fc1\.\w+"), "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64), "hidden_act": "quick_gelu", "projection_dim": width,
        "max_position_embeddings": (shapes.get("embeddings.position_embedding.weight") or (77,))[0],
    }  # fmt: skip
