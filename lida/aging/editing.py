"""Age a face in a photograph: prepare it once, repaint it towards any number of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Generator, Tensor

from ..diffusion.blending import Blend, mask_to_latents
from ..diffusion.flow_edit import flow_edit, flow_source
from ..diffusion.inversion import NoisePreds, ddim_invert
from ..diffusion.samplers import Sampling, sample
from ..diffusion.schedule import Steps, Trajectory, randn_like
from ..doors.pictures import from_srgb, in_srgb, to_images, to_tensor
from ..photos.captions import Prompt
from ..photos.masks import mask_to_tensor
from ..photos.squares import Box, colour_bounded, colour_matched, cut, is_grey, paste, square_about, with_detail
from .edit import Edit, Plan, Target, plan_ages
from .generation import Progress, check_options, finite, painting, repeated, step_rule
from .stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Prepared:
    """A photograph turned into noise. Paintings of one Prepared share this noise and differ only by their targets."""

    image: Image.Image
    mask: Image.Image
    edit: Edit
    box: Box  # the square that is repainted
    square: Image.Image  # the same at the model's size, in sRGB
    steps: list[tuple[int, int]]
    trajectory: Trajectory  # the photograph's latents (num_images_per_prompt, C, h, w) at each t
    latent_mask: Tensor | None  # None if the photograph is not put back: method inpaint of an inpainting model
    condition: Tensor | None  # an inpainting model's further input
    source_pred: NoisePreds | None  # FlowEdit's predictions for the photograph
    generator: Generator | None  # in its state after prepare(), for the noise that the steps draw


@painting
def prepare(
    sd: StableDiffusion, image: Image.Image, mask: Image.Image, edit: Edit = Edit(), sampling: Sampling = Sampling(), *,
    num_images_per_prompt: int = 1, generator: Generator | None = None,
) -> Prepared:  # fmt: skip
    """Cut the square around the mask, encode it, and bring its latents to the first timestep that edit.strength selects.

    Method ddim_inversion takes DDIM's steps backwards; the others add noise, and inpaint at strength 1 starts from noise alone.
    image is RGB; mask is L, of the same size, white where the image is repainted. Raises ValueError for another mode or size, for
    a black mask, and for a strength that leaves no step.
    """
    check_photograph(image, mask)
    if not isinstance(edit, Edit) or not isinstance(sampling, Sampling):
        raise TypeError(f"give an Edit and a Sampling, not {type(edit).__name__} and {type(sampling).__name__}")
    check_options("pil", sampling, generator)
    edit = edit.without_age()
    assert edit.strength is not None and edit.source_prompt is not None  # without_age() has filled them
    sources = repeated(edit.source_prompt, num_images_per_prompt)
    check_eta(edit, sampling)
    steps, count, inpaint = sampling.steps(sd.schedule, edit.strength), num_images_per_prompt, edit.method == "inpaint"
    box = square_about(mask, edit.context)
    square = in_srgb(cut(image, box, sd.resolution))
    pixel_values = to_tensor(square).to(sd.device)
    pixel_mask = mask_to_tensor(cut(mask, box, box[2]))  # not resized, because a thin mask could disappear
    side = sd.resolution // sd.vae.factor
    if sd.unet.inpaints and edit.strength == 1 and inpaint:  # the photograph's own latents are not used
        init_latents = torch.zeros(count, sd.unet.config.out_channels, side, side, dtype=sd.dtype, device=sd.device)
    else:
        init_latents = sd.vae.encode(pixel_values, generator, sample=inpaint).to(sd.dtype).repeat(count, 1, 1, 1)
    latent_mask = mask_to_latents(pixel_mask, (side, side)).to(init_latents)
    noise = randn_like(init_latents, generator) if inpaint else None
    condition = sd.inpainting_condition(pixel_values, pixel_mask, latent_mask, generator) if sd.unet.inpaints else None
    source_pred = None
    if noise is not None:
        noised = {t: sd.schedule.add_noise(init_latents, noise, torch.tensor(t)) for t, _ in steps}
        trajectory = {-1: init_latents, **noised} | ({steps[0][0]: noise} if edit.strength == 1 else {})
    else:
        predict = sd.predictor(sources, "", replace(sampling, guidance_scale=1.0), condition)
        if edit.method == "flow_edit":
            trajectory, source_pred = flow_source(predict, sd.schedule, init_latents, steps, generator)
        else:
            trajectory = ddim_invert(predict, sd.schedule, init_latents, steps)
    put_back = latent_mask if not (sd.unet.inpaints and inpaint) else None
    state = None if generator is None else generator.clone_state()
    return Prepared(image, mask, edit, box, square, steps, trajectory, put_back, condition, source_pred, state)


@painting
def repaint(
    sd: StableDiffusion, prepared: Prepared, targets: Sequence[Target], sampling: Sampling = Sampling(), *,
    output_type: str = "pil", progress: Progress = list,
) -> list[Image.Image] | Tensor:  # fmt: skip
    """Paint a prepared photograph towards each target. Targets with as many steps are a batch.

    A target of lower strength starts at a later step. Returns pictures of the photograph's size, target by target, or latents
    of the square for output_type "latent". Raises ValueError for a strength above that of prepare(), for other steps, and, because
    method inpaint of an inpainting model does not put the photograph back, there for a target with detail or a lower strength.
    """
    check_options(output_type, sampling)
    check_targets(sd, prepared, targets, sampling)
    groups: dict[int, list[int]] = {}  # number of steps -> targets
    for k, target in enumerate(targets):
        groups.setdefault(len(sampling.steps(sd.schedule, target.strength)), []).append(k)
    painted: dict[int, Tensor] = {}
    for count, chosen in groups.items():
        prompts = [targets[k].prompt for k in chosen]
        latents = paint(sd, prepared, prompts, prepared.steps[-count:], sampling, progress)
        painted |= zip(chosen, latents.split(len(prepared.trajectory[-1])))
    latents = torch.cat([painted[k] for k in range(len(targets))])
    return latents if output_type == "latent" else composed(sd, prepared, finite(latents), targets)


def paint(
    sd: StableDiffusion, prepared: Prepared, prompts: Sequence[Prompt], steps: Steps, sampling: Sampling, progress: Progress
) -> Tensor:
    """Return the latents (prompts x images, C, h, w) painted towards these prompts in these steps."""
    assert prepared.edit.negative_prompt is not None  # prepare() has filled it
    wanted = repeated(prompts, len(prepared.trajectory[-1]))
    predict = sd.predictor(wanted, prepared.edit.negative_prompt, sampling, prepared.condition)
    generator = None if prepared.generator is None else prepared.generator.clone_state()
    rule = step_rule(sampling, generator, len(prompts))
    if prepared.source_pred is not None:
        rule = flow_edit(rule, prepared.trajectory, prepared.source_pred)
    start = prepared.trajectory[steps[0][0]].repeat(len(prompts), 1, 1, 1)
    blend = None if prepared.latent_mask is None else Blend(prepared.latent_mask, prepared.trajectory)
    return sample(predict, sd.schedule, start, progress(steps), rule, blend)


def composed(sd: StableDiffusion, prepared: Prepared, latents: Tensor, targets: Sequence[Target]) -> list[Image.Image]:
    """Decode latents (targets x images, C, h, w), match their colours, add detail, and paste them into the photograph."""
    image, mask, box, count = prepared.image, prepared.mask, prepared.box, len(prepared.trajectory[-1])
    patches, reconstructions = to_images(sd.vae.decode(latents)), []
    detailed = any(target.detail for target in targets)
    if detailed:
        reconstructions = to_images(sd.vae.decode(prepared.trajectory[-1]))
    if prepared.edit.match_colour:
        small = cut(mask, box, sd.resolution)
        patches = [colour_matched(patch, prepared.square, small) for patch in patches]
        reconstructions = [colour_matched(reconstruction, prepared.square, small) for reconstruction in reconstructions]
        patches = [colour_bounded(patch, prepared.square) for patch in patches]
    if detailed:
        square, shares = in_srgb(cut(image, box, box[2])), [target.detail for target in targets for _ in range(count)]
        patches = [with_detail(patch, reconstructions[k % count], square, shares[k]) for k, patch in enumerate(patches)]
    if is_grey(prepared.square):  # a black-and-white photograph stays one
        patches = [patch.convert("L").convert("RGB") for patch in patches]
    return [paste(image, from_srgb(patch, image), box, mask) for patch in patches]


def age_face(
    sd: StableDiffusion, image: Image.Image, mask: Image.Image, prompt: Prompt | Sequence[Prompt], edit: Edit = Edit(),
    sampling: Sampling = Sampling(), *, num_images_per_prompt: int = 1, generator: Generator | None = None,
    output_type: str = "pil", progress: Progress = list,
) -> list[Image.Image] | Tensor:  # fmt: skip
    """Repaint a photograph towards each prompt where `mask` (L, the size of `image`) is not black; keep every other pixel.

    This is prepare() and repaint(); all prompts share the noise. Returns pictures of the input's size, prompt by prompt, or latents
    of the square for output_type "latent". Raises ValueError as the two do.
    """
    prepared = prepare(sd, image, mask, edit, sampling, num_images_per_prompt=num_images_per_prompt, generator=generator)
    targets = [prepared.edit.target(p) for p in repeated(prompt, 1)]
    return repaint(sd, prepared, targets, sampling, output_type=output_type, progress=progress)


def age_to(
    sd: StableDiffusion, image: Image.Image, mask: Image.Image, ages: Sequence[float], current: float,
    subject: str = "a person", edit: Edit = Edit(), sampling: Sampling = Sampling(), *,
    generator: Generator | None = None, progress: Progress = list,
) -> list[Image.Image]:  # fmt: skip
    """Return the face at each of `ages`, from the `current` one, as infer.py does it.

    `subject` is what captions call the person: "a man", or with the word that an Identity-LoRA learnt, "sks man".
    """
    plan = plan_ages(sd, ages, current, subject, edit)  # it checks what is given
    return repaint_all(sd, image, mask, plan, sampling, generator=generator, progress=progress)


def repaint_all(
    sd: StableDiffusion, image: Image.Image, mask: Image.Image, plan: Plan, sampling: Sampling = Sampling(), *,
    num_images_per_prompt: int = 1, batch_size: int | None = None, generator: Generator | None = None, progress: Progress = list,
) -> list[Image.Image]:  # fmt: skip
    """Prepare a photograph, and repaint it as planned, `batch_size` targets at a time."""
    prepared = prepare(sd, image, mask, plan.edit, sampling, num_images_per_prompt=num_images_per_prompt, generator=generator)
    targets, size = plan.targets, batch_size or len(plan.targets)
    pictures: list[Image.Image] = []
    for start in range(0, len(targets), size):
        pictures += repaint(sd, prepared, targets[start : start + size], sampling, progress=progress)
    return pictures


def check_targets(sd: StableDiffusion, prepared: Prepared, targets: Sequence[Target], sampling: Sampling) -> None:
    """Raise ValueError unless a prepared photograph can be repainted towards these targets."""
    edit = prepared.edit
    check_eta(edit, sampling)
    repeated([target.prompt for target in targets], 1)  # raises for no targets, and for blank mixtures
    assert edit.strength is not None  # prepare() has filled it
    if prepared.latent_mask is None and any(target.detail or target.strength != edit.strength for target in targets):
        raise ValueError("an inpainting model's inpaint does not put the photograph back: detail must be 0, strengths equal")
    if any(target.strength > edit.strength for target in targets):
        raise ValueError(f"a target's strength is above {edit.strength}; prepare the photograph at the highest")
    if sampling.steps(sd.schedule, edit.strength) != prepared.steps:
        raise ValueError("the photograph was prepared for other steps; give prepare() and repaint() the same num_inference_steps")


def check_eta(edit: Edit, sampling: Sampling) -> None:
    """Raise ValueError for eta > 0 with FlowEdit, which draws no noise between steps."""
    if edit.method == "flow_edit" and sampling.eta:
        raise ValueError(f"method flow_edit draws no noise between the steps: eta must be 0, not {sampling.eta}")


def check_photograph(image: Image.Image, mask: Image.Image) -> None:
    """Raise TypeError or ValueError unless the image is RGB and the mask L, of its size and not black."""
    if not isinstance(image, Image.Image) or not isinstance(mask, Image.Image):
        raise TypeError(f"give PIL's pictures as image and mask, not {type(image).__name__} and {type(mask).__name__}")
    if image.mode != "RGB":
        raise ValueError(f"the image is {image.mode}, not RGB")
    if mask.size != image.size or mask.mode != "L":
        raise ValueError(f"the mask is {mask.mode} {mask.size}, not L {image.size} as the image")
    if mask.getbbox() is None:
        raise ValueError("the mask is black: there is nothing to repaint")
