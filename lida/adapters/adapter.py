"""The adapter: low-rank changes by module path, and metadata."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ..doors.errors import InputError
from ..nn.lora import LoRALinear, LowRank
from .dialects import TEXT


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes by module path, and metadata in JSON's types. The text encoder's paths begin with `text_encoder.`."""

    layers: dict[str, LowRank]
    metadata: dict = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Return a SHA-256 over every layer's path, alpha and factors. The metadata does not count."""
        digest = hashlib.sha256()
        for path, layer in sorted(self.layers.items()):
            digest.update(f"{path} {layer.alpha}".encode())
            for tensor in (layer.down, layer.up):
                digest.update(tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def of(cls, layers: Mapping[str, LoRALinear], metadata: dict | None = None) -> "Adapter":
        """Copy the present state of inject_lora's layers."""
        copies = {
            path: LowRank(layer.lora_down.detach().cpu().clone(), layer.lora_up.detach().cpu().clone(), layer.alpha)
            for path, layer in layers.items()
        }
        return cls(copies, dict(metadata or {}))

    def describe(self) -> dict:
        """Return the numbers of layers, ranks, scales, the Frobenius norm of all changes together, and the metadata."""
        text = sum(path.startswith(TEXT) for path in self.layers)
        layers = self.layers.values()
        return {
            "layers": {"unet": len(layers) - text, "text_encoder": text},
            "ranks": sorted({layer.rank for layer in layers}),
            "scales": sorted({layer.scale for layer in layers}),
            "norm": math.sqrt(sum(frobenius(layer) ** 2 for layer in layers)),
            "metadata": self.metadata,
        }


def frobenius(layer: LowRank) -> float:
    """Compute the norm of a change from its factors: |B A|^2 = <B^T B, A A^T>."""
    up, down = layer.factors(torch.float64)
    return math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, None if there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def check_fits(adapter: Adapter, module_of: Callable[[str], nn.Module | None], name: str) -> None:
    """Raise InputError unless each layer changes a weight of its shape. `module_of` returns the model's module at a path."""
    for path, layer in adapter.layers.items():
        weight = getattr(module_of(path), "weight", None)
        shape = None if weight is None else tuple(weight.shape)
        if shape not in (layer.shape, layer.shape + (1, 1)):  # the factors of a 1x1 convolution may be flat
            found = "no such layer" if shape is None else f"a weight {shape}"
            cure = "it was trained on another model, give that one"
            raise InputError(f"{name}: changes {path} by {layer.shape}, where this model has {found}; {cure}")


def random_adapter(like: Adapter, seed: int) -> Adapter:
    """Draw an adapter of independent normal factors, with the ranks and the norm of each change of another adapter."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for path, layer in like.layers.items():
        down, up = (torch.randn(factor.shape, generator=generator) for factor in (layer.down, layer.up))
        other = LowRank(down, up, layer.alpha)
        layers[path] = LowRank(down, up * (frobenius(layer) / frobenius(other)), layer.alpha)
    return Adapter(layers)
