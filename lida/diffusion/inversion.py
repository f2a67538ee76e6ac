"""Inversion: find the noise from which a sampler returns to a photograph's latents."""

from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import NoiseSchedule, Steps, Trajectory

NoisePrediction = Callable[[Tensor, Tensor], Tensor]  # (latents, timesteps) -> noise_pred
NoisePreds = dict[int, Tensor]  # t -> noise_pred for the photograph's latents at t


def ddim_inverse_step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t_prev: int, t: int) -> Tensor:
    """Return x_t from x_{t_prev}: DDIM's deterministic step taken backwards (Dhariwal & Nichol 2021, appendix F)."""
    abar_prev, abar = schedule.alpha_cumprod(t_prev), schedule.alpha_cumprod(t)
    x0 = (latents - (1 - abar_prev).sqrt() * noise_pred) / abar_prev.sqrt()
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise_pred


def ddim_invert(predict: NoisePrediction, schedule: NoiseSchedule, latents: Tensor, steps: Steps) -> Trajectory:
    """Take DDIM's steps backwards from `latents` (B, C, h, w); return the latents at each t.

    No noise is drawn, so an image sampled from there differs from the photograph by its prompt alone.
    """
    trajectory = {-1: latents}
    for t, t_prev in reversed(steps):
        # the UNet has no timestep -1: for the clean image it gets the lowest one
        noise_pred = predict(latents, torch.full(latents.shape[:1], max(t_prev, steps[-1][0]), device=latents.device))
        latents = trajectory[t] = ddim_inverse_step(schedule, latents, noise_pred, t_prev, t)
    return trajectory
