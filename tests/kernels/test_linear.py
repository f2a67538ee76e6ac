"""A linear layer as a convolution: the same values and gradients."""

import pytest
import torch
from conftest import prediction, relative
from torch import nn

from lida.kernels.linear import ConvolutionLinear, use_convolution_linear


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_computes_the_linear_layer(shape, bias):
    plain, ours = nn.Linear(7, 4, bias), nn.Linear(7, 4, bias)
    ours.load_state_dict(plain.state_dict())
    use_convolution_linear(nn.Sequential(ours))
    x = torch.randn(shape, requires_grad=True)
    found, expected = ours(x), plain(x)
    assert type(ours) is ConvolutionLinear and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    pairs = ((found, ours), (expected, plain))
    gradients = [torch.autograd.grad(out.square().sum(), (x, *layer.parameters())) for out, layer in pairs]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_unet_of_them_predicts_the_same(sd):
    expected, keys = prediction(sd.unet), list(sd.unet.state_dict())
    use_convolution_linear(sd.unet)
    assert any(type(module) is ConvolutionLinear for module in sd.unet.modules())
    assert list(sd.unet.state_dict()) == keys and relative(prediction(sd.unet), expected) <= 1e-5
