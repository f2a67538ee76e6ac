"""A frozen convolution of few pixels equals torch's, and so does its gradient."""

import pytest
import torch
import torch.nn.functional as F
from conftest import relative
from torch import nn

from lida.kernels import use_few_pixels_convolutions
from lida.kernels.convolution import FewPixelsConv2d, product

TOLERANCE = {torch.bfloat16: 2**-8, torch.float32: 2e-6}  # one rounding to bf16; sums of 576 numbers in another order


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradient_are_torchs(dtype):
    model = nn.Sequential(nn.Conv2d(64, 40, 3, padding=1)).to(dtype, memory_format=torch.channels_last).requires_grad_(False)
    use_few_pixels_convolutions(model)
    (conv,) = model
    x = torch.randn(2, 64, 5, 6).to(dtype).requires_grad_()  # 60 pixels of 64 channels
    ours = conv(x)
    assert "FrozenConvolution" in type(ours.grad_fn).__name__  # otherwise this would compare torch with itself
    dy, exact = torch.randn_like(ours), x.detach().double().requires_grad_()
    theirs = F.conv2d(exact, conv.weight.double(), conv.bias.double(), padding=1)
    assert relative(ours.double(), theirs) <= TOLERANCE[dtype]
    gradients = [torch.autograd.grad(y, at, dy.to(y.dtype))[0].double() for y, at in ((ours, x), (theirs, exact))]
    assert relative(*gradients) <= TOLERANCE[dtype]
    with torch.no_grad():
        assert torch.equal(conv(x), product(x, conv.weight, conv.bias)) and torch.equal(conv(x), ours)


@pytest.mark.parametrize("change", [lambda c, x: (c.requires_grad_(True), x), lambda c, x: (c, x[..., :5].repeat(1, 1, 1, 2))])
def test_weights_that_train_and_many_pixels_have_torchs_own(change):
    conv, x = nn.Conv2d(64, 40, 3, padding=1).requires_grad_(False), torch.randn(2, 64, 5, 6).requires_grad_()
    use_few_pixels_convolutions(conv)
    conv, x = change(conv, x)  # to 100 pixels
    assert type(conv) is FewPixelsConv2d and torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert "FrozenConvolution" not in type(conv(x).grad_fn).__name__


def test_a_unets_keys_stay_and_its_values_up_to_rounding(sd):
    x, t, context = torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.randn(1, 77, 48)  # 16 pixels of 32 channels
    expected, keys = sd.unet(x, t, context), list(sd.unet.state_dict())
    use_few_pixels_convolutions(sd.unet.requires_grad_(False))
    assert relative(sd.unet(x, t, context), expected) <= 1e-5 and list(sd.unet.state_dict()) == keys


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1)], ids=["1x1", "unpadded", "strided"]
)
def test_only_plain_convolutions_are_replaced(conv):
    model = nn.Sequential(conv, nn.Conv2d(4, 4, 3, padding=1))
    use_few_pixels_convolutions(model)
    assert [type(module) for module in model] == [nn.Conv2d, FewPixelsConv2d]
