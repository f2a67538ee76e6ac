"""Find the files of a model: in a folder, in one file, or in the Hugging Face hub's cache. Safetensors only."""

import os
import re
import warnings
from pathlib import Path

from ..doors.errors import InputError, one_line
from ..doors.json import as_object, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
VARIANTS = ("", ".fp16", ".non_ema")  # before .safetensors; the first file that exists is used
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
UNPICKLE = "use its .safetensors, or convert it on a machine where it can do no harm"
PARTS = "a model folder has unet/ vae/ text_encoder/ tokenizer/ scheduler/"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOVED = {  # ids that the hub no longer has
    f"runwayml/{name}": f"stable-diffusion-v1-5/{name}" for name in ("stable-diffusion-v1-5", "stable-diffusion-inpainting")
}


def read_object(path: Path) -> dict:
    """Return the object of a model's JSON file. Raises InputError if the file is absent, broken or holds another value."""
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; {PARTS}")
    return as_object(read_json(path), path)


def local(source: str | Path, *patterns: str) -> Path:
    """Return the local file or folder of a source. For a hub id, fetch the files that match the patterns into the hub's cache.

    Raises InputError if the source cannot be found or fetched, and for pickled weights.
    """
    path, name = Path(source), str(source)
    if path.suffix in PICKLED:
        raise InputError(f"{source}: is a pickle, which may run anything when opened; {UNPICKLE}")
    if os.path.exists(path):
        return path
    if os.path.lexists(path) or not HUB_ID.fullmatch(name):
        raise InputError(f"{name}: no such folder or file; give a model in diffusers' layout, a .safetensors file or a hub id")
    if name in MOVED:
        warnings.warn(f"{source} is gone from the hub; using {MOVED[name]}, the same files", stacklevel=2)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MOVED.get(name, name), allow_patterns=list(patterns)))
    except Exception as error:  # from the hub, the network or the disk
        reason = one_line(error)[:200] or type(error).__name__
        cure = "check the id and the network"
        raise InputError(f"{source}: no such folder, and the hub does not provide it ({reason}); {cure}") from None


def weights_file(source: str | Path, part: str, name: str = WEIGHTS) -> Path:
    """Return the weights file of a part, in a folder or on the hub: the full file, else its .fp16 or .non_ema variant."""
    candidates = [name.replace(".safetensors", f"{variant}.safetensors") for variant in VARIANTS]
    for candidate in candidates:
        folder = local(source, f"{part}/config.json", f"{part}/{candidate}") / part
        if os.path.lexists(folder / candidate):
            return folder / candidate
    read_object(folder / "config.json")
    pickled = [path.name for path in folder.glob("*") if path.suffix in PICKLED]
    cure = f"{pickled[0]} is a pickle, which may run anything when opened; {UNPICKLE}" if pickled else "fetch the folder again"
    raise InputError(f"{folder}: has no {' or '.join(candidates)}; {cure}")


def is_single_file(source: str | Path) -> bool:
    """Return whether the source is one file that holds all parts. Raises InputError for a pickle."""
    return os.path.isfile(source) and local(source).is_file()  # a hub id is never a file
