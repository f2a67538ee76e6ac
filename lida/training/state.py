"""What a training loop needs and its reader can skip: optimisers, learning rates, processes, and training state on disk."""

import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from ..doors.errors import InputError
from ..photos.pictures import written_whole

STATE = "state.pt"
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


class Stateful(Protocol):
    """What PyTorch's modules, optimisers and schedules are."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


class EMA:
    """An exponential moving average of a model's parameters, warmed up: decay_n = min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay, self.steps = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average in the model's place."""
        for name, p in model.named_parameters():
            p.copy_(self.shadow[name])

    def state_dict(self) -> dict:
        """What load_state_dict takes."""
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        """Go on where state_dict was taken."""
        self.steps, self.shadow = state["steps"], state["shadow"]


def save_state(path: str | Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write the state of models, optimisers and averages after `step` steps; a crash leaves the last whole file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part, open(part, "wb") as file:
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(path: str | Path, parts: Mapping[str, Stateful]) -> int:
    """Put every part where save_state left it; returns the steps taken, 0 where there is no file."""
    if not Path(path).exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def checkpoints(folder: str | Path) -> list[Path]:
    """The whole checkpoints in a folder, checkpoint-<step>, the latest first. What is being written has another name."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit() and (path / STATE).is_file()]
    return sorted(found, key=lambda path: -int(path.name[11:]))


def write_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Stateful], more: Callable[[Path], object], limit: int | None
) -> None:
    """checkpoint-<step> in the folder: the state, and what `more` writes beside it; then only the last `limit` are kept.

    Written under another name, flushed to the disk and renamed: there is a whole one or none. Raises InputError where
    the disk is full; what was there before stays.
    """
    whole = folder / f"checkpoint-{step}"
    part = folder / f"writing-{step}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        more(part)
        save_state(part / STATE, step, parts)
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(part, whole)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except (OSError, RuntimeError, InputError) as error:  # torch's writer raises RuntimeError for a full disk
        shutil.rmtree(part, ignore_errors=True)
        last = next((path.name for path in checkpoints(folder)), "none")
        message = f"{whole}: cannot be written ({error}); the last whole one is {last}: free space, and resume from latest"
        raise InputError(message) from None
    for old in checkpoints(folder)[limit:] if limit else []:
        shutil.rmtree(old)


def optimizer_of(groups: list[dict], betas: tuple[float, float], weight_decay: float, eps: float, use_8bit: bool, device: str):
    """AdamW (Loshchilov and Hutter 2019), all of it in one kernel; or bitsandbytes' with 8-bit moments (Dettmers et al. 2022).

    Raises InputError where that package, or the GPU that it needs, is absent.
    """
    if not use_8bit:
        return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, eps=eps, fused=True)
    if not device.startswith("cuda"):
        raise InputError(f"--use_8bit_adam: needs a CUDA GPU, and the device is {device}; leave it out")
    if find_spec("bitsandbytes") is None:
        raise InputError(
            "--use_8bit_adam: bitsandbytes is not installed; pip install lida-aging[bitsandbytes], or leave it out"
        )
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, betas=betas, weight_decay=weight_decay, eps=eps)


def lr_factor(name: str, step: int, warmup: int, total: int, cycles: int = 1, power: float = 1.0, lr: float = 1e-4) -> float:
    """The share of the learning rate that a step (from 0) has, by diffusers' schedule of that name in LR_SCHEDULERS."""
    if name == "constant":
        return 1.0
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    if name == "constant_with_warmup":
        return 1.0
    if name == "linear":
        return max(0.0, 1 - progress)
    if name == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    if name == "cosine_with_restarts":
        return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1)))
    end = 1e-7 / lr  # of the polynomial
    return end if progress > 1 else (1 - end) * (1 - progress) ** power + end


@dataclass
class World:
    """The processes that train together, as torchrun or accelerate starts them; one alone without either."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str, minutes: float = 30) -> "World":
        """Meet the other processes, by NCCL on GPUs and gloo elsewhere."""
        world = cls(
            *(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        )
        if world.size > 1:
            backend = "nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
        return world

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def average(self, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Give every gradient its mean over the processes, in one message; returns the sums of the numbers."""
        if self.size == 1:
            return list(numbers)
        gradients = [p.grad for p in parameters]
        told = torch.tensor(numbers, dtype=torch.float32, device=gradients[0].device)
        flat = torch.cat([*(g.flatten() for g in gradients), told])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            what = str(error).splitlines()[0]
            raise InputError(f"another process of this run has ended ({what}); start it again, resuming from latest") from None
        sums = flat[-len(numbers) :].tolist()
        for gradient, part in zip(gradients, flat[: -len(numbers)].split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient) / self.size)
        return sums

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1:
            dist.destroy_process_group()


@dataclass
class Interruption:
    """Notes Ctrl-C and SIGTERM, so that the step is finished and saved first; a second Ctrl-C ends it at once."""

    signal: int = 0
    before: dict = field(default_factory=dict)

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: object) -> None:
        """Called by Python between two instructions."""
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
        print("stopping after this step ...", file=sys.stderr)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def out_of_memory(error: BaseException) -> InputError | None:
    """What to do about an error, if it says that memory is used up."""
    text = str(error)
    full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in text or "can't allocate" in text
    if not full:
        return None
    cures = "--cache_latents, --mixed_precision bf16, --gradient_checkpointing, a smaller --train_batch_size with more "
    cures += "--gradient_accumulation_steps, a smaller --resolution, --rank or --targets, in this order"
    return InputError(f"out of memory ({text.splitlines()[0][:120]}); what helps: {cures}")
