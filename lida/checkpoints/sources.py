"""Where the files of a model are: in a folder, in one file, in the Hugging Face hub's cache. Safetensors only."""

import json
import re
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import single_file as ldm
from ..doors.errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
VARIANTS = ("", ".fp16", ".non_ema")  # what may stand before .safetensors, the first that is there is taken
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
UNPICKLE = "take its .safetensors, or convert it where nothing can be harmed"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOVED = {  # ids that the hub no longer has
    f"runwayml/{name}": f"stable-diffusion-v1-5/{name}" for name in ("stable-diffusion-v1-5", "stable-diffusion-inpainting")
}


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


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or those of some names, mapped and not yet read; InputError with the file's name."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; lida reads safetensors weights only")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from None
    except SafetensorError as error:
        with open(path, "rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04")  # what torch.save and pickle begin with
        if pickled:
            raise InputError(f"{path}: is a pickle under another name, which may run anything; {UNPICKLE}") from None
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


def local(source: str | Path, *patterns: str) -> Path:
    """The file or folder of a source; of a model on the hub, its folder in the cache with what the patterns name fetched.

    Raises InputError where there is none, and for pickled weights.
    """
    path = Path(source)
    if path.suffix in PICKLED:
        raise InputError(f"{source}: is a pickle, which may run anything when opened; {UNPICKLE}")
    if path.exists():
        return path
    if not HUB_ID.fullmatch(str(source)):
        raise InputError(
            f"{source}: no such folder or file; give a model in diffusers' layout, a .safetensors file or a hub id"
        )
    if str(source) in MOVED:
        warnings.warn(f"{source} is gone from the hub; taking {MOVED[str(source)]}, the same files", stacklevel=2)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(MOVED.get(str(source), str(source)), allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source}: no such folder, and not to be had from the hub ({reason}); check the id and the network"
        ) from None


def weights_file(source: str | Path, part: str, name: str = WEIGHTS) -> Path:
    """The weights of a part in a folder or on the hub: the full file, else its .fp16 or .non_ema variant."""
    candidates = [name.replace(".safetensors", f"{variant}.safetensors") for variant in VARIANTS]
    for candidate in candidates:
        folder = local(source, f"{part}/config.json", f"{part}/{candidate}")
        if (folder / part / candidate).is_file():
            return folder / part / candidate
    if not (folder / part / "config.json").is_file():
        raise InputError(
            f"{folder / part / 'config.json'}: no such file; a model folder has unet/ vae/ text_encoder/ tokenizer/ scheduler/"
        )
    pickled = [path.name for path in (folder / part).glob("*") if path.suffix in PICKLED]
    cure = f"{pickled[0]} is a pickle, which may run anything when opened; {UNPICKLE}" if pickled else "fetch the folder again"
    raise InputError(f"{folder / part}: has no {' or '.join(candidates)}; {cure}")


def is_single_file(source: str | Path) -> bool:
    """Whether the source is one file that holds all parts."""
    return Path(source).is_file() and local(source).is_file()  # local() refuses pickles; an id of the hub is never a file


def part_of_single_file(path: Path, part: str) -> dict[str, Tensor]:
    """A part's tensors under latent diffusion's names without the prefix; what belongs to no part raises InputError."""
    tensors = read_tensors(path)
    unknown = [n for n in tensors if not n.startswith(tuple(ldm.PREFIXES.values())) and not ldm.IGNORED.fullmatch(n)]
    if unknown:
        raise InputError(f"{path}: has {len(unknown)} tensors that are no part of SD1.5: {', '.join(sorted(unknown)[:5])}")
    return {name.removeprefix(ldm.PREFIXES[part]): t for name, t in tensors.items() if name.startswith(ldm.PREFIXES[part])}


def open_clip_vocabulary() -> Path | None:
    """CLIP's list of merges in the package open_clip_torch, where it is installed."""
    spec = find_spec("open_clip")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec else None
    return path if path and path.is_file() else None
