"""Blending: after each step, the photograph's latents are put back outside the mask."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import NoiseSchedule


@dataclass(frozen=True)
class Blend:
    """The photograph's latents, and a mask that says where, and until which step, they are put back.

    `mask` (B or 1, 1, h, w) is 1 where the image is painted from the first step on, and 0 where the photograph stays. Where it
    has a grey value g, painting starts when the share g of the steps is left (Levin & Fried 2023, algorithm 1). The photograph
    at timestep t is `init_latents` with `noise` (B, C, h, w), or `trajectory[t]` if there is one.
    """

    mask: Tensor
    init_latents: Tensor
    noise: Tensor | None = None
    trajectory: dict[int, Tensor] | None = None

    def __call__(self, schedule: NoiseSchedule, latents: Tensor, t: int, steps_left: float) -> Tensor:
        """Return the latents inside the mask and the photograph, noised to t, outside it (Avrahami et al. 2022, algorithm 1).

        At t < 0, after the last step, the photograph is clean. `steps_left` is the share of the steps to come: grey pixels above
        it count as inside.
        """
        photograph = self.init_latents
        if self.trajectory is not None:
            photograph = self.trajectory[t]
        elif t >= 0:
            assert self.noise is not None  # without a trajectory there is noise
            photograph = schedule.add_noise(photograph, self.noise, torch.tensor(t))
        return torch.where(self.mask > steps_left, latents, photograph)

    def for_row(self, strength_fractions: Tensor) -> "Blend":
        """Return the blend for N targets in one batch of N B.

        Target n changes only during the last `strength_fractions[n]` of the steps.
        """
        n, count = len(strength_fractions), len(self.init_latents)
        fractions = strength_fractions.to(self.mask).repeat_interleave(count).reshape(-1, 1, 1, 1)

        def repeated(x: Tensor) -> Tensor:
            return x.repeat(n, 1, 1, 1)

        noise = None if self.noise is None else repeated(self.noise)
        trajectory = self.trajectory and {t: repeated(x) for t, x in self.trajectory.items()}
        return Blend(fractions * self.mask, repeated(self.init_latents), noise, trajectory)


def mask_to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a pixel mask (B, 1, H, W) to that of latents (B, 1, h, w): each cell has the value of its whitest pixel.

    diffusers takes a cell's first pixel instead, which loses small masks.
    """
    return F.adaptive_max_pool2d(mask, size)
