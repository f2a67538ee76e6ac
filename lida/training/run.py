"""A training run: the settings that decide its result, and the files that it writes on the way and at the end."""

import hashlib
import json
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..adapters import FILE_NAME, Adapter, load_adapter, save_adapter
from ..doors.errors import InputError, faults_of
from ..doors.files import locked, output_folder, write_json
from ..nn.lora import LoRALinear
from .batches import MicroBatches
from .card import CARD_NAME, push_to_hub, write_card
from .monitor import METRICS, Monitor, check_reporter
from .processes import Processes
from .state import checkpoints, remove, resume, write_checkpoint

# Flags that are not written into the adapter's file, because they name places or how a run was started
PLACES: tuple[str, ...] = ("pretrained_model_name_or_path", "train_data_dir", "class_data_dir", "output_dir", "cache_dir")
PLACES += ("device", "resume_from_checkpoint", "overwrite_output_dir", "push_to_hub", "hub_model_id")
ABOUT = ("role", "consent", "licence")  # recorded in the adapter's file, but not what is trained
# Flags that do not change the result, or whose files are compared by content
CHANGEABLE_ON_RESUME = (
    *PLACES, *ABOUT, "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps",
    "checkpoints_total_limit", "cache_latents", "gradient_checkpointing", "attention", "compile", "dataloader_num_workers",
    "report_to", "validation_prompt", "num_validation_images", "validation_steps",
)  # fmt: skip


def settings_of(args: Namespace, base: dict, data: Sequence[MicroBatches]) -> dict:
    """Return the settings that decide the result, as JSON values. Runs with equal settings end with equal adapters."""
    settings = {name: value for name, value in vars(args).items() if name not in CHANGEABLE_ON_RESUME}
    if args.lr_scheduler.startswith("constant"):
        del settings["max_train_steps"]  # such a run may be prolonged
    examples = [example for micro_batches in data for example in micro_batches.samples.examples]
    lines = "\n".join(f"{example.path.name} {example.text}" for example in examples)
    return settings | {
        "base": base, "data": [micro_batches.samples.fingerprint["sha256"] for micro_batches in data],
        "lines": hashlib.sha256(lines.encode()).hexdigest(), "samples_per_step": data[0].sampler.batch,
    }  # fmt: skip


def check_output(args: Namespace) -> None:
    """Raise InputError for flags of the output that contradict each other, and for a person's adapter without consent."""
    if args.overwrite_output_dir and args.resume_from_checkpoint:
        raise InputError("--overwrite_output_dir starts anew, and --resume_from_checkpoint goes on; give one of them")
    if args.hub_model_id and not args.push_to_hub:
        raise InputError(f"--hub_model_id {args.hub_model_id}: nothing is uploaded without --push_to_hub; add it")
    if args.push_to_hub and args.role == "identity" and not args.consent:
        raise InputError("--push_to_hub: a person's adapter is uploaded with that person's --consent only; say who gave it")
    check_reporter(args.report_to)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise InputError if the run would replace a file that train_lora.py did not write, or a folder has the name of its files.

    With `overwrite`, files that it did not write may be replaced.
    """
    names = (METRICS, "samples", "samples.png", Path(FILE_NAME).with_suffix(".json").name, CARD_NAME, FILE_NAME)
    present = [path for path in (folder / name for name in names) if os.path.lexists(path)]
    for path in [*present, *folder.glob("checkpoint-[0-9]*")]:
        if not (path.is_dir() if path.name == "samples" or path.name.startswith("checkpoint-") else path.is_file()):
            raise InputError(f"{path}: has the name of a file or folder of the run; move it away, or give another --output_dir")
    metrics = folder / METRICS
    own = metrics.exists() and b'"smoothed": ' in metrics.read_bytes()
    earlier = own or (folder / FILE_NAME).exists() or checkpoints(folder)
    if present and not earlier and not overwrite:
        cure = "move it away, or give another --output_dir; --overwrite_output_dir replaces it"
        raise InputError(f"{present[0]}: was not written by train_lora.py, and would be replaced; {cure}")


@contextmanager
def output_of(args: Namespace, processes: Processes) -> Iterator[Path]:
    """Yield the output folder, created if needed, and keep other runs out of it. At the end, leave the other processes."""
    folder = Path(args.output_dir)
    if processes.first:
        output_folder(folder)
    processes.wait()
    with locked(folder) if processes.first else nullcontext():
        if processes.first:
            check_folder(folder, args.overwrite_output_dir)
        yield folder
    processes.leave()


def metadata_of(args: Namespace, data: MicroBatches, captioning: dict, base: dict) -> dict:
    """Return the metadata of the adapter's file. It has no names or paths of pictures."""
    flags = {name: value for name, value in vars(args).items() if name not in (*PLACES, *ABOUT)}
    role = args.role or ("age" if "template" in captioning else "other")
    about = {"role": role, "data": data.samples.fingerprint, "samples_per_step": data.sampler.batch}
    about |= {"rank": args.rank, "alpha": float(args.lora_alpha or args.rank), "targets": args.targets, "base": base}
    about |= {name: getattr(args, name) for name in ("consent", "licence") if getattr(args, name)}
    return {**captioning, **about, "training": {"lida": __version__, **flags}}


def result_of(args: Namespace, settings: dict) -> str:
    """Return the SHA-256 of the settings that decide the finished adapter. It is recorded in the adapter's file."""
    return hashlib.sha256(json.dumps([settings, args.max_train_steps], sort_keys=True).encode()).hexdigest()


def finished(args: Namespace, settings: dict) -> bool:
    """Return whether a run that resumes from the latest checkpoint has nothing left to do: its adapter is complete."""
    try:
        about = load_adapter(Path(args.output_dir, FILE_NAME)).metadata
    except InputError:  # absent or damaged
        return False
    return args.resume_from_checkpoint == "latest" and about.get("result") == result_of(args, settings)


@dataclass
class Run:
    """What a run does besides training: it starts or resumes, and after each step it logs, paints and saves.

    `layers` are the adapter's layers, `parts` what a checkpoint saves and restores, `about` the metadata of the adapter's file.
    `validate` measures and paints every few steps.
    """

    args: Namespace
    folder: Path
    settings: dict
    about: dict
    layers: dict[str, LoRALinear]
    parts: dict
    monitor: Monitor
    validate: Callable[[int], object]

    def resume(self) -> int:
        """Return the number of steps taken so far. Raises InputError if an earlier run would be overwritten."""
        wanted, last = self.args.resume_from_checkpoint, self.args.max_train_steps
        taken = resume(wanted, self.folder, self.settings, self.parts) if wanted else 0
        if taken > last:
            raise InputError(f"--max_train_steps {last}: {taken} have been taken already; give more, or start anew")
        held = [path.name for path in (self.folder / FILE_NAME, *checkpoints(self.folder)) if path.exists()]
        if held and not taken and not self.args.overwrite_output_dir:
            cure = "--resume_from_checkpoint latest goes on with the same settings, --overwrite_output_dir starts anew"
            raise InputError(f"{self.folder}: has {held[0]} of an earlier run; {cure}, or give another --output_dir")
        for path in self.folder.glob(".lida-*.part") if self.monitor.writes else ():  # left by a run that was killed
            remove(path)
        return taken

    def after(self, step: int, loss: float, lr: float, norm: float, stop: int) -> None:
        """Log a step; paint and save if due; end the program if `stop`, the number of a signal, is not 0."""
        args, last = self.args, step == self.args.max_train_steps
        self.monitor.step(step, loss, lr, norm)
        if self.monitor.writes and step == 1:  # not earlier: a run that cannot take a step deletes nothing
            for path in [*(self.folder / "samples").glob("[0-9]*.png"), *checkpoints(self.folder)]:
                remove(path)
        if self.monitor.writes and (last or step % args.validation_steps == 0):
            try:
                self.validate(step)
            except (MemoryError, RuntimeError) as error:  # a failed validation does not end the training
                if not (faults := faults_of(error)):
                    raise
                warnings.warn(f"step {step}: nothing is measured or painted: {faults[0]}")
        if self.monitor.writes and not last and (stop or step % args.checkpointing_steps == 0):
            write_checkpoint(self.folder, step, self.parts, self.adapter(), self.settings, args.checkpoints_total_limit)
        if stop and not last:
            print(f"stopped after step {step}; go on with --resume_from_checkpoint latest", file=sys.stderr)
            sys.exit(128 + stop)

    def adapter(self, **more) -> Adapter:
        """Return the adapter in its present state, with these entries added to its metadata."""
        training = {**self.about["training"], "final_loss": self.monitor.average if self.monitor.losses else None}
        return Adapter.of(self.layers, {**self.about, "training": training, **more})

    def end(self) -> Path:
        """Save the adapter, and its metadata as JSON beside it; return its path."""
        args, path = self.args, self.folder / FILE_NAME
        if not all(layer.lora_up.any() for layer in self.layers.values()):
            raise InputError("the adapter did not change, and nothing is saved; check metrics.jsonl and the learning rate")
        if self.monitor.writes:
            adapter = self.adapter(result=result_of(args, self.settings))
            training = {**adapter.metadata["training"], **{name: getattr(args, name) for name in PLACES}}
            write_json(path.with_suffix(".json"), {**adapter.metadata, "training": training})
            write_card(self.folder, adapter)
            save_adapter(path, adapter)  # last: a run without its adapter is not finished
            print(f"adapter: {path}")
            if args.push_to_hub:
                print(push_to_hub(self.folder, args.hub_model_id))
        return path
