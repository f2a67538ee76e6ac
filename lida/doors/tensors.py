"""Safetensors files: read without a copy, checked, and written whole."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError, one_line
from .files import regular_file, written_whole

FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}  # of weights
PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # the first bytes of torch.save's and pickle's files


def read_tensors(path: str | Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, or only those in `names`. They are memory-mapped, not yet read.

    Raises InputError for any other file; a pickle under another name is never opened.
    """
    with open_file(path) as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def read_header(path: str | Path) -> dict[str, str]:
    """Return the metadata in a safetensors file's header. Raises InputError as read_tensors() does."""
    with open_file(path) as file:
        return file.metadata() or {}


def check_device(name: str | torch.device) -> None:
    """Raise InputError for an unusable device, such as meta, which stores no data."""
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # of PyTorch and what it imports for a kind of device
        raise InputError(f"device {name}: {one_line(error)[:200]}; cpu always works") from None


@contextmanager
def open_file(path: str | Path) -> Iterator[safe_open]:
    """Yield an open safetensors file. Errors in the block become an InputError that names the file."""
    path = regular_file(path, "safetensors file")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, AttributeError) as error:  # the last two: a dtype that torch does not have
        with open(path, "rb") as file:
            pickled = file.read(2).startswith(PICKLES)
        if pickled:
            raise InputError(f"{path}: is a pickle under another name, which may run anything; give safetensors") from None
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a floating-point tensor are finite.

    NaN and infinity show in the sum, which is one fast pass over memory (isfinite() takes 20 times as long on a CPU). A sum
    can overflow where no value does: then the least and the largest value decide.
    """
    if tensor.itemsize == 1:  # torch cannot add float8
        tensor = tensor.half()
    return bool(tensor.sum().isfinite()) or bool(torch.stack(tensor.aminmax()).isfinite().all())


def check_finite(tensors: Mapping[str, Tensor], where: str | Path, cure: str) -> None:
    """Raise InputError that names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise InputError(f"{where}: {name} is not finite in {tensor.dtype}; {cure}")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] = {}) -> None:
    """Write a safetensors file whole; equal contents give equal bytes. Raises InputError, and writes nothing, if that fails."""
    with written_whole(path) as part:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, dict(header))
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written ({error}); make room or give another place") from None
        with open(part, "r+b") as file:  # the library writes the metadata in random order: sort it
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
            text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
            assert len(text) == size, "the header is longer when sorted"
            file.seek(8)
            file.write(text)
