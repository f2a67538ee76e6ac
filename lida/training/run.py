"""A training run as a whole: what decides its result, what it would take, and what it writes on the way and at the end."""

import hashlib
import math
import os
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from torch import nn

from .. import __version__
from ..adapters import FILE_NAME, Adapter, load_adapter, save_adapter
from ..data.folder import Example, data_fingerprint
from ..doors.errors import InputError
from ..doors.files import locked, output_folder, sync, write_json
from ..doors.json import read_json
from ..nn.lora import LoRALinear
from .batches import MicroBatches
from .monitor import Monitor, memory_used
from .processes import Processes, noted_signals
from .state import checkpoints, differences, resume, write_checkpoint

# Flags that are not in the adapter's file, since they say where things lie or how a run was started
PLACES = ("pretrained_model_name_or_path", "train_data_dir", "class_data_dir", "output_dir", "cache_dir", "device")
STARTS = ("resume_from_checkpoint", "overwrite_output_dir", "dry_run")
ABOUT = ("role", "consent", "licence")  # what the adapter's file says of itself
# Flags without weight for the result, or whose files are compared by content
CHANGEABLE_ON_RESUME = (
    *PLACES, *STARTS, *ABOUT, "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps",
    "checkpoints_total_limit", "cache_latents", "gradient_checkpointing", "attention", "compile", "dataloader_num_workers",
    "report_to", "validation_prompt", "num_validation_images", "validation_steps", "max_skipped_steps", "prior_adapter",
)  # fmt: skip


def settings_of(args: Namespace, base: dict, data: Sequence[MicroBatches]) -> dict:
    """Return what decides the result, as JSON: two runs of equal settings end with equal adapters."""
    settings = {name: value for name, value in vars(args).items() if name not in CHANGEABLE_ON_RESUME}
    if args.lr_scheduler.startswith("constant"):
        del settings["max_train_steps"]  # such a run may go on for longer
    examples = [example for micro_batches in data for example in micro_batches.samples.examples]
    lines = "\n".join(f"{example.path.name} {example.text}" for example in examples)
    return settings | {
        "base": base, "data": [data_fingerprint(micro_batches.samples.examples)["sha256"] for micro_batches in data],
        "lines": hashlib.sha256(lines.encode()).hexdigest(), "samples_per_step": data[0].sampler.batch,
        "prior": args.prior_adapter and load_adapter(args.prior_adapter).fingerprint,
    }  # fmt: skip


@contextmanager
def output_of(args: Namespace, processes: Processes) -> Iterator[Path]:
    """Yield the output folder, made if needed, and keep other runs out of it; at the end the processes part."""
    folder = Path(args.output_dir)
    if processes.first:
        output_folder(folder)
    processes.wait()
    with locked(folder) if processes.first else nullcontext():
        yield folder
    processes.leave()


def metadata_of(args: Namespace, examples: Sequence[Example], captioning: dict, base: dict) -> dict:
    """Return what the adapter's file says of itself, without names and paths of pictures."""
    flags = {name: value for name, value in vars(args).items() if name not in (*PLACES, *STARTS, *ABOUT)}
    about = {"role": args.role or ("age" if "template" in captioning else "other"), "data": data_fingerprint(examples)}
    about |= {"rank": args.rank, "alpha": float(args.lora_alpha or args.rank), "targets": args.targets, "base": base}
    about |= {name: getattr(args, name) for name in ("consent", "licence") if getattr(args, name)}
    return {**captioning, **about, "training": {"lida": __version__, **flags}}


def finished(args: Namespace, settings: dict) -> bool:
    """Return whether a run that resumes from the latest has nothing to do: its adapter is there, whole, with all steps."""
    path = Path(args.output_dir, FILE_NAME)
    try:
        about = read_json(path.with_suffix(".json"))
        same = not differences(about["settings"], settings) and about["steps"] == args.max_train_steps
        fingerprint = load_adapter(path).fingerprint if same else None
        same = same and about.get("fingerprint", fingerprint) == fingerprint
    except (InputError, KeyError, TypeError):
        return False
    if same and args.resume_from_checkpoint == "latest":
        print(f"adapter: {path}")
    return same and args.resume_from_checkpoint == "latest"


def plan(args: Namespace, objective: Callable, data: MicroBatches, parameters: Sequence[nn.Parameter], steps: range) -> str:
    """Return what the run would do and take, measured on a pass of each of these steps, which is thrown away."""
    for step in steps:
        batch = next(data.load(step, step + 1))
        start = perf_counter()
        sum(objective(batch)).backward()
        seconds = perf_counter() - start
    total, sizes = args.max_train_steps, Counter(data.samples.sizes)
    size = 3 * sum(p.numel() * p.element_size() for p in parameters) / 1e6  # with AdamW's two moments
    count = args.checkpoints_total_limit or -(-total // args.checkpointing_steps)
    return "\n".join([
        f"pictures: {len(data.samples)}, in sizes {', '.join(f'{w}x{h} ({n})' for (w, h), n in sizes.items())}",
        f"steps: {total} of {data.sampler.batch} pictures, {total / data.sampler.steps_per_epoch:.1f} epochs",
        f"trained: {sum(p.numel() for p in parameters):,} parameters; attention by {args.attention}",
        f"time: {seconds * args.gradient_accumulation_steps * total / 60:.0f} minutes, as measured on one pass",
        f"memory: {memory_used():.1f} GB, as measured on one pass",
        f"disk: {count} checkpoints of {size:.1f} MB; {shutil.disk_usage(args.output_dir).free / 1e6:.0f} MB are free",
    ])  # fmt: skip


@dataclass
class Run:
    """What a run does beside training: it starts or resumes, and after each step logs, validates and saves.

    `layers` and `parts`, which a checkpoint restores, are the adapter and all that changes with it; `about` is the metadata
    of the adapter's file. `validate` is called after every so many steps, `first` says whether this process writes.
    """

    args: Namespace
    settings: dict
    about: dict
    layers: dict[str, LoRALinear]
    parts: dict
    monitor: Monitor
    validate: Callable[[int], object]
    first: bool

    def resume(self) -> int:
        """Return how many steps have been taken; raises InputError where an earlier run would be overwritten."""
        folder, wanted, steps = Path(self.args.output_dir), self.args.resume_from_checkpoint, self.args.max_train_steps
        taken = resume(wanted, folder, self.settings, self.parts) if wanted else 0
        if taken > steps:
            raise InputError(f"--max_train_steps {steps}: {taken} have been taken already; give more, or start anew")
        held = [path.name for path in (folder / FILE_NAME, *checkpoints(folder)) if path.exists()]
        if held and not taken and not self.args.overwrite_output_dir:
            cure = "--resume_from_checkpoint latest goes on with the same settings, --overwrite_output_dir starts anew"
            raise InputError(f"{folder}: has {held[0]} of an earlier run; {cure}, or give another --output_dir")
        return taken

    @contextmanager
    def begin(self, step: int) -> Iterator[list[int]]:
        """Start after `step` steps, without what an earlier run left; yield the signals that are noted on the way."""
        folder = Path(self.args.output_dir)
        if self.first:
            for path in [*folder.glob("writing-*"), *([] if step else [folder / "samples", *checkpoints(folder)])]:
                shutil.rmtree(path, ignore_errors=True)
        self.monitor.begin(step, self.args.report_to)
        try:
            with noted_signals() as signals:
                yield signals
        finally:
            self.monitor.bar.close()  # before an error is printed

    def after(self, step: int, loss: float, lr: float, norm: float, stop: float) -> None:
        """Log a step, validate and save where that is due; raise SystemExit where `stop`, a signal's number, is not 0."""
        args, last = self.args, step == self.args.max_train_steps
        self.monitor.step(step, loss, lr, norm)
        if self.first and (last or step % args.validation_steps == 0):
            self.validate(step)
        if self.first and not last and (stop or step % args.checkpointing_steps == 0):
            folder, limit = Path(args.output_dir), args.checkpoints_total_limit
            write_checkpoint(folder, step, self.parts, self.finite_adapter(), self.settings, limit)
        if stop and not last:
            print(f"stopped after step {step}; go on with --resume_from_checkpoint latest", file=sys.stderr)
            sys.exit(128 + math.ceil(stop))
        if last and not math.isfinite(loss):
            raise InputError(f"the loss of the last step is {loss}, and nothing is saved; lower --learning_rate")

    def finite_adapter(self) -> Adapter:
        """Return the adapter as it is; raises InputError for a change of the weights that is not finite."""
        training = {**self.about["training"], "final_loss": self.monitor.average if self.monitor.losses else None}
        adapter = Adapter.of(self.layers, {**self.about, "training": training})
        for path, layer in adapter.layers.items():
            if not layer.delta.isfinite().all():
                raise InputError(f"the adapter's change of {path} is not finite, and is not saved; lower --learning_rate")
        return adapter

    def end(self) -> Path:
        """Save the adapter, and as JSON beside it what is known of it; return its path."""
        args, path, adapter = self.args, Path(self.args.output_dir, FILE_NAME), self.finite_adapter()
        if not all(layer.up.any() for layer in adapter.layers.values()):
            moved = f"the adapter did not move: after {args.max_train_steps} steps some of it is still 0"
            raise InputError(f"{moved}, and nothing is saved; look at --learning_rate and --lr_warmup_steps")
        if self.first:
            unfinished = path.with_name("writing-adapter")
            try:
                saved = save_adapter(unfinished, adapter)
                places = {name: getattr(args, name) for name in PLACES} | {"examples": adapter.metadata["data"]["count"]}
                about = {**adapter.metadata, "training": {**adapter.metadata["training"], **places}, "settings": self.settings}
                about |= {"steps": args.max_train_steps, "fingerprint": load_adapter(saved).fingerprint}
                write_json(path.with_suffix(".json"), about)
                os.replace(saved, path)  # last: a run without its adapter is not finished
                sync(path.parent)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            print(f"adapter: {path}")
        self.monitor.end()
        return path
