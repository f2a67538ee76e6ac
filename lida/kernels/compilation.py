"""torch.compile for a UNet that trains."""

import torch
from torch import Tensor, nn

from ..nn.layers import Upsample


class UpsampleByRepeating(Upsample):
    """Upsample with the pixels repeated by hand: the same values.

    The backward that torch 2.11 compiles for F.interpolate loses the gradient in bfloat16 on the CPU.
    """

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        b, c, h, w = x.shape
        if size is not None and tuple(size) != (2 * h, 2 * w):
            return super().forward(x, size)
        return self.conv(x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w))


def compiled(unet: nn.Module) -> nn.Module:
    """Return the UNet compiled. Its own forward keeps its values and gradients."""
    for module in unet.modules():
        if type(module) is Upsample:
            module.__class__ = UpsampleByRepeating
    return torch.compile(unet)  # type: ignore[return-value]  # of a module it makes a module
