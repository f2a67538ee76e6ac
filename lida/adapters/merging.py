"""Merge adapters into the weights of a model, and remove them again exactly.

A rule is a function of a layer's path and its parts, [(LowRank, weight), ...] in the order in which the adapters were named. It
returns the change of the weight as a matrix (out, in kh kw) in float32. Pass your own to `set_adapters(..., rule=...)`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..doors.tensors import is_finite
from ..nn.lora import LoRALinear, LowRank
from .adapter import TEXT, Adapter

Parts = Sequence[tuple[LowRank, float]]
Rule = Callable[[str, Parts], Tensor]
Weight = float | Callable[[int], float] | Mapping[str, float | Callable[[int], float]]
BLOCKS = ("down", "mid", "up", "ends", "text")  # ends: conv_in, conv_out and the time embedding
LARGEST = torch.finfo(torch.float32).max


def block_of(path: str) -> str:
    """Return the part of the model that a layer belongs to: one of BLOCKS."""
    match = re.match(r"(down|mid|up)_block", path)
    return "text" if path.startswith(TEXT) else match[1] if match else "ends"


def weighted_sum(path: str, parts: Parts) -> Tensor:
    """Return sum_i w_i (alpha_i / r_i) B_i A_i."""
    return sum((weight * layer.delta.flatten(1) for layer, weight in parts), torch.zeros(()))


def merged_weight(weight: Tensor, change: Tensor) -> Tensor:
    """Return weight + change in the weight's dtype. The change has its shape, or is flat, (out, in kh kw)."""
    return (weight.float() + change.to(weight.device).reshape(weight.shape)).to(weight.dtype)


def weight_at(weight: Weight, path: str, t: int | None) -> float:
    """Return a weight as a number, for one layer and timestep.

    Raises InputError for an unknown block, for a value that is not a finite number, and if the weight needs a t that is None.
    """
    if isinstance(weight, Mapping):
        unknown = weight.keys() - {*BLOCKS, "default"}
        if unknown:
            raise InputError(f"block {min(unknown, key=str)!r} is not one of {', '.join(BLOCKS)}, default")
        block = block_of(path)
        if block not in weight and "default" not in weight:
            raise InputError(f"there is no weight for the block {block!r}; give one, or a default")
        weight = weight[block if block in weight else "default"]
    if callable(weight):
        if t is None:
            raise InputError(f"{path}: the prompt is encoded once, so the text encoder's weight cannot depend on the timestep")
        weight = weight(t)
    return finite_weight(weight)


def finite_weight(weight: object) -> float:
    """Return a number as a float. Raises InputError for anything else, and for a number that is not finite in float32."""
    if not isinstance(weight, Real) or not abs(weight) <= LARGEST:  # type: ignore[operator]  # the stub of Real's abs
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


class Merger:
    """Merge adapters into a model: W + sum_i w_i (alpha_i / r_i) B_i A_i in each weight that an adapter changes.

    Every merge starts from the untouched base weights. `module_of` returns the module of a path. `version` counts the changes
    of weights, so caches of values computed from them know when to expire. Threads that merge wait for each other.
    """

    def __init__(self, module_of: Callable[[str], Any]):
        self.module_of, self.version, self.lock = module_of, 0, RLock()
        self.weights: dict[str, Weight] = {}  # of the last merge, by adapter name
        self.rule: Rule = weighted_sum
        self.t = 0  # the timestep of the last merge
        self.base_weights: dict[str, Tensor] = {}  # of the changed modules
        self.merged: dict[str, tuple] = {}  # each path's rule, and its (adapter name, weight as a number) pairs

    @torch.no_grad()
    def merge(self, adapters: Mapping[str, Adapter], weights: Mapping[str, Weight], rule: Rule, t: int) -> None:
        """Merge the adapters at their weights at timestep t; only layers that changed since the last call are computed.

        Raises ValueError for a weight that cannot be applied, a result that is not finite, and a layer that is being trained.
        After an exception the earlier merge is restored; if that fails too, the next call starts from the base.
        """
        with self.lock:
            try:
                self.apply(adapters, weights, rule, t)
                self.weights, self.rule, self.t = dict(weights), rule, t
            except BaseException:
                self.apply(adapters, self.weights, self.rule, self.t)
                raise

    def apply(self, adapters: Mapping[str, Adapter], weights: Mapping[str, Weight], rule: Rule, t: int) -> None:
        """Write the weights that differ from those in the model now."""
        parts: dict[str, dict[str, tuple]] = {}
        for name, weight in weights.items():
            for path, layer in adapters[name].layers.items():
                number = weight_at(weight, path, None if path.startswith(TEXT) else t)
                parts.setdefault(path, {})[name] = (layer, number)
        for path in [path for path in self.base_weights if path not in parts]:
            self.write(path, self.base_weights[path], has_adapters=False)
            del self.base_weights[path]  # after it is written, so an interrupt loses nothing
        for path, layers in parts.items():
            wanted = rule, [(name, number) for name, (_, number) in layers.items()]
            if self.merged.get(path) != wanted:
                self.merge_layer(path, layers, rule)
                self.merged[path] = wanted

    def merge_layer(self, path: str, layers: Mapping[str, tuple], rule: Rule) -> None:
        """Merge one layer's changes, (LowRank, weight) by adapter name, into its base weight."""
        module = self.module_of(path)
        if isinstance(module, LoRALinear):
            raise ValueError(f"{path}: is being trained (inject_lora) and would count twice; call eject_lora first")
        if path not in self.base_weights:
            self.base_weights[path] = module.weight.detach().clone()
        base = self.base_weights[path]
        change = rule(path, list(layers.values()))
        if not isinstance(change, Tensor) or not change.is_floating_point():
            raise TypeError(f"{path}: the merging rule returned {change!r:.60}, not a floating-point tensor")
        if change.shape not in (base.shape, base.flatten(1).shape):
            raise ValueError(f"{path}: the merging rule returned {tuple(change.shape)} for a weight {tuple(base.shape)}")
        merged = merged_weight(base, change)
        if not is_finite(merged):
            at = ", ".join(f"{name} at {number:g}" for name, (_, number) in layers.items())
            raise InputError(f"{path}: the merged weight is not finite in {base.dtype} ({at}); give smaller weights")
        self.write(path, merged, has_adapters=True)

    def write(self, path: str, weight: Tensor, has_adapters: bool) -> None:
        """Write a weight in place. Its path is unmerged until the copy is complete, so an interrupted write is done again.

        inject_lora reads `has_adapters`.
        """
        module = self.module_of(path)
        self.merged.pop(path, None)
        self.version += 1
        module.has_adapters = True
        module.weight.copy_(weight)
        module.has_adapters = has_adapters
