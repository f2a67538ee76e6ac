"""Time of lida beside diffusers + peft in one process, on the same weights and inputs, as ratios of medians.

    python tests/benchmarks/speed.py                      lida-tiny
    python tests/benchmarks/speed.py --model PATH --size 64 --device cuda

A sampling step has the adapter merged in lida and live in peft; a training step has it live in both. lida's models are prepared
as infer.py and train_lora.py prepare them; the peer's is channels_last for training.
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import diffusers
import peft
import torch
from comparison import WEIGHTS, Row, by_turns, command
from torch import Tensor, nn

import lida
from lida.kernels import fastest_attention, use_attention, use_fastest, use_few_pixels_convolutions
from lida.nn.lora import CROSS_ATTENTION, lora_parameters
from lida.nn.unet import UNetConfig

RANK = 8


def flags(parser) -> None:
    add = parser.add_argument
    add("--model", type=Path, default=WEIGHTS / "lida-tiny", help="model folder (default: weights/lida-tiny)")
    add("--size", type=int, default=16, help="height and width of the latents (default: 16)")
    add("--batch", type=int, default=16, help="of a training step; sampling has 2 (default: 16)")


def peer(args: Namespace, dtype: torch.dtype) -> nn.Module:
    """diffusers' UNet with an adapter of peft, whose parameters are float32."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(args.model, subfolder="unet", dtype=dtype).to(args.device)
    unet.requires_grad_(False).add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(CROSS_ATTENTION)))
    diffusers.training_utils.cast_training_params(unet, dtype=torch.float32)
    return unet


def inputs(args: Namespace, config: UNetConfig, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and prompts."""
    latents = torch.randn(batch, config.in_channels, args.size, args.size, dtype=dtype, device=args.device)
    text = torch.randn(batch, 77, config.cross_attention_dim, dtype=dtype, device=args.device)
    return latents, torch.randint(1000, (batch,), device=args.device), text


@torch.no_grad()
def sampling(args: Namespace) -> Row:
    """A guided step, float32."""
    sd, theirs = lida.StableDiffusion.load(args.model, device=args.device), peer(args, torch.float32)
    sd.load_adapter("age", lida.Adapter.of(lida.inject_lora(lida.StableDiffusion.load(args.model).unet, RANK)))
    sd.set_adapters(["age"], [1.0])
    use_fastest(sd.unet, args.size**2)
    x = inputs(args, sd.unet.config, 2, torch.float32)
    runs = [lambda: sd.unet(*x), lambda: theirs(*x)]
    return Row(f"one guided step of {args.model.name}, adapter merged", *by_turns(runs, 3 * args.pairs, warm_up=2))


def training(args: Namespace, dtype: torch.dtype) -> Row:
    """A step of AdamW; in bfloat16 under autocast, as both scripts have it."""
    ours = lida.StableDiffusion.load(args.model, dtype, args.device).unet.to(memory_format=torch.channels_last)
    use_attention(ours, fastest_attention(dtype, args.device, args.size**2))
    use_few_pixels_convolutions(ours)
    theirs = peer(args, dtype).to(memory_format=torch.channels_last)
    x = inputs(args, ours.config, args.batch, dtype)
    noise = torch.randn_like(x[0])
    trained = [lora_parameters(lida.inject_lora(ours, RANK).values()), [p for p in theirs.parameters() if p.requires_grad]]
    optimizers = [torch.optim.AdamW(parameters, lr=1e-4) for parameters in trained]

    def step(predict: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        with torch.autocast(torch.device(args.device).type, dtype, enabled=dtype != torch.float32):
            loss = nn.functional.mse_loss(predict(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = [lambda: step(lambda: ours(*x), optimizers[0]), lambda: step(lambda: theirs(*x).sample, optimizers[1])]
    name = str(dtype).removeprefix("torch.")
    return Row(f"a training step of {args.batch} on {args.model.name}, {name}", *by_turns(steps, 3 * args.pairs, warm_up=2))


def measure(args: Namespace) -> list[Row]:
    torch.manual_seed(0)
    return [sampling(args), *(training(args, dtype) for dtype in (torch.float32, torch.bfloat16))]


if __name__ == "__main__":
    command(__doc__, measure, flags)
