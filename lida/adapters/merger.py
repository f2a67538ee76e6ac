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
        self.weights: dict[str, Weight] = {}  # what is merged, by adapter name, ...
        self.rule: Rule = weighted_sum
        self.t = 0  # ... at this timestep
        self.base_weights: dict[str, Tensor] = {}  # of the changed modules
        self.merged: dict[str, tuple] = {}  # each path's rule, and its (adapter name, weight as a number) pairs
        self.lock = threading.Lock()

    @torch.no_grad()
    def merge(self, adapters: Mapping[str, Adapter], weights: Mapping[str, Weight], rule: Rule, t: int) -> None:
        """Merge the adapters at their weights at timestep t, and compute only what has changed since the last call.

        Raises ValueError for a weight that cannot be applied, for a result that is not finite, and for a layer that is being
        trained. After an exception what was merged before is merged again; if that fails too, the next call starts from the
        base.
        """
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("another thread is merging adapters into this model; load a model for each thread")
        try:
            self.apply(adapters, weights, rule, t)
            self.weights, self.rule, self.t = dict(weights), rule, t
        except BaseException:
            self.apply(adapters, self.weights, self.rule, self.t)
            raise
        finally:
            self.lock.release()

    def apply(self, adapters: Mapping[str, Adapter], weights: Mapping[str, Weight], rule: Rule, t: int) -> None:
        """Write the weights that differ from those in the model now."""
        parts: dict[str, dict[str, tuple]] = {}
        for name, weight in weights.items():
            for path, layer in adapters[name].layers.items():
                number = weight_at(weight, path, None if path.startswith(TEXT) else t)
                parts.setdefault(path, {})[name] = (layer, number)
        for path in [path for path in self.base_weights if path not in parts]:
            self.write(path, self.base_weights[path], has_adapters=False)
            del self.base_weights[path]  # forgotten after it is written: an interrupt loses nothing
        for path, layers in parts.items():
            wanted = rule, [(name, number) for name, (_, number) in layers.items()]
            if self.merged.get(path) != wanted:
                self.merge_layer(path, layers, rule)
                self.merged[path] = wanted

    def merge_layer(self, path: str, layers: Mapping[str, tuple], rule: Rule) -> None:
        """Merge one layer's changes, (LowRank, weight) by adapter name, into its base weight."""
        module = self.module_of(path)
        if isinstance(module, LoRALinear):
            raise ValueError(f"{path}: is being trained (inject_lora), and would count twice; call eject_lora first")
        if path not in self.base_weights:
            self.base_weights[path] = module.weight.detach().clone()
        base = self.base_weights[path]
        change = rule(path, list(layers.values()))
        if change.numel() != base.numel():
            raise ValueError(f"{path}: the merging rule returned {tuple(change.shape)} for a weight {tuple(base.shape)}")
        merged = (base.float() + change.to(base.device).reshape(base.shape)).to(base.dtype)
        if not is_finite(merged):
            at = ", ".join(f"{name} at {number:g}" for name, (_, number) in layers.items())
            raise InputError(f"{path}: the merged weight is not finite in {base.dtype} ({at}); give smaller weights")
        self.write(path, merged, has_adapters=True)

    def write(self, path: str, weight: Tensor, has_adapters: bool) -> None:
        """Write a weight in place; while it is written, nothing counts as merged there. The mark is for inject_lora."""
        module = self.module_of(path)
        self.merged.pop(path, None)
        self.version += 1
        module.has_adapters = True
        module.weight.copy_(weight)
        module.has_adapters = has_adapters
