"""Where the files of a model are: in a folder, in one file, in the Hugging Face hub's cache. Safetensors only."""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from . import single_file as ldm
from ..doors.errors import InputError
from ..doors.json import read_json
from ..doors.tensors import read_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
VARIANTS = ("", ".fp16", ".non_ema")  # what may stand before .safetensors; the first that exists is taken
MOST_TENSORS = 10_000  # SD1.5 with the averaged copy of its weights has 1,819
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
UNPICKLE = "take its .safetensors, or convert it where nothing can be harmed"
PARTS = "a model folder has unet/ vae/ text_encoder/ tokenizer/ scheduler/"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOVED = {  # ids that the hub no longer has
    f"runwayml/{name}": f"stable-diffusion-v1-5/{name}" for name in ("stable-diffusion-v1-5", "stable-diffusion-inpainting")
}


def read_object(path: Path) -> dict:
    """Return the object in a JSON file. Raises InputError for a file that is absent, broken or holds something else."""
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; {PARTS}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, not an object; fetch the file again")
    return values


def local(source: str | Path, *patterns: str) -> Path:
    """Return the file or folder of a source. Of a hub id, fetch the files that match the patterns; return the cache's folder.

    Raises InputError where there is none, and for pickled weights.
    """
    path = Path(source)
    if path.suffix in PICKLED:
        raise InputError(f"{source}: is a pickle, which may run anything when opened; {UNPICKLE}")
    if os.path.exists(path):
        return path
    if os.path.lexists(path) or not HUB_ID.fullmatch(str(source)):
        raise InputError(
            f"{source}: no such folder or file; give a model in diffusers' layout, a .safetensors file or a hub id"
        )
    if str(source) in MOVED:
        warnings.warn(f"{source} is gone from the hub; taking {MOVED[str(source)]}, the same files", stacklevel=2)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MOVED.get(str(source), str(source)), allow_patterns=list(patterns)))
    except Exception as error:  # of the hub, of the network's library, of the disk
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{source}: no such folder, and not to be had from the hub ({reason}); check the id and the network"
        ) from None


def weights_file(source: str | Path, part: str, name: str = WEIGHTS) -> Path:
    """Return the weights of a part in a folder or on the hub: the full file, else its .fp16 or .non_ema variant."""
    candidates = [name.replace(".safetensors", f"{variant}.safetensors") for variant in VARIANTS]
    for candidate in candidates:
        folder = local(source, f"{part}/config.json", f"{part}/{candidate}")
        if os.path.lexists(folder / part / candidate):
            return folder / part / candidate
    if not (folder / part / "config.json").is_file():
        raise InputError(f"{folder / part / 'config.json'}: no such file; {PARTS}")
    pickled = [path.name for path in (folder / part).glob("*") if path.suffix in PICKLED]
    cure = f"{pickled[0]} is a pickle, which may run anything when opened; {UNPICKLE}" if pickled else "fetch the folder again"
    raise InputError(f"{folder / part}: has no {' or '.join(candidates)}; {cure}")


def is_single_file(source: str | Path) -> bool:
    """Return whether the source is one file that holds all parts. Raises InputError for a pickle."""
    return os.path.isfile(source) and local(source).is_file()  # an id of the hub is never a file


def part_of_single_file(path: Path, part: str) -> dict[str, Tensor]:
    """Return a part's tensors under latent diffusion's names.

    Raises InputError for tensors that belong to no part.
    """
    tensors = read_tensors(path)
    if len(tensors) > MOST_TENSORS:
        raise InputError(f"{path}: has {len(tensors)} tensors, more than any model of SD1.5's kind; give another file")
    unknown = [n for n in tensors if not n.startswith(tuple(ldm.PREFIXES.values())) and not ldm.IGNORED.fullmatch(n)]
    if unknown:
        raise InputError(f"{path}: has {len(unknown)} tensors that are no part of SD1.5: {some(unknown)}")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(ldm.PREFIXES[part])}


def shapes_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the tensors' shapes, names without the prefix."""
    return {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in tensors.items()}


def some(names: Iterable[str]) -> str:
    """Return the first five names, for an error."""
    return ", ".join(name[:100] for name in sorted(names)[:5])
