"""Inversion: find the noise from which a sampler returns to a photograph's latents."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from .samplers import StepRule, ddim_mean
from .schedule import NoiseSchedule, randn_like

NoisePrediction = Callable[[Tensor, Tensor], Tensor]  # (latents, timesteps) -> noise_pred
Steps = Sequence[tuple[int, int]]  # a sampler's pairs (t, t_prev)
Trajectory = dict[int, Tensor]  # t -> latents at that timestep; -1 is the clean image


def ddim_inverse_step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t_prev: int, t: int) -> Tensor:
    """Return x_t from x_{t_prev}: DDIM's deterministic step taken backwards (Dhariwal & Nichol 2021, appendix F)."""
    abar_prev, abar = schedule.alpha_cumprod(t_prev), schedule.alpha_cumprod(t)
    x0 = (latents - (1 - abar_prev).sqrt() * noise_pred) / abar_prev.sqrt()
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise_pred


def ddim_invert(predict: NoisePrediction, schedule: NoiseSchedule, latents: Tensor, timesteps: Steps) -> Trajectory:
    """Take DDIM's steps backwards from `latents` (B, C, h, w); return the latents at each t.

    No noise is drawn, so an image sampled from there differs from the photograph by its prompt alone.
    """
    trajectory = {-1: latents}
    for t, t_prev in reversed(timesteps):
        noise_pred = predict(latents, torch.full(latents.shape[:1], max(t_prev, timesteps[-1][0]), device=latents.device))
        latents = trajectory[t] = ddim_inverse_step(schedule, latents, noise_pred, t_prev, t)
    return trajectory


def ddpm_invert(
    predict: NoisePrediction, schedule: NoiseSchedule, latents: Tensor, timesteps: Steps, generator: Generator | None = None
) -> tuple[Trajectory, Trajectory]:
    """Return the latents x_t and each step's noise, by edit-friendly inversion (Huberman-Spiegelglas et al. 2024, algorithm 1).

    Each x_t is the image with noise of its own, so the steps between them carry more of the image than a sampler's do. The noise
    at t is x_{t_prev} minus the mean of DDIM's step with eta 1 from x_t; replay() adds it.
    """
    trajectory = {-1: latents}
    for t, _ in reversed(timesteps):
        trajectory[t] = schedule.add_noise(latents, randn_like(latents, generator), torch.tensor(t))
    noise = {}
    for t, t_prev in timesteps:
        noise_pred = predict(trajectory[t], torch.full(latents.shape[:1], t, device=latents.device))
        mean, _ = ddim_mean(schedule, trajectory[t], noise_pred, t, t_prev, eta=1.0)
        noise[t] = trajectory[t_prev] - mean  # sigma_t z_t
    return trajectory, noise


def replay(noise: Trajectory) -> StepRule:
    """Return the step rule that adds the noise of ddpm_invert (B, C, h, w), repeated for a batch of several paintings."""

    def step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int) -> Tensor:
        mean, _ = ddim_mean(schedule, latents, noise_pred, t, t_prev, eta=1.0)
        return mean + noise[t].repeat(len(latents) // len(noise[t]), 1, 1, 1)

    return step
