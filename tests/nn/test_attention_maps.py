"""Recorded attention is the softmax of queries and keys, and recording changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from conftest import relative

import lida
from lida.nn.layers import Attention


def test_recorded_attention_is_the_softmax_of_queries_and_keys(sd):
    """Each map times the values is what the layer computes; recording changes nothing and ends with the block."""
    x, t, hidden = torch.randn(2, 4, 8, 8), torch.tensor([5, 700]), torch.randn(2, 77, 48)
    layer, seen = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2, []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append((*inputs, output)))
    with torch.no_grad():
        expected = sd.unet(x, t, hidden)
        with lida.recorded_attention(sd.unet) as maps:
            assert torch.equal(sd.unet(x, t, hidden), expected)
            sd.unet(x[:1], t[:1], hidden[:1])
        assert torch.equal(sd.unet(x, t, hidden), expected)
    handle.remove()
    paths = [path for path, module in sd.unet.named_modules() if path.endswith("attn2")]
    assert list(maps) == paths and all(len(recorded) == 2 for recorded in maps.values())
    first, second = maps["mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert first.shape == (2, 4, 4, 77) and second.shape == (1, 4, 4, 77)  # heads, 2 x 2 pixels, tokens
    assert torch.allclose(first.sum(-1), torch.ones(2, 4, 4), atol=1e-5)
    _, values = layer.keys_values(seen[1][1])
    by_hand = layer.to_out[0]((first @ values).transpose(1, 2).flatten(2))
    assert relative(by_hand, seen[1][2]) <= 1e-5


def test_a_recording_carries_gradients_and_survives_an_error(sd):
    hidden = torch.randn(1, 77, 48, requires_grad=True)
    with pytest.raises(ZeroDivisionError), lida.recorded_attention(sd.unet) as maps:
        sd.unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), hidden)
        raise ZeroDivisionError
    towards_a_word = sum(recorded[0][..., 3].sum() for recorded in maps.values())
    assert torch.autograd.grad(towards_a_word, hidden)[0].abs().max() > 0
    assert all(m.kernel is F.scaled_dot_product_attention for m in sd.unet.modules() if isinstance(m, Attention))
