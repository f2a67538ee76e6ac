"""What the loop of train_lora.py needs and its reader can skip.

`batches` says which pictures a step sees and draws what is random, `caches` keeps latents and texts, `dropout` hides
values from the adapter, `processes` averages over processes and notes signals, `state` is a checkpoint on disk, `monitor`
shows a run, `run` starts, resumes, saves and ends it, and `card` describes the trained adapter.
"""

from .batches import BatchSampler, MicroBatches, micro_batches
from .caches import LatentCache, TextCache
from .dropout import SampleDropout
from .monitor import Monitor
from .processes import Processes
from .run import Run
from .state import load_state, save_state

__all__ = ["BatchSampler", "LatentCache", "MicroBatches", "Monitor", "Processes", "Run", "SampleDropout", "TextCache"]
__all__ += ["load_state", "micro_batches", "save_state"]
