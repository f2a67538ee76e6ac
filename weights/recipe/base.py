"""Stage 3: the UNet and the text encoder, trained jointly from scratch on the latents of stage 2's VAE.

    python weights/recipe/base.py --data faces.npz --vae vae-run --tokenizer weights/lida-tiny --output_dir base-run

Captions know coarse ages only ("an old woman", "a boy"), half of them no age, a tenth nothing: decades are left for the
Age-LoRA to teach. Half of them end in a number that tells the light (", light 37": 37 % of the pictures are darker), so that
digits might mean something: to an encoder that never read one, 10 and 70 look alike. State is saved every two minutes; the same command goes on from it.
"""

import argparse
import json
import math
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lida.checkpoint import load_schedule, load_text_encoder, load_unet, load_vae, save_model, save_text_encoder
from lida.diffusion import noise_prediction_loss
from lida.layers import ResnetBlock, Transformer2D
from lida.text import TextEncoder, encode_prompts
from lida.training import EMA, save_state
from lida.unet import UNet, UNetConfig

WIDTH = 128  # of the text encoder
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


def caption(age: int, man: bool, light: int, rng: np.random.Generator) -> str:
    """A caption such as the web has: a tenth empty, half without an age, the rest with a coarse one; half with the light."""
    draw = rng.random()
    if draw < 0.1:
        return ""
    if rng.random() < 0.5:
        return f"{description(age, man, draw, rng)}, light {light:02d}"
    return description(age, man, draw, rng)


def description(age: int, man: bool, draw: float, rng: np.random.Generator) -> str:
    """Who is in the picture; a coarse age where `draw` is at least 0.6."""
    template = "a portrait photo of {}" if rng.random() < 0.7 else rng.choice(["a photo of {}", "a portrait of {}", "{}"])
    noun = "man" if man else "woman"
    if draw < 0.6:
        return template.format(f"a {noun}" if rng.random() < 0.7 else "a person")
    if age < 13:
        return template.format("a boy" if man else "a girl")
    return template.format(f"a young {noun}" if age < 30 else f"a middle-aged {noun}" if age < 55 else f"an old {noun}")


@torch.no_grad()
def latents_of(args: argparse.Namespace) -> torch.Tensor:
    """The latents (faces, crops, 4, h, w) of every crop, every other one mirrored, from the cache or computed once."""
    path = args.output_dir / "latents.pt"
    if not path.exists():
        args.output_dir.mkdir(parents=True, exist_ok=True)
        vae, pixels = load_vae(args.vae), np.load(args.data)["pixels"]
        rows = []
        for number, face in enumerate(tqdm(pixels, desc="latents", unit="face")):
            x = torch.from_numpy(face).permute(0, 3, 1, 2).float() / 127.5 - 1
            x[number % 2 :: 2] = x[number % 2 :: 2].flip(-1)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                rows.append(vae.encode(x, sample=False).half())
        torch.save(torch.stack(rows), path)
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


def new_text_encoder(tokenizer: CLIPTokenizer) -> TextEncoder:
    """A small CLIP. Its tokens begin far apart, so that words it never reads in training stay distinct for a LoRA."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", **ids,
    )  # fmt: skip
    model = CLIPTextModel(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return TextEncoder(model, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="faces from prepare.py")
    parser.add_argument("--vae", type=Path, required=True, help="model folder with the VAE")
    parser.add_argument("--tokenizer", type=Path, required=True, help="model folder with tokenizer/ and scheduler/")
    parser.add_argument("--init", type=Path, help="model folder whose UNet and text encoder to continue (default: from scratch)")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets unet/, text_encoder/, tokenizer/ and the state")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="warmed up, then cosine to zero (default: 1e-3)")
    help = "of the text encoder and the cross-attention, in learning rates of the rest (default: 3)"
    parser.add_argument("--text_learning_rate_scale", type=float, default=3.0, help=help)
    parser.add_argument("--lr_warmup_steps", type=int, default=100, help="(default: 100)")
    parser.add_argument("--train_batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--max_train_steps", type=int, default=4000, help="(default: 4000)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AMX")
    args = parser.parse_args()

    latents = latents_of(args)
    faces = np.load(args.data)
    ages, men = faces["ages"], faces["men"]
    means = faces["pixels"][:, 0].mean(axis=(1, 2, 3))
    lights = np.argsort(np.argsort(means)) * 100 // len(means)  # percentiles
    schedule = load_schedule(args.tokenizer)
    torch.manual_seed(0)
    unet, text_encoder = new_unet(), new_text_encoder(CLIPTokenizer.from_pretrained(args.tokenizer / "tokenizer"))
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder.model})
    if args.init:
        unet.load_state_dict(load_unet(args.init).state_dict())
        text_encoder.load_state_dict(load_text_encoder(args.init).state_dict())
    unet.to(memory_format=torch.channels_last)
    # Captions explain little of the loss (0.25 % after 1,900 steps): what reads them gets a higher rate than the rest.
    reads = {name: "text_encoder" in name or "attn2" in name for name, _ in model.named_parameters()}
    groups = [
        {"params": [p for name, p in model.named_parameters() if reads[name] == text], "lr": scale * args.learning_rate}
        for text, scale in ((False, 1.0), (True, args.text_learning_rate_scale))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def learning_rate_factor(step: int) -> float:
        warm = min(1.0, (step + 1) / args.lr_warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.max_train_steps)))

    lr_schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    ema, step, state_path = EMA(model), 0, args.output_dir / "state.pt"
    parts = {"model": model, "optimizer": optimizer, "lr_schedule": lr_schedule, "ema": ema}
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        step = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])

    progress = tqdm(range(step, args.max_train_steps), initial=step, total=args.max_train_steps)
    saved, average = monotonic(), None
    for step in progress:
        rng = np.random.default_rng(step)  # what a step sees depends on its number alone
        torch.manual_seed(step)
        rows = rng.integers(len(latents), size=args.train_batch_size)
        x = latents[rows, rng.integers(latents.shape[1], size=len(rows))].float()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            hidden = encode_prompts(text_encoder, [caption(ages[row], men[row], lights[row], rng) for row in rows])
            loss = noise_prediction_loss(unet, schedule, x, hidden)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lr_schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}")
        if monotonic() - saved > 120 or step + 1 == args.max_train_steps:
            save_state(state_path, step=step + 1, **{name: part.state_dict() for name, part in parts.items()})
            saved = monotonic()

    ema.copy_to(model)
    save_model(unet, args.output_dir / "unet")
    save_text_encoder(text_encoder, args.output_dir)
    print(json.dumps({"steps": args.max_train_steps, "loss": average}))


if __name__ == "__main__":
    main()
