"""The noise schedule equals diffusers', from a config or from custom betas."""

import diffusers
import pytest
import torch
from conftest import SCHEDULE, draws, relative
from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar

import lida
from lida.aging import generate
from lida.diffusion import NoiseSchedule, NoiseScheduleConfig, Sampling


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_alphas_cumprod_equal_diffusers(name):
    ours = NoiseSchedule.from_config(NoiseScheduleConfig(beta_schedule=name, set_alpha_to_one=False))
    theirs = diffusers.DDIMScheduler(beta_schedule=name, set_alpha_to_one=False)
    assert relative(ours.alphas_cumprod, theirs.alphas_cumprod) <= 1e-6  # a product of a thousand factors
    assert relative(ours.final_alpha_cumprod, theirs.final_alpha_cumprod) <= 1e-6


def test_a_config_is_the_schedule_of_its_betas(sd):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    ours = NoiseSchedule(betas, steps_offset=1)
    assert torch.equal(ours.alphas_cumprod, sd.schedule.alphas_cumprod)
    assert torch.equal(ours.final_alpha_cumprod, sd.schedule.final_alpha_cumprod)
    assert ours.steps(50) == sd.schedule.steps(50) and len(ours) == 1000


def test_adding_noise_equals_diffusers(sd):
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    theirs = diffusers.DDIMScheduler(**SCHEDULE).add_noise(latents, noise, timesteps)
    assert relative(sd.schedule.add_noise(latents, noise, timesteps), theirs) <= 1e-6  # three roundings of 2^-24


def test_sigma_is_the_noise_beside_a_signal_of_one(sd):
    for t in (0, 500, 999):
        abar = sd.schedule.alphas_cumprod[t].double()
        assert float(sd.schedule.sigma(t)) == pytest.approx(float(((1 - abar) / abar).sqrt()), rel=1e-5)
    assert sd.schedule.sigma(-1) == 0 and sd.schedule.alpha_cumprod(-1) == sd.schedule.alphas_cumprod[0]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 50, 300])
def test_timesteps_equal_diffusers(sd, steps):
    reference = diffusers.DDIMScheduler(**SCHEDULE)
    reference.set_timesteps(steps)
    pairs = sd.schedule.steps(steps)
    assert [t for t, _ in pairs] == reference.timesteps.tolist()
    assert [t_prev for _, t_prev in pairs] == [*reference.timesteps.tolist()[1:], -1]


@pytest.mark.parametrize(("strength", "walked"), [(1.0, 20), (0.5, 10), (0.58, 11), (0.05, 1)])
def test_a_strength_leaves_out_the_first_steps(sd, strength, walked):
    assert sd.schedule.steps(20, strength) == sd.schedule.steps(20)[20 - walked :]


@pytest.mark.parametrize("steps", [0, -1, 1000, 5000])
def test_steps_that_do_not_fit_are_refused(sd, steps):
    with pytest.raises(ValueError, match=f"between 1 and 999, not {steps}"):
        sd.schedule.steps(steps)


@pytest.mark.parametrize("strength", [0.0, 1.5, 0.01, -1.0, float("nan"), float("inf")])
def test_a_strength_that_leaves_no_step_is_refused(sd, strength):
    with pytest.raises(
        ValueError, match=f"strength must be above 0 .* {strength:g} leaves none of the 20 steps; give more steps or"
    ):
        sd.schedule.steps(20, strength)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (torch.tensor([]), "between 0 and 1"),
        (torch.tensor([0.1, 0.0]), "between 0 and 1"),
        (torch.tensor([0.1, 1.0]), "between 0 and 1"),
        (torch.tensor([0.1, -0.1]), "between 0 and 1"),
        (torch.tensor([0.1, torch.nan]), "between 0 and 1"),
        (torch.full((2, 2), 0.1), "between 0 and 1"),
        (torch.full((1000,), 0.5), "alpha-bar reaches 0"),
    ],
    ids=["none", "0", "1", "negative", "NaN", "two dimensions", "no signal is left"],
)
def test_impossible_betas_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(betas)


@pytest.mark.parametrize(
    "values", [{"final_alpha_cumprod": x} for x in (0, 2, -1, torch.nan)] + [{"steps_offset": -1}, {"steps_offset": 1.5}]
)
def test_an_impossible_end_of_the_schedule_is_refused(values):
    with pytest.raises(ValueError, match="final_alpha_cumprod must be above 0 and up to 1, steps_offset a timestep"):
        NoiseSchedule(torch.full((10,), 0.01), **values)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m"])
def test_a_cosine_schedule_paints_finite_latents(sd, scheduler):
    """alpha-bar falls to 2e-9 there (Nichol & Dhariwal 2021, equation 17)."""
    sd.schedule = NoiseSchedule(betas_for_alpha_bar(1000), steps_offset=1)
    latents = generate(sd, "a boy", Sampling(10, scheduler=scheduler), generator=draws(), output_type="latent")
    assert latents.isfinite().all() and latents.abs().max() > 0


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_cosine_schedule_equals_diffusers_with_the_same_betas(sd, pipe, eta):
    """Ten steps, with guidance; the first divides by sqrt(alpha-bar), so that rounding is larger there than the latents are."""
    betas = betas_for_alpha_bar(1000)
    sd.schedule = NoiseSchedule(betas)
    pipe.scheduler = diffusers.DDIMScheduler(trained_betas=betas.numpy(), clip_sample=False, set_alpha_to_one=False)
    ours = generate(sd, "a boy", Sampling(10, eta=eta), generator=draws(3), output_type="latent")
    options = {"num_inference_steps": 10, "guidance_scale": Sampling().guidance_scale, "eta": eta, "output_type": "latent"}
    assert relative(ours, pipe("a boy", generator=draws(3), **options).images) <= 1e-4


def test_the_final_alpha_follows_the_schedule_unless_it_is_given():
    betas = betas_for_alpha_bar(1000)
    assert NoiseSchedule(betas).final_alpha_cumprod == NoiseSchedule(betas).alphas_cumprod[0]
    assert NoiseSchedule(betas, final_alpha_cumprod=1.0).final_alpha_cumprod == 1


def test_a_model_with_a_schedule_from_betas_is_not_saved_as_another(sd, tmp_path):
    sd.schedule = lida.NoiseSchedule(betas_for_alpha_bar(1000))
    with pytest.raises(ValueError, match="made from betas"):
        sd.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
