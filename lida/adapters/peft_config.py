"""peft's LoraConfig, which stands in adapter_config.json and in diffusers' headers: read, applied to layers, and written."""

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

import regex  # comes with transformers; can stop a match, which re cannot

from ..doors.errors import InputError
from ..doors.json import Range, typed
from ..nn.lora import LowRank

# Fields that tell how an adapter was trained or where it belongs, but do not change what it computes
NO_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "loftq_config", "peft_type",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type", "megatron_core",
}  # fmt: skip
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base weights too
LONGEST = 256  # characters of a pattern
SECONDS = 5.0  # of CPU time, for all patterns of a file together
T = TypeVar("T")


@dataclass(frozen=True)
class PeftConfig:
    """The fields of peft's LoraConfig that decide what an adapter computes; None stands for the rank."""

    r: Annotated[int, Range(1, 2**16)] | None = None
    lora_alpha: float | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, Range(1, 2**16)]] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def alphas(self, ranks: Mapping[str, int], where: str) -> dict[str, float]:
        """Return each layer's alpha by path, such that its scale is alpha / rank.

        Raises InputError where the config and the tensors, which have these `ranks`, disagree.
        """
        own_ranks, own_alphas = (first_matches(table, ranks, where) for table in (self.rank_pattern, self.alpha_pattern))
        alphas = {}
        for path, rank in ranks.items():
            if (wanted := own_ranks.get(path, self.r)) not in (None, rank):
                raise InputError(f"{where}: {path} has rank {rank}, but peft's config says {wanted}; fetch both files again")
            alpha = own_alphas.get(path, self.lora_alpha)
            alphas[path] = float(rank if alpha is None else alpha)
            if self.use_rslora:
                alphas[path] *= math.sqrt(rank)  # alpha / sqrt(r) = (alpha sqrt(r)) / r (Kalajdzievski 2023)
        return alphas


def read_config(value: Any, where: str) -> PeftConfig:
    """Return peft's config from a JSON object. Raises InputError for each field that asks for more than plain LoRA."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not an object; fetch it again")
    kind, start = value.get("peft_type", "LORA"), value.get("init_lora_weights", True)
    if kind != "LORA":
        raise InputError(f"{where}: peft_type is {kind!r:.60}; lida applies plain LoRA")
    if start not in PLAIN_INITS:
        raise InputError(f"{where}: init_lora_weights {start!r:.60} changes the base too; convert it with peft to plain LoRA")
    if value and "lora_alpha" not in value:
        raise InputError(f"{where}: lora_alpha is missing, which decides the adapter's strength; fetch it again")
    known = {f.name for f in fields(PeftConfig)}
    for name in sorted(value.keys() - known - NO_EFFECT - {"init_lora_weights"}):
        if value[name] not in (None, False, "none", [], {}):
            raise InputError(f"{where}: {name} is {value[name]!r:.60}, which lida does not compute; train it as plain LoRA")
    return typed(PeftConfig, {name: v for name, v in value.items() if name in known and v is not None}, where)


def first_matches(patterns: Mapping[str, T], paths: Iterable[str], where: str) -> dict[str, T]:
    """Return, by path, the value of the first pattern that matches it.

    As in peft, a pattern is a regular expression for the end of a path; in the text encoder also for that of a path with
    `text_model.` in front, as transformers had it until 5.6. Raises InputError for a pattern that is none or longer than
    LONGEST, and if matching takes longer than SECONDS of CPU time.
    """
    end, rules, found = time.process_time() + SECONDS, [], {}
    try:
        for pattern, value in patterns.items():
            if len(pattern) > LONGEST or time.process_time() > end:
                raise TimeoutError
            re.compile(pattern)  # refuses what regex knows beyond Python's own syntax
            rules.append((regex.compile(rf"(.*\.)?({pattern})"), value))
        for path in paths:
            for rule, value in rules:
                left = max(end - time.process_time(), 1e-3)
                if rule.fullmatch(path, timeout=left) or rule.fullmatch(f"text_model.{path}", timeout=left):
                    found[path] = value
                    break
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: {pattern!r:.60} is not a regular expression ({error}); write the layer's name") from None
    except TimeoutError:
        raise InputError(f"{where}: the patterns of ranks and alphas take too long to match; write the layers' names") from None
    return found


def config_of(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """Return peft's config of layers: rank and alpha, and patterns where they differ."""
    ranks, alphas = {path: layer.rank for path, layer in layers.items()}, {path: layer.alpha for path, layer in layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        "target_modules": sorted(layers),
    }
