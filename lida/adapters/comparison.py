"""Where two adapters change the same weights, and how alike. That did not predict pictures (docs/tradeoff.md)."""

import math

import torch

from ..doors.errors import InputError
from ..nn.lora import LowRank, thin_svd
from .adapter import Adapter, frobenius
from .merging import block_of

MEASURES = ("cosine", "columns", "rows")
NAMES = ("norm_a", "norm_b", *MEASURES)


def compare_layer(a: LowRank, b: LowRank) -> dict[str, float]:
    """Measure two changes of one weight.

    norm_a, norm_b: Frobenius norms. dot: their inner product. cosine: of the angle between them as vectors. columns, rows: the
    mean squared cosine of the principal angles between their column spaces and between their row spaces (Bjorck and Golub
    1973), 0 for orthogonal spaces and 1 if the smaller lies in the larger.
    """
    (ua, sa, va), (ub, sb, vb) = (thin_svd(*layer.factors(torch.float64)) for layer in (a, b))
    norm_a, norm_b, columns, rows = float(sa.norm()), float(sb.norm()), ua.T @ ub, va.T @ vb  # (ka, kb)
    dot = float((sa[:, None] * columns * rows * sb).sum())
    alike = {"cosine": dot / (norm_a * norm_b or 1.0)}
    for name, cosines in (("columns", columns), ("rows", rows)):
        alike[name] = float(cosines.square().sum()) / (min(cosines.shape) or 1)  # 0 where one of them changes nothing
    return {"norm_a": norm_a, "norm_b": norm_b, "dot": dot, **alike}


def compare(a: Adapter, b: Adapter) -> dict[str, dict]:
    """Return a report on two adapters: `layers` by path, `parts` by block, and `all`.

    A part's norms and cosine are those of one long vector of all its layers. Its other measures are means, weighted by the
    product of the norms. Raises InputError if a layer has one shape in a and another in b.
    """
    layers: dict[str, dict[str, float]] = {}
    parts: dict[str, list] = {}
    for path in {**a.layers, **b.layers}:
        x, y = a.layers.get(path), b.layers.get(path)
        if x is None or y is None:
            norms = {"norm_a": frobenius(x) if x else 0.0, "norm_b": frobenius(y) if y else 0.0}
            layers[path] = {**norms, "dot": 0.0, **dict.fromkeys(MEASURES, 0.0)}
        elif x.shape[0] != y.shape[0] or math.prod(x.shape) != math.prod(y.shape):
            raise InputError(f"compare: {path}: changes a weight {x.shape} in one, {y.shape} in the other")
        else:
            layers[path] = compare_layer(x, y)
        parts.setdefault(block_of(path), []).append(layers[path])
    summaries = {part: as_one_part(rows) for part, rows in sorted(parts.items())}
    return {"layers": layers, "parts": summaries, "all": as_one_part(list(layers.values()))}


def as_one_part(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the measures of several layers as one part."""
    norm_a, norm_b = (math.sqrt(sum(row[name] ** 2 for row in rows)) for name in ("norm_a", "norm_b"))
    weights, dot = [row["norm_a"] * row["norm_b"] for row in rows], sum(row["dot"] for row in rows)
    means = {name: sum(w * row[name] for w, row in zip(weights, rows)) / (sum(weights) or 1.0) for name in MEASURES[1:]}
    return {"norm_a": norm_a, "norm_b": norm_b, "dot": dot, "cosine": dot / (norm_a * norm_b or 1.0), **means}


def table(report: dict) -> str:
    """Return the measures of the parts and of the whole as text."""
    rows = {**report["parts"], "all": report["all"]}
    lines = [f"{part:<12}" + "".join(f"{row[name]:>12.3f}" for name in NAMES) for part, row in rows.items()]
    return "\n".join([f"{'block':<12}" + "".join(f"{name:>12}" for name in NAMES), *lines])
