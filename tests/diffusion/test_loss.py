"""The loss and its weights equal diffusers' and their equations."""

import diffusers
import pytest
import torch
from conftest import relative
from diffusers.training_utils import compute_snr

from lida.diffusion import mask_weights, noise_prediction_loss


@pytest.fixture
def batch():
    """Latents, noise, timesteps and hidden states."""
    return torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([5, 300, 600, 990]), torch.randn(4, 77, 48)


@pytest.mark.parametrize("gamma", [None, 0.5, 5.0])
def test_the_loss_and_its_snr_weights_equal_diffusers(sd, pipe, batch, gamma):
    """As diffusers' training scripts compute --snr_gamma for noise prediction."""
    latents, noise, timesteps, context = batch
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    snr = compute_snr(scheduler, timesteps)
    weights = torch.ones(4) if gamma is None else snr.clamp(max=gamma) / snr
    with torch.no_grad():
        ours = noise_prediction_loss(sd.unet, sd.schedule, latents, context, noise, timesteps, gamma)
        noise_pred = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
    losses = (noise_pred - noise).square().mean(dim=(1, 2, 3))
    assert float(ours) == pytest.approx(float((weights * losses).mean()), rel=1e-5)


def test_pixel_weights_weigh_the_squared_error(sd, batch):
    latents, noise, timesteps, context = batch
    weights = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        ours = noise_prediction_loss(sd.unet, sd.schedule, latents, context, noise, timesteps, pixel_weights=weights)
        noise_pred = sd.unet(sd.schedule.add_noise(latents, noise, timesteps), timesteps, context)
    assert float(ours) == pytest.approx(float((weights * (noise_pred - noise) ** 2).mean()), rel=1e-5)


def test_noise_and_timesteps_are_drawn_unless_given(sd):
    """Timesteps of the whole schedule, noise of unit deviation."""
    seen = []

    def unet(x, t, c):
        seen.append((x, t))
        return torch.zeros_like(x)

    loss = noise_prediction_loss(unet, sd.schedule, torch.zeros(4000, 1, 2, 2), torch.zeros(4000, 1, 1))
    assert float(loss) == pytest.approx(1, abs=0.05)  # 16,000 squares of deviation sqrt(2): four deviations of their mean
    ((_, timesteps),) = seen
    assert timesteps.min() < 10 and timesteps.max() > 989 and timesteps.max() < 1000


def test_mask_weights_are_one_inside_and_normalised_on_request():
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2], mask[1, :, :1] = 1, 1
    weights = mask_weights(mask, 0.1)
    assert torch.equal(weights[mask == 1], torch.ones(12)) and torch.equal(weights[mask == 0], torch.full((20,), 0.1))
    normalised = mask_weights(mask, 0.1, normalise=True)
    assert relative(normalised.mean(dim=(1, 2, 3)), torch.ones(2)) <= 1e-6
    assert relative(normalised[0] / weights[0], torch.full((1, 4, 4), 1 / 0.55)) <= 1e-6
