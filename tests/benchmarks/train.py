"""Training at SD1.5's full size (random weights): train_lora.py beside the loop of diffusers' train_text_to_image_lora.py.

    python tests/benchmarks/train.py --folder DIR        writes 4 GB of random weights there if it is empty

Each runs in a process of its own, on the same pictures, at the same settings: bf16, 512 px, batch 1, rank 4 on all attention,
AdamW. The peer is accelerate + diffusers + peft at its best (sdpa, channels_last): VAE, text encoder and UNet at each step, as
that script has it. train_lora.py keeps latents and texts (--cache_latents), whose one-time cost is told apart. Rates are medians
after the first step, memory is the most that the process held.
"""

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from comparison import ROOT, Row, command
from load import make_model
from PIL import Image

PICTURES = 4


def write_pictures(folder: Path, count: int, size: int) -> None:
    """An imagefolder of noise."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"a portrait photo of a man, age {i % 8}0s"}) for i in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def peer(args: Namespace, data: Path) -> None:
    """The peer's loop; prints seconds a step and the most memory."""
    import datasets
    import diffusers
    import peft
    from accelerate import Accelerator
    from transformers import CLIPTextModel, CLIPTokenizer

    accelerator = Accelerator(mixed_precision="no" if args.dtype == "float32" else "bf16", cpu=args.device == "cpu")
    dtype, device = getattr(torch, args.dtype), accelerator.device
    tokenizer = CLIPTokenizer.from_pretrained(args.folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(args.folder, subfolder="text_encoder").to(device, dtype)
    vae = diffusers.AutoencoderKL.from_pretrained(args.folder, subfolder="vae").to(device, dtype)
    unet = diffusers.UNet2DConditionModel.from_pretrained(args.folder, subfolder="unet").to(device, dtype)
    for model in (text_encoder, vae, unet):
        model.requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    vae.to(memory_format=torch.channels_last)
    unet.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    diffusers.training_utils.cast_training_params(unet, dtype=torch.float32)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    scheduler = diffusers.DDPMScheduler.from_pretrained(args.folder, subfolder="scheduler")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("imagefolder", data_files={"train": f"{data}/**"}, cache_dir=data.parent / "cache")["train"]
    seconds = []
    for step in range(args.steps):
        start = time.perf_counter()
        row = rows[step % len(rows)]
        pixels = torch.from_numpy(np.asarray(row["image"].convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        latents = vae.encode(pixels.to(device, dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (1,), device=device)
        ids = tokenizer(row["text"], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        hidden = text_encoder(ids.to(device))[0]
        with accelerator.autocast():
            noise_pred = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, hidden).sample
            loss = torch.nn.functional.mse_loss(noise_pred.float(), noise.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    memory = (
        torch.cuda.max_memory_allocated() if args.device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(json.dumps({"seconds": seconds, "memory": memory / 1e9}))


def ours(args: Namespace, data: Path, output: Path) -> tuple[list[str], dict]:
    """The command line of train_lora.py, and what it measured of itself."""
    command = [
        sys.executable,
        "train_lora.py",
        "--pretrained_model_name_or_path",
        str(args.folder),
        "--train_data_dir",
        str(data),
    ]
    command += ["--output_dir", str(output), "--resolution", str(args.resolution), "--train_batch_size", "1", "--rank", "4"]
    epoch = 0 if args.uncached else PICTURES  # in which latents are encoded
    command += ["--targets", "to_k", "to_q", "to_v", "to_out.0", "--max_train_steps", str(epoch + args.steps)]
    command += ["--center_crop", "--cache_latents"] if not args.uncached else []
    command += ["--mixed_precision", "no" if args.dtype == "float32" else "bf16", "--device", args.device]
    command += ["--compile"] * args.compile + (["--attention", args.attention] if args.attention else [])
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = [1 / row["images_per_second"] for row in rows][epoch:]
    memory = float(re.findall(r"GB=([\d.]+)", done.stderr)[-1])
    return command, {"seconds": seconds, "memory": memory, "before": time.perf_counter() - start - sum(seconds)}


def flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="of the model at full size, 4 GB")
    add("--resolution", type=int, default=512, help="(default: 512)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: bfloat16)")
    add("--compile", action="store_true", help="of train_lora.py; diffusers' script has no such flag")
    add("--uncached", action="store_true", help="let train_lora.py encode pictures at each step, too")
    add("--attention", help="of train_lora.py (default: what it takes by itself)")
    add("--peer", type=Path, help="run the peer's loop alone on this data, and print it as JSON")


def measure(args: Namespace) -> list[Row]:
    args.steps = args.pairs + 1  # the first is not counted
    if args.peer:
        peer(args, args.peer)
        raise SystemExit
    make_model(args.folder)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place, "data")
        write_pictures(data, PICTURES, args.resolution)
        other = [sys.executable, __file__, "--peer", str(data), "--folder", str(args.folder), "--pairs", str(args.pairs)]
        other += ["--dtype", args.dtype, "--device", args.device]
        done = subprocess.run(other, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        theirs = json.loads(done.stdout.splitlines()[-1])
        arguments, mine = ours(args, data, Path(place, "out"))
    print("peer: ", " ".join(other), "\nlida: ", " ".join(arguments))
    print(f"before lida's first step, loading and keeping latents and texts: {mine['before']:.0f} s")
    a, b = (statistics.median(found["seconds"][1:]) for found in (mine, theirs))
    what = f"a training step of 1 picture, {args.resolution} px, {args.dtype}"
    return [Row(what, a, b), Row("memory of the same", mine["memory"], theirs["memory"], "GB")]


if __name__ == "__main__":
    command(__doc__, measure, flags)
