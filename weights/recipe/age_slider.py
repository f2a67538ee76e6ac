"""An age slider: one signed adapter, whose weight makes a face older or younger, without guidance and without captions.

    python weights/recipe/age_slider.py --data squares --output_dir slider-run

Concept Sliders (Gandikota et al. 2023, arXiv 2311.12092) on noised squares of real faces: at the weight s, -1 or 1, the adapter learns
to predict what the base predicts for "a person", and s times the difference between an old and a young person by the Age-LoRA.
docs/tradeoff.md has what it does. State is saved every five minutes; the same command goes on from it.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

import numpy as np
import torch
import torch.nn.functional as F
from base import Latents
from torch import Tensor, nn
from tqdm import tqdm

from lida.adapters import Adapter, save_adapter
from lida.aging import StableDiffusion
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION, LoRALinear, inject_lora, lora_parameters
from lida.training.state import load_state, save_state

WEIGHTS = Path(__file__).parent.parent
NEUTRAL, OLD, YOUNG = (f"a portrait photo of {who}" for who in ("a person", "an old person, age 70s", "a child, age 10s"))
RANK, AGES, TIMESTEPS = 8, (15, 75), (100, 900)


def noise_pred(unet: nn.Module, x_t: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
    """Return the noise predicted in latents x_t (B, C, h, w) for one prompt's hidden states (1, M, C), in float32."""
    return unet(x_t, t, hidden.expand(len(x_t), -1, -1)).float()


def set_weight(layers: Mapping[str, LoRALinear], weight: float) -> None:
    """Set the weight at which the trained layers act."""
    for layer in layers.values():
        layer.alpha = layer.rank * weight


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the squares of prepare.py")
    add("--output_dir", type=Path, required=True, help="gets the adapter, the state, and the squares' latents")
    add("--max_train_steps", type=int, default=900, help="(default: 900)")
    add("--train_batch_size", type=int, default=16, help="(default: 16)")
    add("--learning_rate", type=float, default=1e-3, help="falls to zero along a cosine (default: 0.001)")
    args = parser.parse_args()
    teacher, student = (StableDiffusion.load(WEIGHTS / "lida-tiny") for _ in range(2))
    teacher.merge_files([(str(WEIGHTS / "age.safetensors"), 1.0)])
    neutral, old, young = teacher.encode([NEUTRAL, OLD, YOUNG]).detach().split(1)
    latents, ages = Latents(args.data, student.vae, args.output_dir, bf16=True), np.load(args.data / "faces.npz")["ages"]
    adults = np.flatnonzero((AGES[0] <= ages) & (ages <= AGES[1]))
    torch.manual_seed(0)
    layers = inject_lora(student.unet, RANK, targets=SELF_ATTENTION + CROSS_ATTENTION)
    parameters = nn.ParameterList(lora_parameters(layers.values()))
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    parts, saved = {"adapter": parameters, "optimizer": optimizer}, monotonic()
    start = load_state(args.output_dir / "state.pt", parts)
    progress = tqdm(range(start, args.max_train_steps), initial=start, total=args.max_train_steps, mininterval=20)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * (1 + math.cos(math.pi * step / args.max_train_steps)) / 2
        rng = np.random.default_rng(step)
        torch.manual_seed(step)
        rows, sign = rng.choice(adults, args.train_batch_size), 1 - 2 * (step % 2)
        x, t = latents[rows, latents.choose(rows, 0.2, rng)], torch.randint(*TIMESTEPS, (len(rows),))
        x_t = student.schedule.add_noise(x, torch.randn_like(x), t)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                difference = noise_pred(teacher.unet, x_t, t, old) - noise_pred(teacher.unet, x_t, t, young)
                set_weight(layers, 0.0)
                target = noise_pred(student.unet, x_t, t, neutral) + sign * difference
            set_weight(layers, sign)
            loss = F.mse_loss(noise_pred(student.unet, x_t, t, neutral), target)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(missed=f"{loss.item() / difference.square().mean().item():.3f}", refresh=False)
        if monotonic() - saved > 300 or step + 1 == args.max_train_steps:
            save_state(args.output_dir / "state.pt", step + 1, parts)
            saved = monotonic()
    set_weight(layers, 1.0)
    print(save_adapter(args.output_dir / "age-slider.safetensors", Adapter.of(layers, {"role": "slider"})))


if __name__ == "__main__":
    main()
