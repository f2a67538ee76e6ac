"""Sampling at SD1.5's full size (random weights), beside diffusers + peft: forwards, and a whole aged photograph.

    python tests/benchmarks/sampling.py --folder DIR        writes 4 GB of random weights there if it is empty

The peer's forwards run in torch's layout and in channels_last; the faster of the two counts. For its whole jobs, the UNet stays in
the faster layout, and the VAE in that of the faster decoding. The aged photograph, from pixels to pixels, is the same job in both,
with two adapters live and the photograph blended back outside of the mask: lida's FlowEdit, and the peer's DDIM inversion and
guided DDIM, which take as many forwards a step. lida runs its default steps; the peer runs --peer_steps, diffusers' default of 50.
"""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
from comparison import Row, by_turns, command
from load import DTYPES, make_model
from peft import LoraConfig
from PIL import Image, ImageDraw

import lida
from lida.kernels import use_fastest
from lida.nn.lora import CROSS_ATTENTION, LowRank

AGES = (10, 30, 50, 60, 70)
NEUTRAL, AGED = "a portrait photo of a man", "a portrait photo of a man, age {}s"


def flags(parser) -> None:
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the random model lies, or goes")
    add("--resolution", type=int, default=512, help="(default: 512)")
    add("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help="(default: both)")
    add("--jobs", nargs="*", choices=("photograph", "row"), default=["photograph", "row"],
        help="whole jobs after the forwards (default: both)")  # fmt: skip
    add("--peer_steps", type=int, default=50, help="of the peer's photograph (default: 50)")


@torch.no_grad()
def forwards(sd: lida.StableDiffusion, pipe, dtype: torch.dtype, args: Namespace) -> list[Row]:
    """A guided pair through the UNet, encoding and decoding, each beside the peer's faster layout. Its models stay in it."""
    side = args.resolution // 8
    latents = torch.randn(2, 4, side, side, dtype=dtype, device=args.device)
    t, text = torch.tensor([500, 500], device=args.device), torch.randn(2, 77, 768, dtype=dtype, device=args.device)
    pixels = torch.rand(1, 3, args.resolution, args.resolution, dtype=dtype, device=args.device) * 2 - 1
    jobs = {
        "UNet, guided pair": (lambda: sd.unet(latents, t, text), lambda: pipe.unet(latents, t, text)),
        "VAE, encode": (lambda: sd.vae.encode(pixels), lambda: pipe.vae.encode(pixels)),
        "VAE, decode": (lambda: sd.vae.decode(latents[:1]), lambda: pipe.vae.decode(latents[:1])),
    }
    found: dict[str, list[tuple[Row, torch.memory_format]]] = {what: [] for what in jobs}
    for layout in (torch.contiguous_format, torch.channels_last):
        pipe.unet.to(memory_format=layout)
        pipe.vae.to(memory_format=layout)
        for what, pair in jobs.items():
            found[what].append((Row(what, *by_turns(pair, args.pairs)), layout))
    best = {what: min(both, key=lambda one: one[0].peer) for what, both in found.items()}
    pipe.unet.to(memory_format=best["UNet, guided pair"][1])
    pipe.vae.to(memory_format=best["VAE, decode"][1])
    return [row for row, _ in best.values()]


@torch.no_grad()
def peer_photograph(pipe, photo: Image.Image, mask: Image.Image, ages: tuple[int, ...], args: Namespace) -> list[Image.Image]:
    """Age a photograph by the parts of diffusers, an age at a time."""
    processor, device = pipe.image_processor, pipe.device
    pixels = processor.preprocess(photo, args.resolution, args.resolution).to(device, pipe.dtype)
    x0 = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    inside = np.asarray(mask.resize((x0.shape[3], x0.shape[2]), Image.Resampling.BOX), dtype=np.float32) / 255
    inside = torch.from_numpy(inside).to(x0)[None, None]
    neutral = pipe.encode_prompt(NEUTRAL, device, 1, False)[0]
    forward = diffusers.DDIMInverseScheduler.from_config(pipe.scheduler.config)
    backward = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pictures = []
    for age in ages:
        strength = lida.Edit().towards(age, 40).strength
        walked = int(args.peer_steps * strength)
        forward.set_timesteps(args.peer_steps, device=device)
        backward.set_timesteps(args.peer_steps, device=device)
        latents, trajectory = x0, [x0]
        for t in forward.timesteps[:walked]:
            latents = forward.step(pipe.unet(latents, t, neutral).sample, t, latents).prev_sample
            trajectory.append(latents)
        both = torch.cat([neutral, pipe.encode_prompt(AGED.format(age // 10 * 10), device, 1, False)[0]])
        for number, t in enumerate(backward.timesteps[-walked:]):
            eps_u, eps_c = pipe.unet(torch.cat([latents] * 2), t, both).sample.chunk(2)
            latents = backward.step(eps_u + lida.Sampling().guidance_scale * (eps_c - eps_u), t, latents).prev_sample
            latents = inside * latents + (1 - inside) * trajectory[walked - 1 - number]
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        pictures.append(Image.composite(processor.postprocess(decoded)[0], photo, mask))
    return pictures


def photographs(sd: lida.StableDiffusion, pipe, jobs: dict[str, tuple[int, ...]], args: Namespace) -> list[Row]:
    """One age, and a row of five."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((args.resolution,) * 2, Image.Resampling.BICUBIC)
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse([args.resolution // 5] * 2 + [4 * args.resolution // 5] * 2, fill=255)
    rows = []
    for what, ages in jobs.items():
        ours = partial(lida.age_to, sd, photo, mask, ages, 40, "a man")
        theirs = partial(peer_photograph, pipe, photo, mask, ages, args)
        rows.append(Row(what, *by_turns([ours, theirs], args.pairs, warm_up=0)))
    return rows


def measure(args: Namespace) -> list[Row]:
    make_model(args.folder)
    rows = []
    for name in args.dtype:
        dtype = DTYPES[name]
        sd = lida.StableDiffusion.load(args.folder, dtype, args.device)
        sd.unet.config = replace(sd.unet.config, sample_size=args.resolution // sd.vae.factor)  # of the square that is repainted
        for model in (sd.unet, sd.vae):
            use_fastest(model, (args.resolution // sd.vae.factor) ** 2)
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(args.folder, safety_checker=None, dtype=dtype).to(args.device)
        found = forwards(sd, pipe, dtype, args)
        jobs = {"photograph": ("one aged photograph", AGES[-1:]), "row": ("a row of five ages", AGES)}
        if wanted := dict(job for name, job in jobs.items() if name in args.jobs):
            give_adapters(sd, pipe)
            found += photographs(sd, pipe, wanted, args)
        rows += [Row(f"{row.what}, {args.resolution} px, {name}", row.lida, row.peer) for row in found]
    return rows


def give_adapters(sd: lida.StableDiffusion, pipe) -> None:
    """Two adapters of rank 8 on cross-attention: merged in lida, live through peft in the peer."""
    for name in ("age", "identity"):
        pipe.unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=list(CROSS_ATTENTION)), name)
    pipe.unet.set_adapters(["age", "identity"], [0.2, 1.0])
    modules = {path: module for path, module in pipe.unet.named_modules() if hasattr(module, "lora_A")}
    for name in ("age", "identity"):
        layers = {
            path: LowRank(
                module.lora_A[name].weight.detach().float().cpu(), module.lora_B[name].weight.detach().float().cpu(), 8.0
            )
            for path, module in modules.items()
        }
        sd.load_adapter(name, lida.Adapter(layers))
    sd.set_adapters(["age", "identity"], [0.2, 1.0])


if __name__ == "__main__":
    command(__doc__, measure, flags)
