"""train_lora.py --compile: a compiled UNet has the gradients of the one that is not."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT, relative

from lida.checkpoints import load_unet
from lida.kernels import compiled, use_attention
from lida.kernels.compilation import UpsampleByRepeating
from lida.kernels.flash_cpu import available, compiler
from lida.nn import UNet, inject_lora, lora_parameters
from lida.nn.layers import Upsample


@pytest.mark.parametrize("size", [None, torch.Size((8, 10)), torch.Size((7, 9))])
def test_upsampling_by_repeating_equals_upsampling(size):
    plain, ours, x = Upsample(3), UpsampleByRepeating(3), torch.randn(2, 3, 4, 5, requires_grad=True)
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours(x, size), plain(x, size))
    gradients = [torch.autograd.grad(layer(x, size).square().sum(), x)[0] for layer in (ours, plain)]
    assert relative(*gradients) <= 1e-5


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile imports what torch itself deprecates
@pytest.mark.skipif(compiler() is None, reason="torch.compile wants a C++ compiler on the CPU")
def test_compiled_gradients_are_the_gradients():
    """In bf16 with autocast, as training has it, of every layer that trains; bf16 keeps 8 bits, and sums in another order."""
    two = {"block_out_channels": (32, 128), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 16}
    two |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}  # attention in the middle alone
    config = replace(load_unet(ROOT / "weights" / "lida-tiny").config, **two)
    unet = UNet(config).to(torch.bfloat16, memory_format=torch.channels_last)
    use_attention(unet, "flash_cpu" if available(torch.bfloat16, torch.device("cpu")) else "sdpa")
    layers = inject_lora(unet, 4, targets=["to_q", "to_k", "to_v", "to_out.0"])
    for layer in layers.values():
        torch.nn.init.normal_(layer.train().lora_up, std=0.1)
    latents = torch.randn(1, config.in_channels, 16, 16, dtype=torch.bfloat16)
    text = torch.randn(1, 7, 32, dtype=torch.bfloat16)

    def gradients(model) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            noise_pred = model(latents, torch.tensor([600]), text)
        return torch.autograd.grad(noise_pred.float().square().mean(), lora_parameters(layers.values()))

    plain = gradients(unet)
    for ours, theirs in zip(gradients(compiled(unet)), plain, strict=True):
        assert (ours - theirs).norm() < 0.1 * theirs.norm()  # 0.05 at most when this was written
