"""The feed-forward network in blocks of tokens equals the whole, and so does its gradient."""

import torch
from conftest import relative
from torch import nn

from lida.kernels import feed_forward
from lida.kernels.feed_forward import BlockedFeedForward, use_blocked_feed_forward
from lida.nn.layers import TransformerBlock


def test_blocks_equal_the_whole(monkeypatch):
    block = TransformerBlock(16, 2, 8)
    x, context = torch.randn(2, 45, 16, requires_grad=True), torch.randn(2, 7, 8)
    keys, expected = list(block.state_dict()), block(x, context)
    monkeypatch.setattr(feed_forward, "ROWS", 32)  # of 90 tokens
    use_blocked_feed_forward(nn.Sequential(block))
    found = block(x, context)
    assert type(block.ff) is BlockedFeedForward and list(block.state_dict()) == keys
    assert found.shape == expected.shape and relative(found, expected) <= 1e-6
    dy = torch.randn_like(found)
    assert relative(*(torch.autograd.grad(y, x, dy)[0] for y in (found, expected))) <= 1e-6
