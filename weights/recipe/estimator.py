"""An age estimator to measure with: a small ResNet (He et al. 2016) whose answer is the mean over 81 classes of age, as DEX
(Rothe et al. 2018) reads it. Trained on the crops of prepare.py, without the held-out tenth; decades of few faces come more
often than they are (by the root of their number), so that it pulls less towards the middle.

    python weights/recipe/estimator.py --data faces.npz --held_out held-out.npz --output_dir estimator
"""

import argparse
import json
from pathlib import Path
from time import monotonic

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from lida.study.judges import READINGS
from lida.training.state import load_state, save_state

RESOLUTION = 96
AGES = torch.arange(81.0)


def new_estimator() -> ResNetForImageClassification:
    """1.4 M parameters, a class for each age from 0 to 80."""
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 96, 160], depths=[2, 2, 2, 2], layer_type="basic",
        id2label={age: f"{age}" for age in range(len(AGES))}, label2id={f"{age}": age for age in range(len(AGES))},
    )  # fmt: skip
    return ResNetForImageClassification(config)


def save_estimator(estimator: ResNetForImageClassification, folder: Path) -> None:
    """In float16, with what transformers' AutoImageProcessor needs."""
    estimator.eval().half().save_pretrained(folder)
    side, half = {"height": RESOLUTION, "width": RESOLUTION}, [0.5, 0.5, 0.5]
    ViTImageProcessor(size=side, resample=Image.Resampling.LANCZOS, image_mean=half, image_std=half).save_pretrained(folder)
    estimator.float()


def load_estimator(folder: Path) -> ResNetForImageClassification:
    """One that main() saved, in float32."""
    return ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()


def read_ages(estimator: ResNetForImageClassification, pixel_values: Tensor) -> Tensor:
    """Ages in years (B,) of faces (B, 3, 96, 96) in [-1, 1], the mean of each and its mirror image."""
    both = torch.cat([pixel_values, pixel_values.flip(-1)])
    with torch.no_grad():
        return (estimator(both).logits.softmax(-1) @ AGES).reshape(2, -1).mean(0)


def jittered(x: Tensor) -> Tensor:
    """Mirrored, turned, moved, scaled, relit and blurred at random: pictures of a generator are softer than photographs."""
    n = len(x)
    angle, scale = 0.15 * torch.randn(n), torch.exp(0.08 * torch.randn(n))
    mirror, shift = torch.randint(2, (n,)) * 2 - 1, 0.06 * torch.randn(n, 2)
    rows = [
        scale * angle.cos() * mirror,
        -scale * angle.sin(),
        shift[:, 0],
        scale * angle.sin() * mirror,
        scale * angle.cos(),
        shift[:, 1],
    ]
    grid = F.affine_grid(torch.stack(rows, -1).reshape(n, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.5))
    return x * (1 + 0.15 * torch.randn(n, 1, 1, 1)) + 0.1 * torch.randn(n, 1, 1, 1)


def errors(estimator: ResNetForImageClassification, held_out: Path) -> dict:
    """Mean error and bias in years on the held-out faces, of all and by decade."""
    faces = np.load(held_out)
    x = torch.from_numpy(faces["pixels"][:, 2]).permute(0, 3, 1, 2).float() / 127.5 - 1
    error = torch.cat([read_ages(estimator, part) for part in x.split(64)]).numpy() - faces["ages"]
    report = {"all": {"faces": len(error), "mean_error": round(float(np.abs(error).mean()), 2)}}
    for decade in range(9):
        part = error[faces["ages"] // 10 == decade]
        if len(part):
            numbers = {"mean_error": np.abs(part).mean(), "bias": part.mean()}
            report[f"{decade}0s"] = {"faces": len(part), **{name: round(float(value), 1) for name, value in numbers.items()}}
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="faces from prepare.py")
    parser.add_argument("--held_out", type=Path, required=True, help="held-out faces from prepare.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the model, and state.pt to go on from")
    parser.add_argument("--max_train_steps", type=int, default=3000, help="(default: 3000)")
    parser.add_argument("--train_batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AMX")
    args = parser.parse_args()

    torch.manual_seed(0)
    estimator = new_estimator().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(estimator.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.max_train_steps, pct_start=0.1)
    parts, state_path = {"estimator": estimator, "optimizer": optimizer, "schedule": schedule}, args.output_dir / "state.pt"
    done = load_state(state_path, parts)

    faces = np.load(args.data)
    pixels, ages = faces["pixels"], torch.from_numpy(faces["ages"]).float()
    decades = faces["ages"] // 10
    share = np.bincount(decades)[decades] ** -0.5
    share /= share.sum()
    progress, saved = tqdm(range(done, args.max_train_steps), initial=done, total=args.max_train_steps), monotonic()
    for step in progress:
        rng = np.random.default_rng((0, step))  # by step, so that a resumed run sees what an uninterrupted one sees
        torch.manual_seed(step)
        rows = rng.choice(len(pixels), args.train_batch_size, p=share)
        x = torch.from_numpy(pixels[rows, rng.integers(pixels.shape[1], size=len(rows))])
        x, age = jittered(x.permute(0, 3, 1, 2).float() / 127.5 - 1), ages[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            logits = estimator(x.contiguous(memory_format=torch.channels_last)).logits.float()
        near = torch.exp(-0.5 * ((AGES - age[:, None]) / 2.5) ** 2)  # neighbours of an age are nearly right
        loss = F.cross_entropy(logits, near / near.sum(-1, keepdim=True)) + 0.05 * F.l1_loss(logits.softmax(-1) @ AGES, age)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if monotonic() - saved > 120 or step + 1 == args.max_train_steps:
            save_state(state_path, step + 1, parts)
            saved = monotonic()
    save_estimator(estimator, args.output_dir)
    report = errors(load_estimator(args.output_dir), args.held_out)
    (args.output_dir / READINGS).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
