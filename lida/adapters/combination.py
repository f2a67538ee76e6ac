"""Combine several adapters into one, exactly, by concatenation along the rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..doors.tensors import is_finite
from ..nn.lora import LowRank
from .adapter import Adapter
from .merging import finite_weight


def combine(pairs: Sequence[tuple[Adapter, float]], rank: int | None = None) -> Adapter:
    """Return one adapter equal to the weighted sum of several. Their ranks, alphas and targets may differ.

    Layers above `rank` are truncated to it. The metadata's `combination` has each layer's relative error |result - sum| / |sum|
    (Frobenius norm) against the sum in float64. Raises InputError for a rank below 1, for no adapters, for adapters of different
    bases, and for a result that is not finite.
    """
    if not pairs:
        raise InputError("combine: no adapters given")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise InputError(f"combine: rank must be a whole number of at least 1, not {rank}")
    layers, errors = {}, {}
    for path in dict.fromkeys(path for adapter, _ in pairs for path in adapter.layers):
        parts = [(adapter.layers[path], finite_weight(weight)) for adapter, weight in pairs if path in adapter.layers]
        layers[path], errors[path] = combine_layer(path, parts, rank)
    combination = {"weights": [weight for _, weight in pairs], "relative_error": errors}
    return Adapter(layers, {**common_metadata([adapter.metadata for adapter, _ in pairs]), "combination": combination})


def combine_layer(path: str, parts: Sequence[tuple[LowRank, float]], rank: int | None) -> tuple[LowRank, float]:
    """Return [w_1 s_1 B_1, w_2 s_2 B_2] [A_1; A_2], truncated to `rank`, and its relative error."""
    factors = [(weight * up, down) for layer, weight in parts for up, down in [layer.factors(torch.float64)]]
    sizes = {(up.shape[0], down.shape[1]) for up, down in factors}
    if len(sizes) > 1:
        raise InputError(f"combine: {path}: the adapters change weights of different sizes, {sorted(sizes)}; their bases differ")
    exact = sum((up @ down for up, down in factors), torch.zeros(()))
    up, down = torch.cat([up for up, _ in factors], dim=1), torch.cat([down for _, down in factors])
    if rank is not None and len(down) > rank:
        up, down = truncate_rank(up, down, rank)
    shape = max((layer.down.shape[1:] for layer, _ in parts), key=len)  # a 1x1 convolution's factors may be flat
    layer = LowRank(down.float().reshape(-1, *shape), up.float().reshape(*up.shape, *[1] * (len(shape) - 1)), len(down))
    if not is_finite(layer.up) or not is_finite(layer.down):
        weights = ", ".join(f"{weight:g}" for _, weight in parts)
        raise InputError(f"combine: {path}: the sum at the weights {weights} is not finite in float32; give smaller weights")
    result, norm = torch.matmul(*layer.factors(torch.float64)), float(exact.norm())
    return layer, float((result - exact).norm()) / norm if norm else 0.0


def common_metadata(parts: list[dict]) -> dict:
    """Return the metadata of a combination.

    Template and ages are those of the first part that has them. The base is named if all parts have the same one.
    """
    metadata = {name: part[name] for part in parts[::-1] for name in ("template", "ages") if name in part}
    base = parts[0].get("base")
    if base and all(part.get("base") == base for part in parts):
        metadata["base"] = base
    return {**metadata, "parts": parts}


def truncate_rank(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of at most `rank` for up down, by its singular values (Eckart and Young 1936)."""
    u, s, v = thin_svd(up, down)
    if not len(s):  # the change is zero: one rank of zeros
        return up[:, :1] * 0, down[:1] * 0
    root = s[:rank].sqrt()  # each factor gets the root of each singular value
    return u[:, :rank] * root, root[:, None] * v[:, :rank].T


def thin_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD U (out, k), S (k,), V (in, k) of the product up down of numerical rank k, by QR of the factors."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    k = int((s > 1e-7 * s[0]).sum())
    return q_up @ u[:, :k], s[:k], q_down @ vh[:k].T
