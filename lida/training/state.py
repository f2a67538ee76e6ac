"""Training state on disk: checkpoints, written whole, and resuming from the last complete one."""

import io
import shutil
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..adapters import Adapter, save_adapter
from ..doors.errors import InputError
from ..doors.files import folder_written_whole, write_bytes, write_json
from ..doors.json import as_object, read_json
from ..doors.tensors import is_finite

STATE, SETTINGS = "state.pt", "settings.json"  # in a checkpoint
SQUARES = ("exp_avg_sq", "state2")  # second moments of torch's optimisers and bitsandbytes'
MOMENTS = ("exp_avg", "state1", *SQUARES)


def save_state(path: str | Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write the state_dict() of every part after `step` steps. After a crash, the last complete file remains."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = io.BytesIO()  # PyTorch's own writer fails in many ways on a full disk
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, state)
    write_bytes(path, state.getvalue())


def load_state(path: str | Path, parts: Mapping[str, Any]) -> int:
    """Restore every part as save_state() wrote it; return the steps taken, or 0 without a file.

    Raises InputError for a file that is damaged or does not fit the parts.
    """
    if not Path(path).exists():
        return 0
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not compare checksums
            if damaged := file.testzip():
                raise ValueError(f"{damaged} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError(f"{state['step']!r} is not a number of steps")
        for name, part in parts.items():
            if options_of(state[name]) != options_of(part.state_dict()):
                raise ValueError(f"the {name} has other options")
            part.load_state_dict(state[name])
            check_values(part, state["step"])
        return state["step"]
    except Exception as error:  # a damaged file can raise anything
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is damaged, or not of this run ({what[:120]})") from None


def options_of(state: dict) -> list[dict]:
    """Return the options in an optimiser's state, without the learning rate, which every step sets; [] for another part."""
    groups = state.get("param_groups", [])
    return [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in groups]


def check_values(part: Any, step: int) -> None:
    """Raise ValueError if a part that was restored after `step` steps cannot be right.

    It has values that are not finite, moments that are missing or of another shape, or negative counts or second moments.
    """
    tensors: list[torch.Tensor] = list(part.parameters()) if isinstance(part, torch.nn.Module) else []
    if isinstance(part, torch.optim.Optimizer) and (step or part.state):
        states = part.state
        for p in (p for group in part.param_groups for p in group["params"]):
            if {value.shape for name, value in states[p].items() if name in MOMENTS} != {p.shape}:
                raise ValueError("moments are missing or of another shape")
            if any(states[p][name].min() < 0 for name in ("step", *SQUARES) if name in states[p]):
                raise ValueError("the count of steps or a second moment is negative")
            tensors = [*tensors, *(x for x in states[p].values() if isinstance(x, torch.Tensor) and x.is_floating_point())]
    if not all(is_finite(tensor) for tensor in tensors):
        raise ValueError("values are not finite")


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints checkpoint-<step> in a folder, the latest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdecimal() and (path / STATE).is_file()]
    return sorted(found, key=lambda path: -int(path.name[11:]))


def write_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Any], adapter: Adapter, settings: dict, limit: int | None = None
) -> None:
    """Write checkpoint-<step>, whole or not at all; then keep only the last `limit`. Raises InputError if that fails."""
    path = folder / f"checkpoint-{step}"
    remove(path)  # left by a run that was resumed from an earlier step
    with folder_written_whole(path) as part:
        save_adapter(part, adapter)
        write_json(part / SETTINGS, settings)
        save_state(part / STATE, step, parts)
    for old in checkpoints(folder)[limit:] if limit else []:
        remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def resume(wanted: str, folder: Path, settings: dict, parts: Mapping[str, Any]) -> int:
    """Restore the parts from a checkpoint, by name or path or "latest", and return its step; 0 if there is none yet.

    If the latest is damaged or has other settings, the last complete one with these settings is used, with a warning. Raises
    InputError if there is none, and for a named one that cannot be used.
    """
    found, faults = checkpoints(folder), []
    if wanted != "latest":
        found = [path for path in (Path(wanted), folder / wanted) if (path / STATE).is_file()][:1]
        if not found:
            raise InputError(f"--resume_from_checkpoint {wanted}: no such checkpoint; give a folder or latest")
    if not found:
        print(f"no checkpoint in {folder} yet: training starts from the beginning", file=sys.stderr)
        return 0
    for path in found:
        try:
            if differing := changed_settings(as_object(read_json(path / SETTINGS), path / SETTINGS), settings):
                raise InputError(f"{path}: was trained with other settings ({'; '.join(differing[:5])})")
            step = load_state(path / STATE, parts)
            if path.name[11:].isdecimal() and path.name != f"checkpoint-{step}":
                raise InputError(f"{path}: is damaged, its state is of step {step}")
        except InputError as error:
            faults.append(str(error))
            continue
        if faults:
            warnings.warn(f"{faults[0]}; training continues from the last complete one, {path.name}")
        return step
    raise InputError(f"{faults[0]}; name another checkpoint, or start anew with --overwrite_output_dir")


def changed_settings(before: dict, now: dict) -> list[str]:
    """Return a line for each setting of a checkpoint that this run has with another value."""
    pairs = {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())}
    return [f"{name} was {old!r} and is {new!r}" for name, (old, new) in pairs.items() if old != new]
