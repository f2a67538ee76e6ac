"""FlowEdit equals the paper's algorithm 1 on diffusers' UNet, and leaves a photograph alone where the prompts agree."""

import diffusers
import pytest
import torch
from conftest import draws, relative

from lida.diffusion import Blend, ddim_step, dpmpp_2m_step, euler_step, flow_edit, flow_source, sample


@torch.no_grad()
def test_flow_edit_is_the_papers_algorithm(sd, folder):
    """Z_src = X + t N; Z_tar = Z_FE + Z_src - X; Z_FE += (t_next - t) (V(Z_tar, target) - V(Z_src, source)), at t = sigma."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    source, target = sd.encode(["a boy"]), sd.encode(["an old man"])
    latents, steps, abar = torch.randn(1, 4, 8, 8), sd.schedule.steps(10, 0.7), sd.schedule.alphas_cumprod

    generator, edited = draws(3), latents
    noise = {t: torch.randn(latents.shape, generator=generator) for t, _ in reversed(steps)}
    for t, t_prev in steps:
        sigma, sigma_prev = (((1 - abar[k]) / abar[k]).sqrt() if k >= 0 else 0.0 for k in (t, t_prev))
        z_src = latents + sigma * noise[t]
        z_tar = edited + z_src - latents
        v_tar, v_src = (unet(z * abar[t].sqrt(), t, c).sample for z, c in ((z_tar, target), (z_src, source)))
        edited = edited + (sigma_prev - sigma) * (v_tar - v_src)

    trajectory, source_pred = flow_source(lambda x, t: sd.unet(x, t, source), sd.schedule, latents, steps, draws(3))
    rule = flow_edit(euler_step, trajectory, source_pred)
    ours = sample(lambda x, t: sd.unet(x, t, target), sd.schedule, trajectory[steps[0][0]], steps, rule)
    assert relative(ours, edited) <= 1e-4 and relative(ours, latents) > 1e-3


@pytest.mark.parametrize("rule", [ddim_step, euler_step, dpmpp_2m_step])
def test_the_photograph_stays_where_the_predictions_agree(sd, rule):
    """For every painting of a batch; outside the mask wherever the predictions lead."""
    latents, steps = torch.randn(2, 4, 8, 8), sd.schedule.steps(10, 0.7)
    trajectory, source_pred = flow_source(lambda x, t: 0.1 * x, sd.schedule, latents, steps, draws())
    rule, start = flow_edit(rule, trajectory, source_pred), trajectory[steps[0][0]].repeat(3, 1, 1, 1)
    same = sample(lambda x, t: 0.1 * x, sd.schedule, start, steps, rule)
    latents = latents.repeat(3, 1, 1, 1)
    assert torch.equal(same, latents)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    blend = Blend(mask, trajectory)
    other = sample(lambda x, t: -x, sd.schedule, start, steps, rule, blend)
    assert torch.equal(other[..., :4], latents[..., :4]) and relative(other[..., 4:], latents[..., 4:]) > 0.1
