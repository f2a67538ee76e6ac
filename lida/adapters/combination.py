"""Several adapters in one, exactly, by concatenation along the rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..doors.tensors import is_finite
from ..nn.lora import LowRank, thin_svd
from .adapter import Adapter


def combine(pairs: Sequence[tuple[Adapter, float]], rank: int | None = None) -> Adapter:
    """Return one adapter that does what all do together at their weights, of any ranks, alphas, targets and signs.

    Exact by concatenation along the rank: [w_1 s_1 B_1, w_2 s_2 B_2] [A_1; A_2]. With `rank`, layers above it are truncated to
    it by the singular value decomposition of the exact sum, the best such approximation (Eckart and Young 1936). The metadata's
    `combination` has, for each layer, the relative error |result - sum| / |sum| (Frobenius) against the sum in float64, and the
    share of energy (squared singular values) that a truncation retained. Raises ValueError for a rank below 1, no adapters,
    adapters of other bases, and results that are not finite.
    """
    if not pairs:
        raise ValueError("combine: no adapters given")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    layers, errors, retained = {}, {}, {}
    for path in dict.fromkeys(path for adapter, _ in pairs for path in adapter.layers):
        parts = [(adapter.layers[path], weight) for adapter, weight in pairs if path in adapter.layers]
        factors = [(weight * up, down) for layer, weight in parts for up, down in [layer.factors(torch.float64)]]
        sizes = {(up.shape[0], down.shape[1]) for up, down in factors}
        if len(sizes) > 1:
            raise ValueError(f"{path}: the adapters change weights of other sizes, {sorted(sizes)}; they are of other bases")
        exact = sum(up @ down for up, down in factors)
        up, down = torch.cat([up for up, _ in factors], dim=1), torch.cat([down for _, down in factors])
        if rank is not None and down.shape[0] > rank:
            up, down, retained[path] = truncate_rank(up, down, rank)
        shape = max((layer.down.shape[1:] for layer, _ in parts), key=len)  # a 1x1 convolution's factors may be flat
        ends = [1] * (len(shape) - 1)
        layers[path] = LowRank(down.float().reshape(-1, *shape), up.float().reshape(*up.shape, *ends), down.shape[0])
        if not is_finite(layers[path].up) or not is_finite(layers[path].down):
            weights = ", ".join(f"{weight:g}" for _, weight in parts)
            raise InputError(f"{path}: the sum at the weights {weights} is not finite in float32; give smaller weights")
        result, norm = torch.matmul(*layers[path].factors(torch.float64)), float(exact.norm())
        errors[path] = float((result - exact).norm()) / norm if norm else 0.0
    combination = {"weights": [weight for _, weight in pairs], "relative_error": errors, "retained_energy": retained}
    return Adapter(layers, {**common_metadata([adapter.metadata for adapter, _ in pairs]), "combination": combination})


def common_metadata(parts: list[dict]) -> dict:
    """Return what a combination inherits: template and ages from the first part that has them, the base if all have one."""
    metadata = {name: part[name] for part in parts[::-1] for name in ("template", "ages") if name in part}
    base = parts[0].get("base")
    if base and all(part.get("base") == base for part in parts):
        metadata["base"] = base
    return {**metadata, "parts": parts}


def truncate_rank(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best factors of at most `rank` for up down, and the share of energy that they retain."""
    u, s, v = thin_svd(up, down)
    root, energy = s[:rank].sqrt(), s.square()  # half of each singular value to either factor
    if not len(s):  # nothing is changed: factors of rank 1 that say so
        return up[:, :1] * 0, down[:1] * 0, 1.0
    return u[:, :rank] * root, root[:, None] * v[:, :rank].T, float(energy[:rank].sum() / energy.sum())
