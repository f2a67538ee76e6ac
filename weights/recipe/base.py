"""Stage 4: the UNet, from scratch, and the text encoder, from stage 3, trained jointly on the latents of stage 2's VAE.

    python weights/recipe/base.py --data faces.npz --vae vae-run --text_encoder words-run --scheduler weights/lida-tiny \
        --output_dir base-run --mixed_precision bf16

Captions know coarse ages only ("an old woman", "a boy"), half of them no age, a tenth nothing: decades are left for the
Age-LoRA to teach. State is saved every two minutes; the same command goes on from it.
"""

import argparse
import json
import math
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from ema import EMA
from torch import nn
from tqdm import tqdm
from words import WIDTH

from lida.checkpoints import load_schedule, load_text_encoder, load_unet, load_vae, save_model, save_text_encoder
from lida.diffusion.loss import noise_prediction_loss
from lida.nn.layers import ResnetBlock, Transformer2D, TransformerBlock
from lida.nn.text import TextEncoder, encode_prompts
from lida.nn.unet import UNet, UNetConfig
from lida.training.state import load_state, save_state

UNET = UNetConfig(
    sample_size=12,
    block_out_channels=(112, 144, 144),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=WIDTH,
    attention_head_dim=4,
)


def caption(age: int, man: bool, rng: np.random.Generator) -> str:
    """A caption such as the web has: a tenth empty, half without an age, the rest with a coarse one."""
    draw = rng.random()
    if draw < 0.1:
        return ""
    template = "a portrait photo of {}" if rng.random() < 0.7 else rng.choice(["a photo of {}", "a portrait of {}", "{}"])
    noun = "man" if man else "woman"
    if draw < 0.6:
        return template.format(f"a {noun}" if rng.random() < 0.7 else "a person")
    if age < 13:
        return template.format("a boy" if man else "a girl")
    return template.format(f"a young {noun}" if age < 30 else f"a middle-aged {noun}" if age < 55 else f"an old {noun}")


def chances_of(ages: np.ndarray, balance: float) -> np.ndarray:
    """The chance (faces,) of each face to be drawn: its decade's count to the power of -balance, 70 and older as one decade."""
    decades = np.minimum(ages // 10, 7)
    chances = np.bincount(decades)[decades] ** -balance
    return chances / chances.sum()


@torch.no_grad()
def latents_of(args: argparse.Namespace) -> torch.Tensor:
    """The latents (faces, crops, 4, h, w) of every crop, every other one mirrored, from this VAE's cache or computed once."""
    vae, pixels = load_vae(args.vae), np.load(args.data)["pixels"]
    path = args.output_dir / f"latents-{vae.fingerprint[:12]}-{pixels.shape[0]}x{pixels.shape[1]}.pt"
    if not path.exists():
        args.output_dir.mkdir(parents=True, exist_ok=True)
        vae.to(memory_format=torch.channels_last)
        crops, rows = pixels.shape[1], []
        for start in tqdm(range(0, len(pixels), 8), desc="latents", unit=" 8 faces"):
            x = torch.from_numpy(pixels[start : start + 8]).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
            number = torch.arange(len(x))
            mirrored = (number // crops + number) % 2 == 1  # the even crops of one face, the odd ones of the next
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                rows.append(vae.encode(x, sample=False).half().unflatten(0, (-1, crops)))
        torch.save(torch.cat(rows), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True)


def new_unet() -> UNet:
    """A UNet whose residual branches begin at zero, as latent diffusion's do."""
    unet = UNet(UNET)
    last = {ResnetBlock: "conv2", Transformer2D: "proj_out", UNet: "conv_out"}
    for module in unet.modules():
        if type(module) in last:
            layer = getattr(module, last[type(module)])
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return unet


def new_model(args: argparse.Namespace) -> tuple[UNet, TextEncoder]:
    """The UNet, new or --init's, and stage 3's text encoder, to be trained."""
    unet, text_encoder = new_unet(), load_text_encoder(args.text_encoder)
    if args.init:
        unet.load_state_dict(load_unet(args.init).state_dict())
        for module in unet.modules():  # keys and values begin anew where they read another encoder
            if args.init != args.text_encoder and isinstance(module, TransformerBlock):
                module.attn2.to_k.reset_parameters()
                module.attn2.to_v.reset_parameters()
    text_encoder.model.train().requires_grad_(args.text_learning_rate_scale > 0)
    return unet.train().requires_grad_(True).to(memory_format=torch.channels_last), text_encoder


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="faces from prepare.py")
    add("--vae", type=Path, required=True, help="model folder with the VAE")
    add("--text_encoder", type=Path, required=True, help="model folder with stage 3's text encoder")
    add("--scheduler", type=Path, required=True, help="model folder with scheduler/")
    add("--init", type=Path, help="model folder whose UNet to continue (default: from scratch)")
    add("--output_dir", type=Path, required=True, help="gets unet/, text_encoder/, tokenizer/ and the state")
    add("--learning_rate", type=float, default=1e-3, help="warmed up, then cosine to zero (default: 1e-3)")
    help = "of the text encoder, in learning rates of the UNet: fast, it forgets how to read; 0 freezes it (default: 0.01)"
    add("--text_learning_rate_scale", type=float, default=0.01, help=help)
    add("--lr_warmup_steps", type=int, default=100, help="(default: 100)")
    add("--train_batch_size", type=int, default=64, help="(default: 64)")
    add("--max_train_steps", type=int, default=4600, help="(default: 4600)")
    help = "draw a face in proportion to its decade's count to the power of minus this; 70 and older are one (default: 0)"
    add("--age_balance", type=float, default=0.0, help=help)
    add("--snr_gamma", type=float, help="weigh the steps by min(snr, gamma) / snr (default: all alike)")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AMX")
    return parser.parse_args()


def optimizer_of(unet: UNet, text_encoder: TextEncoder, args: argparse.Namespace):
    """AdamW and its learning rates: a linear warm-up, then half a cosine."""
    groups = [{"params": list(unet.parameters()), "lr": args.learning_rate}]
    if args.text_learning_rate_scale > 0:
        groups.append({"params": list(text_encoder.parameters()), "lr": args.learning_rate * args.text_learning_rate_scale})

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / args.lr_warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.max_train_steps)))

    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def main():
    args = parse_args()
    latents, faces, schedule = latents_of(args), np.load(args.data), load_schedule(args.scheduler)
    ages, men = faces["ages"], faces["men"]
    chances = chances_of(ages, args.age_balance)
    torch.manual_seed(0)
    unet, text_encoder = new_model(args)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder.model})
    optimizer, lr_schedule = optimizer_of(unet, text_encoder, args)
    ema, state_path = EMA(model), args.output_dir / "state.pt"
    parts = {"model": model, "optimizer": optimizer, "lr_schedule": lr_schedule, "ema": ema}
    step = load_state(state_path, parts)

    progress = tqdm(range(step, args.max_train_steps), initial=step, total=args.max_train_steps)
    saved, average = monotonic(), None
    for step in progress:
        rng = np.random.default_rng(step)  # what a step sees depends on its number alone
        torch.manual_seed(step)
        rows = rng.choice(len(latents), size=args.train_batch_size, p=chances)
        x = latents[rows, rng.integers(latents.shape[1], size=len(rows))].float()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            hidden = encode_prompts(text_encoder, [caption(ages[row], men[row], rng) for row in rows])
            loss = noise_prediction_loss(unet, schedule, x, hidden, snr_gamma=args.snr_gamma)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lr_schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}")
        if monotonic() - saved > 120 or step + 1 == args.max_train_steps:
            save_state(state_path, step + 1, parts)
            saved = monotonic()

    ema.copy_to(model)
    save_model(unet, args.output_dir / "unet")
    save_text_encoder(text_encoder, args.output_dir)
    print(json.dumps({"steps": args.max_train_steps, "loss": average}))


if __name__ == "__main__":
    main()
