"""Rules by which several adapters change one weight, and weights that depend on the block and the timestep.

A rule is a function of a layer's path and its parts, [(LowRank, weight), ...] in the order in which the adapters were named. It
returns the change as a matrix (out, in kh kw) in float32. Pass a function of your own to `set_adapters(..., rule=...)`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..nn.lora import LowRank, thin_svd
from .dialects import block_of

Parts = Sequence[tuple[LowRank, float]]
Rule = Callable[[str, Parts], Tensor]
Weight = float | Callable[[int], float] | Mapping[str, float | Callable[[int], float]]
BLOCKS = ("down", "mid", "up", "ends", "text")  # ends: conv_in, conv_out and the time embedding
LARGEST = torch.finfo(torch.float32).max


def weighted_sum(path: str, parts: Parts) -> Tensor:
    """Compute sum_i w_i (alpha_i / r_i) B_i A_i."""
    return sum(weight * layer.delta.flatten(1) for layer, weight in parts)


def orthogonalised(strength: float = 1.0, leading: int | None = None) -> Rule:
    """Return the rule that takes from each later change what lies in the first one's leading subspace, then sums.

    D_i - strength U U^T D_i V V^T, with the first change's `leading` singular vectors U and V (all of them by default). At
    strength 1 nothing of D_i is left inside both spaces; at 0 it is the weighted sum. Raises ValueError for a strength outside
    0 to 1.
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


def weight_at(weight: Weight, path: str, t: int | None) -> float:
    """Return a weight as a number, for one layer and timestep.

    Raises InputError for an unknown block, for what is not a finite number, and where t is None but the weight depends on it.
    """
    if isinstance(weight, Mapping):
        unknown = weight.keys() - {*BLOCKS, "default"}
        if unknown:
            raise InputError(f"block {min(unknown, key=str)!r} is not one of {', '.join(BLOCKS)}, default")
        block = block_of(path)
        if block not in weight and "default" not in weight:
            raise InputError(f"no weight for the block {block!r}; give it, or a default")
        weight = weight.get(block, weight.get("default"))
    if callable(weight):
        if t is None:
            raise InputError(f"{path}: the prompt is encoded once, so the text encoder's weight cannot depend on the timestep")
        weight = weight(t)
    return finite_weight(weight)


def finite_weight(weight: object) -> float:
    """Return a number as a float; raises InputError for anything else, and for numbers that are not finite in float32."""
    if not isinstance(weight, Real) or not abs(weight) <= LARGEST:
        raise InputError(f"the weight {weight!r:.60} is not a finite number in float32; give one such as 0.2")
    return float(weight)


def varies(weight: Weight) -> bool:
    """Return whether a weight depends on the timestep."""
    return any(map(callable, weight.values())) if isinstance(weight, Mapping) else callable(weight)


@dataclass(frozen=True, repr=False)
class During:
    """A weight that is `value` at timesteps from `start` down to `end`, and 0 at others."""

    value: float
    start: int
    end: int

    def __call__(self, t: int) -> float:
        return self.value if self.end <= t <= self.start else 0.0

    def __repr__(self) -> str:
        return f"{self.value}@{self.start}-{self.end}"


def parse_weight(text: str) -> Weight:
    """Read the command line's spelling: `0.2`, `1.0@600-0` (timesteps 600 to 0), `1.0@600-0,up=0.5` (0.5 in the up blocks).

    Raises ValueError that says which part is wrong.
    """
    first, *others = text.split(",")
    weights = {"default": parse_number(first)}
    for other in others:
        block, equals, part = other.partition("=")
        if block not in BLOCKS or not equals:
            raise ValueError(f"{other!r} is not a block and its weight; blocks are {', '.join(BLOCKS)}")
        if block in weights:
            raise ValueError(f"the block {block!r} is given twice")
        weights[block] = parse_number(part)
    return weights if others else weights["default"]


def parse_number(text: str) -> float | During:
    """Read one weight, with or without its timesteps."""
    number, at, times = text.partition("@")
    try:
        value = finite_weight(float(number if "_" not in number else "x"))
    except ValueError:
        raise ValueError(f"{number!r} is not a finite number in float32; give one such as 0.2") from None
    if not at:
        return value
    match = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", times)
    if not match or int(match[1]) < int(match[2]):
        raise ValueError(f"{times!r} is not a stretch of timesteps; write the noisier first, such as 600-0")
    return During(value, int(match[1]), int(match[2]))
