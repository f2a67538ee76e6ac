"""The forward process q(x_t | x_0) of DDPM (Ho et al. 2020), and the timesteps that a sampler visits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor

from ..doors.json import Range

Steps = Sequence[tuple[int, int]]  # a sampler's pairs (t, t_prev)
Trajectory = dict[int, Tensor]  # t -> latents at that timestep; -1 is the clean image


def randn_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Return standard normal noise like x, drawn on the generator's device: one CPU seed gives the same noise everywhere."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """The fields of diffusers' scheduler_config.json that Stable Diffusion 1.5 uses, with DDIMScheduler's defaults."""

    num_train_timesteps: Annotated[int, Range(1, 10_000)] = 1000
    beta_start: Annotated[float, Range(0, 1)] = 0.0001
    beta_end: Annotated[float, Range(0, 1)] = 0.02
    beta_schedule: str = "linear"
    steps_offset: Annotated[int, Range(0, 100)] = 0
    set_alpha_to_one: bool = True

    fixed: ClassVar[dict] = {
        "trained_betas": None, "prediction_type": "epsilon", "clip_sample": False, "thresholding": False,
        "timestep_spacing": "leading", "rescale_betas_zero_snr": False,
    }  # fmt: skip
    advisory: ClassVar[tuple] = ()


class NoiseSchedule:
    """DDPM's noise schedule: alpha-bar of T timesteps, from betas (T,), and the timesteps that a sampler visits.

    `final_alpha_cumprod` is alpha-bar after a sampler's last step. By default it is that of the first timestep: SD1.5's samplers
    never quite reach the clean image. Raises ValueError for numbers out of range.
    """

    def __init__(self, betas: Tensor, final_alpha_cumprod: float | None = None, steps_offset: int = 0):
        betas = torch.as_tensor(betas)
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a vector of numbers between 0 and 1")
        self.alphas_cumprod = torch.cumprod(1 - betas.float(), dim=0)  # (T,)
        if not self.alphas_cumprod[-1] > 0:
            raise ValueError("alpha-bar reaches 0, where nothing of the image is left; make the last betas smaller")
        final = float(self.alphas_cumprod[0] if final_alpha_cumprod is None else final_alpha_cumprod)
        if not 0 < final <= 1 or steps_offset not in range(len(betas)):
            raise ValueError(f"final_alpha_cumprod must be above 0 and up to 1, steps_offset a timestep: {final}, {steps_offset}")
        self.final_alpha_cumprod = torch.tensor(final)
        self.steps_offset = steps_offset
        self.config: NoiseScheduleConfig | None = None

    @classmethod
    def from_config(cls, config: NoiseScheduleConfig) -> "NoiseSchedule":
        """Build the schedule of a scheduler_config.json."""
        T, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
        if config.beta_schedule == "scaled_linear":  # linear in sqrt(beta), as in latent diffusion
            betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float32) ** 2
        elif config.beta_schedule == "linear":
            betas = torch.linspace(start, end, T, dtype=torch.float32)
        else:
            raise ValueError(f"beta_schedule {config.beta_schedule!r} is not one of linear, scaled_linear")
        schedule = cls(betas, 1.0 if config.set_alpha_to_one else None, config.steps_offset)
        schedule.config = config
        return schedule

    def __len__(self) -> int:
        """Return T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, equation 4), for timesteps (B,) or ()."""
        abar = self.alphas_cumprod.to(latents.device, latents.dtype)[timesteps]
        abar = abar.reshape(-1, *[1] * (latents.ndim - 1))
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise

    def alpha_cumprod(self, t: int) -> Tensor:
        """Return abar_t, and final_alpha_cumprod for t < 0."""
        return self.alphas_cumprod[t] if t >= 0 else self.final_alpha_cumprod

    def sigma(self, t: int) -> Tensor:
        """Return the noise level sqrt((1 - abar_t) / abar_t) of Karras et al. 2022, table 1; 0 for t < 0."""
        return ((1 - self.alphas_cumprod[t]) / self.alphas_cumprod[t]).sqrt() if t >= 0 else torch.zeros(())

    def steps(self, num_inference_steps: int, strength: float = 1.0) -> list[tuple[int, int]]:
        """Return the pairs (t, t_prev) of a run, from noisy to clean, spaced as diffusers' "leading"; the last t_prev is -1.

        Raises ValueError if N steps do not fit into the schedule, or if the strength leaves no step.
        """
        T, N = len(self), num_inference_steps
        ratio = T // N if 0 < N <= T else 0
        if not ratio or (N - 1) * ratio + self.steps_offset >= T:
            raise ValueError(f"num_inference_steps must be between 1 and {T - 1}, not {N}")
        return step_pairs([k * ratio + self.steps_offset for k in reversed(range(N))], strength)


def step_pairs(timesteps: Sequence[int], strength: float) -> list[tuple[int, int]]:
    """Return the pairs (t, t_prev) of falling timesteps; the last t_prev is -1.

    A strength below 1 leaves out the first steps (SDEdit, Meng et al. 2022): int(N * strength) of N remain. Raises ValueError
    if none remains.
    """
    N = len(timesteps)
    count = int(N * strength) if 0 < strength <= 1 else 0
    if not count:
        raise ValueError(
            f"strength must be above 0 and up to 1, and {strength:g} leaves none of the {N} steps; "
            "give more steps or a higher strength"
        )
    return list(zip(timesteps, [*timesteps[1:], -1]))[N - count :]
