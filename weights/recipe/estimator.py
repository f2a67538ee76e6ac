"""An age estimator for measuring: a small network whose answer is the mean over 101 classes of age, as DEX (Rothe et al.
2018) reads it. Trained on the squares of prepare.py, without the held-out tenth; decades of few faces come more often than
they are (by the root of their number), so that it pulls less towards the middle.

    python weights/recipe/estimator.py --data squares --held_out held-out --output_dir estimator

Two architectures, so that one can check the other: a ResNet (He et al. 2016) and a ConvNeXt (Liu et al. 2022).
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
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from lida.study.judges import READINGS
from lida.training.state import load_state, save_state

RESOLUTION = 96
AGES = torch.arange(101.0)
SOURCES = ("aaf", "utkface")


def new_estimator(architecture: str) -> PreTrainedModel:
    """Return a network of 1.3 to 1.9 M parameters, with a class for each age from 0 to 100."""
    labels = {"id2label": {age: f"{age}" for age in range(len(AGES))}, "label2id": {f"{age}": age for age in range(len(AGES))}}
    if architecture == "convnext":
        return ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[32, 64, 128, 224], depths=[2, 2, 4, 2], drop_path_rate=0.05, **labels)
        )
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 96, 160], depths=[2, 2, 2, 2], layer_type="basic", **labels)
    )


def adopt(estimator: PreTrainedModel, old: PreTrainedModel) -> None:
    """Copy the weights of an earlier estimator except its last layer, whose ages may differ."""
    ours = estimator.state_dict()
    same = {name: weight for name, weight in old.state_dict().items() if ours[name].shape == weight.shape}
    estimator.load_state_dict(ours | same)


def save_estimator(estimator: PreTrainedModel, folder: Path) -> None:
    """Save the estimator in float16, with the config of transformers' AutoImageProcessor."""
    estimator.eval().half().save_pretrained(folder)
    side, half = {"height": RESOLUTION, "width": RESOLUTION}, [0.5, 0.5, 0.5]
    ViTImageProcessor(size=side, resample=Image.Resampling.LANCZOS, image_mean=half, image_std=half).save_pretrained(folder)
    estimator.float()


def load_estimator(folder: Path) -> PreTrainedModel:
    """Return an estimator that main() saved, in float32."""
    return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()


def read_ages(estimator: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Return the ages in years (B,) of faces (B, 3, 96, 96) in [-1, 1], the mean of each and its mirror image."""
    both = torch.cat([pixel_values, pixel_values.flip(-1)])
    with torch.no_grad():
        return (estimator(both).logits.softmax(-1) @ AGES).reshape(2, -1).mean(0)


def jittered(x: Tensor) -> Tensor:
    """Return squares randomly mirrored, turned, moved, scaled, relit and blurred: painted pictures are softer."""
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


def as_tensor(pixels: np.ndarray) -> Tensor:
    """Return squares (B, H, W, 3) in bytes as (B, 3, 96, 96) in [-1, 1]."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(x, (RESOLUTION, RESOLUTION), mode="bilinear", antialias=True, align_corners=False)


def errors(estimator: PreTrainedModel, held_out: Path) -> dict:
    """Return mean error and bias in years on the held-out faces: of all, by decade, and by dataset."""
    faces, pixels = np.load(held_out / "faces.npz"), np.load(held_out / "pixels.npy", mmap_mode="r")
    ages, middle = faces["ages"], pixels.shape[1] // 2
    parts = np.array_split(np.arange(len(ages)), max(1, len(ages) // 64))
    error = np.concatenate([read_ages(estimator, as_tensor(pixels[rows, middle])).numpy() - ages[rows] for rows in parts])
    report = {"all": {"faces": len(error), "mean_error": round(float(np.abs(error).mean()), 2)}}
    groups = {name: faces["sources"] == number for number, name in enumerate(SOURCES)}
    groups |= {f"{decade}0s": ages // 10 == decade for decade in range(9)}
    for name, rows in groups.items():
        if rows.any():
            numbers = {"mean_error": np.abs(error[rows]).mean(), "bias": error[rows].mean()}
            report[name] = {"faces": int(rows.sum()), **{key: round(float(value), 2) for key, value in numbers.items()}}
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="squares from prepare.py")
    parser.add_argument("--held_out", type=Path, required=True, help="held-out squares from prepare.py")
    parser.add_argument("--architecture", choices=("resnet", "convnext"), default="resnet", help="(default: resnet)")
    parser.add_argument("--init", type=Path, help="folder of an estimator to go on from (default: from scratch)")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the model, and state.pt to go on from")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="(default: 2e-3)")
    parser.add_argument("--max_train_steps", type=int, default=3000, help="(default: 3000)")
    parser.add_argument("--train_batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AMX")
    args = parser.parse_args()

    torch.manual_seed(0)
    estimator = new_estimator(args.architecture).to(memory_format=torch.channels_last)
    if args.init:
        adopt(estimator, load_estimator(args.init))
    optimizer = torch.optim.AdamW(estimator.parameters(), lr=args.learning_rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_train_steps, pct_start=0.1)
    parts, state_path = {"estimator": estimator, "optimizer": optimizer, "schedule": schedule}, args.output_dir / "state.pt"
    done = load_state(state_path, parts)

    faces, pixels = np.load(args.data / "faces.npz"), np.load(args.data / "pixels.npy", mmap_mode="r")
    ages = torch.from_numpy(faces["ages"]).float().clamp(max=float(AGES[-1]))
    decades = np.minimum(faces["ages"] // 10, 8)
    share = np.bincount(decades)[decades] ** -0.5
    share /= share.sum()
    progress, saved = (
        tqdm(range(done, args.max_train_steps), initial=done, total=args.max_train_steps, mininterval=20),
        monotonic(),
    )
    for step in progress:
        rng = np.random.default_rng((0, step))  # by step, so a resumed run sees the same as an uninterrupted one
        torch.manual_seed(step)
        rows = rng.choice(len(pixels), args.train_batch_size, p=share)
        squares = rng.integers(pixels.shape[1], size=len(rows))
        x, age = jittered(as_tensor(np.stack([pixels[row, square] for row, square in zip(rows, squares)]))), ages[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            logits = estimator(x.contiguous(memory_format=torch.channels_last)).logits.float()
        near = torch.exp(-0.5 * ((AGES - age[:, None]) / 2.5) ** 2)  # neighbouring ages are nearly right
        loss = F.cross_entropy(logits, near / near.sum(-1, keepdim=True)) + 0.05 * F.l1_loss(logits.softmax(-1) @ AGES, age)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if monotonic() - saved > 120 or step + 1 == args.max_train_steps:
            save_state(state_path, step + 1, parts)
            saved = monotonic()
    save_estimator(estimator, args.output_dir)
    report = errors(load_estimator(args.output_dir), args.held_out)
    (args.output_dir / READINGS).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
