"""A row of five ages beside five runs of diffusers + peft, on lida-tiny and its invented person.

    python tests/benchmarks/row.py

lida: one batch of five prompts, 20 steps of DPM-Solver++. The peer: StableDiffusionInpaintPipeline with the Age-LoRA through
peft, 50 steps of DDIM for each age. Both repaint the same square at the same strength and guidance; times are the fastest of
the runs, by turns; ages are read by the shipped estimator from pictures of several seeds.
"""

import argparse
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

import lida
from lida.photos.ages import AgeEstimator
from lida.photos.captions import DEFAULT_TEMPLATE, caption

WEIGHTS = Path(__file__).parents[2] / "weights"
AGES = (10, 25, 40, 55, 70)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strength", type=float, default=0.6, help="(default: 0.6)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="(default: 3)")
    parser.add_argument("--seeds", type=int, default=12, help="pictures an age (default: 12)")
    parser.add_argument("--rounds", type=int, default=4, help="timed rows of each (default: 4)")
    args = parser.parse_args()

    sd = lida.StableDiffusion.load(WEIGHTS / "lida-tiny")
    sd.load_adapter("age", WEIGHTS / "age.safetensors")
    sd.set_adapters(["age"], [1.0])
    parts = diffusers.StableDiffusionPipeline.from_pretrained(WEIGHTS / "lida-tiny", safety_checker=None).components
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).to(torch.float32)
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
        options |= {"image": photo, "mask_image": mask, "height": 96, "width": 96}
        runs = (pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0] for prompt in prompts)
        return [Image.composite(picture, photo, mask) for picture in runs]

    seconds: dict = {ours: [], theirs: []}
    for _ in range(args.rounds + 1):
        for run, kept in seconds.items():
            start = time.perf_counter()
            run(0)
            kept.append(time.perf_counter() - start)
    a, b = (min(kept) for kept in seconds.values())
    print(f"a row of {len(AGES)} ages: lida {a:.2f} s, diffusers + peft {b:.2f} s, ratio {a / b:.2f}")
    estimator = AgeEstimator(WEIGHTS / "age-estimator")
    read = {run: np.mean([estimator(run(seed)) for seed in range(args.seeds)], axis=0) for run in seconds}
    print("asked for      ", *(f"{age:6d}" for age in AGES))
    print("lida           ", *(f"{age:6.1f}" for age in read[ours]))
    print("diffusers, peft", *(f"{age:6.1f}" for age in read[theirs]))
    print(f"largest difference: {np.abs(read[ours] - read[theirs]).max():.1f} years")


if __name__ == "__main__":
    main()
