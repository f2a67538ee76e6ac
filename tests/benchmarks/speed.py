"""Time of lida beside diffusers + peft in one process, on the same weights and inputs, as ratios of medians.

    python tests/benchmarks/speed.py                      lida-tiny
    python tests/benchmarks/speed.py --model PATH --size 64 --device cuda

A sampling step has the adapter merged in lida and live in peft; a training step has it live in both.
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import diffusers
import peft
import torch
from comparison import WEIGHTS, Row, by_turns, command
from torch import nn

import lida
from lida.nn.lora import CROSS_ATTENTION, lora_parameters


def flags(parser) -> None:
    add = parser.add_argument
    add("--model", type=Path, default=WEIGHTS / "lida-tiny", help="model folder (default: weights/lida-tiny)")
    add("--size", type=int, default=16, help="height and width of the latents (default: 16)")
    add("--batch", type=int, default=16, help="of a training step; sampling has 2 (default: 16)")


def measure(args: Namespace) -> list[Row]:
    torch.manual_seed(0)
    sd = lida.StableDiffusion.load(args.model, device=args.device)
    unet = diffusers.UNet2DConditionModel.from_pretrained(args.model, subfolder="unet", torch_dtype=torch.float32)
    unet.to(args.device).requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=8, lora_alpha=8, target_modules=list(CROSS_ATTENTION)))

    def latents_of(batch: int) -> torch.Tensor:
        return torch.randn(batch, sd.unet.config.in_channels, args.size, args.size, device=args.device)

    def inputs(batch: int) -> tuple:
        timesteps = torch.randint(1000, (batch,), device=args.device)
        return latents_of(batch), timesteps, torch.randn(batch, 77, sd.unet.config.cross_attention_dim, device=args.device)

    x, rows = inputs(2), []
    layers = lida.inject_lora(lida.StableDiffusion.load(args.model).unet, 8)
    sd.load_adapter("age", lida.Adapter.of(layers))
    sd.set_adapters(["age"], [1.0])
    with torch.no_grad():
        times = by_turns([lambda: sd.unet(*x), lambda: unet(*x)], 3 * args.pairs, warm_up=2)
    rows.append(Row("one guided step of lida-tiny, adapter merged", *times))

    sd.set_adapters([], [])
    y, noise = inputs(args.batch), latents_of(args.batch)
    ours = lora_parameters(lida.inject_lora(sd.unet, 8).values())
    theirs = [p for p in unet.parameters() if p.requires_grad]
    optimizers = [torch.optim.AdamW(parameters, lr=1e-4) for parameters in (ours, theirs)]

    def step(predict: Callable, optimizer: torch.optim.Optimizer) -> None:
        nn.functional.mse_loss(predict(), noise).backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = [lambda: step(lambda: sd.unet(*y), optimizers[0]), lambda: step(lambda: unet(*y).sample, optimizers[1])]
    rows.append(Row(f"a training step of {args.batch}", *by_turns(steps, 3 * args.pairs, warm_up=2)))
    with torch.autocast(torch.device(args.device).type, torch.bfloat16):
        rows.append(Row(f"a training step of {args.batch}, bf16", *by_turns(steps, 3 * args.pairs, warm_up=2)))
    return rows


if __name__ == "__main__":
    command(__doc__, measure, flags)
