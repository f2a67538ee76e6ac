"""Classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    predict_noise: Callable[[Tensor, Tensor, Tensor], Tensor], cond: Tensor, uncond: Tensor | None, guidance_scale: float,
    rescale: float = 0.0, acts_at: Callable[[int], bool] = lambda t: True,
) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    """Return eps_u + g (eps_c - eps_u) as a function of latents (B, C, h, w) and timesteps (B,).

    `predict_noise`, such as a UNet, takes latents, timesteps and encoder_hidden_states; `cond` and `uncond` are the encoded
    prompts (B, M, C_text). Both go through the network as one batch, the unconditional first. At g <= 1, and at timesteps where
    guidance does not act (Kynkaanniemi et al. 2024), the result is the conditional prediction alone, at half the cost; at g <= 1
    `uncond` may be None. `rescale` is the weight of the rescaled prediction; see rescaled().
    """
    both = None
    if not guidance_scale <= 1:
        assert uncond is not None
        both = torch.cat([uncond, cond])

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        if both is None or not acts_at(int(timesteps[0])):
            return predict_noise(latents, timesteps, cond)
        eps_u, eps_c = predict_noise(torch.cat([latents] * 2), torch.cat([timesteps] * 2), both).chunk(2)
        eps = eps_u + guidance_scale * (eps_c - eps_u)
        return rescaled(eps, eps_c, rescale) if rescale else eps

    return predict


def rescaled(eps: Tensor, eps_c: Tensor, share: float) -> Tensor:
    """Return eps, a share of it rescaled to the standard deviation of eps_c (Lin et al. 2024, equations 15 and 16)."""
    dims = tuple(range(1, eps.ndim))
    same_deviation = eps * (eps_c.std(dims, keepdim=True) / eps.std(dims, keepdim=True))
    return share * same_deviation + (1 - share) * eps
