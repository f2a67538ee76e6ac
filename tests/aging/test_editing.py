"""Repainting a face equals diffusers' inpainting, leaves every other pixel alone, and differs by the prompts alone."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import UNET, box_mask, draws, noise_image, random_adapter, relative
from PIL import Image

from lida.aging import Edit, StableDiffusion, Target, age_face, age_to, generate, plan_ages, prepare, repaint, repaint_all
from lida.diffusion import Sampling
from lida.doors.pictures import to_tensor


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


@pytest.fixture
def inpainting(folder, tmp_path):
    """The folder with a UNet of 9 input channels, in lida and in diffusers."""
    shutil.copytree(folder, tmp_path / "inpainting")
    torch.manual_seed(9)
    diffusers.UNet2DConditionModel(**UNET, in_channels=9).save_pretrained(tmp_path / "inpainting" / "unet")
    reference = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "inpainting", safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    return StableDiffusion.load(tmp_path / "inpainting"), reference


# Drawn noise, beside diffusers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.58, 0.6, 1.0])
def test_inpainting_equals_diffusers(sd, pipe, strength):
    """A whole run, with guidance. The mask's edges lie on the latents' grid, where both ways to shrink it agree."""
    inpaint = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    inpaint.set_progress_bar_config(disable=True)
    image, mask = noise_image(64, 64), box_mask(64, 64, (16, 8, 56, 48))
    edit = Edit("inpaint", strength, context=9)
    ours = age_face(sd, image, mask, "a boy", edit, Sampling(20), generator=draws(3), output_type="latent")
    options = {
        "num_inference_steps": 20,
        "guidance_scale": Sampling().guidance_scale,
        "strength": strength,
        "output_type": "latent",
    }
    options |= {"height": 64, "width": 64, "generator": draws(3)}
    assert relative(ours, inpaint("a boy", image=image, mask_image=mask, **options).images) <= 1e-4


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_inpainting_model_equals_diffusers(inpainting, strength):
    """A whole run, with guidance; the photograph is not put back at each step, the model sees it."""
    sd, reference = inpainting
    image, mask = noise_image(64, 64), box_mask(64, 64, (16, 8, 56, 48))
    edit, sampling = Edit("inpaint", strength, context=9), Sampling(20)
    ours = age_face(sd, image, mask, "a boy", edit, sampling, generator=draws(3), output_type="latent")
    options = {
        "num_inference_steps": 20,
        "guidance_scale": Sampling().guidance_scale,
        "strength": strength,
        "output_type": "latent",
    }
    options |= {"height": 64, "width": 64, "generator": draws(3)}
    assert relative(ours, reference("a boy", image=image, mask_image=mask, **options).images) <= 1e-4
    blind, seeing = (
        sd.predictor(["a boy"], "", sampling, torch.full((1, 5, 8, 8), value))(ours, torch.tensor([500])) for value in (0.0, 1.0)
    )
    assert relative(blind, seeing) > 1e-3  # it does see the picture


def test_the_inpainting_model_does_all_that_the_plain_one_does(inpainting, sd):
    """An adapter of the plain model applies to it, a batch of prompts, painting from text, and pixels outside stay."""
    model, _ = inpainting
    model.load_adapter("age", random_adapter(sd, 0))
    image, mask = noise_image(150, 97), box_mask(150, 97, (9, 20, 50, 57))

    def aged(weight: float) -> list[Image.Image]:
        model.set_adapters(["age"], [weight])
        return age_face(model, image, mask, ["a boy", "a man"], Edit("inpaint", 0.6), Sampling(5), generator=draws())

    pictures = aged(0.0) + aged(1.0)
    zero = pixels(mask) == 0
    assert all(np.array_equal(pixels(picture)[zero], pixels(image)[zero]) for picture in pictures)
    first, *others = map(pixels, pictures)
    assert all(np.abs(first - others[k]).max() > 2 for k in (0, 1))  # of another prompt, of another weight
    assert generate(model, "a boy", Sampling(2))[0].size == (64, 64)
    prepared = prepare(model, image, mask, Edit("inpaint", 0.6), Sampling(5), generator=draws())
    for target in (Target("a boy", 0.6, 0.5), Target("a boy", 0.3)):
        with pytest.raises(ValueError, match="an inpainting model's inpaint does not put the photograph back"):
            repaint(model, prepared, [target], Sampling(5))


# Inversion --------------------------------------------------------------------------------------------------------------


def test_inversion_changes_what_the_prompt_asks_for(sd):
    """No noise is drawn; a batch is its prompts; what is outside the mask stays."""
    image, mask = noise_image(150, 97), box_mask(150, 97, (9, 20, 50, 57))
    edit, sampling = Edit("ddim_inversion", source_prompt="a boy", strength=0.5), Sampling(20, 1.0)
    prompts = ("a boy", "an old man")
    alone, again = (
        [age_face(sd, image, mask, prompt, edit, sampling, output_type="latent") for prompt in prompts] for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(alone, again)) and relative(*alone) > 1e-3
    both = age_face(sd, image, mask, list(prompts), edit, sampling, output_type="latent")
    assert relative(both, torch.cat(alone)) <= 5e-5  # ten steps there and ten back, of another batch
    (picture,) = age_face(sd, image, mask, "an old man", edit, sampling)
    zero = pixels(mask) == 0
    assert np.array_equal(pixels(picture)[zero], pixels(image)[zero]) and picture.size == image.size


def test_flow_edit_gives_the_photograph_back_where_nothing_changes(sd):
    """Towards its own description, without guidance, from any strength, the picture's own latents come back."""
    image, mask = noise_image(64, 64), Image.new("L", (64, 64), 255)
    plain, sampling = sd.vae.encode(to_tensor(image), sample=False), Sampling(10, 1.0)
    for strength in (0.3, 1.0):
        edit = Edit("flow_edit", strength, source_prompt="a boy", context=1.0)
        options = {"generator": draws(5), "output_type": "latent"}
        same = age_face(sd, image, mask, "a boy", edit, sampling, **options)
        other = age_face(sd, image, mask, "an old man", edit, sampling, **options)
        assert relative(same, plain) <= 1e-3 < relative(other, plain)  # rounding, carried through ten steps
    two = age_face(sd, image, mask, ["a boy", "an old man"], edit, sampling, num_images_per_prompt=2, **options)
    assert relative(two[:2], torch.cat([plain, plain])) <= 1e-3 and not torch.allclose(two[2], two[3], atol=1e-3)
    with pytest.raises(ValueError, match="method flow_edit draws no noise between the steps: eta must be 0, not 0.5"):
        age_face(sd, image, mask, "a boy", edit, Sampling(20, eta=0.5))
    prepared = prepare(sd, image, mask, edit, sampling, generator=draws(5))
    with pytest.raises(ValueError, match="eta must be 0, not 0.5"):
        repaint(sd, prepared, [Target("a boy", 1.0)], Sampling(10, 1.0, eta=0.5))
    euler, ddim = (
        repaint(sd, prepared, [Target("an old man", 1.0)], Sampling(10, 1.0, scheduler=name), output_type="latent")
        for name in ("euler", "ddim")
    )
    assert relative(euler, ddim) > 1e-4  # the sampler of the repainting counts, not that of the preparation


# Rows of paintings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "eta"), [("inpaint", 0.0), ("inpaint", 1.0), ("flow_edit", 0.0), ("ddim_inversion", 0.7)])
def test_a_row_differs_by_its_prompts_alone(sd, method, eta):
    """The same prompt twice is the same picture twice, drawn noise or not; several images of a prompt differ."""
    image, mask = noise_image(64, 64), box_mask(64, 64, (8, 8, 56, 56))

    def aged(prompts, **options) -> torch.Tensor:
        edit, sampling = Edit(method, 0.6), Sampling(10, eta=eta)
        return age_face(sd, image, mask, prompts, edit, sampling, generator=draws(), output_type="latent", **options)

    row = aged(["a boy", "a man", "a boy"])
    assert relative(row[2], row[0]) <= 5e-5  # rows of a batch are summed in other orders, ten steps long
    assert relative(row[1], row[0]) > 1e-3
    assert relative(row[1:2], aged("a man")) <= 1e-4
    pairs = aged(["a boy", "a man"], num_images_per_prompt=2)
    assert relative(pairs[0], pairs[1]) > 1e-3


def test_a_photograph_is_prepared_once_and_repainted_often(sd):
    image, mask = noise_image(90, 70), box_mask(90, 70, (8, 8, 56, 56))
    edit, sampling = Edit("inpaint", 0.6), Sampling(8, eta=0.5)
    prepared = prepare(sd, image, mask, edit, sampling, generator=draws())
    for prompt in ("a boy", "a man"):
        (one,) = repaint(sd, prepared, [Target(prompt, 0.6)], sampling)
        (two,) = age_face(sd, image, mask, prompt, edit, sampling, generator=draws())
        assert np.array_equal(pixels(one), pixels(two))


@pytest.mark.parametrize("method", ["flow_edit", "ddim_inversion", "inpaint"])
def test_a_weaker_target_of_a_row_is_painted_as_if_it_were_alone(sd, method):
    """It follows the photograph for the first steps, and starts at the step of its own strength."""
    image, mask = noise_image(64, 64), Image.new("L", (64, 64), 255)
    sampling = Sampling(10, 1.0)

    def aged(strength: float, *targets: Target) -> torch.Tensor:
        prepared = prepare(sd, image, mask, Edit(method, strength, context=1.0), sampling, generator=draws())
        return repaint(sd, prepared, targets, sampling, output_type="latent")

    row = aged(0.8, Target("a man", 0.8), Target("a boy", 0.4))
    assert relative(row[1:], aged(0.4, Target("a boy", 0.4))) <= 1e-4  # eight steps in another batch
    assert relative(row[1:], aged(0.8, Target("a boy", 0.8))) > 1e-3


def test_targets_of_several_strengths_come_back_in_their_order_each_as_if_alone(sd):
    image, mask, sampling = noise_image(64, 64), Image.new("L", (64, 64), 255), Sampling(10, 3.0)
    targets = [Target("a man", 0.8), Target("a boy", 0.4), Target("an old man", 0.8)]

    def aged(chosen: list[int]) -> torch.Tensor:
        edit = Edit(strength=0.8, context=1.0, negative_prompt="a woman")
        prepared = prepare(sd, image, mask, edit, sampling, num_images_per_prompt=2, generator=draws())
        return repaint(sd, prepared, [targets[k] for k in chosen], sampling, output_type="latent")

    row = aged([0, 1, 2])
    for k in range(3):
        assert relative(row[2 * k : 2 * k + 2], aged([k])) <= 1e-4


def test_ages_of_an_inpainting_model_share_a_strength_only_for_method_inpaint(inpainting):
    model, _ = inpainting
    assert len({target.strength for target in plan_ages(model, [10, 35], 30, edit=Edit("inpaint")).targets}) == 1
    plan = plan_ages(model, [10, 35], 30)
    assert plan.edit.strength == max(target.strength for target in plan.targets) > plan.targets[1].strength
    image, mask = noise_image(64, 64), box_mask(64, 64, (8, 8, 56, 56))
    assert len(repaint_all(model, image, mask, plan, Sampling(5, 3.0), generator=draws())) == 2


def test_a_photograph_is_repainted_in_the_steps_that_it_was_prepared_for(sd):
    image, mask = noise_image(64, 64), Image.new("L", (64, 64), 255)
    prepared = prepare(sd, image, mask, Edit(strength=0.8), Sampling(10), generator=draws())
    with pytest.raises(ValueError, match="prepared for other steps"):
        repaint(sd, prepared, [Target("a man", 0.8)], Sampling(9))


def test_age_to_is_age_face_by_the_defaults(sd):
    """One age alone: its caption, the photograph described by the caption of its own age, guidance away from that, all detail."""
    photo, mask, now = noise_image(80, 80), box_mask(80, 80, (20, 20, 60, 60)), "a portrait photo of a man, age 40s"
    edit = Edit(source_prompt=now, negative_prompt=now).towards(10, 40)
    (theirs,) = age_face(sd, photo, mask, "a portrait photo of a boy, age 10s", edit, Sampling(8), generator=draws())
    (ours,) = age_to(sd, photo, mask, [10], 40, "a man", sampling=Sampling(8), generator=draws())
    assert np.array_equal(pixels(ours), pixels(theirs)) and (edit.strength, edit.detail) == (0.8, 1)


# The photograph ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(20, 100, 280, 103), (40, 60, 60, 70)])
def test_thin_and_small_masks_are_repainted(sd, box):
    image, mask = noise_image(300, 200), box_mask(300, 200, box)
    mask.paste(255, (240, 150, 260, 160))  # far away, so that the square around both is large
    (aged,) = age_face(sd, image, mask, "a boy", Edit("inpaint", 1.0), Sampling(4))
    changed, white = (pixels(aged) != pixels(image)).any(-1), pixels(mask) > 0
    assert changed[white].mean() > 0.7 and not changed[~white].any()


@pytest.mark.parametrize("size", [(64, 64), (150, 97), (61, 203)])
@pytest.mark.parametrize("soft", [False, True])
def test_pixels_outside_the_mask_stay(sd, size, soft):
    image, mask = noise_image(*size), box_mask(*size, (9, 20, 50, 57))
    if soft:
        mask = Image.fromarray((np.asarray(mask) * np.random.default_rng(0).random(mask.size[::-1])).astype(np.uint8))
    (aged,) = age_face(sd, image, mask, "a boy", Edit("inpaint", 0.6), Sampling(10), generator=draws())
    before, after, zero = pixels(image), pixels(aged), pixels(mask) == 0
    assert aged.size == size and np.array_equal(before[zero], after[zero])
    assert (before[~zero] != after[~zero]).any(axis=-1).mean() > 0.5  # and the face did change


def test_a_black_and_white_photograph_stays_one(sd):
    photo, mask = noise_image(80, 80).convert("L").convert("RGB"), box_mask(80, 80, (20, 20, 60, 60))
    for picture in age_to(sd, photo, mask, [20, 70], 40, sampling=Sampling(4)):
        assert (pixels(picture) == pixels(picture)[..., :1]).all() and (pixels(picture) != pixels(photo)).any()


def test_strengths_without_a_step_and_unfit_photographs_are_refused(sd):
    image, white = noise_image(64, 64), Image.new("L", (64, 64), 255)
    for photo, mask, edit, message in (
        (
            image,
            white,
            Edit(strength=0.01),
            "strength must be above 0 and up to 1, and 0.01 leaves none of the 20 steps; give more steps or a higher strength",
        ),
        (image.convert("L"), white, Edit(), "the image is L, not RGB"),
        (image, Image.new("L", (32, 64), 255), Edit(), r"the mask is L \(32, 64\), not L \(64, 64\) as the image"),
        (image, white.convert("RGB"), Edit(), "the mask is RGB"),
        (image, Image.new("L", (64, 64), 0), Edit(), "the mask is black"),
        (pixels(image), white, Edit(), "not ndarray and Image"),
        (image, white, {"strength": 0.5}, "give an Edit and a Sampling, not dict"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            age_face(sd, photo, mask, "", edit, Sampling(20))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (([50], float("inf")), {}, "ages must be finite numbers"),
        (([50], float("nan")), {}, "ages must be finite numbers"),
        (([50], 30, " "), {}, "the subject is blank"),
        (([50], 30, None), {}, "give a subject such as 'a man'"),
        (([50], 30), {"generator": 3}, "give a torch.Generator, not 3"),
    ],
)
def test_ages_subjects_and_generators_that_are_none_are_refused(sd, values, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        age_to(sd, noise_image(64, 64), Image.new("L", (64, 64), 255), *values, **options)


@pytest.mark.parametrize("method", ["ddim_inversion", "inpaint"])
def test_fewer_pictures_than_one_are_refused(sd, method):
    with pytest.raises(ValueError, match="there is nothing to paint: .* num_images_per_prompt is -1"):
        age_face(sd, noise_image(64, 64), Image.new("L", (64, 64), 255), "", Edit(method), num_images_per_prompt=-1)
