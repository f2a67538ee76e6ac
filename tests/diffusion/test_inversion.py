"""Inversion equals diffusers', and sampling returns to the inverted latents."""

import diffusers
import pytest
import torch
from conftest import SCHEDULE, relative

from lida.diffusion import Blend, ddim_inverse_step, ddim_invert, sample


@pytest.mark.parametrize("steps", [7, 50])
def test_inverse_steps_equal_diffusers(sd, steps):
    reference = diffusers.DDIMInverseScheduler(**SCHEDULE)
    reference.set_timesteps(steps)
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t, t_prev in sd.schedule.steps(steps):
        theirs = reference.step(noise_pred, t, latents).prev_sample
        assert relative(ddim_inverse_step(sd.schedule, latents, noise_pred, t_prev, t), theirs) <= 1e-5


def test_what_was_inverted_comes_back(sd):
    """Up to rounding if the prediction does not depend on the latents; outside the mask, along the trajectory."""
    noise_pred, latents, steps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), sd.schedule.steps(20, 0.6)
    trajectory = ddim_invert(lambda x, t: noise_pred, sd.schedule, latents, steps)
    start = trajectory[steps[0][0]]
    assert set(trajectory) == {-1} | {t for t, _ in steps} and torch.equal(trajectory[-1], latents)
    again = sample(lambda x, t: noise_pred, sd.schedule, start, steps)
    assert relative(again, latents) <= 1e-4 and relative(start, latents) > 0.1  # twelve steps there and back
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    blend = Blend(mask, trajectory)
    other = sample(lambda x, t: -noise_pred, sd.schedule, start, steps, blend=blend)
    assert torch.equal(other[..., :4], latents[..., :4]) and not torch.allclose(other[..., 4:], latents[..., 4:], atol=0.1)


def test_the_prediction_is_asked_at_the_timestep_of_the_latents(sd):
    """Backwards, the latents are at t_prev; for clean latents it is the last timestep that the sampler visits."""
    asked, steps = [], sd.schedule.steps(5)
    ddim_invert(lambda x, t: asked.append(int(t[0])) or 0 * x, sd.schedule, torch.zeros(1, 4, 2, 2), steps)
    assert asked == [1, 1, 201, 401, 601] and [t for t, _ in steps] == [801, 601, 401, 201, 1]
