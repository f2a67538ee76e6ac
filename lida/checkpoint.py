"""Models from and to a folder in diffusers' layout: unet/ vae/ text_encoder/ tokenizer/ scheduler/, safetensors only."""

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .diffusion import NoiseSchedule, NoiseScheduleConfig
from .errors import InputError
from .text import TextEncoder
from .unet import UNet, UNetConfig
from .vae import VAE, VAEConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION = re.compile(rf"(?<=mid_block\.attentions\.0\.)({'|'.join(NEW_ATTENTION)})(?=\.)")
Config = TypeVar("Config", UNetConfig, VAEConfig, NoiseScheduleConfig)


def read_json(path: Path) -> dict:
    """The object in a JSON file; raises InputError for a file that is absent, broken or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a model folder has unet/ vae/ text_encoder/ tokenizer/ scheduler/") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); fetch the file again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, not an object; fetch the file again")
    return values


def read_config(kind: type[Config], path: Path) -> Config:
    """A config from diffusers' JSON. A field that lida does not know, or cannot honour, is refused by name."""
    raw = read_json(path)
    values = {name: value for name, value in raw.items() if not name.startswith("_")}
    fixed, known = dict(kind.fixed), {field.name: field for field in fields(kind)}
    if kind is VAEConfig:
        widths = values.get("block_out_channels")
        if not isinstance(widths, list):
            raise InputError(f"{path}: block_out_channels is {widths!r}, not a list of numbers; fetch the file again")
        fixed |= kind.block_types(len(widths))
    taken = {}
    for name, value in values.items():
        if name in known:
            taken[name] = tuple(value) if isinstance(value, list) else value
        elif name in fixed:
            if value != fixed[name] and not (value is None and fixed[name] is False):  # old files say null for false
                raise InputError(f"{path}: {name} is {value!r}; lida runs models of SD1.5's kind, where it is {fixed[name]!r}")
        elif name not in getattr(kind, "advisory", ()):
            raise InputError(f"{path}: {name} ({value!r}) is not a field of SD1.5's config; is this another kind of model?")
    if kind is NoiseScheduleConfig and raw.get("_class_name") == "DDIMScheduler" and "clip_sample" not in raw:
        raise InputError(f"{path}: clip_sample is not given, which means true; SD1.5's is false: write that into the file")
    for name, field in known.items():
        if name not in taken and field.default is MISSING:
            raise InputError(f"{path}: the field {name} is missing; fetch the file again")
    wrong = [n for n, v in taken.items() if isinstance(known[n].default, (int, float)) and not isinstance(v, (int, float))]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} is {taken[wrong[0]]!r}; lida takes one number for all blocks, as in SD1.5")
    with refusing(path):
        return kind(**taken)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what a constructor says of its values into an InputError that names the file they came from."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises InputError with the file's name."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; lida reads safetensors weights only")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


def fill(model: nn.Module, tensors: dict[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Load tensors strictly; raises InputError that names the first five missing, unexpected and misshapen ones."""
    expected = model.state_dict()
    for what, names in (("misses", expected.keys() - tensors.keys()), ("has unexpected", tensors.keys() - expected.keys())):
        if names:
            raise InputError(f"{path}: {what} {len(names)} tensors: {', '.join(sorted(names)[:5])}; is it for this config.json?")
    wrong = [name for name in expected if expected[name].shape != tensors[name].shape]
    if wrong:
        shapes = ", ".join(f"{n} {tuple(tensors[n].shape)} for {tuple(expected[n].shape)}" for n in wrong[:5])
        raise InputError(f"{path}: {len(wrong)} tensors of another shape: {shapes}; is it for this config.json?")
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    model.eval().requires_grad_(False)


def load_unet(folder: str | Path, dtype: torch.dtype = torch.float32) -> UNet:
    """The UNet of a model folder, frozen."""
    path = Path(folder, "unet")
    with refusing(path / "config.json"), torch.device("meta"):
        unet = UNet(read_config(UNetConfig, path / "config.json"))
    fill(unet, read_tensors(path / WEIGHTS), path / WEIGHTS, dtype)
    return unet


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32) -> VAE:
    """The VAE of a model folder, frozen. Its attention may have the names of old files, SD1.5's own among them."""
    path = Path(folder, "vae")
    with refusing(path / "config.json"), torch.device("meta"):
        vae = VAE(read_config(VAEConfig, path / "config.json"))
    tensors = read_tensors(path / WEIGHTS)
    tensors = {OLD_ATTENTION.sub(lambda match: NEW_ATTENTION[match[0]], name): t for name, t in tensors.items()}
    fill(vae, tensors, path / WEIGHTS, dtype)
    return vae


def load_text_encoder(folder: str | Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """The text encoder and tokenizer of a model folder, frozen. Keys may begin with `text_model.` or not."""
    path = Path(folder, "text_encoder", "model.safetensors")
    with refusing(path.with_name("config.json")):
        config = CLIPTextConfig.from_dict(read_json(path.with_name("config.json")))
        model = CLIPTextModel(config)
    tokenizer_path = Path(folder, "tokenizer")
    names = [{"vocab.json", "merges.txt"}, {"tokenizer.json"}]  # CLIP's own format, and what transformers 5 writes
    if not any(all((tokenizer_path / name).is_file() for name in spelling) for spelling in names):
        raise InputError(f"{tokenizer_path}: has neither vocab.json and merges.txt nor tokenizer.json; fetch the folder again")
    prefix = "text_model." if hasattr(model, "text_model") else ""  # transformers 5.6 flattened the model
    tensors = {prefix + name.removeprefix("text_model."): tensor for name, tensor in read_tensors(path).items()}
    tensors.pop(f"{prefix}embeddings.position_ids", None)  # 0, 1, 2, ...: old files carry the buffer
    fill(model, tensors, path, dtype)
    try:
        encoder = TextEncoder(model, CLIPTokenizer.from_pretrained(tokenizer_path))
    except Exception as error:  # the Rust library raises Exception itself
        raise InputError(f"{tokenizer_path}: not readable as a CLIP tokenizer ({error}); fetch the folder again") from None
    if len(encoder.tokenizer) > config.vocab_size:
        raise InputError(f"{tokenizer_path}: {len(encoder.tokenizer)} tokens for an encoder of {config.vocab_size}; not a pair")
    return encoder


def load_schedule(folder: str | Path) -> NoiseSchedule:
    """The noise schedule of a model folder."""
    path = Path(folder, "scheduler", "scheduler_config.json")
    with refusing(path):
        return NoiseSchedule(read_config(NoiseScheduleConfig, path))


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of the UNet's weights file: an adapter records with it which base it was trained on."""
    with open(Path(folder, "unet", WEIGHTS), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(model: UNet | VAE, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a UNet or a VAE as diffusers would: folder/config.json and the weights in `dtype`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {UNet: "UNet2DConditionModel", VAE: "AutoencoderKL"}
    config = {"_class_name": names[type(model)], **model.config.fixed, **asdict(model.config)}
    if isinstance(model, VAE):
        config |= model.config.block_types(len(model.config.block_out_channels))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def save_text_encoder(text_encoder: TextEncoder, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write folder/text_encoder and folder/tokenizer as transformers would."""
    copy.deepcopy(text_encoder.model).to(dtype).save_pretrained(Path(folder, "text_encoder"))
    text_encoder.tokenizer.save_pretrained(Path(folder, "tokenizer"))
