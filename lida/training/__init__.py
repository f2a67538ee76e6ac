"""What the loop of train_lora.py needs and its reader can skip.

`batches` says which pictures a step sees and draws what is random, `caches` keeps latents and texts, `optimizers` has AdamW
and its learning rates, `dropout` drops by a seed for each sample, `processes` averages over processes and notes signals,
`state` is a checkpoint on disk, `monitor` shows a run, and `run` starts, resumes, saves and ends it.
"""

from .batches import CLASS, VALIDATION, Augmentation, BatchSampler, MicroBatches, Samples, hold_out, micro_batches, read_data
from .caches import LatentCache, TextCache
from .dropout import DropoutLoRALinear, SampleDropout
from .monitor import REPORTERS, Monitor, add_to_contact_sheet
from .optimizers import LR_SCHEDULERS, lr_schedule, new_optimizer
from .processes import Processes
from .run import Run, finished, metadata_of, output_of, plan, settings_of
from .state import load_state, save_state

__all__ = [
    "CLASS", "LR_SCHEDULERS", "REPORTERS", "VALIDATION", "Augmentation", "BatchSampler", "DropoutLoRALinear", "LatentCache",
    "MicroBatches", "Monitor", "Processes", "Run", "SampleDropout", "Samples", "TextCache", "add_to_contact_sheet", "finished",
    "hold_out", "load_state", "lr_schedule", "metadata_of", "micro_batches", "new_optimizer", "output_of", "plan", "read_data",
    "save_state", "settings_of",
]  # fmt: skip
