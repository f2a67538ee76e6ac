"""The backward pass of a frozen convolution equals torch's."""

import pytest
import torch
import torch.nn.functional as F
from conftest import relative
from torch import nn

from lida.kernels import use_frozen_convolutions
from lida.kernels.convolution import FrozenConv2d


def frozen(channels: int = 64) -> nn.Sequential:
    """A frozen convolution in bfloat16 with more channels than the tests have pixels."""
    model = nn.Sequential(nn.Conv2d(channels, 40, 3, padding=1)).bfloat16().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def test_a_frozen_convolution_has_the_gradient_of_torchs():
    """In bf16 on the CPU its backward pass is one product if there are few pixels; values are rounded once, by 2^-9."""
    model, x = frozen(), torch.randn(2, 64, 5, 6).bfloat16().requires_grad_()
    use_frozen_convolutions(model)
    (conv,) = model
    ours = conv(x)
    assert "FrozenConvolution" in type(ours.grad_fn).__name__  # otherwise this would compare torch with itself
    dy, exact = torch.randn_like(ours), x.detach().float().requires_grad_()
    theirs = F.conv2d(exact, conv.weight.float(), conv.bias.float(), padding=1)
    assert relative(ours.float(), theirs) <= 2**-8
    gradients = [torch.autograd.grad(y, at, dy.to(y.dtype))[0].float() for y, at in ((ours, x), (theirs, exact))]
    assert relative(*gradients) <= 2**-8
    assert "FrozenConvolution" not in type(conv.requires_grad_(True)(x).grad_fn).__name__  # weights that train have torch's


def test_values_and_keys_stay_the_same(sd):
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 48)
    expected, keys = sd.unet(x, t, context), list(sd.unet.state_dict())  # on the same memory: a copy may sum otherwise
    use_frozen_convolutions(sd.unet.requires_grad_(False))
    assert torch.equal(sd.unet(x, t, context), expected) and list(sd.unet.state_dict()) == keys


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1)], ids=["1x1", "unpadded", "strided"]
)
def test_only_plain_frozen_convolutions_are_replaced(conv):
    trained = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(conv.requires_grad_(False), trained)
    use_frozen_convolutions(model)
    assert [type(module) for module in model] == [nn.Conv2d, nn.Conv2d]
    use_frozen_convolutions(model.requires_grad_(False))
    assert type(model[1]) is FrozenConv2d
