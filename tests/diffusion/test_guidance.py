"""Classifier-free guidance equals its equation and diffusers'."""

import pytest
import torch
from conftest import draws, relative

from lida.aging import generate
from lida.diffusion import Sampling, guided


def predict(latents, timesteps, hidden):
    """A noise prediction that differs by prompt."""
    return latents * hidden.mean(dim=(1, 2))[:, None, None, None] + 0.1 * latents**2


def test_guidance_is_the_sum_of_its_equation():
    x, t, cond, uncond = torch.randn(2, 4, 3, 3), torch.tensor([7, 7]), torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    eps_c, eps_u = predict(x, t, cond), predict(x, t, uncond)
    assert relative(guided(predict, cond, uncond, 3.0)(x, t), eps_u + 3 * (eps_c - eps_u)) <= 1e-6
    assert torch.equal(guided(predict, cond, None, 1.0)(x, t), eps_c)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_painting_with_guidance_equals_diffusers(sd, pipe, guidance_scale):
    sampling = Sampling(10, guidance_scale)
    ours = generate(sd, "an old man", sampling, negative_prompt="blurry", generator=draws(3), output_type="latent")
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "negative_prompt": "blurry"}
    theirs = pipe("an old man", generator=draws(3), output_type="latent", **options).images
    assert relative(ours, theirs) <= 1e-4  # ten steps of rounding


def test_guidance_is_rescaled_as_diffusers_does(sd, pipe):
    ours = generate(sd, "an old man", Sampling(5, 7.5, 0.6), generator=draws(3), output_type="latent")
    options = {"num_inference_steps": 5, "guidance_scale": 7.5, "guidance_rescale": 0.6, "output_type": "latent"}
    assert relative(ours, pipe("an old man", generator=draws(3), **options).images) <= 1e-4


def test_guidance_acts_within_its_interval_and_costs_half_outside(sd, monkeypatch):
    sizes, whole = [], type(sd.unet).forward
    monkeypatch.setattr(type(sd.unet), "forward", lambda self, x, t, c: sizes.append((int(t[0]), len(x))) or whole(self, x, t, c))
    interval = tuple(sd.schedule.sigma(t).item() for t in (201, 601))
    paint = lambda *values: generate(sd, "a boy", Sampling(10, *values), generator=draws(), output_type="latent")  # noqa: E731
    paint(4.0, 0.0, interval)
    assert sizes == [(t, 2 if 201 <= t <= 601 else 1) for t, _ in sd.schedule.steps(10)]
    assert torch.equal(paint(4.0, 0.0, (0, 1e9)), paint(4.0))
    assert torch.equal(paint(4.0, 0.0, (1e8, 1e9)), paint(1.0))
