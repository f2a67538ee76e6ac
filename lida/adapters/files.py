"""Read and write adapters in the formats of diffusers, kohya and peft."""

import json
import os
from pathlib import Path
from typing import Any

from ..doors.errors import InputError
from ..doors.files import folder_written_whole, output_folder, write_json
from ..doors.json import as_object, parse_json, read_json
from ..doors.tensors import check_finite, read_header, read_tensors, write_tensors
from ..nn.lora import LowRank
from .adapter import Adapter, check_fits
from .dialects import Layers, as_diffusers, as_kohya, as_peft, parse, with_alpha
from .modelspec import shared_header
from .peft_config import read_config

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
WRITERS = {"diffusers": as_diffusers, "kohya": as_kohya}  # of one file; save_peft() writes folders
FORMATS = (*WRITERS, "peft")
FIELDS = {"role": str, "template": str, "licence": str, "base": dict, "data": dict, "training": dict, "parts": list}
COMPONENTS = ("unet", "text_encoder")


def save_adapter(path: str | Path, adapter: Adapter, format: str = "diffusers") -> Path:
    """Write the adapter in one of FORMATS so that its reader applies exactly (alpha / rank) up down; return the path.

    diffusers and kohya: a file, or FILE_NAME in a folder. peft: a new folder; an adapter of both models has one folder for each
    in it. The metadata is stored in each file's header under `lida`, and for other programs by modelspec.py. Raises InputError
    for another format, an empty adapter, and values that are not finite.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    if not adapter.layers:
        raise InputError(f"{path}: the adapter has no layers; there is nothing to write")
    try:
        own = {"lida": json.dumps(adapter.metadata)}
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: the adapter's metadata cannot be written as JSON ({error})") from None
    checked_metadata(parse_json(own["lida"], f"{path}: the adapter's metadata"), str(path))  # as load_adapter checks it
    highest = max(layer.rank for layer in adapter.layers.values())
    layers = with_alpha(adapter.layers, highest if format == "kohya" else None)  # diffusers misreads files of several alphas
    factors = {f"{name}, {factor}": getattr(layer, factor) for name, layer in layers.items() for factor in ("down", "up")}
    check_finite(factors, path, "give the adapter smaller values, or train it again")
    if format == "peft":
        save_peft(path, layers, own)
        return path
    path = path if path.suffix == ".safetensors" else path / FILE_NAME
    tensors, header = WRITERS[format](layers)
    header |= shared_header(adapter, tensors) | own
    write_tensors(output_folder(path.parent, "the adapter's folder") / path.name, tensors, header)
    return path


def save_peft(path: Path, layers: Layers, header: dict[str, str]) -> None:
    """Write the folder, or the two folders, that PeftModel.save_pretrained writes."""
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: peft's format is a folder; give one")
    folders = as_peft(layers)
    with folder_written_whole(path) as whole:
        for component, (tensors, config) in folders.items():
            folder = whole / component if len(folders) > 1 else whole
            folder.mkdir(exist_ok=True)
            write_tensors(folder / PEFT_FILES[0], tensors, {"format": "pt", **header})
            write_json(folder / PEFT_FILES[1], config)


def load_adapter(source: str | Path, sd=None) -> Adapter:
    """Return the adapter of a file or folder in the format of diffusers, peft or kohya. Every tensor must be recognised.

    With `sd`, a StableDiffusion, the adapter must also fit that model. Raises InputError that names the file and its fault.
    """
    layers: dict[str, LowRank] = {}
    metadata: dict = {}
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

    Of its subfolders only unet/ and text_encoder/ are read; others hold a trainer's checkpoints.
    """
    if not os.path.exists(path):  # false, too, for a name that is too long
        raise InputError(f"{path}: no such adapter; give a .safetensors file, or a folder with {FILE_NAME}")
    if not path.is_dir():
        return [path]
    folders = [folder for folder in (path, path / "unet", path / "text_encoder") if (folder / PEFT_FILES[1]).is_file()]
    if (path / FILE_NAME).is_file() or not folders:
        return [path / FILE_NAME]
    return [folder / PEFT_FILES[0] for folder in folders]


def read_file(path: Path) -> tuple[dict[str, LowRank], dict]:
    """Return a file's layers and lida's metadata. A file with peft's name may have its config beside it."""
    tensors, header = read_tensors(path), read_header(path)
    beside, where = path.with_name(PEFT_FILES[1]), f"{path}: lora_adapter_metadata"
    if path.name == PEFT_FILES[0] and beside.exists():
        configs = dict.fromkeys(COMPONENTS, read_config(as_object(read_json(beside), beside), str(beside)))
    elif any(name.startswith("base_model.model.") for name in tensors):
        raise InputError(f"{path}: its alpha is in peft's {PEFT_FILES[1]}; give the folder that has both files")
    else:  # diffusers' fields are `unet.r` and the like
        values: dict[str, dict] = {component: {} for component in COMPONENTS}
        for key, value in as_object(parse_json(header.get("lora_adapter_metadata", "{}"), where), where).items():
            component, _, name = key.partition(".")
            if component not in values:
                raise InputError(f"{where}: {key!r:.60} belongs to no model that lida changes; give an adapter of SD1.5")
            values[component][name] = value
        configs = {component: read_config(value, f"{where}: {component}") for component, value in values.items()}
    where = f"{path}: lida's metadata"
    return parse(tensors, configs, str(path)), checked_metadata(parse_json(header.get("lida", "{}"), where), where)


def checked_metadata(value: object, where: str) -> dict[str, Any]:
    """Return an adapter's metadata. Raises InputError if a field that lida reads has another type than in FIELDS."""
    metadata = as_object(value, where)
    for name, kind in FIELDS.items():
        if not isinstance(metadata.get(name, kind()), kind):
            raise InputError(f"{where}: {name} is {metadata[name]!r:.60}, not a {kind.__name__}; fetch it again")
    for part in metadata.get("parts", []):
        checked_metadata(part, f"{where}: parts")
    return metadata
