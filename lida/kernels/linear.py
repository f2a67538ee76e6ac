"""Linear layers as convolutions of 1 x 1, for CPUs on which torch's library of convolutions is faster than that of products.

In float32, torch's products are MKL's, which is not at its best on AMD's CPUs; its convolutions are oneDNN's, which is.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvolutionLinear(nn.Linear):
    """The same layer on (..., in), whose rows, one or more, are the pixels of a channels_last picture."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, in, rows, 1)
        out = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


def use_convolution_linear(model: nn.Module) -> None:
    """Make every plain linear layer of a model a ConvolutionLinear. Its state_dict does not change."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = ConvolutionLinear
