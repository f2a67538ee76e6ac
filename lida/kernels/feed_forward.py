"""The transformer's feed-forward network, some rows at a time."""

import torch
from torch import Tensor, nn

from ..nn.layers import TransformerBlock

ROWS = 1024  # widened to 2,560 channels in bf16 they are 5 MB, which the caches hold


class BlockedFeedForward(nn.Sequential):
    """The same network on (B, N, C), computed for ROWS tokens at a time, whose widened form stays in the cache."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(BlockedFeedForward, self).forward(rows) for rows in x.flatten(0, 1).split(ROWS)]).view_as(x)


def use_blocked_feed_forward(model: nn.Module) -> None:
    """Give every transformer block of a model this form. Its state_dict does not change."""
    for module in model.modules():
        if isinstance(module, TransformerBlock):
            module.ff.__class__ = BlockedFeedForward
