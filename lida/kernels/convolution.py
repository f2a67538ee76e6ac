"""Frozen convolutions of 3 x 3: the backward pass as one matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenConvolution(torch.autograd.Function):
    """A convolution of 3 x 3 with a frozen weight; its gradient is dx = (the neighbourhoods of dy) W.

    On the CPU in bfloat16, torch reorders the weight at each call. With few pixels that takes longer than the product.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        height, width = dy.shape[2:]
        around = F.pad(dy.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # einops would break torch.compile's graph here
        shifted = [around[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width] for i in range(3) for j in range(3)]
        rows = torch.stack(shifted, dim=-1).flatten(3)  # (B, H, W, 9 out)
        dx = rows @ weight.permute(0, 2, 3, 1).flatten(0, 2)  # (9 out, C), the order of channels_last weights
        return dx.permute(0, 3, 1, 2), None, None


class FrozenConv2d(nn.Conv2d):
    """A convolution of 3 x 3 that uses FrozenConvolution's backward pass if there are fewer pixels than channels."""

    def forward(self, x: Tensor) -> Tensor:
        few = x.shape[0] * x.shape[2] * x.shape[3] < self.in_channels
        if few and x.requires_grad and not self.weight.requires_grad and x.dtype == self.weight.dtype == torch.bfloat16:
            return FrozenConvolution.apply(x, self.weight, self.bias)
        return super().forward(x)


def use_frozen_convolutions(model: nn.Module) -> None:
    """Give a frozen model on the CPU this backward pass. Its values and its state_dict do not change."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.stride == (1, 1)
        if plain and module.padding == (1, 1) and not module.weight.requires_grad and module.weight.device.type == "cpu":
            module.__class__ = FrozenConv2d
