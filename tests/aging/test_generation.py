"""Painting from prompts equals diffusers' pipeline."""

from types import MappingProxyType

import numpy as np
import pytest
import torch
from conftest import draws, relative

from lida.aging import generate
from lida.diffusion import Sampling


def test_a_painted_picture_equals_diffusers(sd, pipe):
    ours = generate(sd, "an old man", Sampling(10), negative_prompt="blurry", generator=draws(3))[0]
    options = {"num_inference_steps": 10, "guidance_scale": Sampling().guidance_scale, "negative_prompt": "blurry"}
    theirs = pipe("an old man", generator=draws(3), **options).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_each_prompt_may_have_a_negative_one(sd, pipe):
    prompts, negative = ["an old man", "a girl"], ["blurry", "a hat"]
    ours = generate(
        sd, prompts, Sampling(4), negative_prompt=negative, num_images_per_prompt=2, generator=draws(3), output_type="latent"
    )
    options = {
        "num_inference_steps": 4,
        "guidance_scale": Sampling().guidance_scale,
        "num_images_per_prompt": 2,
        "output_type": "latent",
    }
    assert relative(ours, pipe(prompts, negative_prompt=negative, generator=draws(3), **options).images) <= 1e-4
    with pytest.raises(ValueError, match="2 negative prompts for 1 pictures"):
        generate(sd, "a boy", Sampling(1), negative_prompt=negative)


def test_repeated_prompts_make_a_batch_of_the_size_asked_for(sd):
    images = generate(sd, ["a boy", "a girl"], Sampling(2), num_images_per_prompt=2)
    assert len(images) == 4 and {image.size for image in images} == {(64, 64)}
    latents = generate(sd, "a boy", Sampling(1), height=72, width=48, output_type="latent")
    assert latents.shape == (1, 4, 9, 6)


def test_a_size_that_the_vae_cannot_have_is_refused(sd):
    with pytest.raises(ValueError, match="multiples of 8, not 64 and 60"):
        generate(sd, "a boy", Sampling(1), width=60)
    for prompt, options, message in (([], {}, "nothing to paint"), ("a", {"output_type": "np"}, "pil or latent")):
        with pytest.raises(ValueError, match=message):
            generate(sd, prompt, Sampling(1), **options)


def test_a_mixture_of_one_prompt_is_the_prompt(sd):
    prompts = {"a boy": 1.0}, MappingProxyType({"a boy": 1.0}), "a boy"
    a, b, c = (generate(sd, p, Sampling(2), generator=draws(), output_type="latent") for p in prompts)
    assert relative(a, c) <= 1e-5 and torch.equal(a, b)


def test_a_picture_of_numbers_that_are_not_finite_is_refused(sd):
    with torch.no_grad():
        sd.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(ValueError, match="the sampler's latents are not finite"):
        generate(sd, "a boy", Sampling(2))


@pytest.mark.parametrize("height", [0, -8, 12])
def test_a_size_that_is_no_positive_multiple_of_the_factor_is_refused(sd, height):
    with pytest.raises(ValueError, match=f"height and width must be positive multiples of {sd.vae.factor}, not {height} and"):
        generate(sd, "an old man", Sampling(1), height=height)
