"""The factors of one layer, and the change that diffusers and peft make to a layer."""

import torch

from lida.adapters.adapter import TEXT

RANK = 4  # of random_adapter()
STEM = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
ONE = {f"unet.{STEM}.lora.down.weight": torch.ones(2, 32), f"unet.{STEM}.lora.up.weight": torch.ones(32, 2)}


def theirs(pipe, path: str) -> torch.Tensor:
    """Return the change that diffusers and peft make to the module at our path."""
    if path.startswith(TEXT):
        inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
        module = inner.get_submodule(path.removeprefix(TEXT))
    else:
        module = pipe.unet.get_submodule(path)
    return module.get_delta_weight("x")
