"""Cross-attention maps: which pixels of the latents look at which token of the prompt (Hertz et al. 2023, section 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from .layers import Attention


@contextmanager
def recorded_attention(unet: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record softmax(q k^T / sqrt(d)) of each cross-attention layer, by its path, while the block runs.

    Each call of the UNet appends one tensor (B, heads, N, M) to each list, for N pixels and M tokens. With guidance, the first
    half of the batch belongs to the negative prompt. The UNet's output does not change, and gradients flow through the maps.
    """
    layers = {path: m for path, m in unet.named_modules() if isinstance(m, Attention) and path.endswith("attn2")}
    kernels = {path: layer.kernel for path, layer in layers.items()}
    maps: dict[str, list[Tensor]] = {path: [] for path in layers}

    def recording(path: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps[path].append((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1))
        return kernels[path](q, k, v)

    try:
        for path, layer in layers.items():
            layer.kernel = partial(recording, path)
        yield maps
    finally:
        for path, layer in layers.items():
            layer.kernel = kernels[path]
