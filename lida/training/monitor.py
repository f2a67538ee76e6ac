"""What a run shows of itself: a progress bar, metrics.jsonl, a chart of the loss, TensorBoard, warnings in plain words."""

import json
import math
import os
import resource
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image
from tqdm import tqdm

from ..doors.errors import InputError
from ..photos.pictures import save_image, sheet, written_whole

METRICS = "metrics.jsonl"


class Monitor:
    """Follows a run from step to step. Its state is part of a checkpoint, so that a resumed run goes on with the same figures.

    Raises InputError where `max_skipped` steps in a row had a loss or gradient that is not finite.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        images_per_step: int,
        report_to: str = "none",
        max_skipped: int = 10,
        writes: bool = True,
    ):
        self.folder, self.total, self.images_per_step, self.max_skipped = folder, total, images_per_step, max_skipped
        self.average: float | None = None
        self.lowest, self.skipped, self.skipped_in_a_row = math.inf, 0, 0
        self.warned, self.writes = False, writes
        self.bar: tqdm | None = None
        self.board = None
        if report_to not in ("none", "tensorboard"):
            raise InputError(f"--report_to {report_to}: is not one of none, tensorboard")
        if report_to == "tensorboard" and writes:
            if find_spec("tensorboard") is None:
                raise InputError("--report_to tensorboard: it is not installed; pip install lida-aging[tensorboard]")
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"))

    def state_dict(self) -> dict:
        """What load_state_dict takes."""
        return {name: getattr(self, name) for name in ("average", "lowest", "skipped", "skipped_in_a_row")}

    def load_state_dict(self, state: dict) -> None:
        """Go on where state_dict was taken."""
        vars(self).update(state)

    def begin(self, step: int) -> None:
        """Go on after `step` steps: what metrics.jsonl has of later ones is taken out, for they will be done again."""
        path = self.folder / METRICS
        if path.exists() and self.writes:
            rows = [line for line in path.read_text(encoding="utf-8").splitlines() if step_of(line) <= step]
            with written_whole(path) as part:
                part.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        self.bar = tqdm(total=self.total, initial=step, unit="step", disable=not self.writes)
        self.counted = perf_counter()

    def step(self, step: int, loss: float, lr: float, norm: float) -> bool:
        """Note the `step`-th step; returns whether loss and gradient are finite, and may be used."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        now = perf_counter()
        rate, self.counted = self.images_per_step / max(now - self.counted, 1e-9), now
        if finite:
            self.average = loss if self.average is None else 0.98 * self.average + 0.02 * loss
            self.lowest, self.skipped_in_a_row = min(self.lowest, self.average), 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        self.record(step, loss=loss, smoothed=self.average, lr=lr, gradient_norm=norm, images_per_second=round(rate, 3))
        self.bar.set_postfix(
            loss=f"{self.average or math.nan:.4f}", img_s=f"{rate:.1f}", GB=f"{memory_used():.1f}", refresh=False
        )
        self.bar.update()
        if self.skipped_in_a_row >= self.max_skipped:
            what = "loss" if not math.isfinite(loss) else "gradient"
            cure = "lower --learning_rate, or leave out --mixed_precision fp16"
            raise InputError(f"the {what} was not finite for {self.skipped_in_a_row} steps in a row, up to {step}; {cure}")
        if finite and not self.warned and self.average > 3 * self.lowest:
            self.warned = True
            warnings.warn(
                f"the loss has risen to {self.average:.3f} from {self.lowest:.3f}: --learning_rate {lr:.1e} may be too high"
            )
        return finite

    def record(self, step: int, **values: float | None) -> None:
        """A line of metrics.jsonl, and the same in TensorBoard."""
        if not self.writes:
            return
        try:
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.folder / METRICS}: cannot be written ({error}); free space, and resume from latest"
            ) from None
        if self.board:
            for name, value in values.items():
                if value is not None:
                    self.board.add_scalar(name, value, step)

    def end(self) -> None:
        """Close the bar, and draw the chart of the loss where matplotlib is installed."""
        self.bar.close()
        if self.board:
            self.board.close()
        if self.skipped:
            warnings.warn(f"{self.skipped} steps were skipped, whose loss or gradient was not finite")
        if find_spec("matplotlib") and self.writes:
            chart_of_losses(self.folder / METRICS, self.folder / "loss.png")


def step_of(line: str) -> float:
    """The step that a line of metrics.jsonl is of; infinity for one that a crash has cut off."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def memory_used() -> float:
    """The most that this process has held, in GB: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def chart_of_losses(metrics: Path, path: Path) -> None:
    """Each step's loss, its moving average, and the validation loss, which alone is of the same noise each time."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, style in (("loss", {"alpha": 0.2}), ("smoothed", {}), ("validation_loss", {"marker": "o"})):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None and math.isfinite(row[name])]
        if points:
            axes.plot(*zip(*points), label=name.replace("_", " "), **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=120, format="png")
    os.replace(part, path)


def add_to_contact_sheet(folder: Path, step: int, images: list[Image.Image]) -> None:
    """Save the pictures of a step as samples/<step>.png, a row, and all rows so far as samples.png."""
    (folder / "samples").mkdir(exist_ok=True)
    save_image(sheet(images, [f"step {step}"] + [""] * (len(images) - 1), height=192), folder / "samples" / f"{step:06d}.png")
    rows = [Image.open(path) for path in sorted((folder / "samples").glob("*.png"))]
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        page.paste(row, (0, sum(r.height for r in rows[:i])))
    save_image(page, folder / "samples.png")


def warn_of_data(texts: list[str]) -> None:
    """Say in plain words what about the data makes a poor adapter likely."""
    if len(texts) < 5:
        warnings.warn(f"there are only {len(texts)} pictures: the adapter will learn them by heart; 20 to 30 are usual")
    if len(texts) >= 50 and len(set(texts)) == 1:
        warnings.warn(
            f"all {len(texts)} captions are equal ({texts[0]!r}): nothing that differs between the pictures can be asked for"
        )
