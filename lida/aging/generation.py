"""Paint pictures from prompts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from PIL import Image
from torch import Generator, Tensor

from ..diffusion.samplers import SCHEDULERS, Sampling, StepRule, ddim_step, sample
from ..diffusion.schedule import randn_like
from ..doors.errors import InputError
from ..doors.pictures import to_images
from ..photos.captions import Prompt
from .stable_diffusion import StableDiffusion

P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[Sequence], Collection]  # wraps the list of steps, like tqdm; the result must have a length


def painting(function: Callable[Concatenate[StableDiffusion, P], T]) -> Callable[Concatenate[StableDiffusion, P], T]:
    """Run a function of a model without gradients. Afterwards merge weights that depend on the timestep as set_adapters() did."""

    @torch.no_grad()
    @wraps(function)
    def run(sd: StableDiffusion, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(sd, *args, **kwargs)
        finally:
            sd.merge_at(len(sd.schedule) - 1)

    return run


@painting
def generate(
    sd: StableDiffusion, prompt: Prompt | Sequence[Prompt], sampling: Sampling = Sampling(), *,
    negative_prompt: str | Sequence[str] = "", num_images_per_prompt: int = 1, height: int | None = None,
    width: int | None = None, generator: Generator | None = None, output_type: str = "pil", progress: Progress = list,
) -> list[Image.Image] | Tensor:  # fmt: skip
    """Paint from prompts. `height` and `width` in pixels default to the model's own.

    Returns pictures, or latents (B, C, h, w) for output_type "latent". Raises ValueError for sizes that are not positive
    multiples of the VAE's factor.
    """
    check_options(output_type, sampling, generator)
    prompts = repeated(prompt, num_images_per_prompt)
    sizes = [sd.resolution if size is None else size for size in (height, width)]
    if any(size % sd.vae.factor or size < 1 for size in sizes):
        raise ValueError(f"height and width must be positive multiples of {sd.vae.factor}, not {sizes[0]} and {sizes[1]}")
    shape = (len(prompts), sd.unet.config.out_channels, *(size // sd.vae.factor for size in sizes))
    latents = randn_like(torch.empty(shape, dtype=sd.dtype, device=sd.device), generator)
    condition = None
    if sd.unet.inpaints:  # its mask is white everywhere
        blank, mask = torch.zeros(1, 3, *sizes, device=sd.device), torch.ones(1, 1, *shape[2:], device=sd.device)
        condition = sd.inpainting_condition(blank, mask, mask, torch.Generator().manual_seed(0))
    negative = negative_prompt if isinstance(negative_prompt, str) else repeated(negative_prompt, num_images_per_prompt)
    predict = sd.predictor(prompts, negative, sampling, condition)
    latents = sample(predict, sd.schedule, latents, progress(sampling.steps(sd.schedule)), step_rule(sampling, generator))
    return latents if output_type == "latent" else to_images(sd.vae.decode(finite(latents)))


def step_rule(sampling: Sampling, generator: Generator | None, repeats: int = 1) -> StepRule:
    """Return the sampler's step rule. DDIM draws its noise from the generator; the batch's `repeats` parts share it."""
    if sampling.scheduler == "ddim":
        return partial(ddim_step, eta=sampling.eta, generator=generator, repeats=repeats)
    return SCHEDULERS[sampling.scheduler] if isinstance(sampling.scheduler, str) else sampling.scheduler


def repeated(prompt: Prompt | Sequence[Prompt], count: int) -> list[Prompt]:
    """Return each prompt `count` times in a row. Raises ValueError if there are no prompts, or count is below 1."""
    prompts: list[Prompt] = [prompt] if isinstance(prompt, str | Mapping) else list(prompt)
    if not prompts or not all(isinstance(p, str) or p for p in prompts) or count < 1:
        raise ValueError(f"there is nothing to paint: the prompts are {prompt!r:.60}, num_images_per_prompt is {count}")
    return [p for p in prompts for _ in range(count)]


def check_options(output_type: str, sampling: Sampling, generator: Generator | None = None) -> None:
    """Raise ValueError unless output_type is pil or latent, and TypeError unless `sampling` is a Sampling and
    `generator` a torch.Generator or None."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"give a Sampling, not {sampling!r:.60}")
    if not isinstance(generator, Generator | None):
        raise TypeError(f"give a torch.Generator, not {generator!r:.60}")
    if output_type not in ("pil", "latent"):
        raise ValueError(f"output_type must be pil or latent, not {output_type!r}")


def finite(latents: Tensor) -> Tensor:
    """Return the latents; raise InputError if they are not finite."""
    if not latents.isfinite().all():
        raise InputError("the sampler's latents are not finite; lower guidance_scale or the adapters' weights")
    return latents
