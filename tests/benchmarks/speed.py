"""Time of lida beside diffusers + peft in one process, on the same weights and inputs, as ratios of medians.

    python tests/benchmarks/speed.py                      lida-tiny
    python tests/benchmarks/speed.py --model PATH --size 64 --device cuda

Both run in turn, A B A B, so that a machine whose speed drifts slows both.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import diffusers
import peft
import torch
from torch import nn

import lida
from lida.nn.lora import CROSS_ATTENTION, lora_parameters

WEIGHTS = Path(__file__).parent.parent.parent / "weights"


def compare(what: str, ours: Callable, theirs: Callable, rounds: int, device: str) -> None:
    """Print the medians in milliseconds, and lida's over the other's."""
    times: tuple[list, list] = ([], [])
    for number in range(rounds + 2):
        for run, kept in zip((ours, theirs), times):
            start = perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if number >= 2:  # after a warm-up
                kept.append(1000 * (perf_counter() - start))
    a, b = (statistics.median(kept) for kept in times)
    print(f"{what:34} lida {a:9.1f} ms   diffusers + peft {b:9.1f} ms   ratio {a / b:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS / "lida-tiny", help="model folder (default: weights/lida-tiny)")
    parser.add_argument("--size", type=int, default=12, help="height and width of the latents (default: 12)")
    parser.add_argument("--batch", type=int, default=16, help="of a training step; sampling has 2 (default: 16)")
    parser.add_argument("--rounds", type=int, default=15, help="counted runs of each (default: 15)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    args = parser.parse_args()

    torch.manual_seed(0)
    sd = lida.StableDiffusion.load(args.model, device=args.device)
    unet = diffusers.UNet2DConditionModel.from_pretrained(args.model, subfolder="unet", torch_dtype=torch.float32).to(
        args.device
    )
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=list(CROSS_ATTENTION))
    unet.requires_grad_(False)
    unet.add_adapter(config)

    def inputs(batch: int) -> tuple:
        latents = torch.randn(batch, 4, args.size, args.size, device=args.device)
        timesteps = torch.randint(1000, (batch,), device=args.device)
        return latents, timesteps, torch.randn(batch, 77, sd.unet.config.cross_attention_dim, device=args.device)

    x = inputs(2)
    layers = lida.inject_lora(lida.StableDiffusion.load(args.model).unet, 8)
    sd.load_adapter("age", lida.Adapter.of(layers))
    sd.set_adapters(["age"], [1.0])
    with torch.no_grad():
        compare("one guided step, adapter merged", lambda: sd.unet(*x), lambda: unet(*x), args.rounds, args.device)

    sd.set_adapters([], [])
    y, noise = inputs(args.batch), torch.randn(args.batch, 4, args.size, args.size, device=args.device)
    ours = lora_parameters(lida.inject_lora(sd.unet, 8).values())
    reference = [p for p in unet.parameters() if p.requires_grad]
    optimizers = [torch.optim.AdamW(parameters, lr=1e-4) for parameters in (ours, reference)]

    def step(predict: Callable, optimizer: torch.optim.Optimizer) -> None:
        nn.functional.mse_loss(predict(), noise).backward()
        optimizer.step()
        optimizer.zero_grad()

    train = lambda: step(lambda: sd.unet(*y), optimizers[0]), lambda: step(lambda: unet(*y).sample, optimizers[1])  # noqa: E731
    compare(f"a training step of {args.batch}", *train, args.rounds, args.device)
    with torch.autocast(torch.device(args.device).type, torch.bfloat16):
        compare(f"a training step of {args.batch}, bf16", *train, args.rounds, args.device)


if __name__ == "__main__":
    main()
