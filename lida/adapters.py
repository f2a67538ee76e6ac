"""An adapter as data: module path -> (down, up, alpha), on disk as diffusers writes it, and its sum into weights."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import InputError
from .lora import LoRALinear

FILE_NAME = "pytorch_lora_weights.safetensors"
KEY = re.compile(r"unet\.(?P<path>.+)\.(?:lora\.|lora_)(?P<factor>down|up|A|B)\.weight")


@dataclass(frozen=True)
class LowRank:
    """One module's change (alpha / rank) up down: down (rank, in_features), up (out_features, rank)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def delta(self) -> Tensor:
        """The change of the weight (out_features, in_features) in float32 (Hu et al. 2022, equation 3)."""
        return (self.alpha / self.down.shape[0]) * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of a UNet by module path, with what its training recorded (`metadata`, JSON values)."""

    layers: dict[str, LowRank]
    metadata: dict = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Mapping[str, LoRALinear], metadata: dict | None = None) -> "Adapter":
        """A copy of what inject_lora's layers hold now."""
        copies = {
            path: LowRank(layer.lora_down.detach().cpu().clone(), layer.lora_up.detach().cpu().clone(), layer.alpha)
            for path, layer in layers.items()
        }
        return cls(copies, dict(metadata or {}))


def save_adapter(adapter: Adapter, path: str | Path) -> Path:
    """Write the adapter as diffusers does, whole or not at all; a folder gets `pytorch_lora_weights.safetensors`.

    The header carries alpha and rank under `lora_adapter_metadata`, where diffusers and peft look for them, and the
    adapter's own metadata under `lida`. Returns the file's path.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE_NAME
    tensors, ranks, alphas = {}, {}, {}
    for name, layer in adapter.layers.items():
        tensors[f"unet.{name}.lora.down.weight"] = layer.down.contiguous()
        tensors[f"unet.{name}.lora.up.weight"] = layer.up.contiguous()
        ranks[name], alphas[name] = layer.down.shape[0], layer.alpha
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "unet.r": rank,
        "unet.lora_alpha": alpha,
        "unet.rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "unet.alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "unet.target_modules": sorted(adapter.layers),
    }
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(config), "lida": json.dumps(adapter.metadata)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=header)
    os.replace(part, path)
    return path


def read_file(path: Path) -> tuple[dict[str, Tensor], dict, dict]:
    """The tensors of an adapter file, peft's config and lida's metadata from its header ({} where there are none)."""
    if not path.is_file():
        raise InputError(f"{path}: no such adapter; give a .safetensors file, or a folder with {FILE_NAME}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
    try:
        config, metadata = (json.loads(header.get(key, "{}")) for key in ("lora_adapter_metadata", "lida"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: its header is not JSON ({error}); fetch it again") from None
    if not isinstance(config, dict) or not isinstance(metadata, dict):
        raise InputError(f"{path}: its header holds no JSON objects; fetch it again")
    return tensors, config, metadata


def load_adapter(source: str | Path) -> Adapter:
    """Read an adapter of the UNet from a file or a folder in diffusers' spelling; every key must be understood.

    Without alpha in the header, alpha is the rank. Raises InputError that names the file and the key.
    """
    path = Path(source)
    path = path / FILE_NAME if path.is_dir() else path
    tensors, config, metadata = read_file(path)
    if config.get("unet.use_rslora") or config.get("unet.use_dora"):
        raise InputError(f"{path}: uses rsLoRA or DoRA, which lida does not compute; train it as plain LoRA")
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if not match:
            raise InputError(f"{path}: unknown tensor {key}; lida reads unet adapters in diffusers' spelling")
        factors.setdefault(match["path"], {})["down" if match["factor"] in ("down", "A") else "up"] = tensor
    if not factors:
        raise InputError(f"{path}: holds no tensors; train it again")
    layers = {}
    for name, pair in factors.items():
        if len(pair) != 2 or pair["down"].ndim != 2 or pair["up"].ndim != 2 or pair["down"].shape[0] != pair["up"].shape[1]:
            raise InputError(f"{path}: {name} is not a pair of matrices of one rank; fetch it again")
        # As peft reads its config: a pattern is a regular expression that the end of a path matches.
        patterns = (config.get("unet.alpha_pattern") or {}).items()
        rank = pair["down"].shape[0]
        matched = [alpha for key, alpha in patterns if re.fullmatch(rf"(.*\.)?({key})", name)]
        alpha = matched[0] if matched else config.get("unet.lora_alpha", rank)
        layers[name] = LowRank(pair["down"], pair["up"], float(alpha))
    return Adapter(layers, metadata)


def check_fits(adapter: Adapter, model: nn.Module, name: str) -> None:
    """Raise InputError unless every layer of the adapter is a linear layer of the model, of the same shape."""
    modules = dict(model.named_modules())
    for path, layer in adapter.layers.items():
        shape = (layer.up.shape[0], layer.down.shape[1])
        weight = getattr(modules.get(path), "weight", None)
        if weight is None or tuple(weight.shape) != shape:
            found = "no such layer" if weight is None else f"a weight {tuple(weight.shape)}"
            cure = "it was trained on another model, give that one"
            raise InputError(f"{name}: changes {path} by {shape}, where this model has {found}; {cure}")


def combine(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_i w_i (alpha_i / r_i) B_i A_i for each module path, in float32: deltas are summed, never factors."""
    deltas: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, layer in adapter.layers.items():
            delta = weight * layer.delta
            deltas[path] = deltas[path] + delta if path in deltas else delta
    return deltas
