"""The schedule, the sampler's steps and whole runs equal diffusers'."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import SCHEDULE, UNET, box_mask, noise_image, relative
from PIL import Image

import lida
import lida.diffusion.samplers
from lida.photos.masks import mask_to_latents


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 50, 300])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_steps_equal_diffusers(sd, steps, eta):
    reference = diffusers.DDIMScheduler(**SCHEDULE)
    reference.set_timesteps(steps)
    pairs = sd.schedule.timesteps(steps)
    assert [t for t, _ in pairs] == reference.timesteps.tolist()
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t, t_prev in (pairs[0], pairs[len(pairs) // 2], pairs[-1]):
        a, b = torch.Generator().manual_seed(t), torch.Generator().manual_seed(t)
        ours = lida.ddim_step(sd.schedule, latents, noise_pred, t, t_prev, eta, a)
        theirs = reference.step(noise_pred, t, latents, eta=eta, generator=b).prev_sample
        assert relative(ours, theirs) <= 1e-5


def test_add_noise_equals_diffusers(sd):
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    theirs = diffusers.DDIMScheduler(**SCHEDULE).add_noise(latents, noise, timesteps)
    assert relative(sd.schedule.add_noise(latents, noise, timesteps), theirs) <= 1e-6  # three roundings of 2^-24


@pytest.mark.parametrize("steps", [0, -1, 1000, 5000])
def test_steps_that_do_not_fit_are_refused(sd, steps):
    with pytest.raises(ValueError, match=f"between 1 and 999, not {steps}"):
        sd.schedule.timesteps(steps)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_painting_from_text_equals_diffusers(sd, pipe, guidance_scale):
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "negative_prompt": "blurry"}
    ours = lida.generate(sd, "an old man", generator=torch.Generator().manual_seed(3), output_type="latent", **options)
    theirs = pipe("an old man", generator=torch.Generator().manual_seed(3), output_type="latent", **options).images
    assert relative(ours, theirs) <= 1e-4  # ten steps of rounding
    ours = lida.generate(sd, "an old man", generator=torch.Generator().manual_seed(3), **options)[0]
    theirs = pipe("an old man", generator=torch.Generator().manual_seed(3), **options).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


@pytest.mark.parametrize("strength", [0.58, 0.6, 1.0])
def test_inpainting_equals_diffusers(sd, pipe, strength):
    """A whole run, with guidance. The mask's edges lie on the latents' grid, where both ways to shrink it agree."""
    inpaint = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    inpaint.set_progress_bar_config(disable=True)
    image, mask = noise_image(64, 64), box_mask(64, 64, (16, 8, 56, 48))
    options = {"num_inference_steps": 50, "guidance_scale": 4.0, "strength": strength, "output_type": "latent"}
    ours = lida.age_face(sd, image, mask, "a boy", context=9, generator=torch.Generator().manual_seed(3), **options)
    options |= {"height": 64, "width": 64, "generator": torch.Generator().manual_seed(3)}
    theirs = inpaint("a boy", image=image, mask_image=mask, **options).images
    assert relative(ours, theirs) <= 1e-4


@pytest.mark.parametrize("steps", [7, 50])
def test_inverse_steps_equal_diffusers(sd, steps):
    reference = diffusers.DDIMInverseScheduler(**SCHEDULE)
    reference.set_timesteps(steps)
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t, t_prev in sd.schedule.timesteps(steps):
        theirs = reference.step(noise_pred, t, latents).prev_sample
        assert relative(lida.diffusion.samplers.ddim_inverse_step(sd.schedule, latents, noise_pred, t_prev, t), theirs) <= 1e-5


def test_what_was_inverted_comes_back(sd):
    """Exactly, where the prediction does not depend on where it is asked; and outside the mask on its own path."""
    noise_pred, latents, steps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), sd.schedule.timesteps(20, 0.6)
    path = lida.diffusion.samplers.invert(lambda x, t: noise_pred, sd.schedule, latents, steps)
    assert set(path) == {-1} | {t for t, _ in steps} and torch.equal(path[-1], latents)
    again = lida.sample(lambda x, t: noise_pred, sd.schedule, path[steps[0][0]], steps)
    assert relative(again, latents) <= 1e-4 and relative(path[steps[0][0]], latents) > 0.1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    other = lida.sample(
        lambda x, t: -noise_pred, sd.schedule, path[steps[0][0]], steps, lida.diffusion.samplers.Blend(mask, latents, path=path)
    )
    assert torch.equal(other[..., :4], latents[..., :4]) and not torch.allclose(other[..., 4:], latents[..., 4:], atol=0.1)


def test_inversion_changes_what_the_prompt_asks_for(sd):
    """No noise is drawn; a batch is its prompts; what is outside the mask stays."""
    image, mask = noise_image(150, 97), box_mask(150, 97, (9, 20, 50, 57))
    options = {
        "method": "ddim_inversion",
        "source_prompt": "a boy",
        "strength": 0.4,
        "num_inference_steps": 50,
        "guidance_scale": 1.0,
    }
    latents = {}
    for prompt in ("a boy", "an old man"):
        latents[prompt] = lida.age_face(sd, image, mask, prompt, output_type="latent", **options)
        assert torch.equal(latents[prompt], lida.age_face(sd, image, mask, prompt, output_type="latent", **options))
    both = lida.age_face(sd, image, mask, list(latents), output_type="latent", **options)
    assert relative(both, torch.cat(list(latents.values()))) <= 5e-5  # 20 steps there and 20 back, of another batch
    picture = lida.age_face(sd, image, mask, "an old man", **options)[0]
    zero = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(picture)[zero], np.asarray(image)[zero]) and picture.size == image.size
    with pytest.raises(ValueError, match="method 'redraw' is not one of inpaint, inversion, ddim_inversion"):
        lida.age_face(sd, image, mask, "a boy", method="redraw")


@pytest.fixture
def inpainting(folder, tmp_path):
    """The folder with a UNet of 9 input channels, in lida and in diffusers."""
    shutil.copytree(folder, tmp_path / "inpainting")
    torch.manual_seed(9)
    diffusers.UNet2DConditionModel(**UNET, in_channels=9).save_pretrained(tmp_path / "inpainting" / "unet")
    reference = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "inpainting", safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    return lida.StableDiffusion.load(tmp_path / "inpainting"), reference


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_inpainting_model_equals_diffusers(inpainting, strength):
    """A whole run, with guidance; the photograph is not put back at each step, the model sees it."""
    sd, reference = inpainting
    image, mask = noise_image(64, 64), box_mask(64, 64, (16, 8, 56, 48))
    options = {"num_inference_steps": 20, "guidance_scale": 4.0, "strength": strength, "output_type": "latent"}
    ours = lida.age_face(sd, image, mask, "a boy", context=9, generator=torch.Generator().manual_seed(3), **options)
    options |= {"height": 64, "width": 64, "generator": torch.Generator().manual_seed(3)}
    theirs = reference("a boy", image=image, mask_image=mask, **options).images
    assert relative(ours, theirs) <= 1e-4
    blind = sd.predictor(["a boy"], "", 4.0, torch.zeros(1, 5, 8, 8))(ours, torch.tensor([500]))
    seeing = sd.predictor(["a boy"], "", 4.0, torch.ones(1, 5, 8, 8))(ours, torch.tensor([500]))
    assert relative(blind, seeing) > 1e-3  # it does look at what it is told of the picture


def test_the_inpainting_model_does_all_that_the_plain_one_does(inpainting, sd):
    """An adapter of the plain model applies to it, a batch of prompts, painting from text, and pixels outside stay."""
    model, _ = inpainting
    layers = lida.inject_lora(sd.unet, 2)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_up)
    model.load_adapter("age", lida.Adapter.of(layers))
    image, mask = noise_image(150, 97), box_mask(150, 97, (9, 20, 50, 57))

    def aged(weight: float):
        model.set_adapters(["age"], [weight])
        generator = torch.Generator().manual_seed(0)
        return lida.age_face(model, image, mask, ["a boy", "a man"], strength=0.6, num_inference_steps=5, generator=generator)

    pictures = aged(0.0) + aged(1.0)
    zero = np.asarray(mask) == 0
    assert all(np.array_equal(np.asarray(picture)[zero], np.asarray(image)[zero]) for picture in pictures)
    first, *others = (np.asarray(picture, dtype=int) for picture in pictures)
    assert all(np.abs(first - others[k]).max() > 2 for k in (0, 1))  # of another prompt, of another weight
    assert lida.generate(model, "a boy", num_inference_steps=2)[0].size == (64, 64)


def test_each_prompt_may_have_a_negative_one(sd, pipe):
    prompts, negative = ["an old man", "a girl"], ["blurry", "a hat"]
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "num_images_per_prompt": 2, "output_type": "latent"}
    ours = lida.generate(sd, prompts, negative_prompt=negative, generator=torch.Generator().manual_seed(3), **options)
    theirs = pipe(prompts, negative_prompt=negative, generator=torch.Generator().manual_seed(3), **options).images
    assert relative(ours, theirs) <= 1e-4
    with pytest.raises(ValueError, match="2 negative prompts for 1 pictures"):
        lida.generate(sd, "a boy", negative_prompt=negative, num_inference_steps=1)


def test_repeated_prompts_make_a_batch(sd):
    images = lida.generate(sd, ["a boy", "a girl"], num_images_per_prompt=2, num_inference_steps=2)
    assert len(images) == 4 and {image.size for image in images} == {(64, 64)}
    latents = lida.generate(sd, "a boy", num_inference_steps=1, height=72, width=48, output_type="latent")
    assert latents.shape == (1, 4, 9, 6)


@pytest.mark.parametrize("box", [(20, 100, 280, 103), (40, 60, 60, 70)])
def test_thin_and_small_masks_are_repainted(sd, box):
    image, mask = noise_image(300, 200), box_mask(300, 200, box)
    mask.paste(255, (240, 150, 260, 160))  # far away, so that the square about both is large
    aged = lida.age_face(sd, image, mask, "a boy", strength=1.0, num_inference_steps=4)[0]
    changed, white = (np.asarray(aged) != np.asarray(image)).any(-1), np.asarray(mask) > 0
    assert changed[white].mean() > 0.7 and not changed[~white].any()


@pytest.mark.parametrize("size", [(64, 64), (150, 97), (61, 203)])
@pytest.mark.parametrize("soft", [False, True])
def test_pixels_outside_the_mask_stay(sd, size, soft):
    image, mask = noise_image(*size), box_mask(*size, (9, 20, 50, 57))
    if soft:
        mask = Image.fromarray((np.asarray(mask) * np.random.default_rng(0).random(mask.size[::-1])).astype(np.uint8))
    aged = lida.age_face(sd, image, mask, "a boy", num_inference_steps=10, generator=torch.Generator().manual_seed(0))[0]
    before, after, zero = np.asarray(image), np.asarray(aged), np.asarray(mask) == 0
    assert aged.size == size and np.array_equal(before[zero], after[zero])
    assert (before[~zero] != after[~zero]).any(axis=-1).mean() > 0.5  # and the face did change


def test_strength_and_mask_are_checked(sd):
    image = noise_image(64, 64)
    for strength in (0.0, 1.5, 0.01):
        with pytest.raises(ValueError, match="strength"):
            lida.age_face(sd, image, Image.new("L", (64, 64), 255), "", strength=strength, num_inference_steps=20)
    with pytest.raises(ValueError, match="mask"):
        lida.age_face(sd, image, Image.new("L", (32, 64), 255), "")
    with pytest.raises(ValueError, match="the mask is black"):
        lida.age_face(sd, image, Image.new("L", (64, 64), 0), "")


def test_no_mask_is_too_small_for_the_latents():
    """Sampling one pixel of each cell would lose this one."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 17:20, 42:44] = 1
    latent = mask_to_latents(mask, (8, 8))
    assert latent.sum() == 1 and latent[0, 0, 2, 5] == 1


SIGMAS = {k: v for k, v in SCHEDULE.items() if k not in ("clip_sample", "set_alpha_to_one")}


@pytest.mark.parametrize("steps", [2, 5, 20, 50])
def test_dpm_solver_steps_equal_diffusers(sd, steps):
    """A whole run of DPMSolverMultistepScheduler: dpmsolver++, order 2, midpoint, to no noise, on the same timesteps."""
    reference = diffusers.DPMSolverMultistepScheduler(
        **SIGMAS, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False,
        final_sigmas_type="zero", timestep_spacing="leading",
    )  # fmt: skip
    pairs = sd.schedule.timesteps(steps)
    reference.set_timesteps(timesteps=[t for t, _ in pairs])
    torch.manual_seed(0)
    ours = theirs = torch.randn(2, 4, 8, 8)
    history = None
    for t, t_prev in pairs:
        noise_pred = torch.randn(2, 4, 8, 8)
        ours, history = lida.diffusion.samplers.dpmpp_2m_step(sd.schedule, ours, noise_pred, t, t_prev, history)
        theirs = reference.step(noise_pred, t, theirs).prev_sample
        assert relative(ours, theirs) <= 1e-5, t


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_euler_steps_equal_diffusers(sd, steps):
    """A whole run of EulerDiscreteScheduler on the same timesteps; its latents are ours by sqrt(1 + sigma^2)."""
    reference = diffusers.EulerDiscreteScheduler(**SIGMAS, timestep_spacing="leading", final_sigmas_type="zero")
    pairs = sd.schedule.timesteps(steps)
    reference.set_timesteps(timesteps=[t for t, _ in pairs])
    torch.manual_seed(0)
    ours = torch.randn(2, 4, 8, 8)
    theirs = ours * (1 + sd.schedule.sigma(pairs[0][0]) ** 2).sqrt()
    for (t, t_prev), timestep in zip(pairs, reference.timesteps):
        noise_pred = torch.randn(2, 4, 8, 8)
        reference.scale_model_input(theirs, timestep)
        ours = lida.diffusion.samplers.euler_step(sd.schedule, ours, noise_pred, t, t_prev)
        theirs = reference.step(noise_pred, timestep, theirs).prev_sample
        assert relative(ours * (1 + sd.schedule.sigma(t_prev) ** 2).sqrt(), theirs) <= 1e-5, t


def test_euler_is_ddim_but_for_its_end(sd):
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t, t_prev in sd.schedule.timesteps(20)[:-1]:
        euler = lida.diffusion.samplers.euler_step(sd.schedule, latents, noise_pred, t, t_prev)
        assert relative(euler, lida.ddim_step(sd.schedule, latents, noise_pred, t, t_prev)) <= 1e-5


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_every_sampler_paints_towards_the_same_picture(sd, name):
    """With many steps they solve one equation; at few they differ."""
    paint = lambda n, scheduler: lida.generate(  # noqa: E731
        sd, "a boy", num_inference_steps=n, scheduler=scheduler, guidance_scale=1.0, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    exact = paint(300, "ddim")
    assert relative(paint(300, name), exact) <= 0.05
    with pytest.raises(ValueError, match="scheduler 'plms' is not one of ddim, dpmpp_2m, euler"):
        paint(2, "plms")
    with pytest.raises(ValueError, match="scheduler 'euler' draws no noise"):
        lida.generate(sd, "a boy", num_inference_steps=2, scheduler="euler", eta=1.0)


def test_edit_friendly_inversion_is_exact_where_nothing_changes(sd):
    """Towards its own description, without guidance, from any strength, the picture's own latents come back."""
    image, mask = noise_image(64, 64), Image.new("L", (64, 64), 255)
    options = {"method": "inversion", "source_prompt": "a boy", "guidance_scale": 1.0, "context": 1.0, "output_type": "latent"}
    plain = sd.vae.encode(lida.doors.pictures.to_tensor(image), sample=False)
    for strength in (0.3, 1.0):
        options |= {"strength": strength, "num_inference_steps": 20, "generator": torch.Generator().manual_seed(5)}
        same = lida.age_face(sd, image, mask, "a boy", **options)
        other = lida.age_face(sd, image, mask, "an old man", **options)
        assert relative(same, plain) <= 1e-3 < relative(other, plain)  # rounding, carried through twenty steps
    two = lida.age_face(sd, image, mask, ["a boy", "an old man"], num_images_per_prompt=2, **options)
    assert relative(two[:2], torch.cat([plain, plain])) <= 1e-3 and not torch.allclose(two[2], two[3], atol=1e-3)


def test_edit_friendly_noise_is_that_of_the_paper(sd):
    """x_t are the picture with independent noise; z_t = (x_{t-1} - mu_t) / sigma_t by diffusers' DDIM with eta 1."""
    latents, noise_pred = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    steps = sd.schedule.timesteps(10)
    path, noise = lida.diffusion.samplers.ddpm_invert(
        lambda x, t: noise_pred, sd.schedule, latents, steps, torch.Generator().manual_seed(0)
    )
    eps = [
        (path[t] - sd.schedule.alphas_cumprod[t].sqrt() * latents) / (1 - sd.schedule.alphas_cumprod[t]).sqrt()
        for t, _ in steps
    ]
    rows = torch.stack(eps).flatten(1)
    assert rows.std().item() == pytest.approx(1, abs=0.05) and (torch.corrcoef(rows) - torch.eye(10)).abs().max() < 0.25
    reference = diffusers.DDIMScheduler(**SCHEDULE)
    reference.set_timesteps(10)
    for t, t_prev in steps:
        mean = reference.step(noise_pred, t, path[t], eta=1.0, variance_noise=torch.zeros(1, 4, 8, 8)).prev_sample
        assert relative(mean + noise[t], path[t_prev]) <= 1e-5


def test_a_grey_mask_is_released_at_its_step(sd):
    """Of ten steps, a grey of 0.35 is the photograph's for six and free for the last three; what is black never changes."""
    steps = sd.schedule.timesteps(10)
    init, noise, seen = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), []
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:4], mask[..., 4:6], mask[..., 6:] = 0.35, 1.0, 0.05
    start = sd.schedule.add_noise(init, noise, torch.tensor(steps[0][0]))
    lida.sample(
        lambda x, t: 0 * x + 1, sd.schedule, start, steps, lida.diffusion.samplers.Blend(mask, init, noise),
        callback=lambda step, t, x: seen.append(x),
    )  # fmt: skip
    for step, (x, (_, t_prev)) in enumerate(zip(seen, steps)):
        known = init if t_prev < 0 else sd.schedule.add_noise(init, noise, torch.tensor(t_prev))
        same = [torch.equal(x[..., a:b], known[..., a:b]) for a, b in ((0, 2), (2, 4), (4, 6), (6, 8))]
        assert same == [True, step < 6, False, step < 9], step


def test_a_row_differs_by_its_prompts_alone(sd):
    """The same prompt twice is the same picture twice, drawn noise or not; several images of a prompt differ."""
    image, mask = noise_image(64, 64), box_mask(64, 64, (8, 8, 56, 56))
    for method, eta in (("inpaint", 0.0), ("inpaint", 1.0), ("inversion", 0.0), ("ddim_inversion", 0.7)):
        options = {"method": method, "eta": eta, "strength": 0.6, "num_inference_steps": 10, "output_type": "latent"}
        row = lida.age_face(sd, image, mask, ["a boy", "a man", "a boy"], generator=torch.Generator().manual_seed(0), **options)
        assert relative(row[2], row[0]) <= 5e-5  # rows of a batch are summed in other orders, ten steps long
        assert relative(row[1], row[0]) > 1e-3
        alone = lida.age_face(sd, image, mask, "a man", generator=torch.Generator().manual_seed(0), **options)
        assert relative(row[1:2], alone) <= 1e-4
        pairs = lida.age_face(
            sd, image, mask, ["a boy", "a man"], num_images_per_prompt=2, generator=torch.Generator().manual_seed(0), **options
        )
        assert relative(pairs[0], pairs[1]) > 1e-3


def test_a_scene_is_prepared_once_and_repainted_often(sd):
    image, mask = noise_image(90, 70), box_mask(90, 70, (8, 8, 56, 56))
    shared = {"strength": 0.6, "num_inference_steps": 8}
    scene = lida.aging.editing.prepare(sd, image, mask, generator=torch.Generator().manual_seed(0), **shared)
    for prompt in ("a boy", "a man"):
        one = lida.aging.editing.repaint(sd, scene, prompt, eta=0.5)[0]
        two = lida.age_face(sd, image, mask, prompt, eta=0.5, generator=torch.Generator().manual_seed(0), **shared)[0]
        assert np.array_equal(np.asarray(one), np.asarray(two))


def test_prompts_are_mixed_by_their_embeddings(sd):
    mixed = sd.encode([{"a boy": 0.25, "a man": 0.75}, "a girl"])
    assert relative(mixed[0], 0.25 * sd.text_encoder("a boy")[0] + 0.75 * sd.text_encoder("a man")[0]) <= 1e-5
    assert relative(mixed[1], sd.text_encoder("a girl")[0]) <= 1e-5
    options = {"num_inference_steps": 2, "output_type": "latent"}
    a, b = (
        lida.generate(sd, prompt, generator=torch.Generator().manual_seed(0), **options) for prompt in ({"a boy": 1.0}, "a boy")
    )
    assert relative(a, b) <= 1e-5


def test_keys_and_values_of_the_prompt_are_computed_once(sd, monkeypatch):
    """Each cross-attention asks once a generation for each of its two prompts' tensors, and paints the same."""
    calls = []
    whole = lida.nn.layers.Attention.keys_values

    def counted(self, context):
        calls.append((id(self), context.shape[1]))
        return whole(self, context)

    monkeypatch.setattr(lida.nn.layers.Attention, "keys_values", counted)
    layers = sum(name.endswith("attn2") for name, _ in sd.unet.named_modules())
    options = {"num_inference_steps": 5, "output_type": "latent"}
    kept = lida.generate(sd, "a boy", generator=torch.Generator().manual_seed(0), **options)
    assert len([1 for _, tokens in calls if tokens == 77]) == layers
    calls.clear()
    monkeypatch.setattr(lida.layers.Prompt, "keys_values", lambda self, attention: attention.keys_values(self.hidden))
    anew = lida.generate(sd, "a boy", generator=torch.Generator().manual_seed(0), **options)
    assert len([1 for _, tokens in calls if tokens == 77]) == 5 * layers and torch.equal(kept, anew)
    monkeypatch.undo()
    x, t, c = torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), sd.text_encoder(["a boy", "a man"])
    prompt = lida.nn.layers.Prompt(c)
    assert torch.equal(sd.unet(x, t, prompt), sd.unet(x, t, c)) and torch.equal(sd.unet(x, t, prompt), sd.unet(x, t, c))


def test_guidance_is_rescaled_as_diffusers_does(sd, pipe):
    options = {"num_inference_steps": 5, "guidance_scale": 7.5, "guidance_rescale": 0.6, "output_type": "latent"}
    ours = lida.generate(sd, "an old man", generator=torch.Generator().manual_seed(3), **options)
    theirs = pipe("an old man", generator=torch.Generator().manual_seed(3), **options).images
    assert relative(ours, theirs) <= 1e-4


def test_guidance_acts_within_its_interval_and_costs_half_outside(sd, monkeypatch):
    sizes, whole = [], type(sd.unet).forward
    monkeypatch.setattr(
        type(sd.unet), "forward", lambda self, x, t, c: sizes.append((int(t[0]), len(x))) or whole(self, x, t, c)
    )
    low, high = (sd.schedule.sigma(t).item() for t in (201, 601))
    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "latent"}
    lida.generate(sd, "a boy", guidance_interval=(low, high), **options)
    assert sizes == [(t, 2 if 201 <= t <= 601 else 1) for t, _ in sd.schedule.timesteps(10)]
    paint = lambda **more: lida.generate(sd, "a boy", generator=torch.Generator().manual_seed(0), **options | more)  # noqa: E731
    assert torch.equal(paint(guidance_interval=(0, 1e9)), paint())
    assert torch.equal(paint(guidance_interval=(1e8, 1e9)), paint(guidance_scale=1.0))


def test_an_inpainted_face_is_diffusers_own_by_its_mask_rule(sd, pipe, monkeypatch):
    """On a mask that does not lie on the latents' grid, with diffusers' rule, a cell's first pixel, in place of lida's."""
    inpaint = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    inpaint.set_progress_bar_config(disable=True)
    image, mask = noise_image(64, 64), box_mask(64, 64, (11, 5, 53, 50))
    options = {"num_inference_steps": 20, "guidance_scale": 4.0, "strength": 0.6, "output_type": "latent"}
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    other = lida.age_face(sd, image, mask, "a boy", context=9, generator=draw(), **options)
    first_pixel = lambda mask, size: torch.nn.functional.interpolate((mask >= 0.5).to(mask.dtype), size=size)  # noqa: E731
    monkeypatch.setattr("lida.aging.editing.mask_to_latents", first_pixel)
    ours = lida.age_face(sd, image, mask, "a boy", context=9, generator=draw(), **options)
    theirs = inpaint("a boy", image=image, mask_image=mask, height=64, width=64, generator=draw(), **options).images
    assert relative(ours, theirs) <= 1e-4 < relative(other, theirs)


def test_colours_at_the_seam_are_matched():
    """A patch that is the picture itself in another brightness and contrast comes back, but for rounding."""
    image, mask = noise_image(100, 100), box_mask(100, 100, (30, 30, 70, 70))
    patch = Image.fromarray((np.asarray(image) * 0.85 + 12).round().astype(np.uint8))
    matched = lida.photos.squares.colour_matched(patch, image, mask)
    off = lambda p: np.abs(np.asarray(p).astype(int) - np.asarray(image)).mean()  # noqa: E731
    assert off(matched) < 0.15 * off(patch)
    whole = Image.new("L", (100, 100), 255)
    assert lida.photos.squares.colour_matched(patch, image, whole) is patch
    pasted = lida.photos.squares.paste(image, patch, (0, 0, 100), mask)
    report = lida.photos.squares.seam_report(image, pasted, mask)
    assert report["largest_change_outside"] == 0 and report["seam_gradient"] > 0
    assert lida.photos.squares.seam_report(image, patch, mask)["largest_change_outside"] > 5
