"""The schedule, the sampler's steps and whole runs equal diffusers'."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import SCHEDULE, UNET, box_mask, noise_image, relative
from PIL import Image

import lida
import lida.sampling
from lida.masks import mask_to_latents


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
    assert torch.equal(sd.schedule.add_noise(latents, noise, timesteps), theirs)


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
        assert relative(lida.sampling.ddim_inverse_step(sd.schedule, latents, noise_pred, t_prev, t), theirs) <= 1e-5


def test_what_was_inverted_comes_back(sd):
    """Exactly, where the prediction does not depend on where it is asked; and outside the mask on its own path."""
    noise_pred, latents, steps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), sd.schedule.timesteps(20, 0.6)
    path = lida.sampling.invert(lambda x, t: noise_pred, sd.schedule, latents, steps)
    assert set(path) == {-1} | {t for t, _ in steps} and torch.equal(path[-1], latents)
    again = lida.sample(lambda x, t: noise_pred, sd.schedule, path[steps[0][0]], steps)
    assert relative(again, latents) <= 1e-4 and relative(path[steps[0][0]], latents) > 0.1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    other = lida.sample(lambda x, t: -noise_pred, sd.schedule, path[steps[0][0]], steps, lida.sampling.BlendPath(mask, path))
    assert torch.equal(other[..., :4], latents[..., :4]) and not torch.allclose(other[..., 4:], latents[..., 4:], atol=0.1)


def test_inversion_changes_what_the_prompt_asks_for(sd):
    """No noise is drawn; a batch is its prompts; what is outside the mask stays."""
    image, mask = noise_image(150, 97), box_mask(150, 97, (9, 20, 50, 57))
    options = {
        "method": "inversion",
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
    assert relative(both, torch.cat(list(latents.values()))) <= 1e-5
    picture = lida.age_face(sd, image, mask, "an old man", **options)[0]
    zero = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(picture)[zero], np.asarray(image)[zero]) and picture.size == image.size
    with pytest.raises(ValueError, match="method 'redraw' is not one of inpaint, inversion"):
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
    assert (np.asarray(pictures[0]) != np.asarray(pictures[2])).any() and (
        np.asarray(pictures[0]) != np.asarray(pictures[1])
    ).any()
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
    with pytest.raises(ValueError, match="no white"):
        lida.age_face(sd, image, Image.new("L", (64, 64), 127), "")


def test_no_mask_is_too_small_for_the_latents():
    """Sampling one pixel of each cell would lose this one."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 17:20, 42:44] = 1
    latent = mask_to_latents(mask, (8, 8))
    assert latent.sum() == 1 and latent[0, 0, 2, 5] == 1
