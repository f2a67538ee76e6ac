"""Faster forms of the layers of lida.nn for certain hardware. lida.nn does not import them; they are installed from outside.

`use_attention(model, name)` chooses the kernel of every attention layer, `fastest_attention` names the best one,
`use_fastest(model, tokens)` prepares a model for sampling, `use_frozen_convolutions` speeds up the backward pass of frozen
convolutions, `compiled` is torch.compile. Tests hold each equal to the plain form; docs/speed.md has the gains in training.
"""

from .attention import ATTENTION, fastest_attention, use_attention, use_fastest
from .compilation import compiled
from .convolution import use_frozen_convolutions

__all__ = ["ATTENTION", "compiled", "fastest_attention", "use_attention", "use_fastest", "use_frozen_convolutions"]
