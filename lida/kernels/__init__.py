"""What makes lida.nn faster on certain hardware. Nothing in lida.nn knows of it; each piece is put on a model from outside.

`use_attention(model, name)` chooses the kernel of every attention layer, `fastest_attention` names the best one,
`use_fastest(model, tokens)` readies a model for sampling, `use_frozen_convolutions` gives frozen convolutions a faster way back,
`compiled` is torch.compile. Every piece equals the plain form by test, and docs/speed.md has what those for training gain.
"""

from .attention import ATTENTION, fastest_attention, use_attention, use_fastest
from .compilation import compiled
from .convolution import use_frozen_convolutions

__all__ = ["ATTENTION", "compiled", "fastest_attention", "use_attention", "use_fastest", "use_frozen_convolutions"]
