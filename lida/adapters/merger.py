"""Merging adapters into the weights of modules, and taking them out again exactly."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..doors.errors import InputError
from ..doors.tensors import is_finite
from ..nn.lora import LoRALinear
from .adapter import Adapter
from .dialects import TEXT
from .merging import Rule, Weight, weight_at, weighted_sum


class Merger:
    """Merge adapters into a model: W + sum_i w_i (alpha_i / r_i) B_i A_i in each weight that an adapter changes.

    Every merge starts from the untouched base weights, never from the last merge. `module_of` returns the module of a path.
    `version` counts the changes of weights, so that whoever caches what follows from them can tell. Merging from two threads
    at once raises RuntimeError.
    """

    def __init__(self, module_of: Callable[[str], nn.Module | None]):
        self.module_of, self.version = module_of, 0
        self.base_weights: dict[str, Tensor] = {}  # of the changed modules
        self.merged: dict[str, tuple[float, ...]] = {}  # each path's weights, as numbers
        self.rule: Rule = weighted_sum
        self.lock = threading.Lock()

    @torch.no_grad()
    def merge(self, adapters: Mapping[str, Adapter], weights: Mapping[str, Weight], rule: Rule, t: int) -> None:
        """Merge the adapters at their weights at timestep t, and compute only what has changed since the last call.

        Raises ValueError for a weight that cannot be applied, for a result that is not finite, and for a layer that is being
        trained. An exception leaves some weights of the old merge and some of the new; the next call starts from the base.
        """
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("another thread is merging adapters into this model; load a model for each thread")
        try:
            parts: dict[str, dict[str, tuple]] = {}
            for name, weight in weights.items():
                for path, layer in adapters[name].layers.items():
                    number = weight_at(weight, path, None if path.startswith(TEXT) else t)
                    parts.setdefault(path, {})[name] = (layer, number)
            for path in [path for path in self.base_weights if path not in parts]:
                self.write(path, self.base_weights[path])  # written first, forgotten after: an interrupt loses nothing
                del self.base_weights[path]
            if rule is not self.rule:
                self.merged.clear()
                self.rule = rule
            for path, layers in parts.items():
                numbers = tuple(number for _, number in layers.values())
                if self.merged.get(path) != numbers:
                    self.merge_layer(path, layers, numbers)
        finally:
            self.lock.release()

    def merge_layer(self, path: str, layers: Mapping[str, tuple], numbers: tuple[float, ...]) -> None:
        """Merge one layer's changes, (LowRank, weight) by adapter name, into its base weight."""
        module = self.module_of(path)
        if isinstance(module, LoRALinear):
            raise ValueError(f"{path}: is being trained (inject_lora), and would count twice; call eject_lora first")
        if path not in self.base_weights:
            self.base_weights[path] = module.weight.detach().clone()
        base = self.base_weights[path]
        change = self.rule(path, list(layers.values()))
        if change.numel() != base.numel():
            raise ValueError(f"{path}: the merging rule returned {tuple(change.shape)} for a weight {tuple(base.shape)}")
        merged = (base.float() + change.to(base.device).reshape(base.shape)).to(base.dtype)
        if not is_finite(merged):
            at = ", ".join(f"{name} at {number:g}" for name, number in zip(layers, numbers))
            raise InputError(f"{path}: the merged weight is not finite in {base.dtype} ({at}); give smaller weights")
        self.write(path, merged)
        self.merged[path] = numbers

    def write(self, path: str, weight: Tensor) -> None:
        """Write a weight in place; while it is written, nothing counts as merged there."""
        self.merged.pop(path, None)
        self.version += 1
        self.module_of(path).weight.copy_(weight)
