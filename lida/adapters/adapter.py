"""The adapter: low-rank changes by module path, and metadata.

A layer is named by its module path in the UNet (`down_blocks.0...attn1.to_q`) or, behind `text_encoder.`, in the text encoder.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..doors.errors import InputError
from ..nn.lora import LoRALinear, LowRank

TEXT = "text_encoder."  # in front of the text encoder's paths


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes by module path, and metadata in JSON's types."""

    layers: dict[str, LowRank]
    metadata: dict = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Return a SHA-256 over every layer's path, alpha and factors, without the metadata."""
        digest = hashlib.sha256()
        for path, layer in sorted(self.layers.items()):
            digest.update(f"{path} {layer.alpha}".encode())
            for tensor in (layer.down, layer.up):
                digest.update(tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def of(cls, layers: Mapping[str, LoRALinear], metadata: dict | None = None) -> "Adapter":
        """Return an adapter with copies of the factors of inject_lora's layers, on the CPU."""
        copies = {
            path: LowRank(layer.lora_down.detach().cpu().clone(), layer.lora_up.detach().cpu().clone(), layer.alpha)
            for path, layer in layers.items()
        }
        return cls(copies, dict(metadata or {}))

    def describe(self) -> dict:
        """Return the numbers of layers, ranks, scales, the Frobenius norm of all changes together, and the metadata."""
        text, layers = sum(path.startswith(TEXT) for path in self.layers), self.layers.values()
        counts = {"unet": len(layers) - text, "text_encoder": text}
        ranks, scales = (sorted({getattr(layer, name) for layer in layers}) for name in ("rank", "scale"))
        norm = math.sqrt(sum(float(layer.delta.norm()) ** 2 for layer in layers))
        return {"layers": counts, "ranks": ranks, "scales": scales, "norm": norm, "metadata": self.metadata}


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, or None."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def check_fits(adapter: Adapter, module_of: Callable[[str], nn.Module | None], name: str) -> None:
    """Raise InputError unless each layer has the shape of the weight at its path. `module_of` returns the module of a path."""
    for path, layer in adapter.layers.items():
        shape = getattr(getattr(module_of(path), "weight", None), "shape", None)
        if shape not in (layer.shape, layer.shape + (1, 1)):  # the factors of a 1x1 convolution may be flat
            found = "no such layer" if shape is None else f"a weight {tuple(shape)}"
            change = f"changes {path} by {layer.shape}, where this model has {found}"
            raise InputError(f"{name}: {change}; it was trained on another model")
