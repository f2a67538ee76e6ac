"""The forward process q(x_t | x_0) of DDPM and the loss that trains a noise predictor (Ho et al. 2020)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor


def randn_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Standard normal noise of x's shape, drawn where the generator lives: a CPU seed means the same on every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """The fields of diffusers' scheduler_config.json that Stable Diffusion 1.5 uses, with DDIMScheduler's defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    fixed: ClassVar[dict] = {
        "trained_betas": None, "prediction_type": "epsilon", "clip_sample": False, "thresholding": False,
        "timestep_spacing": "leading", "rescale_betas_zero_snr": False,
    }  # fmt: skip
    advisory: ClassVar[tuple] = (  # of what is off, and of PNDM
        "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps",
    )  # fmt: skip


class NoiseSchedule:
    """alpha-bar of DDPM's T steps, and the steps that a sampler of N of them visits."""

    def __init__(self, config: NoiseScheduleConfig):
        self.config = config
        T, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
        if config.beta_schedule == "scaled_linear":  # linear in sqrt(beta): latent diffusion's
            betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float32) ** 2
        elif config.beta_schedule == "linear":
            betas = torch.linspace(start, end, T, dtype=torch.float32)
        else:
            raise ValueError(f"beta_schedule {config.beta_schedule!r} is not one of linear, scaled_linear")
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)  # (T,)
        # What stands for alpha-bar past the last step: SD1.5 never quite reaches the clean image.
        self.final_alpha_cumprod = torch.tensor(1.0) if config.set_alpha_to_one else self.alphas_cumprod[0]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, equation 4), for (B,) or () timesteps."""
        abar = self.alphas_cumprod.to(latents.device, latents.dtype)[timesteps]
        abar = abar.reshape(-1, *[1] * (latents.ndim - 1))
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise

    def alpha_cumprod(self, t: int) -> Tensor:
        """abar_t, and the last one's value for t < 0."""
        return self.alphas_cumprod[t] if t >= 0 else self.final_alpha_cumprod

    def sigma(self, t: int) -> Tensor:
        """The noise beside a picture of scale 1, sqrt((1 - abar_t) / abar_t) (Karras et al. 2022, table 1); none for t < 0."""
        return ((1 - self.alphas_cumprod[t]) / self.alphas_cumprod[t]).sqrt() if t >= 0 else torch.zeros(())

    def timesteps(self, num_inference_steps: int, strength: float = 1.0) -> list[tuple[int, int]]:
        """The pairs (t, t_prev) to walk, from noisy to clean, spaced as diffusers' "leading"; the last t_prev is -1.

        A strength below 1 leaves out the first steps (SDEdit, Meng et al. 2022): int(N * strength) of N are walked.
        Raises ValueError where N steps do not fit into the schedule, and for a strength that leaves none of them.
        """
        T, N = self.config.num_train_timesteps, num_inference_steps
        ratio = T // N if 0 < N <= T else 0
        if not ratio or (N - 1) * ratio + self.config.steps_offset >= T:
            raise ValueError(f"num_inference_steps must be between 1 and {T - 1}, not {N}")
        walked = int(N * strength)
        if not 1 <= walked <= N:
            raise ValueError(f"strength must be above 0 and up to 1, not {strength}: {walked} of {N} steps would be walked")
        steps = [k * ratio + self.config.steps_offset for k in reversed(range(N))]
        return list(zip(steps, [*steps[1:], -1]))[N - walked :]


def noise_prediction_loss(
    unet: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    encoder_hidden_states: Tensor,
    noise: Tensor | None = None,
    timesteps: Tensor | None = None,
    snr_gamma: float | None = None,
    pixel_weights: Tensor | None = None,
    teacher: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """|| eps - eps_theta(x_t, t, c) ||^2, averaged (Ho et al. 2020, equation 14).

    latents (B, 4, h, w), encoder_hidden_states (B, M, C); noise like latents and timesteps (B,) are drawn unless given.
    With `snr_gamma` the easy, nearly clean steps count less: by min(snr, gamma) / snr (Hang et al. 2023, section 3.4).
    `pixel_weights` (B, 1, h, w) weigh the places of a picture. With a `teacher`, its prediction takes the place of eps: that
    holds the model to what another one does (Qi et al. 2025, extrapolation regularisation).
    """
    noise = torch.randn_like(latents) if noise is None else noise
    if timesteps is None:
        timesteps = torch.randint(schedule.config.num_train_timesteps, latents.shape[:1], device=latents.device)
    inputs = schedule.add_noise(latents, noise, timesteps), timesteps, encoder_hidden_states
    target = noise
    if teacher is not None:
        with torch.no_grad():
            target = teacher(*inputs)
    error = (unet(*inputs).float() - target.float()) ** 2  # (B, 4, h, w)
    if pixel_weights is not None:
        error = pixel_weights * error
    if snr_gamma is not None:
        abar = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
        weights = (snr_gamma * (1 - abar) / abar).clamp(max=1)  # (B,); snr = abar / (1 - abar)
        error = weights[:, None, None, None] * error
    return error.mean()


def mask_weights(mask: Tensor, unmasked_weight: float = 0.0, normalise: bool = False) -> Tensor:
    """Pixel weights of a mask (B, 1, h, w): 1 where it is white, `unmasked_weight` where it is black.

    Normalised, they are 1 on average in each picture, so that a small face counts as much as a large one.
    """
    weights = mask + unmasked_weight * (1 - mask)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6) if normalise else weights
