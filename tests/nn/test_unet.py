"""The UNet equals diffusers' on the same weights."""

import diffusers
import pytest
import torch
from conftest import relative

from lida.nn.unet import UNet, UNetConfig


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_the_unet_equals_diffusers(sd, pipe, size):
    latents, timesteps, context = torch.randn(2, 4, *size), torch.tensor([3, 981]), torch.randn(2, 77, 48)
    with torch.no_grad():
        ours, theirs = sd.unet(latents, timesteps, context), pipe.unet(latents, timesteps, context).sample
    assert relative(ours, theirs) <= 1e-5


def test_the_unet_of_sd15_has_diffusers_keys_and_shapes():
    with torch.device("meta"):
        ours = UNet(UNetConfig(sample_size=64, cross_attention_dim=768))
        theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    assert {k: t.shape for k, t in ours.state_dict().items()} == {k: t.shape for k, t in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 859_520_964 and len(ours.state_dict()) == 686


def test_activation_checkpointing_gives_the_same_gradients(sd):
    """And fewer tensors are kept for the backward pass."""
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 48)
    weight, found = sd.unet.conv_in.weight.requires_grad_(), []
    for on in (False, True):
        sd.unet.set_gradient_checkpointing(on)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss = sd.unet(*inputs).square().mean()
        found.append((sum(saved), torch.autograd.grad(loss, weight)[0]))
    (whole, ours), (less, theirs) = found
    assert less < whole / 2 and relative(ours, theirs) <= 1e-5


def test_block_types_must_match_the_widths():
    with pytest.raises(ValueError, match="down_block_types .* for each of block_out_channels"):
        UNetConfig(block_out_channels=(32, 64))
