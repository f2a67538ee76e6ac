"""Convolutions of 3 x 3 with few pixels and frozen weights, as one matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def neighbours(x: Tensor) -> list[Tensor]:
    """Return the nine neighbours (B, H, W, C) of each pixel of x (B, C, H, W), row by row; beyond the border they are 0."""
    height, width = x.shape[2:]
    around = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # einops would break torch.compile's graph here
    return [around[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution as (the neighbours of x) W: (B, H, W, 9 C) times (9 C, out), the order of channels_last weights."""
    return F.linear(torch.cat(neighbours(x), dim=-1), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


class FrozenConvolution(torch.autograd.Function):
    """product() with a frozen weight; its gradient is dx = (the neighbours of dy) W."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        rows = torch.stack(neighbours(dy)[::-1], dim=-1).flatten(3)  # (B, H, W, 9 out)
        dx = rows @ weight.permute(0, 2, 3, 1).flatten(0, 2)  # (9 out, C), also the order of channels_last weights
        return dx.permute(0, 3, 1, 2), None, None


class FewPixelsConv2d(nn.Conv2d):
    """A convolution of 3 x 3 that is a matrix product if it is frozen and there are fewer pixels than channels.

    On the CPU, torch reorders a convolution's weight at each call. With few pixels that takes longer than the product.
    """

    def forward(self, x: Tensor) -> Tensor:
        few = x.shape[0] * x.shape[2] * x.shape[3] < self.in_channels
        if not few or self.weight.requires_grad or x.dtype != self.weight.dtype:
            return super().forward(x)
        convolve = FrozenConvolution.apply if torch.is_grad_enabled() and x.requires_grad else product
        return convolve(x, self.weight, self.bias)


def use_few_pixels_convolutions(model: nn.Module) -> None:
    """Make every plain convolution of 3 x 3 of a model on the CPU a FewPixelsConv2d. Its state_dict does not change.

    The model should be channels_last; otherwise each call copies the weight.
    """
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.stride == (1, 1)
        if plain and module.padding == (1, 1) and module.weight.device.type == "cpu":
            module.__class__ = FewPixelsConv2d
