"""Adapters from disk and to disk, in the formats of diffusers, kohya and peft."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..doors.errors import InputError
from ..doors.files import folder_written_whole, output_folder, write_json
from ..doors.json import parse_json, read_json
from ..doors.tensors import is_finite, read_header, read_tensors, write_tensors
from ..nn.lora import LowRank
from .adapter import Adapter, check_fits
from .dialects import as_diffusers, as_kohya, as_peft, parse, refuse_foreign
from .merging import Weight, parse_weight
from .peft_config import PeftConfig, read_config

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
FORMATS = ("diffusers", "kohya", "peft")
COMPONENTS = ("unet", "text_encoder")


def save_adapter(path: str | Path, adapter: Adapter, format: str = "diffusers") -> Path:
    """Write the adapter in one of FORMATS so that its reader applies exactly (alpha / rank) up down; return the path.

    diffusers: a file, or `pytorch_lora_weights.safetensors` in a folder; alpha becomes the rank, because not every reader of
    such files looks at the header. kohya: a file with one alpha for all layers. peft: a new folder; an adapter of both models
    has one folder for each in it, with the paths of transformers 5.6 and later. The metadata is stored in each file's header
    under `lida`. Raises InputError for another format, an empty adapter, and values that are not finite.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    if not adapter.layers:
        raise InputError(f"{path}: the adapter has no layers; there is nothing to write")
    header = {"lida": json.dumps(adapter.metadata)}
    parse_json(header["lida"], f"{path}: the adapter's metadata")  # or load_adapter would refuse it
    if format == "peft":
        if path.suffix == ".safetensors":
            raise InputError(f"{path}: peft's format is a folder; give one")
        with folder_written_whole(path) as whole:
            folders = as_peft(adapter.layers)
            for component, (tensors, config) in folders.items():
                folder = whole / component if len(folders) > 1 else whole
                folder.mkdir(exist_ok=True)
                write_finite(folder / PEFT_FILES[0], tensors, {"format": "pt", **header}, path)
                write_json(folder / PEFT_FILES[1], config)
        return path
    path = path if path.suffix == ".safetensors" else path / FILE_NAME
    tensors, format_header = (as_kohya if format == "kohya" else as_diffusers)(adapter.layers)
    output_folder(path.parent, "the adapter's folder")
    write_finite(path, tensors, {**format_header, **header}, path)
    return path


def write_finite(path: Path, tensors: dict, header: dict[str, str], where: Path) -> None:
    """Write a safetensors file; raises InputError if a value is not finite."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise InputError(f"{where}: {name} is not finite in {tensor.dtype}; give the adapter smaller values")
    write_tensors(path, tensors, header)


def load_adapter(source: str | Path, sd=None) -> Adapter:
    """Read an adapter in diffusers', peft's or kohya's format from a file or a folder; every tensor must be understood.

    With `sd`, a StableDiffusion, it must also fit that model. Raises InputError that names the file and what is wrong.
    """
    layers, metadata = {}, {}
    for file in files_of(Path(source)):
        new, metadata = read_file(file)
        if both := layers.keys() & new.keys():
            raise InputError(f"{source}: holds {min(both)} in two files; give one folder")
        layers |= new
    adapter = Adapter(layers, metadata)
    if sd is not None:
        check_fits(adapter, sd.module, str(source))
    return adapter


def files_of(path: Path) -> list[Path]:
    """Return the safetensors files of an adapter: the path itself, or those of a folder.

    Of its subfolders only unet/ and text_encoder/ count: a trainer's checkpoints lie in others.
    """
    if not path.exists():
        raise InputError(f"{path}: no such adapter; give a .safetensors file, or a folder with {FILE_NAME}")
    if not path.is_dir():
        return [path]
    folders = [folder for folder in (path, path / "unet", path / "text_encoder") if (folder / PEFT_FILES[1]).is_file()]
    if (path / FILE_NAME).is_file() or not folders:
        return [path / FILE_NAME]
    return [folder / PEFT_FILES[0] for folder in folders]


def read_file(path: Path) -> tuple[dict[str, LowRank], dict]:
    """Return a file's layers and lida's metadata. A file with peft's name has its config beside it."""
    tensors, header = read_tensors(path), read_header(path)
    refuse_foreign(tensors, str(path))
    metadata = parse_json(header.get("lida", "{}"), f"{path}: lida's metadata")
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: lida's metadata is not an object; fetch it again")
    beside = path.with_name(PEFT_FILES[1])
    if path.name == PEFT_FILES[0] and beside.exists():
        configs = dict.fromkeys(COMPONENTS, read_config(read_json(beside), str(beside)))
    elif any(name.startswith("base_model.model.") for name in tensors):
        raise InputError(f"{path}: its alpha is in peft's {PEFT_FILES[1]}; give the folder that has both files")
    else:
        configs = read_header_configs(header.get("lora_adapter_metadata", "{}"), f"{path}: lora_adapter_metadata")
    return parse(tensors, configs, str(path)), metadata


def read_header_configs(text: str, where: str) -> dict[str, PeftConfig]:
    """Return peft's config of each component from diffusers' header, whose fields are `unet.r` and the like."""
    value, configs = parse_json(text, where), {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not an object; fetch it again")
    if foreign := [name for name in value if name.partition(".")[0] not in COMPONENTS]:
        raise InputError(f"{where}: {foreign[0]!r:.60} is of no model that lida changes; give an adapter of SD1.5")
    for component in COMPONENTS:
        fields = {name.removeprefix(f"{component}."): v for name, v in value.items() if name.startswith(f"{component}.")}
        configs[component] = read_config(fields, f"{where}: {component}")
    return configs


def parse_pairs(texts: Sequence[str], flag: str = "--adapter") -> list[tuple[str, Weight]]:
    """Read PATH=WEIGHT, as often as given, with the weight as merging.parse_weight reads it; a path alone has weight 1.

    Raises InputError for what is no weight, and for a file that is given twice, by whatever path.
    """
    pairs: dict[str, Weight] = {}
    seen: dict[str, str] = {}
    for text in texts:
        match = re.fullmatch(r"(.*?)=([-+\d.][^/=]*(?:,\w+=[^/=,]+)*)", text) or re.fullmatch(r"(.*)=(.*)", text)
        try:
            path, weight = (match[1], parse_weight(match[2])) if match else (text, 1.0)
        except ValueError as error:
            raise InputError(f"{flag} {text}: {error}; write PATH=WEIGHT") from None
        for file in map(os.path.realpath, files_of(Path(path))):
            if file in seen:
                raise InputError(f"{flag} {text}: the same adapter is given as {seen[file]}; add their weights up")
            seen[file] = path
        pairs[path] = weight
    return list(pairs.items())
