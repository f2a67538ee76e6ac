"""Low-rank adaptation (Hu et al. 2022): the layer that trains, and putting it into a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROSS_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")  # of CLIP's text encoder


@dataclass(frozen=True)
class LowRank:
    """One layer's change (alpha / rank) up down, as data.

    down is (rank, in_features) and up (out_features, rank); a convolution's are (rank, in, kh, kw) and (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def factors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The change as a product of two matrices (out, rank) and (rank, in kh kw), the scale in the first."""
        return self.scale * self.up.flatten(1).to(dtype), self.down.flatten(1).to(dtype)

    @property
    def delta(self) -> Tensor:
        """The change of the weight, in float32 (Hu et al. 2022, equation 3)."""
        up, down = self.factors()
        return (up @ down).reshape(self.shape)


def thin_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,), V (in, k) of up down, k its true rank; by QR of the factors, never the whole matrix."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    k = int((s > 1e-7 * s[0]).sum())
    return q_up @ u[:, :k], s[:k], q_down @ vh[:k].T


class SampleDropout:
    """Zeroes a share p of the values and scales the rest by 1 / (1 - p) (Srivastava et al. 2014), by a seed for each sample.

    The same sample loses the same values whatever batch it is in, and again when checkpointing computes it again.
    """

    def __init__(self, p: float):
        self.p, self.seeds = p, ()

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """x (B, ..., C) as the `layer`-th of those that ask."""
        kept = [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(int(s) ^ layer)) >= self.p for s in self.seeds]
        return x * torch.stack(kept).to(x.device) / (1 - self.p)


class LowRankUpdate(torch.autograd.Function):
    """base + s (x A^T) B^T, with each sum made within a product, and of x the one copy kept that the layer has anyway.

    With g = s dy B, the gradients are dx = g A, dA = g^T x and dB = s dy^T (x A^T). base (..., out), x (..., in).
    """

    @staticmethod
    def forward(ctx, base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        dtype = x.dtype
        a, b = down.to(dtype), scale * up.to(dtype)
        h = x.flatten(0, -2) @ a.T  # (N, rank)
        ctx.save_for_backward(x, h, a, b)
        ctx.scale, ctx.dtypes = scale, (down.dtype, up.dtype)
        return torch.addmm(base.flatten(0, -2), h, b.T).reshape(base.shape)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple:
        x, h, a, b = ctx.saved_tensors
        rows = dy.flatten(0, -2)
        g = rows @ b  # (N, rank)
        dx = (g @ a).reshape(x.shape) if ctx.needs_input_grad[1] else None
        return dy, dx, (g.T @ x.flatten(0, -2)).to(ctx.dtypes[0]), (ctx.scale * (rows.T @ h)).to(ctx.dtypes[1]), None


class LoRALinear(nn.Linear):
    """y = W x + b + (alpha / rank) B A x, with W and b frozen (Hu et al. 2022, equation 3).

    It adopts the weight of the layer it replaces, so that the base model's keys stay as they are, and adds `lora_down`
    (A: rank, in_features) and `lora_up` (B: out_features, rank) in float32. A begins normal with deviation 1 / rank, B at
    zero: at first the layer computes what the base did. Raises ValueError for a rank below 1.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None):
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        device = base.weight.device
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.lora_down = nn.Parameter(torch.randn(rank, base.in_features, device=device) / rank)
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.dropout: SampleDropout | None = None
        self.number = 0  # among the model's layers that share a dropout

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        base, kind = super().forward(x), x.device.type
        seen = self.dropout(x, self.number) if self.dropout is not None and self.training else x
        if torch.is_autocast_enabled(kind):  # products in half precision, of an adapter in float32
            seen, base = seen.to(torch.get_autocast_dtype(kind)), base.to(torch.get_autocast_dtype(kind))
        elif seen.dtype != self.lora_down.dtype:  # a base in half precision: the adapter's part stays in float32
            h = self.scale * F.linear(seen.to(self.lora_down.dtype), self.lora_down)
            return base + F.linear(h, self.lora_up).to(base.dtype)
        return LowRankUpdate.apply(base, seen, self.lora_down, self.lora_up, self.scale)


def inject_lora(
    model: nn.Module, rank: int, alpha: float | None = None, targets: Sequence[str] = CROSS_ATTENTION
) -> dict[str, LoRALinear]:
    """Freeze the model and replace each linear layer whose path ends in one of `targets` by a LoRALinear, in place.

    alpha defaults to rank, a scale of 1. Returns the new layers by module path, in the model's order. Raises ValueError,
    and changes nothing, where a target matches no linear layer, or the model has a LoRA already.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has a LoRA already; give all targets at once")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [(path, target) for path in linear for target in targets if f".{path}".endswith(f".{target}")]
    for target in targets:
        if target not in (t for _, t in found):
            raise ValueError(f"target {target!r} matches no linear layer; targets are ends of paths such as attn2.to_q")
    model.requires_grad_(False)
    layers = {}
    for path in dict.fromkeys(path for path, _ in found):
        parent, _, name = path.rpartition(".")
        layers[path] = LoRALinear(model.get_submodule(path), rank, alpha)
        setattr(model.get_submodule(parent), name, layers[path])
    return layers


def lora_parameters(layers: Iterable[LoRALinear]) -> list[nn.Parameter]:
    """What trains."""
    return [parameter for layer in layers for parameter in (layer.lora_down, layer.lora_up)]
