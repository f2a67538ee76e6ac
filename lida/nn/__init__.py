"""The networks of Stable Diffusion 1.5, from scratch, and the LoRA layer: tensors in, tensors out.

Only the text encoder is from transformers; it takes texts.

No module here reads or writes a file. Parameter names are the keys of diffusers' checkpoints.
"""

from .attention_maps import recorded_attention
from .layers import Attention, CachedContext, attention
from .lora import LoRALinear, LowRank, eject_lora, inject_lora, lora_parameters
from .unet import UNet, UNetConfig
from .vae import VAE, VAEConfig

__all__ = [
    "VAE", "Attention", "CachedContext", "LoRALinear", "LowRank", "UNet", "UNetConfig", "VAEConfig", "attention",
    "eject_lora", "inject_lora", "lora_parameters", "recorded_attention",
]  # fmt: skip
