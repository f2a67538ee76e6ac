"""Faster forms of the layers of lida.nn for certain hardware. lida.nn does not import them; they are installed from outside.

`use_attention(model, name)` chooses the kernel of every attention layer, and `fastest_attention` names the best one.
`use_few_pixels_convolutions` turns frozen convolutions of few pixels into matrix products. `use_fastest(model, tokens)`
prepares a model for sampling. It takes the best attention and memory layout; then such products and the feed-forward network in
blocks or, in float32 on AMD's CPUs, linear layers as convolutions. `compiled` is torch.compile. Tests hold each equal to the
plain form; docs/speed.md has the gains.
"""

from .attention import ATTENTION, fastest_attention, use_attention, use_fastest
from .compilation import compiled
from .convolution import use_few_pixels_convolutions

__all__ = ["ATTENTION", "compiled", "fastest_attention", "use_attention", "use_fastest", "use_few_pixels_convolutions"]
