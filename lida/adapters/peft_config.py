"""Read and write peft's LoraConfig, which is in adapter_config.json and in the headers of diffusers' files."""

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from ..doors.errors import InputError
from ..doors.json import typed
from ..nn.lora import LowRank

# Fields about an adapter's training or purpose, which do not change what it computes
NO_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "loftq_config", "peft_type",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
    "megatron_core", "init_lora_weights",
}  # fmt: skip
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # other methods change the base weights too
# peft's patterns are regular expressions. Only names, dots and `.*` are accepted and matched by fnmatch: other regular
# expressions could take exponential time.
PATTERN = re.compile(r"(?:[\w-]|\\?\.|\.\*){1,256}")
AS_GLOB = {r"\.": ".", ".*": "*", ".": "?"}
MOST_PATTERNS = 1024


@dataclass(frozen=True)
class PeftConfig:
    """The fields of peft's LoraConfig that decide what an adapter computes; without lora_alpha, alpha is the rank."""

    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("rank_pattern", "alpha_pattern"):
            patterns = getattr(self, name)
            if len(patterns) > MOST_PATTERNS:
                raise ValueError(f"{name} has {len(patterns)} entries; fetch it again")
            for pattern in patterns:
                if not PATTERN.fullmatch(pattern):
                    raise ValueError(f"{name} {pattern!r:.60} is not supported; write the layer's name, or .* for a part of it")

    @cached_property
    def rules(self) -> dict[str, list[tuple[re.Pattern, float]]]:
        """Return the compiled patterns of ranks and alphas with their values. They match `.text_model.` followed by a path."""
        return {
            name: [(re.compile(fnmatch.translate(f"*.{as_glob(text)}")), value) for text, value in getattr(self, name).items()]
            for name in ("rank_pattern", "alpha_pattern")
        }

    def first(self, name: str, path: str, default: float | None) -> float | None:
        """Return the value of the first pattern that fits the path's end.

        A pattern of the text encoder may begin with `text_model.`, as paths did before transformers 5.6.
        """
        return next((value for rule, value in self.rules[name] if rule.match(f".text_model.{path}")), default)

    def alpha(self, path: str, rank: int) -> float:
        """Return the alpha for which the layer's scale is alpha / rank. Raises ValueError if the config has another rank."""
        if (wanted := self.first("rank_pattern", path, self.r)) not in (None, rank):
            raise ValueError(f"{path} has rank {rank}, but peft's config says {wanted}; fetch both files again")
        alpha = self.first("alpha_pattern", path, self.lora_alpha)
        alpha = float(rank if alpha is None else alpha)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha  # alpha / sqrt(r) = (alpha sqrt(r)) / r (Kalajdzievski 2023)


def as_glob(pattern: str) -> str:
    """Return one of peft's patterns as a pattern of fnmatch."""
    return re.sub(r"\\\.|\.\*|\.", lambda dot: AS_GLOB[dot[0]], pattern)


def read_config(value: dict[str, Any], where: str) -> PeftConfig:
    """Return peft's config of a JSON object. Raises InputError for a field that asks for more than plain LoRA."""
    kind, start = value.get("peft_type", "LORA"), value.get("init_lora_weights", True)
    if kind != "LORA":
        raise InputError(f"{where}: peft_type is {kind!r:.60}; lida applies plain LoRA")
    if start not in PLAIN_INITS:
        raise InputError(f"{where}: init_lora_weights {start!r:.60} changes the base too; convert it with peft to plain LoRA")
    if value and "lora_alpha" not in value:
        raise InputError(f"{where}: lora_alpha, which decides the adapter's strength, is missing; fetch it again")
    names = {f.name for f in fields(PeftConfig)}
    for name in sorted(value.keys() - names - NO_EFFECT):
        if value[name] not in (None, False, "none", [], {}):
            raise InputError(f"{where}: {name} is {value[name]!r:.60}, which lida does not compute; train it as plain LoRA")
    return typed(PeftConfig, {name: v for name, v in value.items() if name in names and v is not None}, where)


def config_of(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """Return peft's config for layers whose alpha is their rank."""
    rank = next(iter(layers.values())).rank
    others = {path: layer.rank for path, layer in layers.items() if layer.rank != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others, "target_modules": sorted(layers)}
