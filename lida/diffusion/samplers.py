"""Samplers as pure functions of tensors and a callable: step rules, guidance, the loop, and blending by a mask."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .schedule import NoiseSchedule, randn_like

SCHEDULERS = ("ddim", "dpmpp_2m", "euler")
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
    latents, sigma = ddim_mean(schedule, latents, noise_pred, t, t_prev, eta)
    return latents + sigma * randn_like(latents, generator) if eta > 0 else latents


def ddim_mean(
    schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int, eta: float
) -> tuple[Tensor, Tensor]:
    """The mean of ddim_step's x_{t_prev}, and its deviation sigma."""
    abar, abar_prev = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_prev)
    x0 = (latents - (1 - abar).sqrt() * noise_pred) / abar.sqrt()  # equation 9
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()  # equation 16
    return abar_prev.sqrt() * x0 + (1 - abar_prev - sigma**2).sqrt() * noise_pred, sigma  # equation 12


def euler_step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int) -> Tensor:
    """x_t -> x_{t_prev} by Euler's rule on dx/dsigma = eps in x / sqrt(abar) (Karras et al. 2022, algorithm 1 without noise).

    It is DDIM at eta 0 (Song et al. 2021, equation 14), but that the last step goes to no noise at all.
    """
    abar, sigma, sigma_prev = schedule.alpha_cumprod(t), schedule.sigma(t), schedule.sigma(t_prev)
    scaled = latents / abar.sqrt() + (sigma_prev - sigma) * noise_pred
    return scaled / (1 + sigma_prev**2).sqrt()


def dpmpp_2m_step(
    schedule: NoiseSchedule,
    latents: Tensor,
    noise_pred: Tensor,
    t: int,
    t_prev: int,
    history: tuple[int, Tensor] | None = None,
) -> tuple[Tensor, tuple[int, Tensor]]:
    """x_t -> x_{t_prev} by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), and the history that the next step takes.

    `history` is the last step's t and estimate of x_0. The first step, which has none, and the last, to no noise at all,
    are of first order.
    """
    sigma, sigma_prev = schedule.sigma(t), schedule.sigma(t_prev)
    alpha, alpha_prev = (1 + sigma**2).rsqrt(), (1 + sigma_prev**2).rsqrt()
    x0 = latents / alpha - sigma * noise_pred  # x_0 = (x - sigma_t eps) / alpha_t, with sigma_t = sigma alpha_t
    if t_prev < 0:
        return x0, (t, x0)
    h = sigma.log() - sigma_prev.log()  # of lambda = log(alpha_t / sigma_t)
    estimate = x0
    if history is not None:
        t_last, x0_last = history
        r = (schedule.sigma(t_last).log() - sigma.log()) / h
        estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last
    ratio = sigma_prev * alpha_prev / (sigma * alpha)
    return ratio * latents - alpha_prev * torch.expm1(-h) * estimate, (t, x0)


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


def ddpm_invert(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    timesteps: Sequence[tuple[int, int]],
    generator: Generator | None = None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Edit-friendly inversion (Huberman-Spiegelglas et al. 2024, algorithm 1): the path t -> x_t, and each step's noise.

    Each x_t is the picture with noise of its own, so that the steps between them carry more of it than a sampler's do. The
    noise is what the step of eta 1 lacks to come from x_t to x_{t_prev}: sampled with it from anywhere on the path, under
    the same prediction, the picture comes back exactly.
    """
    path = {-1: latents}
    for t, _ in reversed(timesteps):
        path[t] = schedule.add_noise(latents, randn_like(latents, generator), torch.tensor(t))
    noise = {}
    for t, t_prev in timesteps:
        noise_pred = predict(path[t], torch.full(latents.shape[:1], t, device=latents.device))
        noise[t] = path[t_prev] - ddim_mean(schedule, path[t], noise_pred, t, t_prev, eta=1.0)[0]  # sigma_t z_t
    return path, noise


def guided(
    unet: NoisePredictor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance_scale: float,
    rescale: float = 0.0,
    within: Callable[[int], bool] = lambda t: True,
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_u + g (eps_c - eps_u): classifier-free guidance (Ho & Salimans 2022), as a function of latents and timesteps.

    Both halves go through the network as one batch, the unconditional first. At g <= 1, and at timesteps that are not
    `within` (Kynkaanniemi et al. 2024), it is the conditional alone, for half the cost; `uncond` may then be None.
    `rescale` mixes in the prediction brought back to the conditional's deviation (Lin et al. 2024, equations 15 and 16).
    """
    both = None if guidance_scale <= 1 else torch.cat([uncond, cond])

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        if both is None or not within(int(timesteps[0])):
            return unet(latents, timesteps, cond)
        eps_u, eps_c = unet(torch.cat([latents] * 2), torch.cat([timesteps] * 2), both).chunk(2)
        eps = eps_u + guidance_scale * (eps_c - eps_u)
        if rescale:
            places = tuple(range(1, eps.ndim))
            brought_back = eps * (eps_c.std(places, keepdim=True) / eps.std(places, keepdim=True))
            eps = rescale * brought_back + (1 - rescale) * eps
        return eps

    return predict


@dataclass(frozen=True)
class Blend:
    """What stays as the photograph has it. `mask` (B or 1, 1, h, w) is a map of change: 1 is painted from the first step on.

    A grey g is released when the share g of the steps is left (Levin & Fried 2023, algorithm 1), 0 never. The photograph
    is `init_latents` with `noise` (B, 4, h, w), or goes along its own `path` (t -> latents) where it was inverted.
    """

    mask: Tensor
    init_latents: Tensor
    noise: Tensor | None = None
    path: dict[int, Tensor] | None = None

    def __call__(self, schedule: NoiseSchedule, latents: Tensor, t: int, left: float) -> Tensor:
        """Put the photograph, at the level of t, back where it stays (Avrahami et al. 2022, algorithm 1).

        t < 0 is past the last step, where the photograph's latents are clean; `left` is the share of the steps to come.
        """
        known = self.init_latents
        if self.path is not None:
            known = self.path[t]
        elif t >= 0:
            known = schedule.add_noise(known, self.noise, torch.tensor(t))
        return torch.where(self.mask > left, latents, known)


def sample(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    timesteps: Iterable[tuple[int, int]],
    blend: Blend | None = None,
    eta: float = 0.0,
    generator: Generator | None = None,
    scheduler: str = "ddim",
    step_noise: dict[int, Tensor] | None = None,
    repeats: int = 1,
    callback: Callable[[int, int, Tensor], object] | None = None,
) -> Tensor:
    """Walk the pairs (t, t_prev) from `latents` (B, 4, h, w), noised to the first t, to clean latents.

    `predict` gives the noise for latents and timesteps (B,), as guided() makes it; `scheduler` is one of SCHEDULERS. With a
    blend, what stays is put back after each step. `step_noise`, from ddpm_invert, takes the place of noise drawn by eta;
    drawn noise is shared by every `repeats`-th part of the batch. `callback(step, t, latents)` is called after each step.
    An iterator with a length that shows progress may stand for the pairs. Raises ValueError for another scheduler.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler {scheduler!r} is not one of {', '.join(SCHEDULERS)}")
    if scheduler != "ddim" and (eta or step_noise):
        raise ValueError(f"scheduler {scheduler!r} draws no noise; eta and inverted noise are ddim's")
    history, count = None, len(timesteps)
    for step, (t, t_prev) in enumerate(timesteps):
        noise_pred = predict(latents, torch.full(latents.shape[:1], t, device=latents.device))
        if scheduler == "dpmpp_2m":
            latents, history = dpmpp_2m_step(schedule, latents, noise_pred, t, t_prev, history)
        elif scheduler == "euler":
            latents = euler_step(schedule, latents, noise_pred, t, t_prev)
        else:
            latents, sigma = ddim_mean(schedule, latents, noise_pred, t, t_prev, 1.0 if step_noise else eta)
            if step_noise:
                latents = latents + step_noise[t]
            elif eta > 0:
                latents = latents + sigma * randn_like(latents[: len(latents) // repeats], generator).repeat(repeats, 1, 1, 1)
        if blend is not None:
            latents = blend(schedule, latents, t_prev, 1 - (step + 1) / count)
        if callback is not None:
            callback(step, t, latents)
    return latents
