"""A row of five ages beside five runs of diffusers + peft, on lida-tiny and its invented person.

    python tests/benchmarks/row.py

lida: one batch of five prompts, 20 steps of DPM-Solver++. The peer: StableDiffusionImg2ImgPipeline with the Age-LoRA through
peft, 50 steps of DDIM for each age, pasted through the mask; diffusers' inpainting pipeline refuses latents of eight channels.
Both repaint the same square at the same strength and guidance; times are medians of runs by turns; ages are read by the shipped
estimator from pictures of several seeds.
"""

from argparse import Namespace

import diffusers
import numpy as np
import torch
from comparison import WEIGHTS, Row, by_turns, command
from PIL import Image

import lida
from lida.kernels import use_fastest
from lida.photos.ages import AgeEstimator
from lida.photos.captions import DEFAULT_TEMPLATE, caption

AGES = (10, 25, 40, 55, 70)


def flags(parser) -> None:
    add = parser.add_argument
    add("--strength", type=float, default=0.6, help="(default: 0.6)")
    add("--guidance_scale", type=float, default=3.0, help="(default: 3)")
    add("--seeds", type=int, default=12, help="pictures an age (default: 12)")


def measure(args: Namespace) -> list[Row]:
    sd = lida.StableDiffusion.load(WEIGHTS / "lida-tiny")
    sd.load_adapter("age", WEIGHTS / "age.safetensors")
    sd.set_adapters(["age"], [1.0])
    for model in (sd.unet, sd.vae):
        use_fastest(model, (sd.resolution // sd.vae.factor) ** 2)
    parts = diffusers.StableDiffusionPipeline.from_pretrained(WEIGHTS / "lida-tiny", safety_checker=None).components
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False).to(torch.float32)
    pipe.load_lora_weights(WEIGHTS, weight_name="age.safetensors")
    pipe.set_progress_bar_config(disable=True)
    photo = Image.open(WEIGHTS / "demo" / "person-a.png").convert("RGB")
    mask = Image.open(WEIGHTS / "demo" / "person-a-mask.png").convert("L")
    prompts = [caption(DEFAULT_TEMPLATE, "a man", age) for age in AGES]
    edit = lida.Edit("inpaint", args.strength, context=9.0, match_colour=False)
    sampling = lida.Sampling(20, args.guidance_scale, scheduler="dpmpp_2m")

    def ours(seed: int) -> list[Image.Image]:
        return lida.age_face(sd, photo, mask, prompts, edit, sampling, generator=torch.Generator().manual_seed(seed))

    def theirs(seed: int) -> list[Image.Image]:
        options = {"strength": args.strength, "guidance_scale": args.guidance_scale, "num_inference_steps": 50}
        square = photo.resize((sd.resolution, sd.resolution), Image.Resampling.LANCZOS)
        runs = (pipe(prompt, square, generator=torch.Generator().manual_seed(seed), **options).images[0] for prompt in prompts)
        return [Image.composite(picture.resize(photo.size), photo, mask) for picture in runs]

    seconds = by_turns([lambda: ours(0), lambda: theirs(0)], args.pairs)
    estimator = AgeEstimator(WEIGHTS / "age-estimator")
    read = {run: np.mean([estimator(run(seed)) for seed in range(args.seeds)], axis=0) for run in (ours, theirs)}
    print("asked for      ", *(f"{age:6d}" for age in AGES))
    print("lida           ", *(f"{age:6.1f}" for age in read[ours]))
    print("diffusers, peft", *(f"{age:6.1f}" for age in read[theirs]))
    print(f"largest difference: {np.abs(read[ours] - read[theirs]).max():.1f} years")
    return [Row(f"a row of {len(AGES)} ages on lida-tiny", *seconds)]


if __name__ == "__main__":
    command(__doc__, measure, flags)
