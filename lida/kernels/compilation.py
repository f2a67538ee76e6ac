"""torch.compile for training a UNet."""

import torch
from torch import Tensor, nn

from ..nn.layers import Upsample


class UpsampleByRepeating(Upsample):
    """Upsample with pixels repeated by expand(): the same values.

    The backward that torch 2.11 compiles for F.interpolate loses the gradient in bfloat16 on the CPU.
    """

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        b, c, h, w = x.shape
        if size is not None and tuple(size) != (2 * h, 2 * w):
            return super().forward(x, size)
        return self.conv(x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w))


def compiled(unet: nn.Module) -> nn.Module:
    """Return the compiled UNet. The values and gradients of the UNet itself do not change."""
    for module in unet.modules():
        if type(module) is Upsample:
            module.__class__ = UpsampleByRepeating
    return torch.compile(unet)  # type: ignore[return-value]  # a module compiles to a module
