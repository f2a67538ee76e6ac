"""Rules of composition: what several adapters at their weights make of one layer's weight.

A rule takes a layer's path and its parts, [(LowRank, weight), ...] in the order in which the adapters were named, and returns
the change as a matrix (out, in kh kw) in float32. A weight may be a number, a function of the timestep, or a dict of either by
block.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dialects import TEXT
from .comparison import part_of
from ..nn.lora import LowRank, thin_svd

Parts = Sequence[tuple[LowRank, float]]
Rule = Callable[[str, Parts], Tensor]
Weight = float | Callable[[int], float] | Mapping[str, float | Callable[[int], float]]
BLOCKS = ("down", "mid", "up", "ends", "text")  # ends: conv_in, conv_out and the time embedding


def weighted_sum(path: str, parts: Parts) -> Tensor:
    """sum_i w_i (alpha_i / r_i) B_i A_i: the reference that the other rules are measured by."""
    return sum(weight * layer.delta.flatten(1) for layer, weight in parts)


def orthogonalised(strength: float = 1.0, leading: int | None = None) -> Rule:
    """The sum after taking from each later change what lies in the first's leading subspace.

    D_i - strength U U^T D_i V V^T, with U and V the first change's `leading` singular vectors (all of them by default): at
    strength 1 nothing of D_i is left within both spaces, at 0 it is the weighted sum. Raises ValueError for a strength
    outside 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie between 0 and 1, not {strength}")

    def rule(path: str, parts: Parts) -> Tensor:
        (first, weight), *others = parts
        u, _, v = (factor[..., :leading] for factor in thin_svd(*first.factors(torch.float64)))
        total = (weight * first.delta.flatten(1)).double()
        for layer, other in others:
            change = layer.delta.flatten(1).double()
            total = total + other * (change - strength * (u @ (u.T @ change @ v) @ v.T))
        return total.float()

    return rule


def trimmed(change: Tensor, density: float) -> Tensor:
    """The `density` largest values by magnitude, 0 for the rest."""
    kept = torch.zeros_like(change).flatten()
    kept[change.abs().flatten().topk(int(density * change.numel())).indices] = 1
    return change * kept.reshape(change.shape)


def ties(density: float = 0.2) -> Rule:
    """Trim, elect sign, merge (Yadav et al. 2023, algorithm 1), weights applied to what was trimmed, as peft does."""
    check_density(density)

    def rule(path: str, parts: Parts) -> Tensor:
        changes = torch.stack([trimmed(layer.delta.flatten(1), density) for layer, _ in parts])
        sign = torch.where(changes.sum(0) >= 0, 1.0, -1.0)
        agreeing = changes.sign() == sign
        weights = torch.tensor([weight for _, weight in parts])[:, None, None]
        return (weights * changes * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)

    return rule


def dare(density: float = 0.5, seed: int = 0) -> Rule:
    """Drop values at random and rescale the rest by 1 / density, then sum (Yu et al. 2024, section 3.2)."""
    check_density(density)

    def rule(path: str, parts: Parts) -> Tensor:
        generator = torch.Generator().manual_seed(crc32(path.encode()) + seed)
        total = torch.zeros(())
        for layer, weight in parts:
            change = layer.delta.flatten(1)
            kept = torch.bernoulli(torch.full(change.shape, density), generator=generator)
            total = total + weight * change * kept.to(change.device) / density
        return total

    return rule


def check_density(density: float) -> None:
    """Raise ValueError unless it is a share of the values."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and up to 1, not {density}")


def parse_rule(text: str) -> Rule:
    """The command line's spelling: `sum`, `orthogonalised`, `orthogonalised:0.5`, `ties:0.2`, `dare:0.5`; ValueError else."""
    name, _, number = text.partition(":")
    if text == "sum":
        return weighted_sum
    try:
        return {"orthogonalised": orthogonalised, "ties": ties, "dare": dare}[name](*([float(number)] if number else []))
    except KeyError:
        raise ValueError(f"rule {text!r} is not one of sum, orthogonalised, ties, dare") from None


@contextmanager
def applied_within(
    module_of: Callable[[str], nn.Module], layers: Mapping[str, LowRank], weight: Weight, mask: Tensor
) -> Iterator[None]:
    """Beside what is merged, add an adapter's change to each layer's output where a mask (1, 1, h, w) of the latents is white.

    y = (W x + b) + weight m (alpha / r) B A x, the mask m at the layer's own size. What is computed of the text alone (the
    keys and values of cross-attention) has no places, and is changed everywhere. `module_of` gives the module of a path.
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
                return output + strength * F.adaptive_avg_pool2d(mask, change.shape[2:]).to(x) * change
            change = x @ down.T.to(x) @ up.T.to(x)  # (B, N, C)
            if of_text or x.ndim < 3:
                return output + strength * change
            shorter = math.sqrt(mask.shape[2] * mask.shape[3] / x.shape[1])  # how many cells of the mask a token has aside
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


def weight_at(weight: Weight, path: str, t: int | None) -> float:
    """A weight at one layer and timestep. Raises ValueError where it depends on the timestep and there is none, and for NaN."""
    if isinstance(weight, Mapping):
        unknown = weight.keys() - {*BLOCKS, "default"}
        if unknown:
            raise ValueError(f"block {min(unknown, key=str)!r} is not one of {', '.join(BLOCKS)}, default")
        block = part_of(path).split()[0]
        if block not in weight and "default" not in weight:
            raise ValueError(f"no weight for the block {block!r}; give it, or a default")
        weight = weight.get(block, weight.get("default"))
    if callable(weight):
        if t is None:
            raise ValueError(
                f"{path}: the prompt is encoded once, so the weight of the text encoder cannot depend on the timestep"
            )
        weight = weight(t)
    if not hasattr(weight, "__float__"):
        raise ValueError(f"the weight {weight!r} is not a number, a function of the timestep, or a dict of either by block")
    if not math.isfinite(weight):
        raise ValueError(f"the weight {weight} is not a number to multiply by")
    return float(weight)


def varies(weight: Weight) -> bool:
    """Whether a weight depends on the timestep."""
    return any(map(callable, weight.values())) if isinstance(weight, Mapping) else callable(weight)


class During:
    """A weight that is `value` at timesteps from `start` down to `end`, and 0 at others."""

    def __init__(self, value: float, start: int, end: int):
        self.value, self.start, self.end = value, start, end

    def __call__(self, t: int) -> float:
        return self.value if self.end <= t <= self.start else 0.0

    def __repr__(self) -> str:
        return f"{self.value}@{self.start}-{self.end}"


def parse_weight(text: str) -> Weight:
    """The command line's spelling: `0.2`, `1.0@600-0` (at timesteps 600 to 0), `1.0@600-0,up=0.5` (up blocks otherwise).

    Raises ValueError that says which part is amiss.
    """

    def one(part: str) -> float | During:
        number, at, times = part.partition("@")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"{number!r} is not a number") from None
        if not math.isfinite(value):
            raise ValueError(f"the weight {number} is not a number to multiply by; give one such as 0.2")
        if not at:
            return value
        match = re.fullmatch(r"(\d+)-(\d+)", times)
        if not match or int(match[1]) < int(match[2]):
            raise ValueError(f"{times!r} is not a stretch of timesteps; write the noisier first, such as 600-0")
        return During(value, int(match[1]), int(match[2]))

    first, *others = text.split(",")
    weights = {"default": one(first)}
    for other in others:
        block, equals, part = other.partition("=")
        if block not in BLOCKS or not equals:
            raise ValueError(f"{other!r} is not a block and its weight; blocks are {', '.join(BLOCKS)}")
        weights[block] = one(part)
    return weights if others else weights["default"]
