"""The two things that people do with Stable Diffusion here: paint from a prompt, and age a face in a photograph."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Generator, Tensor

from ..photos.captions import captioning_of
from ..diffusion.schedule import randn_like
from ..photos.pictures import (
    Box,
    colour_matched,
    cut,
    from_srgb,
    in_srgb,
    is_grey,
    paste,
    square_about,
    to_images,
    to_tensor,
    with_detail,
)
from ..photos.masks import mask_to_latents, mask_to_tensor
from .stable_diffusion import StableDiffusion, Words
from ..diffusion.samplers import Blend, ddpm_invert, invert, sample

METHODS = ("inpaint", "inversion", "ddim_inversion")  # of age_face
LEAST_STRENGTH, MOST_STRENGTH, FULL_GAP = 0.3, 0.6, 60  # at no years of difference, and from 60 on
NO_DETAIL = 40  # years younger from which on the photograph's fine detail, its wrinkles, is not given back
Progress = Callable[[list], Iterable]  # wraps the list of steps, as tqdm does; has its length


def strength_between(age: float, current: float) -> float:
    """More for more years between the two, from LEAST_STRENGTH to MOST_STRENGTH, as Cradle2Cane's noise by the gap of ages."""
    return LEAST_STRENGTH + (MOST_STRENGTH - LEAST_STRENGTH) * min(abs(age - current), FULL_GAP) / FULL_GAP


def detail_between(age: float, current: float) -> float:
    """1 for the same age and older ones; less for younger ones, whose skin does not have what the photograph shows."""
    return min(max(1 - (current - age) / NO_DETAIL, 0.0), 1.0)


@torch.no_grad()
def generate(
    sd: StableDiffusion,
    prompt: Words | Sequence[Words],
    *,
    negative_prompt: str | Sequence[str] = "",
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    scheduler: str = "ddim",
    eta: float = 0.0,
    generator: Generator | None = None,
    output_type: str = "pil",
    progress: Progress = list,
    callback: Callable[[int, int, Tensor], object] | None = None,
) -> list[Image.Image] | Tensor:
    """Paint from prompts; `height` and `width` in pixels default to the model's own.

    The sampler and its guidance are sampling.sample's and model.predictor's. Returns pictures, or latents (B, 4, h, w) for
    output_type "latent". Raises ValueError for a size that the VAE cannot.
    """
    prompts = repeated(prompt, num_images_per_prompt)
    sizes = [size or sd.resolution for size in (height, width)]
    if any(size % sd.vae.factor for size in sizes):
        raise ValueError(f"height and width must be multiples of {sd.vae.factor}, not {sizes[0]} and {sizes[1]}")
    shape = (len(prompts), sd.unet.config.out_channels, *(size // sd.vae.factor for size in sizes))
    latents = randn_like(torch.empty(shape, dtype=sd.dtype, device=sd.device), generator)
    steps = sd.schedule.timesteps(num_inference_steps)
    known = None
    if sd.unet.inpaints:  # all is to be painted
        blank, mask = torch.zeros(1, 3, *sizes, device=sd.device), torch.ones(1, 1, *shape[2:], device=sd.device)
        known = sd.known(blank, torch.ones(1, 1, *sizes, device=sd.device), mask, torch.Generator().manual_seed(0))
    negative = negative_prompt if isinstance(negative_prompt, str) else repeated(negative_prompt, num_images_per_prompt)
    predict = sd.predictor(prompts, negative, guidance_scale, known, guidance_rescale, guidance_interval)
    latents = sample(
        predict, sd.schedule, latents, progress(steps), eta=eta, generator=generator, scheduler=scheduler, callback=callback
    )
    return latents if output_type == "latent" else to_images(sd.vae.decode(latents))


@dataclass(frozen=True)
class Scene:
    """A photograph ready to be repainted towards any number of prompts, which then differ by their words alone."""

    image: Image.Image
    mask: Image.Image
    box: Box  # of the square that is worked on
    square: Image.Image  # that square, at the model's size, in sRGB
    steps: list[tuple[int, int]]
    latents: Tensor  # (num_images_per_prompt, 4, h, w) at the first step
    blend: Blend | None
    known: Tensor | None
    step_noise: dict[int, Tensor] | None
    generator: Generator | None  # as it stood then, for what the steps draw


@torch.no_grad()
def prepare(
    sd: StableDiffusion,
    image: Image.Image,
    mask: Image.Image,
    *,
    strength: float = 0.2,
    num_inference_steps: int = 50,
    num_images_per_prompt: int = 1,
    method: str = "inpaint",
    source_prompt: str = "",
    context: float = 1.5,
    generator: Generator | None = None,
) -> Scene:
    """Cut the square about the mask, encode it, and lead it up to the noise; arguments are age_face's."""
    check(image, mask, method)
    steps, count = sd.schedule.timesteps(num_inference_steps, strength), num_images_per_prompt
    box = square_about(mask, context)
    square = in_srgb(cut(image, box, sd.resolution))
    pixel_values = to_tensor(square).to(sd.device)
    pixel_mask = mask_to_tensor(cut(mask, box, box[2]))  # at its own size: made smaller, a thin one would be lost
    side = sd.resolution // sd.vae.factor
    if sd.unet.inpaints and strength == 1 and method == "inpaint":  # the photograph's own latents have no part in it
        init_latents = torch.zeros(count, sd.unet.config.out_channels, side, side, dtype=sd.dtype, device=sd.device)
    else:
        encoded = sd.vae.encode(pixel_values, generator, sample=method == "inpaint").to(sd.dtype)
        init_latents = encoded.repeat(count, 1, 1, 1)
    latent_mask = mask_to_latents(pixel_mask, (side, side)).to(init_latents)
    noise = randn_like(init_latents, generator) if method == "inpaint" else None
    known = sd.known(pixel_values, pixel_mask, latent_mask, generator) if sd.unet.inpaints else None
    path = step_noise = None
    if method == "inpaint":
        latents = noise if strength == 1 else sd.schedule.add_noise(init_latents, noise, torch.tensor(steps[0][0]))
        blend = None if sd.unet.inpaints else Blend(latent_mask, init_latents, noise)
    else:
        source = sd.predictor([source_prompt] * count, "", 1.0, known)
        if method == "inversion":
            path, step_noise = ddpm_invert(source, sd.schedule, init_latents, steps, generator)
        else:
            path = invert(source, sd.schedule, init_latents, steps)
        latents, blend = path[steps[0][0]], Blend(latent_mask, init_latents, path=path)
    drawn = None if generator is None else generator.clone_state()
    return Scene(image, mask, box, square, steps, latents, blend, known, step_noise, drawn)


@torch.no_grad()
def repaint(
    sd: StableDiffusion,
    scene: Scene,
    prompt: Words | Sequence[Words],
    *,
    negative_prompt: str | Sequence[str] = "",
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    levels: Sequence[float] | None = None,
    scheduler: str = "ddim",
    eta: float = 0.0,
    match_colour: bool = True,
    detail: float | Sequence[float] = 0.0,
    output_type: str = "pil",
    progress: Progress = list,
    callback: Callable[[int, int, Tensor], object] | None = None,
) -> list[Image.Image] | Tensor:
    """Paint the scene towards each prompt, all in one batch, each from the same latents and noise; see age_face.

    `levels`, one a prompt in (0, 1], are shares of the scene's strength: a prompt of a lower one stays with the photograph
    for the first steps. `detail`, from 0 to 1, one for all or one a prompt, is how much of what the autoencoder loses of the
    photograph is given back. An inpainting model, which never goes along with the photograph, raises ValueError for either.
    """
    count = len(scene.latents)
    prompts = repeated(prompt, count)
    repeats = len(prompts) // count
    details = [detail] * repeats if isinstance(detail, int | float) else list(detail)
    if any(details) and scene.blend is None:
        raise ValueError("an inpainting model paints without the photograph, and has no detail of it to keep")
    negative = negative_prompt if isinstance(negative_prompt, str) else repeated(negative_prompt, count)
    predict = sd.predictor(prompts, negative, guidance_scale, scene.known, guidance_rescale, guidance_interval)
    generator = None if scene.generator is None else scene.generator.clone_state()

    def for_all(x: Tensor) -> Tensor:
        return x.repeat(repeats, 1, 1, 1)

    blend, step_noise = scene.blend, scene.step_noise
    if blend is not None:
        path = blend.path and {t: for_all(x) for t, x in blend.path.items()}
        rows = torch.tensor(levels or [1.0] * repeats).repeat_interleave(count).reshape(-1, 1, 1, 1).to(blend.mask)
        noise = None if blend.noise is None else for_all(blend.noise)
        blend = Blend(rows * blend.mask, for_all(blend.init_latents), noise, path)
    elif levels is not None and set(levels) != {1.0}:
        raise ValueError("an inpainting model takes no levels; give each prompt a scene of its own strength")
    if step_noise is not None:
        step_noise = {t: for_all(x) for t, x in step_noise.items()}
    latents = sample(
        predict, sd.schedule, for_all(scene.latents), progress(scene.steps), blend, eta, generator, scheduler, step_noise,
        repeats, callback,
    )  # fmt: skip
    if output_type == "latent":
        return latents
    decoded = [latents, scene.blend.init_latents] if any(details) else [latents]
    patches = [picture for part in decoded for picture in to_images(sd.vae.decode(part))]
    if match_colour:
        small = cut(scene.mask, scene.box, sd.resolution)
        patches = [colour_matched(patch, scene.square, small) for patch in patches]
    if any(details):
        patches, known = patches[: len(latents)], patches[len(latents) :]
        square = in_srgb(cut(scene.image, scene.box, scene.box[2]))
        patches = [with_detail(patch, known[k % count], square, details[k // count]) for k, patch in enumerate(patches)]
    if is_grey(scene.square):  # a black-and-white photograph stays one
        patches = [patch.convert("L").convert("RGB") for patch in patches]
    return [paste(scene.image, from_srgb(patch, scene.image), scene.box, scene.mask) for patch in patches]


def age_face(
    sd: StableDiffusion,
    image: Image.Image,
    mask: Image.Image,
    prompt: Words | Sequence[Words],
    *,
    negative_prompt: str | Sequence[str] = "",
    strength: float = 0.2,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    num_images_per_prompt: int = 1,
    method: str = "inpaint",
    source_prompt: str = "",
    context: float = 1.5,
    scheduler: str = "ddim",
    eta: float = 0.0,
    match_colour: bool = True,
    detail: float | Sequence[float] = 0.0,
    generator: Generator | None = None,
    output_type: str = "pil",
    progress: Progress = list,
    callback: Callable[[int, int, Tensor], object] | None = None,
) -> list[Image.Image] | Tensor:
    """Repaint where `mask` (L, the size of `image`) is not black towards each prompt, and leave every other pixel as it is.

    A square about the mask, `context` times as long, is cut out and worked on at the model's resolution: noised by
    `strength` (SDEdit, Meng et al. 2022), denoised with the photograph put back at each step where the mask is black, or
    still too grey (Avrahami et al. 2023; Levin & Fried 2023), decoded, matched in colour and pasted back. Strength 1 begins
    from noise alone. Method "inversion" takes the photograph, described by `source_prompt`, up to `strength` with noise that
    leads back to it (Huberman-Spiegelglas et al. 2024), "ddim_inversion" by DDIM's steps walked backwards, without any; what
    the prompt does not ask for stays; with the neutral prompt as `negative_prompt` guidance then leads to the age alone. With
    `detail` 1 the change alone is laid over the photograph, which stays as sharp as it was. All prompts share noise and
    photograph, and differ by their words alone.
    Returns pictures of the input's size, prompt by prompt, or latents of the square for output_type "latent". Raises
    ValueError for a mask of another size or all black, for another method, and for a strength that leaves no step to walk.
    """
    scene = prepare(
        sd, image, mask, strength=strength, num_inference_steps=num_inference_steps, method=method, context=context,
        num_images_per_prompt=num_images_per_prompt, source_prompt=source_prompt, generator=generator,
    )  # fmt: skip
    return repaint(
        sd, scene, prompt, negative_prompt=negative_prompt, guidance_scale=guidance_scale, guidance_rescale=guidance_rescale,
        guidance_interval=guidance_interval, scheduler=scheduler, eta=eta, match_colour=match_colour, detail=detail,
        output_type=output_type, progress=progress, callback=callback,
    )  # fmt: skip


def age_to(
    sd: StableDiffusion,
    image: Image.Image,
    mask: Image.Image,
    ages: Sequence[float],
    current: float,
    subject: str = "a person",
    *,
    negative_prompt: str | None = None,
    strength: float | None = None,
    detail: float | Callable[[float, float], float] = detail_between,
    method: str = "ddim_inversion",
    num_inference_steps: int = 50,
    context: float = 1.5,
    generator: Generator | None = None,
    **options,
) -> list[Image.Image]:
    """The face at each of `ages`, from the `current` one, by this library's defaults.

    Each age is asked for by the captions of the merged Age-LoRA, of a `subject` such as "a man" or "sks". By default the
    photograph is inverted, guidance leads from the subject at no age (`negative_prompt`), strength and detail follow the
    years between. `options` are repaint's. Raises what age_face raises.
    """
    neutral = f"a portrait photo of {subject}"
    captioning = captioning_of({name: adapter.metadata for name, adapter in sd.adapters.items() if name in sd.weights})
    strengths = [strength or strength_between(age, current) for age in ages]
    scene = prepare(
        sd, image, mask, strength=max(strengths), num_inference_steps=num_inference_steps, method=method,
        source_prompt=neutral, context=context, generator=generator,
    )  # fmt: skip
    return repaint(
        sd, scene, [captioning.prompt(subject, min(max(round(age), 0), 99)) for age in ages],
        negative_prompt=neutral if negative_prompt is None else negative_prompt,
        levels=[s / max(strengths) for s in strengths],
        detail=[detail(age, current) if callable(detail) else detail for age in ages],
        **{"guidance_scale": 4.0, **options},
    )  # fmt: skip


def check(image: Image.Image, mask: Image.Image, method: str) -> None:
    """Raise ValueError for what cannot be repainted."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if image.mode != "RGB":
        raise ValueError(f"the image is {image.mode}, not RGB")
    if mask.size != image.size or mask.mode != "L":
        raise ValueError(f"the mask is {mask.mode} {mask.size}, not L {image.size} as the image")
    if mask.getbbox() is None:
        raise ValueError("the mask is black: nothing is to be repainted")


def repeated(prompt: Words | Sequence[Words], count: int) -> list[Words]:
    """Each prompt `count` times in a row."""
    return [p for p in ([prompt] if isinstance(prompt, str | dict) else prompt) for _ in range(count)]
