"""An adapter as data: module path -> (down, up, alpha), and what can be done with it without running a model.

`files` reads and writes the formats of diffusers, peft and kohya; `dialects` and `peft_config` have their spellings. `merging` has
the rules by which several adapters change one weight, and `merger` applies them to a model. `combination` makes one adapter of
several, exactly. `comparison` shows where two change the same weights. The command line is `python -m lida.adapters`.
"""

from .adapter import Adapter, check_fits, random_adapter
from .combination import combine, truncate_rank
from .comparison import compare
from .files import FILE_NAME, FORMATS, load_adapter, parse_pairs, save_adapter
from .merger import Merger
from .merging import Rule, Weight, orthogonalised, parse_weight, weighted_sum

__all__ = [
    "FILE_NAME", "FORMATS", "Adapter", "Merger", "Rule", "Weight", "check_fits", "combine", "compare", "load_adapter",
    "orthogonalised", "parse_pairs", "parse_weight", "random_adapter", "save_adapter", "truncate_rank", "weighted_sum",
]  # fmt: skip
