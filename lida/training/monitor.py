"""What a run shows: a progress bar, metrics.jsonl, TensorBoard or Weights & Biases, and sample pictures."""

import json
import math
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..doors.errors import InputError
from ..doors.files import append_text, output_folder, regular_file, write_text
from ..doors.pictures import save_image
from ..photos.squares import sheet

METRICS = "metrics.jsonl"
BETA = 0.98  # of the loss's moving average
MAX_SKIPPED = 10
REPORTERS = ("none", "tensorboard", "wandb")


class Monitor:
    """Follows a run step by step. Its state is part of a checkpoint, so a resumed run has the same figures."""

    state = ("average", "losses", "skipped")

    def __init__(self, folder: Path, total: int, images_per_step: int, writes: bool = True):
        self.folder, self.total, self.images_per_step, self.writes = folder, total, images_per_step, writes
        self.average, self.losses = math.nan, 0  # the moving average, and the number of losses in it
        self.skipped = 0  # consecutive steps without a finite loss or gradient

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: dict) -> None:
        average, losses, skipped = (state[name] for name in self.state)
        counts = type(losses) is int and type(skipped) is int and losses >= 0 and 0 <= skipped < MAX_SKIPPED
        if not counts or type(average) is not float or math.isfinite(average) != (losses > 0):
            raise ValueError(f"the average {average!r:.40} of {losses!r:.40} losses, {skipped!r:.40} skipped, is impossible")
        self.average, self.losses, self.skipped = average, losses, skipped

    @contextmanager
    def shown(self, step: int, report_to: str = "none") -> Iterator[None]:
        """Show the progress bar and the reporter while the block runs. Lines after `step` are removed from metrics.jsonl."""
        path = self.folder / METRICS
        if path.exists() and self.writes:
            lines = regular_file(path).read_text(encoding="utf-8", errors="replace").splitlines()
            if damaged := sum(step_of(line) == math.inf for line in lines[:-1]):  # a crash may have cut off the last
                warnings.warn(f"{path}: {damaged} of its lines cannot be read and are removed")
            write_text(path, "".join(f"{line}\n" for line in lines if step_of(line) <= step))
        bar = tqdm(total=self.total, initial=step, unit="step", disable=not self.writes)
        with bar as self.bar, reporter(report_to if self.writes else "none", self.folder) as self.report:
            self.last = perf_counter()
            yield

    def step(self, step: int, loss: float, lr: float, norm: float) -> None:
        """Record step number `step`. Raises InputError after MAX_SKIPPED steps in a row without a finite loss or gradient."""
        now = perf_counter()
        rate, self.last = self.images_per_step / max(now - self.last, 1e-9), now
        if math.isfinite(loss) and math.isfinite(norm):
            self.losses, self.skipped = self.losses + 1, 0
            gain = (1 - BETA) / (1 - BETA**self.losses)  # corrects the bias, as Adam does (Kingma and Ba 2015, section 3)
            self.average = loss if self.losses == 1 else self.average + gain * (loss - self.average)
        else:
            self.skipped += 1
        if self.writes:
            self.write(step, loss=loss, smoothed=self.average, lr=lr, gradient_norm=norm, images_per_second=round(rate, 3))
        self.bar.set_postfix(loss=f"{self.average:.4f}", img_s=f"{rate:.1f}", GB=f"{memory_used():.1f}", refresh=False)
        self.bar.update()
        if self.skipped >= MAX_SKIPPED:
            cure = "lower --learning_rate, or leave out --mixed_precision fp16"
            raise InputError(f"loss or gradient were not finite for {self.skipped} steps in a row, up to {step}; {cure}")

    def write(self, step: int, **values: float) -> None:
        """Append a line to metrics.jsonl, with null for numbers that are not finite, and report the finite ones."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        append_text(self.folder / METRICS, json.dumps({"step": step, **dict.fromkeys(values), **finite}) + "\n")
        self.report(finite, step)


@contextmanager
def reporter(name: str, folder: Path) -> Iterator[Callable[[dict, int], object]]:
    """Yield the function that takes each step's metrics besides metrics.jsonl."""
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / name)) as board:
            yield lambda values, step: [board.add_scalar(name, value, step) for name, value in values.items()]
    elif name == "wandb":
        import wandb

        with wandb.init(project="lida", name=folder.name, dir=str(folder)) as run:
            yield run.log
    else:
        yield lambda values, step: None


def check_reporter(name: str) -> None:
    """Raise InputError if the package of --report_to is not installed."""
    if name != "none" and find_spec(name) is None:
        raise InputError(f"--report_to {name}: it is not installed; pip install lida-aging[{name}]")


def step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl; infinity for a line that a crash has damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf


def memory_used() -> float:
    """Return the peak memory of this process in GB: on the GPU if it is used, else in the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def add_to_contact_sheet(folder: Path, step: int, images: list[Image.Image]) -> None:
    """Save a step's pictures as a row, samples/<step>.png, and all rows so far as samples.png."""
    samples = output_folder(folder / "samples")
    save_image(sheet(images, [f"step {step}"] + [""] * (len(images) - 1), height=192), samples / f"{step:06d}.png")
    rows = [np.asarray(Image.open(path)) for path in sorted(samples.glob("[0-9]*.png"))]
    rows = [row for row in rows if row.shape[1] == rows[-1].shape[1]]  # --num_validation_images may change
    save_image(Image.fromarray(np.concatenate(rows)), folder / "samples.png")
