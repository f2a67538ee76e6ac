"""Train a LoRA adapter of Stable Diffusion's UNet by DDPM noise prediction (Ho et al. 2020; Hu et al. 2022).

    python train_lora.py --train_data_dir aaf --output_dir age-lora

The algorithm stands in train(), top to bottom.
"""

import argparse
import json
import math
import os
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from tqdm import tqdm

import lida
from lida.adapters import FILE_NAME, Adapter, save_adapter
from lida.captions import read_captioning
from lida.data import CaptionedImages, Example, data_fingerprint, read_examples, with_posteriors
from lida.diffusion import noise_prediction_loss
from lida.errors import InputError, output_folder, run
from lida.lora import CROSS_ATTENTION, inject_lora, lora_parameters
from lida.pipeline import StableDiffusion
from lida.text import encode_prompts

PLACES = ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "device", "role", "consent", "licence")
DEFAULT_MODEL = os.path.relpath(Path(__file__).parent / "weights" / "lida-tiny")


def parse_args() -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=formatter)
    add = parser.add_argument
    # What is trained on what
    add("--pretrained_model_name_or_path", default=DEFAULT_MODEL, help="model folder, .safetensors file or hub id")
    add("--train_data_dir", required=True, help='folder with metadata.jsonl, one {"file_name", "text"} a line')
    add("--image_column", default="image", help="which column names the pictures; image is the one called file_name")
    add("--caption_column", default="text", help="which column has the captions")
    add("--balance_column", default=None, help="draw pictures so that each value of this column is seen equally often")
    add("--output_dir", required=True, help=f"gets {FILE_NAME} and its settings as .json")
    add("--resolution", type=int, default=None, help="side of the training squares in pixels; the model's own if not given")
    # The adapter
    add("--rank", type=int, default=8, help="rank of the low-rank matrices")
    add("--alpha", type=float, default=None, help="the change is scaled by alpha / rank; the rank if not given")
    add("--targets", nargs="+", default=list(CROSS_ATTENTION), help="linear layers to adapt, by the end of their path")
    # What the file says of itself
    add("--role", choices=("age", "identity", "other"), default=None, help="age where the captions tell ages, if not given")
    add("--consent", default=None, help="who agreed to what, in your words")
    add("--licence", default=None, help="of the adapter")
    # The optimisation
    add("--train_batch_size", type=int, default=16, help="pictures a forward pass")
    add("--gradient_accumulation_steps", type=int, default=1, help="forward passes a step")
    add("--learning_rate", type=float, default=1e-4, help="AdamW's, constant")
    add("--snr_gamma", type=float, default=None, help="weigh the steps by min(snr, gamma) / snr; all alike if not given")
    add("--max_train_steps", type=int, default=1000, help="optimiser steps")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: passes in bfloat16, adapter and loss in float32")
    add("--cache_latents", action="store_true", help="encode each picture once, before the first step, and keep that in memory")
    add("--seed", type=int, default=0, help="of the adapter's start, the order, the noise and the timesteps")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    args = parser.parse_args()
    for name in ("rank", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}")
    for name in ("learning_rate", "alpha", "snr_gamma"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be a number above 0, not {value}")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must lie between 0 and 2^63 - 1, not {args.seed}")
    return args


def batches(dataset, batch_size: int, generator: torch.Generator, balance: list | None):
    """Batches of pictures (or what the VAE made of them) and captions without end, each pass in another order.

    With `balance`, a value for each picture, a pass draws with repetition, each value as often as another.
    """
    sampler = None
    if balance:
        counts = Counter(balance)
        sampler = WeightedRandomSampler([1 / counts[value] for value in balance], len(balance), generator=generator)
    loader = DataLoader(dataset, batch_size, shuffle=sampler is None, sampler=sampler, generator=generator)
    while True:
        yield from loader


def read_data(args: argparse.Namespace) -> tuple[list[Example], dict]:
    """The examples, all of them checked, and what is known of their captions."""
    smallest = max(8, args.resolution // 4)
    examples = read_examples(args.train_data_dir, args.image_column, args.caption_column, smallest)
    if args.balance_column and not all(args.balance_column in example.row for example in examples):
        raise InputError(f"--balance_column {args.balance_column}: not every line of {args.train_data_dir} has that column")
    enlarged = sum(min(example.size) < args.resolution for example in examples)
    if enlarged:
        warnings.warn(
            f"{enlarged} of {len(examples)} pictures are smaller than --resolution {args.resolution} and are enlarged"
        )
    return examples, read_captioning(args.train_data_dir)


def provenance(args: argparse.Namespace, examples: list, captioning: dict) -> dict:
    """What the adapter's file says of itself, without names and paths of pictures."""
    known = {"role": args.role or ("age" if "template" in captioning else "other"), "data": data_fingerprint(examples)}
    known |= {"rank": args.rank, "alpha": float(args.alpha or args.rank), "targets": args.targets}
    return known | {name: getattr(args, name) for name in ("consent", "licence") if getattr(args, name)}


def train(args: argparse.Namespace) -> Path:
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, device=args.device)
    if sd.unet.inpaints:
        raise InputError(
            f"{args.pretrained_model_name_or_path}: is an inpainting model; train on the plain one, adapters fit both"
        )
    args.resolution = args.resolution or sd.resolution
    if args.resolution < 1 or args.resolution % sd.vae.factor:
        raise InputError(f"--resolution {args.resolution}: must be a multiple of {sd.vae.factor}")
    examples, captioning = read_data(args)

    torch.manual_seed(args.seed)
    try:
        layers = inject_lora(sd.unet, args.rank, args.alpha, args.targets)
    except ValueError as error:
        raise InputError(f"--targets: {error}") from None
    output_folder(args.output_dir)
    parameters = lora_parameters(layers.values())
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    dataset = CaptionedImages(examples, args.resolution)
    if args.cache_latents:
        dataset = with_posteriors(dataset, sd.vae, args.train_batch_size)
    balance = [example.row[args.balance_column] for example in examples] if args.balance_column else None
    data = batches(dataset, args.train_batch_size, torch.Generator().manual_seed(args.seed), balance)

    average = None
    progress = tqdm(range(args.max_train_steps), unit="step")
    for _ in progress:
        total = 0.0
        for _ in range(args.gradient_accumulation_steps):
            x, captions = next(data)
            with torch.no_grad():
                latents = sd.vae.draw(*x.to(args.device).unbind(1)) if args.cache_latents else sd.vae.encode(x.to(args.device))
                encoder_hidden_states = encode_prompts(sd.text_encoder, captions)
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                loss = noise_prediction_loss(sd.unet, sd.schedule, latents, encoder_hidden_states, snr_gamma=args.snr_gamma)
            (loss / args.gradient_accumulation_steps).backward()
            total += loss.item() / args.gradient_accumulation_steps
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average = total if average is None else 0.98 * average + 0.02 * total
        progress.set_postfix(loss=f"{average:.4f}", lr=f"{args.learning_rate:.0e}")

    if not math.isfinite(average):
        raise InputError(f"the loss ended at {average}, so nothing was saved; lower --learning_rate ({args.learning_rate})")
    settings = {"lida": lida.__version__, **vars(args), "examples": len(examples), "final_loss": average}
    adapter = Adapter.of(layers, {**captioning, **provenance(args, examples, captioning), "base": sd.base})
    adapter.metadata["training"] = {name: value for name, value in settings.items() if name not in PLACES}
    path = save_adapter(Path(args.output_dir, FILE_NAME), adapter)
    beside = {**adapter.metadata, "training": settings}
    path.with_suffix(".json").write_text(json.dumps(beside, indent=2) + "\n", encoding="utf-8")
    return path


def main() -> None:
    print(f"adapter: {train(parse_args())}")


if __name__ == "__main__":
    run(main)
