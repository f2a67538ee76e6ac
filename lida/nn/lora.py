"""Low-rank adaptation (Hu et al. 2022): the trainable layer, and its injection into a model."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROSS_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")  # of CLIP's text encoder


@dataclass(frozen=True)
class LowRank:
    """The low-rank change (alpha / rank) up down of one layer's weight.

    down is (rank, in_features) and up (out_features, rank); a convolution's are (rank, in, kh, kw) and (out, rank, 1, 1).
    Raises ValueError if the two factors differ in rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self):
        if self.down.ndim < 2 or self.up.ndim < 2 or self.up.shape[1] != self.down.shape[0]:
            raise ValueError(f"down {tuple(self.down.shape)} and up {tuple(self.up.shape)} do not have the same rank")

    @property
    def rank(self) -> int:
        """Return the inner dimension of the two factors."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight that it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def factors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the change as matrices (out, rank) and (rank, in kh kw); the first includes the scale."""
        return self.scale * self.up.flatten(1).to(dtype), self.down.flatten(1).to(dtype)

    @property
    def delta(self) -> Tensor:
        """Compute the change of the weight, in float32 (Hu et al. 2022, equation 3)."""
        up, down = self.factors()
        return (up @ down).reshape(self.shape)


class LoRALinear(nn.Linear):
    """y = W x + b + (alpha / rank) B A x, with W and b frozen (Hu et al. 2022, equation 3).

    The layer shares the weight of the layer that it replaces, so the keys of the base model's state_dict do not change. It adds
    `lora_down` (A: rank, in_features) and `lora_up` (B: out_features, rank) in float32. A is drawn with standard deviation
    1 / rank and B is zero, so the layer first computes what the base does. Raises ValueError unless rank is an integer of at
    least 1 and alpha finite.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None):
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, not {rank!r}")
        if alpha is not None and not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, not {alpha}")
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        device = base.weight.device
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.lora_down = nn.Parameter(torch.randn(rank, base.in_features, device=device) / rank)
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


class HalfLoRALinear(LoRALinear):
    """A LoRALinear on a base in half precision: without autocast, the adapter's products are computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        change = self.scale * F.linear(F.linear(x.to(self.lora_down.dtype), self.lora_down), self.lora_up)
        return nn.Linear.forward(self, x) + change.to(x.dtype)


def inject_lora(
    model: nn.Module, rank: int, alpha: float | None = None, targets: Sequence[str] = CROSS_ATTENTION,
    layer: Callable[[nn.Linear, int, float | None], LoRALinear] | None = None,
) -> dict[str, LoRALinear]:  # fmt: skip
    """Freeze the model and replace each linear layer whose path ends in one of `targets` by a LoRALinear, in place.

    alpha defaults to rank, a scale of 1. `layer` makes the new layer from (base, rank, alpha), for a subclass of your own.
    Returns the new layers by module path, in the model's order. Raises ValueError, and changes nothing, if a target matches
    no linear layer, or if the model has a LoRA already, injected or merged.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has a LoRA already; give all targets at once, or call eject_lora first")
    if any(getattr(module, "has_adapters", False) for module in model.modules()):
        raise ValueError("adapters are merged into the model, and would count twice; call set_adapters([], []) first")
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = [(path, target) for path in linear for target in targets if f".{path}".endswith(f".{target}")]
    if not targets:
        raise ValueError("no targets are given; targets are ends of paths such as attn2.to_q")
    for target in targets:
        if target not in (t for _, t in found):
            raise ValueError(f"target {target!r} matches no linear layer; targets are ends of paths such as attn2.to_q")
    layers = {}
    for path in dict.fromkeys(path for path, _ in found):
        kind = layer or (LoRALinear if linear[path].weight.dtype == torch.float32 else HalfLoRALinear)
        layers[path] = kind(linear[path], rank, alpha)
    model.requires_grad_(False)
    for path, lora in layers.items():
        model.set_submodule(path, lora)
    return layers


def eject_lora(model: nn.Module) -> dict[str, LoRALinear]:
    """Undo inject_lora: put plain linear layers with the base weights back, in place. Return the removed layers by path.

    All parameters stay frozen.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    for path, lora in layers.items():
        linear = nn.Linear(lora.in_features, lora.out_features, bias=lora.bias is not None, device="meta")
        linear.weight, linear.bias = lora.weight, lora.bias
        model.set_submodule(path, linear.train(lora.training))
    return layers


def lora_parameters(layers: Iterable[LoRALinear]) -> list[nn.Parameter]:
    """Return the parameters that train: each layer's lora_down and lora_up."""
    return [parameter for layer in layers for parameter in (layer.lora_down, layer.lora_up)]
