"""Dropout on a LoRA layer's input, with a seed for each sample."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.lora import HalfLoRALinear


class SampleDropout:
    """Zero a share p of the values and scale the rest by 1 / (1 - p) (Srivastava et al. 2014), with a seed for each sample.

    A sample loses the same values in any batch, and again when activation checkpointing computes it a second time. Set
    `seeds`, one for each sample, before each batch. `layers` counts the layers that share this dropout.
    """

    def __init__(self, p: float):
        self.p, self.layers = p, 0
        self.seeds: Sequence[int] = ()

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """Return x (B, ..., C), the input of layer number `layer`, with values dropped."""
        generators = [torch.Generator().manual_seed(int(seed) ^ layer) for seed in self.seeds]
        mask = torch.stack([torch.rand(x.shape[1:], generator=generator) >= self.p for generator in generators])
        return x * mask.to(x.device) / (1 - self.p)


class DropoutLoRALinear(HalfLoRALinear):
    """y = W x + b + (alpha / rank) B A dropout(x) in training, as peft computes it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None, dropout: SampleDropout):
        super().__init__(base, rank, alpha)
        self.dropout, self.number = dropout, dropout.layers
        dropout.layers += 1

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):  # as when painting between steps
            return super().forward(x)
        dropped = self.dropout(x, self.number)
        return nn.Linear.forward(self, x) + self.scale * F.linear(F.linear(dropped, self.lora_down), self.lora_up)
