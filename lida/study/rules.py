"""Merging rules that the study compares with the weighted sum, and their names on the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import torch
from torch import Tensor

from ..adapters.combination import thin_svd
from ..adapters.merging import Parts, Rule, weighted_sum


def orthogonalised(strength: float = 1.0, leading: int | None = None) -> Rule:
    """Return the rule that removes from each later change its part in the first one's leading subspace, then sums.

    D_i - strength U U^T D_i V V^T, with the first change's `leading` singular vectors U and V (all of them by default). At
    strength 1 nothing of D_i remains inside both spaces; at 0 it is the weighted sum. Raises ValueError for a strength outside
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


def ties(density: float = 0.2) -> Rule:
    """Return TIES: trim, elect sign, merge (Yadav et al. 2023, algorithm 1), with weights on the trimmed changes, as in peft."""
    check_density(density)

    def rule(path: str, parts: Parts) -> Tensor:
        changes = torch.stack([layer.delta.flatten(1) for layer, _ in parts])  # (adapters, out, in)
        sizes = changes.abs().flatten(1)
        largest = torch.zeros_like(sizes).scatter_(1, sizes.topk(int(density * sizes.shape[1])).indices, 1.0)
        changes = changes * largest.reshape(changes.shape)
        agrees = changes.sign() == torch.where(changes.sum(0) >= 0, 1.0, -1.0)
        weights = changes.new_tensor([weight for _, weight in parts])[:, None, None]
        return (weights * changes * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    return rule


def dare(density: float = 0.5, seed: int = 0) -> Rule:
    """Return DARE: drop values at random, rescale the rest by 1 / density, and sum (Yu et al. 2024, section 3.2)."""
    check_density(density)

    def rule(path: str, parts: Parts) -> Tensor:
        generator, total = torch.Generator().manual_seed(crc32(path.encode()) + seed), torch.zeros(())
        for layer, weight in parts:
            change = layer.delta.flatten(1)
            kept = torch.bernoulli(torch.full(change.shape, density), generator=generator).to(change.device)
            total = total + weight * change * kept / density
        return total

    return rule


def check_density(density: float) -> None:
    """Raise ValueError unless the share of values that stay is above 0 and up to 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and up to 1, not {density}")


@dataclass(frozen=True)
class NamedRule:
    """A merging rule and its spelling on the command line."""

    spelling: str
    function: Callable[..., Tensor]

    def __call__(self, path: str, parts: Parts) -> Tensor:
        return self.function(path, parts)


RULES: dict[str, Callable] = {"sum": lambda: weighted_sum, "orthogonalised": orthogonalised, "ties": ties, "dare": dare}


@cache
def parse_rule(text: str) -> NamedRule:
    """Return the rule of `sum`, `orthogonalised`, `orthogonalised:0.5`, `ties:0.2` or `dare:0.5`. Raises ValueError for others.

    The number is the strength for orthogonalised, and the share of values that stay for the others.
    """
    name, colon, number = text.partition(":")
    if name not in RULES or (colon and name == "sum"):
        raise ValueError(f"rule {text!r} is not one of {', '.join(RULES)}")
    return NamedRule(text, RULES[name](*([float(number)] if colon else [])))
