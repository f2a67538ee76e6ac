"""Blending: after each step, the photograph's latents are put back outside the mask."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import Trajectory


@dataclass(frozen=True)
class Blend:
    """A mask that says where, and until which step, the photograph's latents are put back.

    `mask` (1, 1, h, w) is 1 where the image is painted from the first step on, and 0 where the photograph stays. Where it has a
    grey value g, painting starts when the share g of the steps is left (Levin & Fried 2023, algorithm 1). `trajectory` has the
    photograph's latents (B, C, h, w) at each timestep.
    """

    mask: Tensor
    trajectory: Trajectory

    def __call__(self, latents: Tensor, t: int, steps_left: float) -> Tensor:
        """Return the latents (N B, C, h, w) inside the mask, and the photograph at t outside it (Avrahami et al. 2022, algorithm 1).

        N paintings share the photograph. `steps_left` is the share of the steps to come.
        """
        photograph = self.trajectory[t].repeat(len(latents) // len(self.trajectory[t]), 1, 1, 1)
        return torch.where(self.mask > steps_left, latents, photograph)


def mask_to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a pixel mask (B, 1, H, W) to that of latents (B, 1, h, w): each cell has the value of its whitest pixel.

    diffusers takes a cell's first pixel instead, which loses small masks.
    """
    return F.adaptive_max_pool2d(mask, size)
