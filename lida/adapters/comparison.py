"""Compare where two adapters change the same weights, and how similarly. This does not predict pictures (docs/tradeoff.md)."""

import math
from collections.abc import Sequence

import torch

from ..doors.errors import InputError
from ..nn.lora import LowRank
from .adapter import Adapter
from .merging import block_of

MEASURES = ("norm_a", "norm_b", "cosine")


def compare(a: Adapter, b: Adapter) -> dict[str, dict]:
    """Return the MEASURES of each layer (`layers`, by path), of each block (`parts`) and of the whole (`all`).

    They are the Frobenius norms of both changes and the cosine between them; several layers count as one long vector. Raises
    InputError if a layer has different shapes in a and b.
    """
    products: dict[str, tuple[float, ...]] = {}
    parts: dict[str, list] = {}
    for path in {**a.layers, **b.layers}:
        x, y = a.layers.get(path), b.layers.get(path)
        if x and y and (x.shape[0] != y.shape[0] or math.prod(x.shape) != math.prod(y.shape)):
            raise InputError(f"compare: {path}: changes a weight {x.shape} in one, {y.shape} in the other")
        products[path] = tuple(inner_product(p, q) if p and q else 0.0 for p, q in ((x, x), (y, y), (x, y)))
        parts.setdefault(block_of(path), []).append(products[path])
    return {
        "layers": {path: measured([product]) for path, product in products.items()},
        "parts": {part: measured(rows) for part, rows in sorted(parts.items())},
        "all": measured(list(products.values())),
    }


def inner_product(a: LowRank, b: LowRank) -> float:
    """Return the inner product of two changes, from their factors: <B_a A_a, B_b A_b> = <B_a^T B_b, A_a A_b^T>."""
    (up_a, down_a), (up_b, down_b) = a.factors(torch.float64), b.factors(torch.float64)
    return float(((up_a.T @ up_b) * (down_a @ down_b.T)).sum())


def measured(products: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Return the MEASURES of several layers, from each one's inner products <a, a>, <b, b> and <a, b>."""
    aa, bb, ab = (sum(row[k] for row in products) for k in range(3))
    norm_a, norm_b = math.sqrt(max(0.0, aa)), math.sqrt(max(0.0, bb))  # rounding may leave less than 0
    return {"norm_a": norm_a, "norm_b": norm_b, "cosine": ab / (norm_a * norm_b or 1.0)}


def table(report: dict) -> str:
    """Return the measures of the parts and of the whole as text."""
    rows = {**report["parts"], "all": report["all"]}
    lines = [f"{part:<12}" + "".join(f"{row[name]:>12.3f}" for name in MEASURES) for part, row in rows.items()]
    return "\n".join([f"{'block':<12}" + "".join(f"{name:>12}" for name in MEASURES), *lines])
