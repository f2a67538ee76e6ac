"""The layers equal their equations, and diffusers' layers on the same weights."""

import pytest
import torch
import torch.nn.functional as F
from conftest import draws, relative
from diffusers.models.activations import GEGLU as TheirGEGLU
from diffusers.models.attention_processor import Attention as TheirAttention
from diffusers.models.embeddings import get_timestep_embedding

from lida.aging.generation import generate
from lida.diffusion.samplers import Sampling
from lida.nn.layers import GEGLU, Attention, CachedContext, Downsample, Upsample, attention, timestep_embedding


def test_attention_equals_torchs_own():
    """Values and gradients, in float64: both sum the same products in another order."""
    inputs = [torch.randn(2, 4, n, 24, dtype=torch.float64, requires_grad=True) for n in (50, 77, 77)]
    ours, theirs = attention(*inputs), F.scaled_dot_product_attention(*inputs)
    assert relative(ours, theirs) <= 1e-12
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (ours, theirs)]
    assert all(relative(a, b) <= 1e-12 for a, b in zip(*gradients))


@pytest.mark.parametrize("context_dim", [None, 20])
def test_the_attention_layer_equals_diffusers(context_dim):
    ours, theirs = Attention(32, 4, context_dim), TheirAttention(32, context_dim, heads=4, dim_head=8)
    theirs.load_state_dict(ours.state_dict())
    x, context = torch.randn(2, 9, 32), None if context_dim is None else torch.randn(2, 5, context_dim)
    assert relative(ours(x, context), theirs(x, context)) <= 1e-5


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="30 channels do not divide into 4 heads"):
        Attention(30, 4)


def test_timestep_embeddings_equal_diffusers():
    timesteps = torch.tensor([0, 1, 500, 999])
    theirs = get_timestep_embedding(timesteps, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert relative(timestep_embedding(timesteps, 32), theirs) <= 1e-5


def test_geglu_equals_diffusers():
    ours, theirs, x = GEGLU(12, 20), TheirGEGLU(12, 20), torch.randn(3, 12)
    theirs.load_state_dict(ours.state_dict())
    assert relative(ours(x), theirs(x)) <= 1e-6


def test_the_vae_pads_right_and_below_and_the_unet_on_all_sides():
    x = torch.randn(1, 3, 8, 8)
    for asymmetric, padding in ((False, (1, 1, 1, 1)), (True, (0, 1, 0, 1))):
        layer = Downsample(3, asymmetric)
        padded = F.conv2d(F.pad(x, padding), layer.conv.weight, layer.conv.bias, stride=2)
        assert layer(x).shape[2:] == (4, 4) and relative(layer(x), padded) <= 1e-6


def test_upsampling_repeats_pixels_up_to_any_size():
    layer, x = Upsample(3), torch.randn(1, 3, 4, 5)
    assert torch.equal(layer(x), layer.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    assert layer(x, torch.Size((7, 9))).shape[2:] == (7, 9)


def test_keys_and_values_of_the_prompt_are_computed_once(sd, monkeypatch):
    """Each cross-attention asks once a generation for each of its two prompts' tensors, and paints the same."""
    calls, whole = [], Attention.keys_values

    def counted(self, context):
        calls.append(context.shape[1])
        return whole(self, context)

    monkeypatch.setattr(Attention, "keys_values", counted)
    layers = sum(name.endswith("attn2") for name, _ in sd.unet.named_modules())
    paint = lambda: generate(sd, "a boy", Sampling(5), generator=draws(), output_type="latent")  # noqa: E731
    cached = paint()
    assert calls.count(77) == layers
    calls.clear()
    monkeypatch.setattr(CachedContext, "keys_values", lambda self, attention: attention.keys_values(self.hidden))
    anew = paint()
    assert calls.count(77) == 5 * layers and torch.equal(cached, anew)


def test_a_cached_context_stands_for_its_hidden_states(sd):
    x, t, hidden = torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), sd.text_encoder(["a boy", "a man"])
    context = CachedContext(hidden)
    assert torch.equal(sd.unet(x, t, context), sd.unet(x, t, hidden))
    assert torch.equal(sd.unet(x, t, context), sd.unet(x, t, hidden))  # from the cache
