"""What a run shows: a progress bar, metrics.jsonl, a chart of the loss, TensorBoard or Weights & Biases, sample pictures."""

import atexit
import json
import math
import resource
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..doors.errors import InputError
from ..doors.files import regular_file, write_text, written_whole
from ..doors.pictures import save_image
from ..photos.squares import sheet

METRICS = "metrics.jsonl"
BETA = 0.98  # of the loss's moving average
MAX_SKIPPED = 10
REPORTERS = ("none", "tensorboard", "wandb")


class Monitor:
    """Follows a run from step to step; its state is part of a checkpoint, so that a resumed run has the same figures."""

    state = ("average", "losses", "lowest", "skipped", "skipped_in_a_row")

    def __init__(self, folder: Path, total: int, images_per_step: int, writes: bool = True):
        self.folder, self.total, self.images_per_step, self.writes = folder, total, images_per_step, writes
        self.average, self.losses, self.lowest = math.nan, 0, math.inf  # the moving average, of so many losses, its least
        self.skipped = self.skipped_in_a_row = 0

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: dict) -> None:
        for name in self.state:
            setattr(self, name, type(getattr(self, name))(state.get(name, getattr(self, name))))

    def begin(self, step: int, report_to: str = "none") -> None:
        """Start after `step` steps, reporting to one of REPORTERS; remove what metrics.jsonl has of later steps."""
        path = self.folder / METRICS
        if path.exists() and self.writes:
            lines = regular_file(path).read_text(encoding="utf-8", errors="replace").splitlines()
            steps = [step_of(line) for line in lines]
            if None in steps[:-1]:  # a crash may have cut off the last line
                warnings.warn(f"{path}: {steps[:-1].count(None)} of its lines cannot be read and are removed")
            write_text(path, "".join(f"{line}\n" for line, s in zip(lines, steps) if s is not None and s <= step))
        self.report = reporter(report_to if self.writes else "none", self.folder)
        self.bar = tqdm(total=self.total, initial=step, unit="step", disable=not self.writes)
        self.last = perf_counter()

    def step(self, step: int, loss: float, lr: float, norm: float) -> None:
        """Record the `step`-th step; raise InputError where MAX_SKIPPED in a row had no finite loss or gradient."""
        now = perf_counter()
        rate, self.last = self.images_per_step / max(now - self.last, 1e-9), now
        if math.isfinite(loss) and math.isfinite(norm):
            self.losses, self.skipped_in_a_row = self.losses + 1, 0
            gain = (1 - BETA) / (1 - BETA**self.losses)  # corrects the bias, as Adam does (Kingma and Ba 2015, section 3)
            self.average = loss if self.losses == 1 else self.average + gain * (loss - self.average)
            self.lowest = min(self.lowest, self.average) if self.losses >= 10 else self.lowest  # of fewer, chance decides
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        self.record(step, loss=loss, smoothed=self.average, lr=lr, gradient_norm=norm, images_per_second=round(rate, 3))
        self.bar.set_postfix(loss=f"{self.average:.4f}", img_s=f"{rate:.1f}", GB=f"{memory_used():.1f}", refresh=False)
        self.bar.update()
        if self.skipped_in_a_row >= MAX_SKIPPED:
            what = "gradient" if math.isfinite(loss) else "loss"
            cure = "lower --learning_rate, or leave out --mixed_precision fp16"
            raise InputError(f"the {what} was not finite for {self.skipped_in_a_row} steps in a row, up to {step}; {cure}")
        if self.average > 3 * self.lowest:
            change = f"to {self.average:.3f} from {self.lowest:.3f}"
            warnings.warn(f"the loss has risen {change}: --learning_rate {lr:.1e} may be too high")
            self.lowest = self.average

    def record(self, step: int, **values: float) -> None:
        """Append a line to metrics.jsonl, a number that is not finite as null, and report the others."""
        if self.writes:
            row = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.report({name: value for name, value in row.items() if value is not None}, step)

    def end(self) -> None:
        """Say how many steps were skipped, and draw the chart of the loss where matplotlib is installed."""
        if self.skipped:
            warnings.warn(f"{self.skipped} steps were skipped, whose loss or gradient was not finite")
        if find_spec("matplotlib") and self.writes:
            draw_losses(self.folder / METRICS, self.folder / "loss.png")


def reporter(name: str, folder: Path) -> Callable[[dict, int], object]:
    """Return what takes each row of metrics besides metrics.jsonl; raises InputError where its package is absent."""
    if name == "none":
        return lambda values, step: None
    if find_spec(name) is None:
        raise InputError(f"--report_to {name}: it is not installed; pip install {name}")
    if name == "wandb":
        import wandb

        return wandb.init(project="lida", name=folder.name, dir=str(folder)).log
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / "tensorboard"))
    atexit.register(board.close)  # also after a signal
    return lambda values, step: [board.add_scalar(name, value, step) for name, value in values.items()]


def step_of(line: str) -> int | None:
    """Return the step that a line of metrics.jsonl is of, or None for one that is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def memory_used() -> float:
    """Return the most memory that this process has held, in GB: of the GPU if it is used, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def draw_losses(metrics: Path, path: Path) -> None:
    """Draw each step's loss, its moving average, and the validation loss, which alone is of the same noise each time."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, style in (("loss", {"alpha": 0.2}), ("smoothed", {}), ("validation_loss", {"marker": "o"})):
        if points := [(row["step"], row[name]) for row in rows if row.get(name) is not None]:
            axes.plot(*zip(*points), label=name.replace("_", " "), **style)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    with written_whole(path) as part:
        figure.savefig(part, dpi=120, format="png")


def add_to_contact_sheet(folder: Path, step: int, images: list[Image.Image]) -> None:
    """Save a step's pictures as a row, samples/<step>.png, and all rows so far as samples.png."""
    (folder / "samples").mkdir(exist_ok=True)
    save_image(sheet(images, [f"step {step}"] + [""] * (len(images) - 1), height=192), folder / "samples" / f"{step:06d}.png")
    rows = [np.asarray(Image.open(path)) for path in sorted((folder / "samples").glob("*.png"))]
    rows = [row for row in rows if row.shape[1] == rows[-1].shape[1]]  # --num_validation_images may change
    save_image(Image.fromarray(np.concatenate(rows)), folder / "samples.png")
