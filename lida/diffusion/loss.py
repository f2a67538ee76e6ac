"""The loss that trains a noise predictor (Ho et al. 2020), and its weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import NoiseSchedule


def noise_prediction_loss(
    unet: Callable[[Tensor, Tensor, Tensor], Tensor], schedule: NoiseSchedule, latents: Tensor, encoder_hidden_states: Tensor,
    noise: Tensor | None = None, timesteps: Tensor | None = None, snr_gamma: float | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute the mean of || eps - eps_theta(x_t, t, c) ||^2 (Ho et al. 2020, equation 14).

    latents (B, C, h, w), encoder_hidden_states (B, M, C_text); noise like latents and timesteps (B,) are drawn unless given.
    `snr_gamma` is min-SNR weighting: a sample counts min(snr, gamma) / snr, so nearly clean ones count less (Hang et al. 2023,
    section 3.4). `pixel_weights` (B, 1, h, w) weigh the positions of a picture.
    """
    noise = torch.randn_like(latents) if noise is None else noise
    if timesteps is None:
        timesteps = torch.randint(len(schedule), latents.shape[:1], device=latents.device)
    noise_pred = unet(schedule.add_noise(latents, noise, timesteps), timesteps, encoder_hidden_states)
    error = (noise_pred.float() - noise.float()) ** 2  # (B, C, h, w)
    if pixel_weights is not None:
        error = pixel_weights * error
    if snr_gamma is not None:
        abar = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
        weights = (snr_gamma * (1 - abar) / abar).clamp(max=1)  # (B,); snr = abar / (1 - abar)
        error = weights[:, None, None, None] * error
    return error.mean()


def mask_weights(mask: Tensor, unmasked_weight: float = 0.0, normalise: bool = False) -> Tensor:
    """Return pixel weights like a mask (B, 1, h, w): 1 where it is white, `unmasked_weight` where it is black.

    Normalised weights have mean 1 in each picture, so that a small face counts as much as a large one.
    """
    weights = mask + unmasked_weight * (1 - mask)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6) if normalise else weights
