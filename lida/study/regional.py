"""An adapter that acts in a part of the picture only, which the study compares with merging it everywhere."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.adapter import TEXT
from ..adapters.merging import Weight, weight_at
from ..nn.lora import LowRank


@contextmanager
def applied_within(
    module_of: Callable[[str], Any], layers: Mapping[str, LowRank], weight: Weight, mask: Tensor
) -> Iterator[None]:
    """Add an adapter's change to each layer's output where a mask (1, 1, h, w) of the latents is white, besides merged adapters.

    y = (W x + b) + weight m (alpha / r) B A x, with the mask m at the layer's own size. Layers that see only the text (keys
    and values of cross-attention) have no positions, and change everywhere. `module_of` returns the module of a path.
    """
    hooks = []

    def adder(path: str, layer: LowRank):
        up, down = layer.factors()
        strength = weight_at(weight, path, None)
        of_text = path.endswith(("attn2.to_k", "attn2.to_v")) or path.startswith(TEXT)

        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            (x,) = inputs
            if isinstance(module, nn.Conv2d):
                change = F.conv2d(x, layer.delta.reshape(module.weight.shape).to(x), None, module.stride, module.padding)
                return output + strength * F.adaptive_avg_pool2d(mask, (change.shape[2], change.shape[3])).to(x) * change
            change = x @ down.T.to(x) @ up.T.to(x)  # (B, N, C)
            if of_text or x.ndim < 3:
                return output + strength * change
            shorter = math.sqrt(mask.shape[2] * mask.shape[3] / x.shape[1])  # side of a token, in cells of the mask
            size = round(mask.shape[2] / shorter), round(mask.shape[3] / shorter)
            return output + strength * F.adaptive_avg_pool2d(mask, size).reshape(1, -1, 1).to(x) * change

        return add

    try:
        for path, layer in layers.items():
            hooks.append(module_of(path).register_forward_hook(adder(path, layer)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
