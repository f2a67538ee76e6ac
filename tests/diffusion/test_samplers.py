"""The step rules equal diffusers' schedulers; custom rules and custom timesteps work like the named ones."""

import diffusers
import pytest
import torch
from conftest import SCHEDULE, draws, noise_image, relative
from PIL import Image

from lida.aging import Edit, age_face, generate
from lida.diffusion import SCHEDULERS, NoiseSchedule, Sampling, ddim_step, dpmpp_2m_step, euler_step, sample

SIGMAS = {k: v for k, v in SCHEDULE.items() if k not in ("clip_sample", "set_alpha_to_one")}


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 300])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_steps_equal_diffusers(sd, steps, eta):
    reference = diffusers.DDIMScheduler(**SCHEDULE)
    reference.set_timesteps(steps)
    pairs = sd.schedule.steps(steps)
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t, t_prev in (pairs[0], pairs[len(pairs) // 2], pairs[-1]):
        ours = ddim_step(sd.schedule, latents, noise_pred, t, t_prev, eta, draws(t))
        theirs = reference.step(noise_pred, t, latents, eta=eta, generator=draws(t)).prev_sample
        assert relative(ours, theirs) <= 1e-5


def test_the_parts_of_a_batch_share_the_noise_that_ddim_draws(sd):
    latents, noise_pred = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    alone = ddim_step(sd.schedule, latents, noise_pred, 500, 480, 1.0, draws())
    both = ddim_step(sd.schedule, latents.repeat(3, 1, 1, 1), noise_pred.repeat(3, 1, 1, 1), 500, 480, 1.0, draws(), repeats=3)
    assert relative(both, alone.repeat(3, 1, 1, 1)) <= 1e-6


@pytest.mark.parametrize("steps", [2, 5, 20, 50])
def test_dpm_solver_steps_equal_diffusers(sd, steps):
    """A whole run of DPMSolverMultistepScheduler: dpmsolver++, order 2, midpoint, to no noise, on the same timesteps."""
    reference = diffusers.DPMSolverMultistepScheduler(
        **SIGMAS, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False,
        final_sigmas_type="zero", timestep_spacing="leading",
    )  # fmt: skip
    pairs = sd.schedule.steps(steps)
    reference.set_timesteps(timesteps=[t for t, _ in pairs])
    ours = theirs = torch.randn(2, 4, 8, 8)
    history = None
    for t, t_prev in pairs:
        noise_pred = torch.randn(2, 4, 8, 8)
        ours, history = dpmpp_2m_step(sd.schedule, ours, noise_pred, t, t_prev, history)
        theirs = reference.step(noise_pred, t, theirs).prev_sample
        assert relative(ours, theirs) <= 1e-5, t


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_euler_steps_equal_diffusers(sd, steps):
    """A whole run of EulerDiscreteScheduler on the same timesteps; its latents are ours by sqrt(1 + sigma^2)."""
    reference = diffusers.EulerDiscreteScheduler(**SIGMAS, timestep_spacing="leading", final_sigmas_type="zero")
    pairs = sd.schedule.steps(steps)
    reference.set_timesteps(timesteps=[t for t, _ in pairs])
    ours = torch.randn(2, 4, 8, 8)
    theirs = ours * (1 + sd.schedule.sigma(pairs[0][0]) ** 2).sqrt()
    for (t, t_prev), timestep in zip(pairs, reference.timesteps):
        noise_pred = torch.randn(2, 4, 8, 8)
        reference.scale_model_input(theirs, timestep)
        ours = euler_step(sd.schedule, ours, noise_pred, t, t_prev)
        theirs = reference.step(noise_pred, timestep, theirs).prev_sample
        assert relative(ours * (1 + sd.schedule.sigma(t_prev) ** 2).sqrt(), theirs) <= 1e-5, t


def test_euler_is_ddim_except_in_its_last_step(sd):
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    *pairs, last = sd.schedule.steps(20)
    difference = {
        pair: relative(*(step(sd.schedule, latents, noise_pred, *pair) for step in (euler_step, ddim_step)))
        for pair in (*pairs, last)
    }
    assert all(difference[pair] <= 1e-5 for pair in pairs) and difference[last] > 1e-3


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2)])
def test_every_sampler_reaches_the_solution_in_its_order(name, order):
    """With twice the steps, half the error, or a quarter of it.

    For data of one normal distribution, x_0 ~ N(m, v), the noise prediction is known,
    eps(x, t) = (x - sqrt(abar) m) sqrt(1 - abar) / (abar v + 1 - abar), and on the way from x_T to x_0
    (x_t - sqrt(abar) m) / sqrt(abar v + 1 - abar) stays what it is.
    """
    schedule, mean, variance, start = NoiseSchedule(torch.linspace(1e-4, 0.02, 1000)), 0.7, 0.3, torch.randn(64, 1, 1, 1)
    abar = schedule.alphas_cumprod
    deviation = (abar * variance + 1 - abar).sqrt()

    def predict(x, t):
        return (x - abar[t[0]].sqrt() * mean) * (1 - abar[t[0]]).sqrt() / deviation[t[0]] ** 2

    errors = []
    for pairs in (schedule.steps(250), schedule.steps(500)):
        first = pairs[0][0]
        exact = mean + variance**0.5 * (start - abar[first].sqrt() * mean) / deviation[first]
        errors.append(relative(sample(predict, schedule, start, pairs, SCHEDULERS[name]), exact))
    assert errors[0] <= 0.01 and errors[0] / errors[1] >= 0.9 * 2**order


def own_ddim(schedule, latents, noise_pred, t, t_prev):
    """DDIM as a user would write it."""
    abar, abar_prev = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_prev)
    x0 = (latents - (1 - abar).sqrt() * noise_pred) / abar.sqrt()
    return abar_prev.sqrt() * x0 + (1 - abar_prev).sqrt() * noise_pred


def own_multistep(schedule, latents, noise_pred, t, t_prev, history=None):
    """DPM-Solver++(2M) with a history of its own making."""
    last = None if history is None else history["last"]
    latents, last = dpmpp_2m_step(schedule, latents, noise_pred, t, t_prev, last)
    return latents, {"last": last, "count": 1 if history is None else history["count"] + 1}


@pytest.mark.parametrize(("name", "rule"), [("ddim", own_ddim), ("euler", euler_step), ("dpmpp_2m", own_multistep)])
def test_a_step_rule_of_ones_own_paints_what_the_named_one_paints(sd, name, rule):
    """From a prompt and over a photograph, where a multistep rule needs its history."""
    image, mask = noise_image(64, 64), Image.new("L", (64, 64), 255)
    found = []
    for scheduler in (name, rule):
        sampling = Sampling(6, scheduler=scheduler)
        painted = generate(sd, "a boy", sampling, generator=draws(), output_type="latent")
        aged = age_face(sd, image, mask, "a boy", Edit(strength=0.7), sampling, generator=draws(), output_type="latent")
        found.append(torch.cat([painted, aged]))
    assert relative(*found) <= 1e-5
    if name == "dpmpp_2m":
        first_order = lambda *inputs: dpmpp_2m_step(*inputs)[0]  # noqa: E731
        forgetful = generate(sd, "a boy", Sampling(6, scheduler=first_order), generator=draws(), output_type="latent")
        assert relative(forgetful, found[0][:1]) > 1e-3  # the history did reach the rule


def test_a_history_goes_from_each_step_to_the_next(sd):
    seen = []

    def rule(schedule, latents, noise_pred, t, t_prev, history=None):
        seen.append(history)
        return latents, t

    sample(lambda x, t: x, sd.schedule, torch.zeros(1, 4, 2, 2), [(800, 400), (400, 7), (7, -1)], rule)
    assert seen == [None, 800, 400]


def test_timesteps_of_ones_own_are_walked_as_given(sd):
    """Those of 10 steps give what 10 steps give, at any strength; others give another picture."""
    image, mask, own = noise_image(64, 64), Image.new("L", (64, 64), 255), tuple(t for t, _ in sd.schedule.steps(10))

    def aged(**options):
        sampling = Sampling(scheduler="dpmpp_2m", **options)
        return age_face(sd, image, mask, "a boy", Edit(strength=0.6), sampling, generator=draws(), output_type="latent")

    expected = aged(num_inference_steps=10)
    assert torch.equal(aged(timesteps=own), expected)
    assert relative(aged(timesteps=(901, 601, 501, 350, 200, 101, 51, 21, 11, 1)), expected) > 1e-3
    assert Sampling(timesteps=(999, 400, 0)).steps(sd.schedule) == [(999, 400), (400, 0), (0, -1)]


@pytest.mark.parametrize("timesteps", [(), (1, 500), (500, 500, 1), (1000, 1), (500, -1), (500.5, 1)])
def test_timesteps_that_do_not_fall_within_the_schedule_are_refused(sd, timesteps):
    with pytest.raises(ValueError, match="timesteps must fall from at most 999 to at least 0"):
        Sampling(timesteps=timesteps).steps(sd.schedule)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": "plms"}, "scheduler 'plms' is not one of ddim, dpmpp_2m, euler"),
        ({"scheduler": None}, "scheduler None is not one of"),
        ({"guidance_scale": 1e300}, "guidance_scale must lie between 1, no guidance, and 100"),
        ({"guidance_scale": 0.5}, "guidance_scale must lie between 1, no guidance, and 100, not 0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale must lie between 1, no guidance, and 100, not nan"),
        ({"guidance_rescale": 1.1}, "guidance_rescale must lie between 0 and 1, not 1.1"),
        ({"eta": -0.1}, "eta must lie between 0 and 1, not -0.1"),
        ({"eta": float("nan")}, "eta must lie between 0 and 1, not nan"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta belongs to scheduler 'ddim', not 'euler'"),
        ({"guidance_interval": (5, 1)}, "guidance_interval must be two noise levels, the lower first"),
        ({"guidance_interval": (-1, 1)}, "guidance_interval must be two noise levels"),
    ],
)
def test_sampling_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("predict", "pair", "message"),
    [
        (lambda x, t: x, (1000, 0), r"\(1000, 0\) is not a step \(t, t_prev\) with t_prev < t and 0 <= t <= 999"),
        (lambda x, t: x, (-1, -2), "is not a step"),
        (lambda x, t: x, (5, 5), "is not a step"),
        (lambda x, t: x[..., :1], (5, -1), r"predict returned .*1, 4, 2, 1.* for latents .*1, 4, 2, 2"),
        (lambda x, t: None, (5, -1), "predict returned None for latents"),
    ],
)
def test_steps_and_predictions_that_do_not_fit_are_refused(sd, predict, pair, message):
    with pytest.raises(ValueError, match=message):
        sample(predict, sd.schedule, torch.zeros(1, 4, 2, 2), [pair])
