"""train_lora.py --compile: a compiled UNet has the gradients of the one that is not."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT

import lida
from lida.kernels.amx import compiler, has_amx
from lida.checkpoints import load_unet
from lida.nn.layers import set_attention_backend
from lida.nn.unet import UNet


@pytest.mark.full
@pytest.mark.skipif(compiler() is None, reason="torch.compile wants a C++ compiler on the CPU")
def test_compiled_gradients_are_the_gradients():
    """In bf16 with autocast, as training has it, of every layer that trains; bf16 keeps 8 bits, and sums in another order."""
    two = {"block_out_channels": (32, 128), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 16}
    two |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}  # attention in the middle alone
    config = replace(load_unet(ROOT / "weights" / "lida-tiny").config, **two)
    torch.manual_seed(0)
    unet = UNet(config).to(torch.bfloat16, memory_format=torch.channels_last)
    set_attention_backend(unet, "amx" if has_amx(torch.bfloat16, torch.device("cpu")) else "sdpa")
    layers = lida.inject_lora(unet, 4, targets=["to_q", "to_k", "to_v", "to_out.0"])
    parameters = [p for layer in layers.values() for p in (layer.lora_down, layer.lora_up)]
    for layer in layers.values():
        torch.nn.init.normal_(layer.train().lora_up, std=0.1)
    latents, text = torch.randn(1, 4, 16, 16, dtype=torch.bfloat16), torch.randn(1, 7, 32, dtype=torch.bfloat16)

    def gradients(model) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            noise_pred = model(latents, torch.tensor([600]), text)
        return torch.autograd.grad(noise_pred.float().square().mean(), parameters)

    for ours, theirs in zip(gradients(torch.compile(unet)), gradients(unet), strict=True):
        assert (ours - theirs).norm() < 0.1 * theirs.norm()  # 0.05 at most when this was written
