"""The photograph is put back where the mask is black, and for a while where it is grey."""

import pytest
import torch

from lida.diffusion import Blend, mask_to_latents, sample


def test_a_grey_mask_is_released_at_its_step(sd):
    """Of ten steps, a grey of 0.35 is the photograph's for six and free for the last three; what is black never changes."""
    steps = sd.schedule.steps(10)
    init, noise, seen = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), []
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:4], mask[..., 4:6], mask[..., 6:] = 0.35, 1.0, 0.05
    trajectory = {t: sd.schedule.add_noise(init, noise, torch.tensor(t)) for t, _ in steps} | {-1: init}
    blend = Blend(mask, trajectory)

    def seen_blend(*args):
        seen.append(blend(*args))
        return seen[-1]

    sample(lambda x, t: 0 * x + 1, sd.schedule, trajectory[steps[0][0]], steps, blend=seen_blend)
    for step, (x, (_, t_prev)) in enumerate(zip(seen, steps, strict=True)):
        same = [torch.equal(x[..., a:b], trajectory[t_prev][..., a:b]) for a, b in ((0, 2), (2, 4), (4, 6), (6, 8))]
        assert same == [True, step < 6, False, step < 9], step


def test_a_row_of_paintings_is_each_painting_by_itself():
    mask, painted = torch.rand(1, 1, 4, 4), torch.randn(6, 4, 4, 4)
    blend = Blend(mask, {500: torch.randn(2, 4, 4, 4), -1: torch.randn(2, 4, 4, 4)})
    row = blend(painted, 500, 0.3)
    for k in range(3):
        own = slice(2 * k, 2 * k + 2)
        assert torch.equal(row[own], blend(painted[own], 500, 0.3))
    assert torch.equal(blend(painted[:2], -1, 1.0), blend.trajectory[-1])  # nothing is painted before the first step


def test_a_cell_of_latents_is_repainted_where_any_of_its_pixels_is():
    mask = torch.zeros(1, 1, 64, 48)
    mask[0, 0, 9, 47] = 0.05
    small = mask_to_latents(mask, (8, 6))
    assert small.count_nonzero() == 1 and small[0, 0, 1, 5] == pytest.approx(0.05)
