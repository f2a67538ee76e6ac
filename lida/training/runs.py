"""A training run as a whole: what decides its result, whether it goes on from an earlier one, and what it would take."""

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from torch import Tensor, nn

from ..adapters.adapter import FILE_NAME, load_adapter
from ..data.folder import Example, data_fingerprint
from ..doors.errors import InputError
from .batches import Passes
from .monitor import memory_used
from .state import STATE, checkpoints

SETTINGS = "settings.json"  # in a checkpoint
# Not told in the adapter's file
PLACES = ("pretrained_model_name_or_path", "train_data_dir", "class_data_dir", "output_dir", "cache_dir", "device")
SAID = ("role", "consent", "licence")
# Of no weight for what is trained, or known by what is in them: a resumed run may change them
INDIFFERENT = (
    *PLACES, *SAID, "train_batch_size", "gradient_accumulation_steps", "resume_from_checkpoint", "checkpointing_steps",
    "checkpoints_total_limit", "cache_latents", "gradient_checkpointing", "attention", "compile", "dataloader_num_workers",
    "report_to", "validation_prompt", "num_validation_images", "validation_steps", "max_skipped_steps", "dry_run",
    "prior_adapter",
)  # fmt: skip


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """What is trained on, and a share of the examples, drawn by `seed`, to measure the loss on."""
    count = math.ceil(share * len(examples))
    if count == len(examples):
        raise InputError(f"--validation_split {share}: leaves none of the {count} pictures to train on")
    chosen = set(np.random.default_rng([seed, len(examples)]).permutation(len(examples))[:count].tolist())
    return [e for i, e in enumerate(examples) if i not in chosen], [e for i, e in enumerate(examples) if i in chosen]


def settings_of(args: argparse.Namespace, base: dict, data: Sequence[Passes]) -> dict:
    """What decides the result: two runs of equal settings end with equal adapters."""
    known = {name: value for name, value in vars(args).items() if name not in INDIFFERENT}
    if args.lr_scheduler.startswith("constant"):
        known.pop("max_train_steps")  # such a run may go on for longer
    lines = [f"{example.path.name} {example.text}" for passes in data for example in passes.samples.examples]
    known |= {"data": [data_fingerprint(passes.samples.examples)["sha256"] for passes in data], "base": base}
    known |= {"samples_per_step": data[0].order.batch, "lines": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
    return known | {"prior": args.prior_adapter and load_adapter(args.prior_adapter).fingerprint}


def check_settings(now: dict, path: Path) -> None:
    """Raise InputError where a run had other settings than this one."""
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    told = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in sorted(differing))
    if differing:
        raise InputError(f"{path.parent}: was trained with other settings ({told}); give them again, or another --output_dir")


def checkpoint_of(args: argparse.Namespace, settings: dict) -> Path | None:
    """The checkpoint to go on from, if any; raises InputError where it was trained with other settings."""
    if args.resume_from_checkpoint is None:
        return None
    found = checkpoints(args.output_dir)
    if args.resume_from_checkpoint != "latest":
        named = [Path(args.resume_from_checkpoint), Path(args.output_dir, args.resume_from_checkpoint)]
        found = [path for path in named if (path / STATE).is_file()]
        if not found:
            raise InputError(
                f"--resume_from_checkpoint {args.resume_from_checkpoint}: no such checkpoint; give a folder or latest"
            )
    if not found:
        print(f"no checkpoint in {args.output_dir} yet: training starts from the beginning", file=sys.stderr)
        return None
    check_settings(settings, found[0] / SETTINGS)
    return found[0]


def finished(args: argparse.Namespace, settings: dict) -> bool:
    """Whether the folder has the adapter of this very run, all of its steps taken."""
    path = Path(args.output_dir, FILE_NAME).with_suffix(".json")
    if not (path.is_file() and Path(args.output_dir, FILE_NAME).is_file()):
        return False
    known = json.loads(path.read_text(encoding="utf-8"))
    return known.get("settings") == settings and known.get("steps") == args.max_train_steps


def plan(
    args: argparse.Namespace, objective: Callable[[dict], Tensor], passes: Passes, parameters: Sequence[nn.Parameter]
) -> str:
    """What the run would do and take, from two passes that are thrown away."""
    seconds = []
    for step in range(2):
        batch = next(passes.load(step, step + 1))
        start = perf_counter()
        objective(batch).backward()
        seconds.append(perf_counter() - start)
    steps, sizes = args.max_train_steps, Counter(passes.samples.sizes)
    state = 3 * sum(p.numel() * p.element_size() for p in parameters) / 1e6  # with AdamW's two moments
    kept = args.checkpoints_total_limit or -(-steps // args.checkpointing_steps)
    free = shutil.disk_usage(args.output_dir).free / 1e6
    if kept * state > free:
        raise InputError(
            f"--output_dir {args.output_dir}: {kept} checkpoints take {kept * state:.0f} MB, {free:.0f} MB are free"
        )
    lines = [
        f"pictures: {len(passes.samples)}, in sizes {', '.join(f'{w}x{h} ({n})' for (w, h), n in sizes.items())}",
        f"steps: {steps} of {passes.order.batch} pictures, {steps / passes.order.steps_per_epoch:.1f} epochs",
        f"trained: {sum(p.numel() for p in parameters):,} parameters; attention by {args.attention}",
        f"time: {seconds[1] * args.gradient_accumulation_steps * steps / 60:.0f} minutes, as measured on one pass",
        f"memory: {memory_used():.1f} GB, as measured on one pass",
        f"disk: {kept} checkpoints of {state:.1f} MB",
    ]
    return "\n".join(lines)
