"""Seeded dropout: a sample loses the same values in any batch."""

import pytest
import torch

from lida.training.dropout import DropoutLoRALinear, SampleDropout


def test_dropout_depends_on_the_sample_alone():
    dropout = SampleDropout(0.4)
    layer = DropoutLoRALinear(torch.nn.Linear(50, 8), 4, None, dropout)
    layer.lora_up.data.normal_()
    x = torch.randn(3, 7, 50)
    layer.eval()
    plain = layer(x)
    layer.train()
    dropout.seeds = [5, 6, 7]
    whole = layer(x)
    dropout.seeds = [6]
    assert torch.allclose(layer(x[1:2]), whole[1:2], atol=1e-6) and not torch.allclose(whole, plain, atol=1e-2)
    assert torch.equal(layer.eval()(x), plain)


def test_a_share_of_the_values_is_dropped_by_each_layer_in_its_own_way():
    dropout = SampleDropout(0.4)
    dropout.seeds = [1]
    x = torch.ones(1, 100, 1000)
    kept = dropout(x, 0)
    assert (kept == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)  # 100,000 draws: six deviations
    assert kept.max().item() == pytest.approx(1 / 0.6) and not torch.equal(kept, dropout(x, 1))
    layers = [DropoutLoRALinear(torch.nn.Linear(5, 5), 1, None, dropout) for _ in range(3)]
    assert [layer.number for layer in layers] == [0, 1, 2]


def test_a_base_in_half_precision_can_paint_between_steps():
    """Without autocast, the adapter's products run in float32."""
    layer = DropoutLoRALinear(torch.nn.Linear(50, 8, dtype=torch.bfloat16), 4, None, SampleDropout(0.4)).eval()
    layer.lora_up.data.normal_()
    x = torch.randn(3, 50)
    exact = x @ (layer.weight.float() + layer.lora_up @ layer.lora_down).T + layer.bias.float()
    out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16 and (out - exact).abs().max() <= 2**-6 * exact.abs().max()  # bf16 keeps 8 bits
