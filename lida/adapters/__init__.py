"""An adapter as data: module path -> (down, up, alpha). Nothing here runs a model.

`files` reads and writes the formats of diffusers, peft and kohya; `dialects` and `peft_config` know their names. `merging` adds
the changes of several adapters to a model's weights, and removes them again; `spelling` reads weights as the command line gives
them. `combination` makes one adapter of several, exactly. `comparison` shows where two adapters change the same
weights. The command line is `python -m lida.adapters`.
"""

from .adapter import Adapter, check_fits
from .combination import combine
from .comparison import compare
from .files import FILE_NAME, FORMATS, load_adapter, save_adapter
from .merging import Merger, Rule, Weight, weighted_sum
from .spelling import parse_pairs, parse_weight

__all__ = [
    "FILE_NAME", "FORMATS", "Adapter", "Merger", "Rule", "Weight", "check_fits", "combine", "compare", "load_adapter",
    "parse_pairs", "parse_weight", "save_adapter", "weighted_sum",
]  # fmt: skip
