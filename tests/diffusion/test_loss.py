"""The loss: its weights by place, and a teacher in the place of the noise."""

import pytest
import torch

from lida.diffusion.loss import mask_weights, noise_prediction_loss


def test_the_loss_is_weighed_by_place_and_held_to_a_teacher(sd):
    x, c = torch.randn(2, 4, 8, 8), sd.text_encoder(["a", "b"])
    noise, t, mask = torch.randn_like(x), torch.tensor([100, 700]), torch.rand(2, 1, 8, 8)
    noisy = sd.schedule.add_noise(x, noise, t)
    error = (sd.unet(noisy, t, c) - noise) ** 2
    weights = mask_weights(mask, unmasked_weight=0.1)
    loss = noise_prediction_loss(sd.unet, sd.schedule, x, c, noise, t, pixel_weights=weights)
    assert loss.item() == pytest.approx(((mask + 0.1 * (1 - mask)) * error).mean().item(), rel=1e-5)
    alike = mask_weights(mask, normalise=True)
    assert torch.allclose(alike.mean((1, 2, 3)), torch.ones(2)) and mask_weights(0 * mask, 0.0, True).sum() == 0
    held = noise_prediction_loss(sd.unet, sd.schedule, x, c, noise, t, teacher=lambda x, t, c: 0 * x + 2)
    assert held.item() == pytest.approx(((sd.unet(noisy, t, c) - 2) ** 2).mean().item(), rel=1e-5)
    assert noise_prediction_loss(sd.unet, sd.schedule, x, c, noise, t, teacher=sd.unet).item() <= 1e-5**2
