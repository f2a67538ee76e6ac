"""The configs of a model's parts: foreign JSON, checked field by field before anything is built."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from ..diffusion.schedule import NoiseScheduleConfig
from ..doors.errors import InputError
from ..doors.json import SHORT, Range, typed
from ..nn.unet import UNetConfig, Width
from ..nn.vae import VAEConfig
from .sources import read_object

MOST_BLOCKS = 8
Token = Annotated[int, Range(0, 1_000_000)] | None
Config = TypeVar("Config", UNetConfig, VAEConfig, NoiseScheduleConfig)
# A folder's scheduler may be any sampler (DEIS, Euler, DPM++), with fields of its own. These fields describe the noise process.
PROCESS = {field.name for field in fields(NoiseScheduleConfig)} | {"trained_betas", "prediction_type", "rescale_betas_zero_snr"}


@dataclass(frozen=True)
class TextConfig:
    """The fields of text_encoder/config.json that change what CLIP's text encoder computes, with transformers' defaults."""

    vocab_size: Annotated[int, Range(1, 1_000_000)] = 49408
    hidden_size: Width = 512
    intermediate_size: Annotated[int, Range(1, 65536)] = 2048
    projection_dim: Width = 512
    num_hidden_layers: Annotated[int, Range(1, 100)] = 12
    num_attention_heads: Annotated[int, Range(1, 256)] = 8
    max_position_embeddings: Annotated[int, Range(4, 4096)] = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Range(0, 1)] = 1e-5
    pad_token_id: Token = 1
    bos_token_id: Token = 49406
    eos_token_id: Token = 49407


def read_config(kind: type[Config], path: Path) -> Config:
    """Return a config from diffusers' JSON.

    Raises InputError for a field that the config does not have, and for a value out of its range or of another kind of model.
    """
    raw = read_object(path)
    values = {name: value for name, value in raw.items() if not name.startswith("_")}
    if kind is NoiseScheduleConfig:
        sampler = raw.get("_class_name", "DDIMScheduler")
        if sampler == "DDIMScheduler" and "_class_name" in raw and "clip_sample" not in raw:
            raise InputError(f"{path}: clip_sample is missing, which means true; SD1.5's is false: add it to the file")
        own = kind.fixed.keys() if sampler in ("DDIMScheduler", "PNDMScheduler") else set()  # lida's samplers equal these two
        defaults = {} if sampler == "DDIMScheduler" else {"set_alpha_to_one": False}
        values = defaults | {name: value for name, value in values.items() if name in PROCESS | own}
    for name, value in values.items():
        if isinstance(value, list) and not 0 < len(value) <= MOST_BLOCKS:
            raise InputError(f"{path}: {name} has {len(value)} entries, not 1 to {MOST_BLOCKS}; fetch the file again")
    for name in kind.fixed.keys() & values.keys():
        value, fixed = values.pop(name), kind.fixed[name]
        if value != fixed and not (value is None and fixed is False):  # old files say null for false
            raise InputError(f"{path}: {name} is {SHORT.repr(value)}; lida runs models of SD1.5's kind, where it is {fixed!r}")
    return typed(kind, values, path, ignore=kind.advisory)


def read_text_config(path: Path) -> TextConfig:
    """Return the config of CLIP's text encoder from transformers' JSON. Fields that change nothing are ignored."""
    raw = read_object(path)
    if raw.get("model_type", "clip_text_model") != "clip_text_model":
        raise InputError(f"{path}: model_type is {SHORT.repr(raw['model_type'])}; SD1.5's text encoder is a clip_text_model")
    return typed(TextConfig, {field.name: raw[field.name] for field in fields(TextConfig) if field.name in raw}, path)
