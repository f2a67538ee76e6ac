"""Samplers as pure functions of tensors and a callable: step rules, guidance, the loop, and blending by a mask."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .diffusion import NoiseSchedule, randn_like

NoisePredictor = Callable[[Tensor, Tensor, Tensor], Tensor]  # (latents, timesteps, encoder_hidden_states) -> noise


def ddim_step(
    schedule: NoiseSchedule,
    latents: Tensor,
    noise_pred: Tensor,
    t: int,
    t_prev: int,
    eta: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """x_t -> x_{t_prev}: deterministic at eta 0, DDPM's ancestral step at eta 1 (Song et al. 2021, equations 12 and 16)."""
    abar, abar_prev = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_prev)
    x0 = (latents - (1 - abar).sqrt() * noise_pred) / abar.sqrt()  # equation 9
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()  # equation 16
    latents = abar_prev.sqrt() * x0 + (1 - abar_prev - sigma**2).sqrt() * noise_pred  # equation 12
    return latents + sigma * randn_like(latents, generator) if eta > 0 else latents


def ddim_inverse_step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t_prev: int, t: int) -> Tensor:
    """x_{t_prev} -> x_t: the deterministic step walked backwards (Dhariwal & Nichol 2021, appendix F)."""
    abar_prev, abar = schedule.alpha_cumprod(t_prev), schedule.alpha_cumprod(t)
    x0 = (latents - (1 - abar_prev).sqrt() * noise_pred) / abar_prev.sqrt()
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise_pred


def invert(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    timesteps: Sequence[tuple[int, int]],
) -> dict[int, Tensor]:
    """The latents at each t from which the sampler would come back to `latents` (B, 4, h, w), by walking its pairs backwards.

    -1 is `latents` itself. No noise is drawn, so what is sampled from there differs from the picture by the prompt alone.
    """
    path = {-1: latents}
    for t, t_prev in reversed(timesteps):
        noise_pred = predict(latents, torch.full(latents.shape[:1], max(t_prev, timesteps[-1][0]), device=latents.device))
        latents = path[t] = ddim_inverse_step(schedule, latents, noise_pred, t_prev, t)
    return path


def guided(
    unet: NoisePredictor, cond: Tensor, uncond: Tensor | None, guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_u + g (eps_c - eps_u): classifier-free guidance (Ho & Salimans 2022), as a function of latents and timesteps.

    Both halves go through the network as one batch, the unconditional first. At g <= 1 it is the conditional alone, and
    `uncond` may be None.
    """
    if guidance_scale <= 1:
        return lambda latents, timesteps: unet(latents, timesteps, cond)
    both = torch.cat([uncond, cond])

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        eps_u, eps_c = unet(torch.cat([latents] * 2), torch.cat([timesteps] * 2), both).chunk(2)
        return eps_u + guidance_scale * (eps_c - eps_u)

    return predict


@dataclass(frozen=True)
class Blend:
    """What stays outside the mask: `mask` (B or 1, 1, h, w), 1 where painted; `init_latents` and `noise` (B, 4, h, w)."""

    mask: Tensor
    init_latents: Tensor
    noise: Tensor

    def __call__(self, schedule: NoiseSchedule, latents: Tensor, t: int) -> Tensor:
        """Put the photograph, noised to the level of t, back outside the mask (Avrahami et al. 2022, algorithm 1).

        t < 0 is past the last step, where the photograph's latents are clean.
        """
        known = self.init_latents
        if t >= 0:
            known = schedule.add_noise(known, self.noise, torch.tensor(t))
        return (1 - self.mask) * known + self.mask * latents


@dataclass(frozen=True)
class BlendPath:
    """Blend for an inverted picture: outside the mask it stays on its own `path` (t -> latents), from invert()."""

    mask: Tensor
    path: dict[int, Tensor]

    def __call__(self, schedule: NoiseSchedule, latents: Tensor, t: int) -> Tensor:
        """Put the photograph at the level of t back outside the mask."""
        return (1 - self.mask) * self.path[t] + self.mask * latents


def sample(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    timesteps: Iterable[tuple[int, int]],
    blend: Blend | BlendPath | None = None,
    eta: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Walk the pairs (t, t_prev) by DDIM from `latents` (B, 4, h, w), noised to the first t, to clean latents.

    `predict` gives the noise for latents and timesteps (B,), as guided() makes it. With a blend, what lies outside its
    mask is put back after each step. An iterator that shows progress may stand for the pairs.
    """
    for t, t_prev in timesteps:
        noise_pred = predict(latents, torch.full(latents.shape[:1], t, device=latents.device))
        latents = ddim_step(schedule, latents, noise_pred, t, t_prev, eta, generator)
        if blend is not None:
            latents = blend(schedule, latents, t_prev)
    return latents
