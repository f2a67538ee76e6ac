"""Train a LoRA adapter of Stable Diffusion by DDPM noise prediction (Ho et al. 2020; Hu et al. 2022).

    python train_lora.py --train_data_dir aaf --output_dir age-lora

The algorithm stands in train(), top to bottom. Several processes train together under torchrun or accelerate launch.
"""

import argparse
import copy
import json
import math
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lida
from lida.adapters.adapter import FILE_NAME, Adapter, load_adapter, save_adapter
from lida.kernels.amx import compiler, has_amx, require_amx
from lida.photos.captions import DEFAULT_TEMPLATE, caption
from lida.checkpoints.models import load_text_encoder, load_vae
from lida.data.folder import Example, data_fingerprint, read_captioning, read_examples
from lida.adapters.dialects import TEXT
from lida.diffusion.schedule import mask_weights, noise_prediction_loss
from lida.doors.errors import InputError, output_folder, run
from lida.nn.layers import ATTENTION_BACKENDS, set_attention_backend
from lida.training.batches import Chances, Order, Passes, Posteriors, Samples, Texts, leaves_room, require_masks, sizes_of
from lida.nn.lora import CROSS_ATTENTION, TEXT_ATTENTION, LoRALinear, SampleDropout, inject_lora, lora_parameters
from lida.aging.stable_diffusion import StableDiffusion
from lida.training.monitor import Monitor, add_to_contact_sheet, warn_of_data
from lida.aging.editing import generate
from lida.training.runs import PLACES, SAID, SETTINGS, checkpoint_of, finished, plan, settings_of, split
from lida.nn.text import encode_prompts
from lida.training.state import (
    LR_SCHEDULERS,
    STATE,
    Interruption,
    World,
    load_state,
    lr_factor,
    optimizer_of,
    out_of_memory,
    write_checkpoint,
)

CLASS, VALIDATION = 1, 2  # streams of chance, besides 0, the training pictures
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
    add("--output_dir", required=True, help=f"gets {FILE_NAME} and its settings as .json, checkpoints and metrics")
    add("--resolution", type=int, default=None, help="side of the training squares in pixels; the model's own if not given")
    add("--center_crop", action="store_true", help="cut the middle of a picture that is longer, not at random")
    add("--random_flip", action="store_true", help="mirror half of the pictures")
    add("--enable_bucket", action="store_true", help="sizes of the pictures' own shapes, with about the area of --resolution")
    add("--min_bucket_reso", type=int, default=None, help="least side of these; half of --resolution if not given")
    add("--max_bucket_reso", type=int, default=None, help="largest side; twice --resolution if not given")
    add("--bucket_reso_steps", type=int, default=None, help="sides are multiples of it; what the UNet divides by if not given")
    # The adapter
    add("--rank", type=int, default=8, help="rank of the low-rank matrices")
    add("--lora_alpha", "--alpha", type=float, default=None, help="the change is scaled by alpha / rank; the rank if not given")
    add("--lora_dropout", type=float, default=0.0, help="share of an adapted layer's input that the adapter does not see")
    add("--targets", nargs="+", default=list(CROSS_ATTENTION), help="linear layers to adapt, by the end of their path")
    add("--train_text_encoder", action="store_true", help="adapt the text encoder's attention too")
    # What the file says of itself
    add("--role", choices=("age", "identity", "other"), default=None, help="age where the captions tell ages, if not given")
    add("--consent", default=None, help="who agreed to what, in your words")
    add("--licence", default=None, help="of the adapter")
    # The objective
    add("--snr_gamma", type=float, default=None, help="weigh the steps by min(snr, gamma) / snr; all alike if not given")
    add("--noise_offset", type=float, default=0.0, help="noise that is the same all over a picture, beside the usual")
    add("--caption_dropout", type=float, default=0.0, help="share of the captions that are left empty")
    add("--mask_loss", action="store_true", help="weigh the loss by masks/<stem>.png")
    add("--unmasked_weight", type=float, default=0.0, help="what counts outside of the mask, for --mask_loss")
    add("--normalize_mask_loss", action="store_true", help="let pictures count alike, however large their masks are")
    add(
        "--prior_adapter",
        default=None,
        help="an Age-LoRA: with prompts of all ages, hold the model to what the base does with it",
    )
    add("--prior_weight", type=float, default=1.0, help="of that part of the loss")
    add("--prior_subject", default="a person", help="whom those prompts are about")
    add("--class_data_dir", default=None, help="folder of other pictures to go on painting, as --train_data_dir (DreamBooth)")
    add("--class_prompt", default=None, help="their caption, where the folder has none")
    add("--prior_loss_weight", type=float, default=1.0, help="of their part of the loss")
    # The optimisation
    add("--train_batch_size", type=int, default=16, help="pictures a forward pass, of each process")
    add("--gradient_accumulation_steps", type=int, default=1, help="forward passes a step")
    add("--max_train_steps", type=int, default=1000, help="optimiser steps")
    add("--num_train_epochs", type=int, default=None, help="times that every picture is seen, instead of --max_train_steps")
    add("--learning_rate", type=float, default=1e-4, help="AdamW's")
    add("--text_encoder_lr", type=float, default=None, help="the text encoder's; --learning_rate if not given")
    add("--scale_lr", action="store_true", help="times the pictures of a step")
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant", help="how the learning rate changes")
    add("--lr_warmup_steps", type=int, default=0, help="steps up to the full learning rate; constant has none")
    add("--lr_num_cycles", type=int, default=1, help="of cosine_with_restarts")
    add("--lr_power", type=float, default=1.0, help="of polynomial")
    add("--adam_beta1", type=float, default=0.9, help="decay of the first moment")
    add("--adam_beta2", type=float, default=0.999, help="decay of the second")
    add("--adam_weight_decay", type=float, default=1e-2, help="decay of the weights")
    add("--adam_epsilon", type=float, default=1e-8, help="beside the second moment's root")
    add("--use_8bit_adam", action="store_true", help="moments in 8 bits, by bitsandbytes, on a GPU")
    add("--max_grad_norm", type=float, default=1.0, help="longer gradients are cut to it")
    add("--max_skipped_steps", type=int, default=10, help="so many steps in a row without a finite loss end the run")
    add("--seed", type=int, default=0, help="of the adapter's start, the order, the noise and the timesteps")
    # Speed and memory
    add("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="the passes; adapter and loss stay in float32")
    add("--cache_latents", action="store_true", help="encode each picture once, before the first step, in float32, and keep it")
    add("--cache_dir", default=None, help="keep it in this folder instead, for later runs too")
    add("--gradient_checkpointing", action="store_true", help="keep less for the way back, and compute it again")
    add(
        "--attention",
        choices=ATTENTION_BACKENDS,
        default=None,
        help="its kernel; amx where there is one, or sdpa, if not given",
    )
    as_xformers = {"dest": "attention", "action": "store_const", "const": "xformers", "default": argparse.SUPPRESS}
    add("--enable_xformers_memory_efficient_attention", **as_xformers, help="--attention xformers, on a GPU")
    add("--allow_tf32", action="store_true", help="float32 products with 10 bits of mantissa, on a GPU")
    add("--compile", action="store_true", help="the UNet, by torch.compile")
    add("--dataloader_num_workers", type=int, default=0, help="processes that read pictures")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    # Seeing and stopping
    add("--checkpointing_steps", type=int, default=500, help="write a checkpoint every so many steps")
    add("--checkpoints_total_limit", type=int, default=None, help="keep only so many of them")
    add("--resume_from_checkpoint", default=None, help="latest, or a checkpoint's folder: go on from there")
    add("--validation_split", type=float, default=0.0, help="share of the pictures to measure the loss on, not to train on")
    add("--validation_prompt", default=None, help="paint it every --validation_steps")
    add("--num_validation_images", type=int, default=4, help="so many times")
    add("--validation_steps", type=int, default=200, help="steps between measuring and painting")
    add("--report_to", default="none", help="tensorboard, beside metrics.jsonl")
    add("--dry_run", action="store_true", help="check everything, say what it would take, and stop")
    args = parser.parse_args()
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raise InputError for a value that cannot be meant."""
    at_least = dict.fromkeys(("rank", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"), 1)
    at_least |= dict.fromkeys(("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_train_epochs"), 1)
    at_least |= {"lr_warmup_steps": 0, "dataloader_num_workers": 0, "num_validation_images": 1, "max_skipped_steps": 1}
    for name, least in at_least.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    for name in ("learning_rate", "text_encoder_lr", "lora_alpha", "snr_gamma", "max_grad_norm", "adam_epsilon"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be a number above 0, not {value}")
    shares = ("lora_dropout", "caption_dropout", "adam_beta1", "adam_beta2", "validation_split")
    for name in (*shares, "noise_offset", "unmasked_weight", "prior_weight", "prior_loss_weight", "adam_weight_decay"):
        value, most = getattr(args, name), 1.0 if name in shares else math.inf
        if not 0 <= value < most:
            raise InputError(f"--{name} must be at least 0 and below {most:g}, not {value}")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must lie between 0 and 2^63 - 1, not {args.seed}")
    if args.mixed_precision == "fp16" and not args.device.startswith("cuda"):
        raise InputError(f"--mixed_precision fp16: needs a CUDA GPU, and the device is {args.device}; bf16 works there too")
    if args.attention == "xformers" and not args.device.startswith("cuda"):
        flag = "--enable_xformers_memory_efficient_attention (--attention xformers)"
        raise InputError(f"{flag}: needs a CUDA GPU, not {args.device}; leave it out")
    if args.attention == "amx":
        require_amx(dtype_of(args), torch.device(args.device))
    if args.compile and not args.device.startswith("cuda") and compiler() is None:
        raise InputError("--compile: wants a C++ compiler on the CPU, and finds none; install g++, or leave it out")


def read_data(args: argparse.Namespace) -> tuple[list[Example], dict]:
    """The examples, all of them checked, and what is known of their captions."""
    smallest = max(8, args.resolution // 4)
    examples = read_examples(args.train_data_dir, args.image_column, args.caption_column, smallest)
    if args.balance_column and not all(args.balance_column in example.row for example in examples):
        raise InputError(f"--balance_column {args.balance_column}: not every line of {args.train_data_dir} has that column")
    if args.mask_loss:
        require_masks(examples)
    enlarged = sum(min(example.size) < args.resolution for example in examples)
    if enlarged:
        warnings.warn(
            f"{enlarged} of {len(examples)} pictures are smaller than --resolution {args.resolution} and are enlarged"
        )
    warn_of_data([example.text for example in examples])
    return examples, read_captioning(args.train_data_dir)


def load_model(args: argparse.Namespace, world: World) -> StableDiffusion:
    """The model, frozen, on this process's device, its UNet in the precision of the passes."""
    if args.device == "cuda" and world.size > 1:
        args.device = f"cuda:{world.local_rank}"
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, dtype_of(args), args.device)
    if args.mixed_precision != "no":  # what runs once runs in float32
        sd.text_encoder = load_text_encoder(args.pretrained_model_name_or_path, device=args.device)
        if keeps_latents(args) and sd.vae.dtype != torch.float32:  # in float16 it is that already
            sd.vae = load_vae(args.pretrained_model_name_or_path, device=args.device)
    if sd.unet.inpaints:
        where = args.pretrained_model_name_or_path
        raise InputError(f"{where}: is an inpainting model; train on the plain one, adapters fit both")
    args.attention = args.attention or ("amx" if has_amx(dtype_of(args), torch.device(args.device)) else "sdpa")
    set_attention_backend(sd.unet, args.attention)
    args.resolution = args.resolution or sd.resolution
    if args.resolution < 1 or args.resolution % sd.vae.factor:
        raise InputError(f"--resolution {args.resolution}: must be a multiple of {sd.vae.factor}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    for model in (sd.unet, sd.vae):
        model.to(memory_format=torch.channels_last)
    sd.unet.set_gradient_checkpointing(args.gradient_checkpointing)
    return sd


def keeps_latents(args: argparse.Namespace) -> bool:
    """Whether each picture is encoded once."""
    return args.cache_latents or args.cache_dir is not None


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    """Of the frozen weights, and of the passes."""
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.mixed_precision]


def teacher_of(sd: StableDiffusion, source: str) -> tuple[nn.Module, dict]:
    """The UNet with an adapter merged, sharing every weight that this does not change, and what is known of the adapter."""
    adapter = load_adapter(source, sd)
    if any(path.startswith(TEXT) for path in adapter.layers):
        raise InputError(
            f"--prior_adapter {source}: changes the text encoder, which the prior does not hold; give one of the UNet"
        )
    teacher = copy.deepcopy(sd.unet, {id(p): p for p in sd.unet.parameters()})
    for path, layer in adapter.layers.items():
        module = teacher.get_submodule(path)
        module.weight = nn.Parameter(module.weight + layer.delta.to(module.weight), requires_grad=False)
    return teacher, adapter.metadata


def add_adapter(sd: StableDiffusion, args: argparse.Namespace, dropout: SampleDropout) -> dict[str, LoRALinear]:
    """Put the layers that train into the model, the text encoder's behind `text_encoder.`; they begin by --seed."""
    torch.manual_seed(args.seed)
    try:
        layers = inject_lora(sd.unet, args.rank, args.lora_alpha, args.targets)
    except ValueError as error:
        raise InputError(f"--targets: {error}") from None
    sd.text_encoder.requires_grad_(False)
    if args.train_text_encoder:
        inner = getattr(sd.text_encoder.model, "text_model", sd.text_encoder.model)
        text = inject_lora(inner, args.rank, args.lora_alpha, TEXT_ATTENTION)
        layers |= {TEXT + path: layer for path, layer in text.items()}
    for number, layer in enumerate(layers.values()):
        layer.dropout, layer.number = dropout if args.lora_dropout else None, number
        layer.train()
    return layers


def passes_over(
    examples: list[Example], sd: StableDiffusion, args: argparse.Namespace, world: World, stream: int = 0, chance: bool = True
) -> Passes:
    """The batches of these examples; `stream` sets what chance decides apart from other examples'."""
    step = args.bucket_reso_steps or sd.vae.factor * 2 ** (len(sd.unet.config.block_out_channels) - 1)
    lowest, highest = args.min_bucket_reso or args.resolution // 2, args.max_bucket_reso or 2 * args.resolution
    if args.enable_bucket and (step % sd.vae.factor or not step <= lowest <= args.resolution <= highest):
        sides = f"--min_bucket_reso {lowest}, --resolution {args.resolution}, --max_bucket_reso {highest}"
        raise InputError(f"{sides} must rise, from --bucket_reso_steps {step} up, which is a multiple of {sd.vae.factor}")
    sizes = sizes_of(examples, args.resolution, (step, lowest, highest) if args.enable_bucket else None)
    drawn = (args.random_flip, not args.center_crop, args.caption_dropout, args.noise_offset) if chance else ()
    chances = Chances(sd.schedule.config.num_train_timesteps, *drawn)
    shape, masked = (sd.unet.config.in_channels, sd.vae.factor), args.mask_loss and stream != CLASS
    samples = Samples(examples, sizes, chances, shape, args.seed, stream, masked)
    stays = not (chances.random_crop and leaves_room(examples, sizes))
    if keeps_latents(args) and not stays:
        raise InputError("--cache_latents: pictures are cut at random, each time elsewhere; add --center_crop")
    balance = [example.row[args.balance_column] for example in examples] if args.balance_column and not stream else None
    batch = args.train_batch_size * args.gradient_accumulation_steps * world.size
    order = Order(sizes, batch, args.seed + stream, balance)
    if stays and not keeps_latents(args) and world.first and not stream and order.steps_per_epoch < args.max_train_steps:
        warnings.warn("each picture is encoded anew whenever it is seen; --cache_latents does it once")
    return Passes(samples, order, args.train_batch_size, world.rank, world.size, args.dataloader_num_workers)


def keep_what_stays(objective: "Objective", data: list[Passes], args: argparse.Namespace, world: World) -> None:
    """Compute latents and texts once, where they stay the same, and let go of the networks that made them."""
    sd = objective.sd
    if keeps_latents(args):
        folder = Path(args.cache_dir) if args.cache_dir else None
        for passes in data:
            passes.samples.posteriors = Posteriors(
                passes.samples, sd.vae, args.train_batch_size, folder, world.rank, world.size
            )
        world.wait()
        sd.vae.to("meta")
    if not args.train_text_encoder:
        captions = [example.text for passes in data for example in passes.samples.examples]
        objective.texts = Texts(sd.text_encoder, ["", *captions, *objective.ages])
        sd.text_encoder.to("meta")


def ages_of(metadata: dict, subject: str) -> list[str]:
    """A caption of each age that an Age-LoRA saw."""
    low, high = metadata.get("ages", (0, 99))
    return sorted({caption(metadata.get("template", DEFAULT_TEMPLATE), subject, age) for age in range(low, high + 1)})


class Objective:
    """The loss of a batch: noise prediction, and what holds the model to what it did before, where that is asked for."""

    def __init__(self, sd: StableDiffusion, args: argparse.Namespace):
        self.sd, self.args, self.texts = sd, args, None
        self.unet = torch.compile(sd.unet) if args.compile else sd.unet
        self.teacher, self.ages = None, []
        self.dropout = SampleDropout(args.lora_dropout)

    def encode(self, captions: list[str]) -> Tensor:
        """encoder_hidden_states (B, 77, C)."""
        hidden = encode_prompts(self.sd.text_encoder, captions) if self.texts is None else self.texts(captions)
        return hidden.to(self.args.device, dtype_of(self.args))

    def __call__(self, batch: dict, prior: bool = True) -> Tensor:
        sd, args = self.sd, self.args
        batch = {name: value.to(args.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        with torch.no_grad():
            posterior = batch["posterior"].unbind(1) if "posterior" in batch else sd.vae.posterior(batch["pixel_values"])
            latents = sd.vae.draw(*(x.float() for x in posterior), batch["posterior_noise"])
        weights = mask_weights(batch["mask"], args.unmasked_weight, args.normalize_mask_loss) if "mask" in batch else None
        self.dropout.seeds = batch["seed"].tolist()
        shared = {"noise": batch["noise"], "timesteps": batch["timesteps"], "snr_gamma": args.snr_gamma}
        with torch.autocast(torch.device(args.device).type, dtype_of(args), enabled=args.mixed_precision != "no"):
            hidden = self.encode(batch["caption"])
            loss = noise_prediction_loss(self.unet, sd.schedule, latents, hidden, pixel_weights=weights, **shared)
            if self.teacher is None or not prior:
                return loss
            # At ages that the pictures may not show, what the base does with the Age-LoRA (Qi et al. 2025)
            hidden = self.encode([self.ages[int(seed) % len(self.ages)] for seed in batch["seed"]])
            held = noise_prediction_loss(self.unet, sd.schedule, latents, hidden, teacher=self.teacher, **shared)
        return loss + args.prior_weight * held


def new_optimizer(layers: dict[str, LoRALinear], args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW over the UNet's part of the adapter and, at its own learning rate, the text encoder's."""
    parts = [[layer for path, layer in layers.items() if path.startswith(TEXT) == text] for text in (False, True)]
    rates = (args.learning_rate, args.text_encoder_lr or args.learning_rate)
    groups = [{"params": lora_parameters(part), "lr": lr, "full_lr": lr} for part, lr in zip(parts, rates) if part]
    betas = (args.adam_beta1, args.adam_beta2)
    return optimizer_of(groups, betas, args.adam_weight_decay, args.adam_epsilon, args.use_8bit_adam, args.device)


def set_learning_rate(optimizer: torch.optim.Optimizer, args: argparse.Namespace, step: int, batch: int) -> float:
    """Give every group its rate at this step; returns the first's."""
    shape = (args.lr_warmup_steps, args.max_train_steps, args.lr_num_cycles, args.lr_power, args.learning_rate)
    factor = lr_factor(args.lr_scheduler, step, *shape) * (batch if args.scale_lr else 1)
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def provenance(args: argparse.Namespace, examples: list[Example], captioning: dict) -> dict:
    """What the adapter's file says of itself, without names and paths of pictures."""
    known = {"role": args.role or ("age" if "template" in captioning else "other"), "data": data_fingerprint(examples)}
    known |= {"rank": args.rank, "alpha": float(args.lora_alpha or args.rank), "targets": args.targets}
    return known | {name: getattr(args, name) for name in ("consent", "licence") if getattr(args, name)}


@torch.no_grad()
def validation_loss(objective: Objective, passes: Passes) -> float:
    """The loss on the same pictures, noise and timesteps each time, without dropout."""
    objective.sd.unet.eval()
    losses = [objective(batch, prior=False).item() for batch in passes.load(0, passes.order.steps_per_epoch)]
    objective.sd.unet.train()
    return float(np.mean(losses))


def paint(objective: Objective, args: argparse.Namespace, step: int) -> None:
    """Paint --validation_prompt with the adapter as it is, and add the pictures to the contact sheet."""
    sd, source = objective.sd, args.pretrained_model_name_or_path
    vae = load_vae(source, device=args.device) if sd.vae.encoder.conv_in.weight.is_meta else sd.vae
    text_encoder = sd.text_encoder if objective.texts is None else load_text_encoder(source, device=args.device)
    sd.unet.eval()
    shown, generator = StableDiffusion(sd.unet, vae, text_encoder, sd.schedule), torch.Generator().manual_seed(args.seed)
    options = {"num_images_per_prompt": args.num_validation_images, "num_inference_steps": 25, "guidance_scale": 3.0}
    images = generate(shown, args.validation_prompt, generator=generator, **options)
    sd.unet.train()
    add_to_contact_sheet(Path(args.output_dir), step, images)


def train(args: argparse.Namespace) -> Path | None:
    world, folder = World.join(args.device), Path(args.output_dir)
    sd = load_model(args, world)
    objective = Objective(sd, args)
    if args.prior_adapter:
        objective.teacher, metadata = teacher_of(sd, args.prior_adapter)
        objective.ages = ages_of(metadata, args.prior_subject)
    examples, captioning = read_data(args)
    examples, held_out = split(examples, args.validation_split, args.seed)
    data = [passes_over(examples, sd, args, world)]
    if args.class_data_dir:
        others = read_examples(args.class_data_dir, args.image_column, args.caption_column, caption=args.class_prompt)
        data.append(passes_over(others, sd, args, world, CLASS))
    if args.num_train_epochs:
        args.max_train_steps = args.num_train_epochs * data[0].order.steps_per_epoch
    settings = settings_of(args, sd.base, data) | {"vae_dtype": str(sd.vae.dtype)}
    if args.resume_from_checkpoint == "latest" and finished(args, settings):
        return folder / FILE_NAME
    checkpoint = checkpoint_of(args, settings)

    layers = add_adapter(sd, args, objective.dropout)
    if world.first:
        output_folder(folder)
    world.wait()
    parameters = lora_parameters(layers.values())
    optimizer = new_optimizer(layers, args)
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=args.mixed_precision == "fp16")
    monitor = Monitor(folder, args.max_train_steps, data[0].order.batch, args.report_to, args.max_skipped_steps, world.first)
    validation = passes_over(held_out, sd, args, World(), VALIDATION, chance=False) if held_out else None
    keep_what_stays(objective, [*data, *([validation] if validation else [])], args, world)
    if args.dry_run:
        print(plan(args, objective, data[0], parameters))
        return None

    known = {**captioning, **provenance(args, examples, captioning), "base": sd.base}

    def described() -> Adapter:
        left_out = (*PLACES, *SAID, "resume_from_checkpoint", "dry_run")  # where it lay, and how often it stopped
        told = {name: value for name, value in vars(args).items() if name not in left_out}
        return Adapter.of(layers, known | {"training": {"lida": lida.__version__, **told, "final_loss": monitor.average}})

    def write_beside(part: Path) -> None:
        save_adapter(part / FILE_NAME, described())
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    state = {"adapter": nn.ParameterList(parameters), "optimizer": optimizer, "scaler": scaler, "monitor": monitor}
    first = load_state(checkpoint / STATE, state) if checkpoint else 0
    batches = [passes.load(first, args.max_train_steps) for passes in data]
    with Interruption() as interruption:
        monitor.begin(first)
        for step in range(first, args.max_train_steps):
            lr = set_learning_rate(optimizer, args, step, data[0].order.batch)
            total = 0.0
            for _ in range(args.gradient_accumulation_steps):
                loss = objective(next(batches[0]))
                if args.class_data_dir:  # prior preservation (Ruiz et al. 2023, equation 2)
                    loss = loss + args.prior_loss_weight * objective(next(batches[1]), prior=False)
                scaler.scale(loss / args.gradient_accumulation_steps).backward()
                total += loss.item() / args.gradient_accumulation_steps
            total, stop = world.average(parameters, [total / world.size, float(interruption.signal > 0)])
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm).item()
            if monitor.step(step + 1, total, lr, norm) or scaler.is_enabled():
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad(set_to_none=True)

            done, last = step + 1, step + 1 == args.max_train_steps
            if world.first and (done % args.validation_steps == 0 or last):
                if validation:
                    monitor.record(done, validation_loss=validation_loss(objective, validation))
                if args.validation_prompt is not None:
                    paint(objective, args, done)
            if world.first and (stop or done % args.checkpointing_steps == 0) and not last:
                write_checkpoint(folder, done, state, write_beside, args.checkpoints_total_limit)
            if stop and not last:
                print(f"stopped after step {done}; go on with --resume_from_checkpoint latest", file=sys.stderr)
                sys.exit(128 + (interruption.signal or signal.SIGTERM))
        monitor.end()
    if not all(layer.lora_up.any() for layer in layers.values()):
        raise InputError(
            f"the adapter did not move: after {args.max_train_steps} steps some of it is still 0, and nothing is saved"
        )
    if world.first:
        path = save_adapter(folder / FILE_NAME, described())
        beside = {**described().metadata, "settings": settings, "steps": args.max_train_steps}
        beside["training"] |= {name: getattr(args, name) for name in PLACES} | {"examples": len(examples)}
        path.with_suffix(".json").write_text(json.dumps(beside, indent=2) + "\n", encoding="utf-8")
    world.wait()
    world.leave()
    return folder / FILE_NAME


def main() -> None:
    args = parse_args()
    try:
        path = train(args)
    except (RuntimeError, MemoryError) as error:
        told = out_of_memory(error)
        if told is None:
            raise
        raise told from None
    if path:
        print(f"adapter: {path}")


if __name__ == "__main__":
    run(main)
