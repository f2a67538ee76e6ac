"""Samplers: step rules as pure functions of tensors, and the loop that applies them from noise to an image."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .blending import Blend
from .schedule import NoiseSchedule, randn_like, step_pairs

History = tuple[int, Tensor]  # the last step's t and estimate of x_0


def ddim_step(
    schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int, eta: float = 0.0,
    generator: Generator | None = None, repeats: int = 1,
) -> Tensor:  # fmt: skip
    """Return x_{t_prev}: deterministic at eta 0, DDPM's ancestral step at eta 1 (Song et al. 2021, equations 12 and 16).

    The batch consists of `repeats` parts, which share the drawn noise.
    """
    abar, abar_prev = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_prev)
    x0 = (latents - (1 - abar).sqrt() * noise_pred) / abar.sqrt()  # equation 9
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt() if eta else 0.0  # equation 16
    mean = abar_prev.sqrt() * x0 + (1 - abar_prev - sigma**2).sqrt() * noise_pred  # equation 12
    if eta == 0:
        return mean
    noise = randn_like(latents[: len(latents) // repeats], generator)
    return mean + sigma * noise.repeat(repeats, *[1] * (latents.ndim - 1))


def euler_step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int) -> Tensor:
    """Return x_{t_prev} by Euler's rule on dx/dsigma = eps in x / sqrt(abar) (Karras et al. 2022, algorithm 1 without noise).

    It is DDIM at eta 0 (Song et al. 2021, equation 14), except that the last step goes to sigma 0.
    """
    abar, sigma, sigma_prev = schedule.alpha_cumprod(t), schedule.sigma(t), schedule.sigma(t_prev)
    scaled = latents / abar.sqrt() + (sigma_prev - sigma) * noise_pred
    return scaled / (1 + sigma_prev**2).sqrt()


def dpmpp_2m_step(
    schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int, history: History | None = None
) -> tuple[Tensor, History]:
    """Return x_{t_prev} by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), and the history for the next step.

    The first step, without history, and the last, to sigma 0, are of first order.
    """
    sigma, sigma_prev = schedule.sigma(t), schedule.sigma(t_prev)
    alpha, alpha_prev = (1 + sigma**2).rsqrt(), (1 + sigma_prev**2).rsqrt()
    x0 = latents / alpha - sigma * noise_pred  # x_0 = (x - sigma_t eps) / alpha_t, with sigma_t = sigma alpha_t
    if t_prev < 0:
        return x0, (t, x0)
    h = sigma.log() - sigma_prev.log()  # the step of lambda = log(alpha_t / sigma_t)
    estimate = x0
    if history is not None:
        t_last, x0_last = history
        r = (schedule.sigma(t_last).log() - sigma.log()) / h
        estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last
    ratio = sigma_prev * alpha_prev / (sigma * alpha)
    return ratio * latents - alpha_prev * torch.expm1(-h) * estimate, (t, x0)


# A step rule takes (schedule, latents, noise_pred, t, t_prev) and returns the latents at t_prev. A multistep rule also takes
# `history`, None at the first step, and returns (latents, history).
StepRule = Callable[..., Tensor | tuple[Tensor, object]]
# diffusers and kohya call them schedulers
SCHEDULERS: dict[str, StepRule] = {"ddim": ddim_step, "dpmpp_2m": dpmpp_2m_step, "euler": euler_step}
MOST_GUIDANCE = 100


@dataclass(frozen=True)
class Sampling:
    """How noise becomes an image: the sampler, its steps, and guidance.

    `scheduler` is a name in SCHEDULERS or a step rule. Guidance acts between the noise levels sigma (low, high) of
    `guidance_interval`. `eta` is DDIM's noise: 0 draws none, 1 as much as DDPM. `timesteps`, from noisy to clean, replace the
    evenly spaced `num_inference_steps`. Raises ValueError for a value out of range.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 6.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    scheduler: str | StepRule = "ddim"
    eta: float = 0.0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.scheduler not in SCHEDULERS if isinstance(self.scheduler, str) else not callable(self.scheduler):
            raise ValueError(f"scheduler {self.scheduler!r} is not one of {', '.join(SCHEDULERS)}")
        if not 1 <= self.guidance_scale <= MOST_GUIDANCE:
            raise ValueError(f"guidance_scale must lie between 1, no guidance, and {MOST_GUIDANCE}, not {self.guidance_scale}")
        for name in ("eta", "guidance_rescale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta belongs to scheduler 'ddim', not {self.scheduler!r}; leave it at 0")
        pair = (0, 0) if self.guidance_interval is None else self.guidance_interval
        if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
            raise ValueError(f"guidance_interval must be two noise levels, the lower first, not {self.guidance_interval}")

    def steps(self, schedule: NoiseSchedule, strength: float = 1.0) -> list[tuple[int, int]]:
        """Return the pairs (t, t_prev) of a run; see NoiseSchedule.steps."""
        if self.timesteps is None:
            return schedule.steps(self.num_inference_steps, strength)
        chosen = list(self.timesteps)
        whole = all(isinstance(t, int) for t in chosen)
        falling = chosen == sorted(set(chosen), reverse=True)
        if not whole or not falling or not chosen or not 0 <= chosen[-1] <= chosen[0] < len(schedule):
            raise ValueError(f"timesteps must fall from at most {len(schedule) - 1} to at least 0, not {chosen}")
        return step_pairs(chosen, strength)


def sample(
    predict: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, latents: Tensor, steps: Collection[tuple[int, int]],
    step: StepRule = ddim_step, blend: Blend | None = None,
) -> Tensor:  # fmt: skip
    """Apply the step rule to each pair (t, t_prev), from `latents` (B, C, h, w) at the first t to clean latents.

    `predict` returns the noise in latents at timesteps (B,), as guided() makes it. `step` is a step rule, such as those of
    SCHEDULERS. After each step, `blend` puts the photograph back. `steps` may be an iterator with a length, such as a progress
    bar. Raises ValueError unless t_prev < t and 0 <= t <= T - 1, and for a prediction of another shape.
    """
    multistep = "history" in inspect.signature(step).parameters
    history, count = None, len(steps)
    for number, (t, t_prev) in enumerate(steps):
        if not t_prev < t < len(schedule) or t < 0:
            raise ValueError(f"({t}, {t_prev}) is not a step (t, t_prev) with t_prev < t and 0 <= t <= {len(schedule) - 1}")
        noise_pred = predict(latents, torch.full(latents.shape[:1], t, device=latents.device))
        if (shape := getattr(noise_pred, "shape", None)) != latents.shape:
            raise ValueError(f"predict returned {shape} for latents {latents.shape}")
        result = step(schedule, latents, noise_pred, t, t_prev, **({"history": history} if multistep else {}))
        latents, history = result if isinstance(result, tuple) else (result, None)
        if blend is not None:
            latents = blend(latents, t_prev, 1 - (number + 1) / count)
    return latents
