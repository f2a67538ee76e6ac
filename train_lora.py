"""Train a LoRA adapter of Stable Diffusion by DDPM noise prediction (Ho et al. 2020; Hu et al. 2022).

    python train_lora.py --train_data_dir aaf --output_dir age-lora

train() is the algorithm, top to bottom. Several processes train together under torchrun or accelerate launch.
"""

import argparse
import itertools
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, make_dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lida import shipped
from lida.adapters import FILE_NAME
from lida.adapters.adapter import TEXT
from lida.aging import StableDiffusion, generate
from lida.checkpoints import load_text_encoder, load_vae
from lida.data.folder import read_captioning, read_examples
from lida.diffusion import Sampling, mask_weights, noise_prediction_loss
from lida.doors.arguments import Parser, fraction, non_negative, non_negative_int, positive, rate, seed, text, whole
from lida.doors.errors import InputError, run
from lida.doors.pictures import to_images
from lida.kernels import ATTENTION, compiled, fastest_attention, use_attention, use_few_pixels_convolutions
from lida.kernels.flash_cpu import compiler
from lida.nn.lora import CROSS_ATTENTION, TEXT_ATTENTION, LoRALinear, inject_lora, lora_parameters
from lida.training.batches import CLASS, VALIDATION, MicroBatches, micro_batches, read_data
from lida.training.caches import TextCache
from lida.training.dropout import DropoutLoRALinear, SampleDropout
from lida.training.monitor import REPORTERS, Monitor, add_to_contact_sheet
from lida.training.processes import Processes, noted_signals
from lida.training.run import Run, check_output, finished, metadata_of, output_of, settings_of

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VALIDATION_SAMPLING = Sampling(guidance_scale=3.0)
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine")


def parse_args() -> argparse.Namespace:
    """Return the flags as a frozen dataclass."""
    title, formatter = __doc__.partition("\n")[0], argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=title, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    # Model and data
    add(
        "--pretrained_model_name_or_path",
        default=shipped.path_of(shipped.MODEL),
        help="model folder, .safetensors file or hub id",
    )
    add("--train_data_dir", required=True, help='folder with metadata.jsonl, one {"file_name", "text"} a line')
    add("--image_column", default="image", help="column with the paths of the pictures; the default also reads file_name")
    add("--caption_column", default="text", help="column with the captions")
    add("--balance_column", help="draw pictures so that each value of this column is seen equally often")
    add("--output_dir", required=True, help=f"gets {FILE_NAME}, its settings as .json, checkpoints and metrics")
    add("--overwrite_output_dir", action="store_true", help="start anew where an earlier run has written")
    add("--resolution", type=whole(8, 8192), help="side of the training squares in pixels; the model's own if not given")
    add("--center_crop", action="store_true", help="cut longer pictures in the middle, not at random")
    add("--random_flip", action="store_true", help="mirror half of the pictures")
    # The adapter
    add("--rank", type=whole(1), default=8, help="rank of the low-rank matrices")
    add("--lora_alpha", type=positive, help="the change is scaled by alpha / rank; the rank if not given")
    add("--lora_dropout", type=fraction, default=0.0, help="dropout probability of the adapter's inputs")
    add("--targets", nargs="+", default=list(CROSS_ATTENTION), help="linear layers to adapt, by the end of their path")
    add("--train_text_encoder", action="store_true", help="adapt the text encoder's attention too")
    add("--role", choices=("age", "identity", "other"), help="purpose, written into the file; read off the data if not given")
    add("--consent", type=text, help="who agreed to what, in your words, written into the file")
    add("--licence", type=text, help="of the adapter, written into the file")
    # The objective
    add("--snr_gamma", type=positive, help="weigh timesteps by min(snr, gamma) / snr; equal weights if not given")
    add("--noise_offset", type=fraction, default=0.0, help="deviation of a constant added to each channel's noise")
    add("--caption_dropout", type=fraction, default=0.0, help="share of the captions that are replaced by an empty one")
    add("--mask_loss", action="store_true", help="weigh the loss by masks/<stem>.png")
    add("--unmasked_weight", type=non_negative, default=0.0, help="weight of the loss where the mask is black")
    add("--normalize_mask_loss", action="store_true", help="give pictures equal weight, whatever their masks' sizes")
    add("--class_data_dir", help="folder of other pictures, as --train_data_dir, for prior preservation (DreamBooth)")
    add("--class_prompt", type=text, help="class pictures' caption, if their folder has none")
    add("--prior_loss_weight", type=non_negative, default=1.0, help="weight of the class pictures' loss")
    # The optimisation
    add("--train_batch_size", type=whole(1, 10**4), default=16, help="pictures in a forward pass of each process")
    add("--gradient_accumulation_steps", type=whole(1, 10**4), default=1, help="forward passes in a step")
    add("--max_train_steps", type=whole(1, 10**6), default=1000, help="optimiser steps")
    add("--num_train_epochs", type=whole(1, 10**4), help="passes over all pictures, in place of --max_train_steps")
    add("--learning_rate", type=rate, default=1e-4, help="AdamW's learning rate")
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant", help="how the learning rate changes")
    add("--lr_warmup_steps", type=non_negative_int, default=0, help="steps to rise to the full learning rate")
    add("--adam_beta1", type=fraction, default=0.9, help="decay of the first moment")
    add("--adam_beta2", type=fraction, default=0.999, help="decay of the second moment")
    add("--adam_weight_decay", type=non_negative, default=1e-2, help="decay of the weights")
    add("--adam_epsilon", type=positive, default=1e-8, help="AdamW's epsilon")
    add("--use_8bit_adam", action="store_true", help="8-bit moments by bitsandbytes, on a CUDA GPU")
    add("--max_grad_norm", type=positive, default=1.0, help="longer gradients are scaled to this norm")
    add("--seed", type=seed, default=0, help="seed of the initial weights, data order, noise and timesteps")
    # Speed and memory
    add("--mixed_precision", choices=tuple(DTYPES), default="no", help="precision of the networks; adapter and loss are float32")
    add("--cache_latents", action="store_true", help="encode each picture once, in float32, when it is first drawn")
    add("--cache_dir", help="as --cache_latents, but keep the latents in this folder; runs may share it")
    add("--gradient_checkpointing", action="store_true", help="compute activations twice rather than keep them")
    add("--attention", choices=ATTENTION, help="attention kernel; the fastest available if not given")
    add("--allow_tf32", action="store_true", help="multiply float32 with 10 bits of mantissa, on a CUDA GPU")
    add("--compile", action="store_true", help="compile the UNet by torch.compile")
    add("--dataloader_num_workers", type=whole(0, 64), default=0, help="processes that read pictures")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, mps or xpu")
    # Watching and stopping
    add("--checkpointing_steps", type=whole(1), default=500, help="steps between checkpoints")
    add("--checkpoints_total_limit", type=whole(1), help="number of checkpoints to keep; all if not given")
    add("--resume_from_checkpoint", help="checkpoint folder to resume from, or `latest`")
    add("--validation_split", type=fraction, default=0.0, help="share of the pictures to hold out and measure the loss on")
    add("--validation_prompt", type=text, help="paint this prompt, at guidance 3, to see what the adapter does")
    add("--num_validation_images", type=whole(1), default=4, help="pictures to paint each time")
    add("--validation_steps", type=whole(1), default=200, help="steps between measuring and painting")
    add("--report_to", choices=REPORTERS, default="none", help="where metrics go besides metrics.jsonl")
    add("--push_to_hub", action="store_true", help="upload the adapter and its card to the Hugging Face hub, as private")
    add("--hub_model_id", help="hub repository; the output folder's name if not given")
    args = parser.parse_args()
    args.cache_latents = args.cache_latents or args.cache_dir is not None
    check_flags(args, parser.get_default)
    return make_dataclass("Flags", vars(args), frozen=True)(**vars(args))


def check_flags(args: argparse.Namespace, default: Callable[[str], object]) -> None:
    """Warn of flags that have no effect with the others, and raise InputError for flags that contradict each other."""
    needs = {"mask_loss": ["unmasked_weight", "normalize_mask_loss"]}
    needs |= {"class_data_dir": ["class_prompt", "prior_loss_weight"], "validation_prompt": ["num_validation_images"]}
    idle = {flag: f"without --{other}" for other, flags in needs.items() for flag in flags if not getattr(args, other)}
    idle |= {"lr_warmup_steps": "with constant; give constant_with_warmup"} if args.lr_scheduler == "constant" else {}
    idle |= {"max_train_steps": "beside --num_train_epochs"} if args.num_train_epochs else {}
    idle |= {"dataloader_num_workers": "beside cached latents"} if args.cache_latents else {}
    for flag, why in idle.items():
        if getattr(args, flag) != default(flag):
            warnings.warn(f"--{flag} {getattr(args, flag)}: does nothing {why}")
    check_output(args)
    if args.cache_latents and not args.center_crop:
        raise InputError("--cache_latents: pictures are cropped at random, so latents cannot be reused; add --center_crop")
    if args.mixed_precision == "fp16" and args.device == "cpu":
        raise InputError("--mixed_precision fp16: needs a GPU, and the device is cpu; bf16 works there too")
    for flag, given in (("attention xformers", args.attention == "xformers"), ("use_8bit_adam", args.use_8bit_adam)):
        if given and not args.device.startswith("cuda"):
            raise InputError(f"--{flag}: needs a CUDA GPU, and the device is {args.device}; leave it out")
    if args.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise InputError("--use_8bit_adam: bitsandbytes is not installed; pip install lida-aging[bitsandbytes]")
    if args.compile and args.device == "cpu" and not compiler():
        raise InputError("--compile: needs a C++ compiler on the CPU, and finds none; install g++, or leave it out")


def load_model(args: Any, processes: Processes) -> tuple[StableDiffusion, Any]:
    """Load the model, frozen; return it and the flags with the device, attention and resolution that are used."""
    source, device, dtype = args.pretrained_model_name_or_path, processes.device(args.device), DTYPES[args.mixed_precision]
    sd = StableDiffusion.load(source, dtype, device)
    if args.mixed_precision != "no":  # the text encoder stays in float32, and so does a VAE of cached latents
        sd.text_encoder = load_text_encoder(source, device=device)
        if args.cache_latents and sd.vae.dtype != torch.float32:
            sd.vae = load_vae(source, device=device)
    if sd.unet.inpaints:
        raise InputError(f"{source}: is an inpainting model; train on the plain one, adapters fit both")
    sd.unet.set_gradient_checkpointing(args.gradient_checkpointing)
    for model in (sd.unet, sd.vae):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    resolution = args.resolution or sd.resolution
    if resolution % sd.vae.factor:
        raise InputError(f"--resolution {resolution}: must be a multiple of {sd.vae.factor}")
    attention = args.attention or fastest_attention(dtype, device, (resolution // sd.vae.factor) ** 2)
    use_attention(sd.unet, attention)
    use_few_pixels_convolutions(sd.unet)
    return sd, replace(args, device=device, attention=attention, resolution=resolution)


def add_adapter(sd: StableDiffusion, args: argparse.Namespace, dropout: SampleDropout) -> dict[str, LoRALinear]:
    """Inject the trainable layers into the model; return them by path, those of the text encoder after `text_encoder.`."""
    layer = partial(DropoutLoRALinear, dropout=dropout) if args.lora_dropout else None
    inject = partial(inject_lora, rank=args.rank, alpha=args.lora_alpha, layer=layer)
    torch.manual_seed(args.seed)
    try:
        layers = inject(sd.unet, targets=args.targets)
    except ValueError as error:
        raise InputError(f"--targets: {error}") from None
    if args.train_text_encoder:
        layers |= {TEXT + path: layer for path, layer in inject(sd.text_encoder.layers, targets=TEXT_ATTENTION).items()}
    return layers


def new_optimizer(parameters: Sequence[nn.Parameter], args: argparse.Namespace) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), or bitsandbytes' with 8-bit moments (Dettmers et al. 2022)."""
    options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
    options |= {"weight_decay": args.adam_weight_decay, "eps": args.adam_epsilon}
    if args.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Return the learning rate of a step, counted from 0, as transformers' get_scheduler has it."""
    warmup = 0 if args.lr_scheduler == "constant" else args.lr_warmup_steps
    if step < warmup:
        return args.learning_rate * step / warmup
    share = (step - warmup) / max(1, args.max_train_steps - warmup)
    falling = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
    return args.learning_rate * falling.get(args.lr_scheduler, 1.0)


@dataclass
class Objective:
    """The terms of the loss: noise prediction and, if the flags ask for them, terms that preserve what the base knows."""

    sd: StableDiffusion
    args: argparse.Namespace
    dropout: SampleDropout
    texts: TextCache | None = None

    def __post_init__(self):
        kind, precision = torch.device(self.args.device).type, self.args.mixed_precision
        self.autocast = torch.autocast(kind, None if precision == "no" else DTYPES[precision], enabled=precision != "no")
        self.unet = compiled(self.sd.unet) if self.args.compile else self.sd.unet

    def __call__(self, batch: dict, class_batch: dict | None = None) -> Iterator[Tensor]:
        """Yield the terms of a micro-batch's loss one by one, so that each can go backward before the next is computed."""
        batch = self.with_latents(batch)
        yield self.loss(batch)
        if class_batch is not None:  # prior preservation (Ruiz et al. 2023, equation 2)
            yield self.args.prior_loss_weight * self.loss(self.with_latents(class_batch))

    @torch.no_grad()
    def with_latents(self, batch: dict) -> dict:
        """Return a batch on the model's device, with latents (B, C, h, w)."""
        batch = {name: value.to(self.args.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        posterior = batch["posterior"].unbind(1) if "posterior" in batch else self.sd.vae.posterior(batch["pixel_values"])
        return batch | {"latents": self.sd.vae.draw(posterior[0].float(), posterior[1].float(), batch["posterior_noise"])}

    def loss(self, batch: dict) -> Tensor:
        """Return the mean squared error of the predicted noise."""
        args, weights = self.args, None
        if "mask" in batch:
            weights = mask_weights(batch["mask"], args.unmasked_weight, args.normalize_mask_loss)
        self.dropout.seeds = batch["seed"].tolist()
        options = {name: batch[name] for name in ("noise", "timesteps")} | {"snr_gamma": args.snr_gamma, "pixel_weights": weights}
        with self.autocast:
            hidden = (self.texts or self.sd.text_encoder)(batch["caption"])  # equal captions differ by dropout
            hidden = hidden.to(args.device, DTYPES[args.mixed_precision])  # (B, 77, C)
            return noise_prediction_loss(self.unet, self.sd.schedule, batch["latents"], hidden, **options)


@torch.no_grad()
def validate(objective: Objective, held_out: MicroBatches | None, monitor: Monitor, step: int) -> None:
    """Measure the loss on the held-out pictures and paint the prompt, with the same noise and timesteps each time."""
    sd, args = objective.sd, objective.args
    if held_out:
        losses = [objective.loss(objective.with_latents(x)).item() * len(x["caption"]) for x in held_out.load(0, 1)]
        monitor.write(step, validation_loss=sum(losses) / held_out.sampler.count)
    if args.validation_prompt is None:
        return
    options = {"num_images_per_prompt": args.num_validation_images, "generator": torch.Generator().manual_seed(args.seed)}
    with objective.autocast:
        latents = generate(sd, args.validation_prompt, VALIDATION_SAMPLING, output_type="latent", **options)
    assert isinstance(latents, Tensor)
    add_to_contact_sheet(Path(args.output_dir), step, to_images(sd.vae.decode(latents)))


def train(args: Any) -> Path:
    """Train an adapter by these flags; return its file."""
    processes = Processes.join(args.device)
    sd, args = load_model(args, processes)
    examples, others = read_data(args)
    held_out = micro_batches(others, sd, args, Processes(), VALIDATION) if others else None
    data = [micro_batches(examples, sd, args, processes)]
    if args.class_data_dir:
        pictures = read_examples(args.class_data_dir, args.image_column, args.caption_column, caption=args.class_prompt)
        data.append(micro_batches(pictures, sd, args, processes, CLASS))
    if args.num_train_epochs:
        args = replace(args, max_train_steps=args.num_train_epochs * data[0].sampler.steps_per_epoch)
    settings = settings_of(args, sd.base, data) | {"vae_dtype": str(sd.vae.dtype)}
    about = metadata_of(args, data[0], read_captioning(args.train_data_dir), sd.base)

    with output_of(args, processes) as folder:
        if finished(args, settings):
            return folder / FILE_NAME
        objective = Objective(sd, args, SampleDropout(args.lora_dropout))
        layers = add_adapter(sd, args, objective.dropout)
        parameters = lora_parameters(layers.values())
        optimizer = new_optimizer(parameters, args)
        scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=args.mixed_precision == "fp16")
        monitor = Monitor(folder, args.max_train_steps, data[0].sampler.batch, processes.first)
        parts = {"adapter": nn.ParameterList(parameters), "optimizer": optimizer, "scaler": scaler, "monitor": monitor}
        run = Run(args, folder, settings, about, layers, parts, monitor, partial(validate, objective, held_out, monitor))
        first = run.resume()
        if not args.train_text_encoder:
            drawn = [micro.captions(first, args.max_train_steps) for micro in data] + [{example.text for example in others}]
            objective.texts = TextCache(sd.text_encoder, {""}.union(*drawn), args.validation_prompt is None)

        batches = zip(*(micro.load(first, args.max_train_steps) for micro in data))
        with monitor.shown(first, args.report_to), noted_signals() as signals:
            for step in range(first, args.max_train_steps):
                lr, loss = learning_rate(step, args), 0.0
                for batch in itertools.islice(batches, args.gradient_accumulation_steps):
                    for term in objective(*batch):
                        scaler.scale(term / args.gradient_accumulation_steps).backward()
                        loss += term.item() / args.gradient_accumulation_steps
                loss, stop = processes.average(parameters, [loss, bool(signals)])
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                if norm.isfinite():
                    scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                run.after(step + 1, loss, lr, norm.item(), max(signals, default=signal.SIGTERM) if stop else 0)
        return run.end()


def main() -> None:
    train(parse_args())


if __name__ == "__main__":
    run(main)
