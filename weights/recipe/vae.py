"""Stage 2: the VAE.

    python weights/recipe/vae.py --data faces.npz --init weights/lida-tiny --output_dir vae-run --max_train_steps 20000

The loss is L1 on a pyramid of three resolutions, twice the L1 of the edges, and a KL term so small that latents stay exact
rather than normal; with --features also the L1 of what the age estimator's first layers make of the picture. With
--half_weight, halved latents are to decode to the halved picture, and mirrored ones to the mirrored: latents as smooth as
pictures are easier to diffuse (scale equivariance, Skorokhodov et al. 2025; Kouzelis et al. 2025). The scaling factor is
measured on the training faces at the end, as in Rombach et al. 2022, section G.
State is saved every two minutes; the same command goes on from it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import torch
import torch.nn.functional as F
from ema import EMA
from estimator import load_estimator
from torch import Tensor
from tqdm import tqdm
from transformers import ResNetForImageClassification

from lida.checkpoints import load_vae, save_model
from lida.nn.vae import VAE, VAEConfig
from lida.training.state import load_state, save_state

CONFIG = VAEConfig(block_out_channels=(24, 48, 96, 128), layers_per_block=1, norm_num_groups=8, sample_size=96)


def batches(pixels: np.ndarray, batch_size: int, step: int, steps: int):
    """(B, 3, H, W) in [-1, 1] of random faces, crops and mirrorings; the draw of a step depends on its number alone."""
    for number in range(step, steps):
        rng = np.random.default_rng(number)
        rows = rng.choice(len(pixels), batch_size, replace=False)
        batch = torch.from_numpy(pixels[rows, rng.integers(pixels.shape[1], size=batch_size)])
        batch = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5)
        yield torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 of pixels at three resolutions and of their differences along both axes at the first."""
    edges = sum((torch.diff(x, dim=d) - torch.diff(y, dim=d)).abs().mean() for d in (2, 3))
    loss = 2 * edges
    for _ in range(3):
        loss = loss + (x - y).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def feature_loss(network: ResNetForImageClassification, x: Tensor, y: Tensor) -> Tensor:
    """L1 of the activations of the stem and the first two stages, each relative to its own size (Johnson et al. 2016)."""
    ours, target = (network(pixels, output_hidden_states=True).hidden_states[:3] for pixels in (y, x))
    return sum((a - b.detach()).abs().mean() / b.detach().abs().mean() for a, b in zip(ours, target))


def half_loss(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """The reconstruction loss of (B, 4, h, w) latents and (B, 3, H, W) pictures, both halved, half of the pairs mirrored."""
    x, z = F.avg_pool2d(x, 2), F.avg_pool2d(z, 2)
    mirrored = (torch.rand(len(x)) < 0.5)[:, None, None, None]
    x, z = torch.where(mirrored, x.flip(-1), x), torch.where(mirrored, z.flip(-1), z)
    return reconstruction_loss(x, vae.decode(z * vae.config.scaling_factor).float())


@torch.no_grad()
def measure_scaling_factor(vae: VAE, pixels: np.ndarray) -> float:
    """1 / standard deviation of the unscaled latents."""
    x = next(batches(pixels, min(1024, len(pixels)), 0, 1))
    return float(1 / torch.cat([vae.posterior(part)[0] for part in x.split(64)]).std())


def tensors(pixels: np.ndarray) -> Tensor:
    """uint8 squares (N, H, W, 3) -> (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def reconstructed(vae: VAE, x: Tensor) -> Tensor:
    """(N, 3, H, W) through the posterior's mean."""
    return torch.cat([vae.decode(vae.encode(part, sample=False)) for part in x.split(64)]).clamp(-1, 1)


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    return float((10 * torch.log10(4 / ((x - y) ** 2).mean(dim=(1, 2, 3)))).mean())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="faces from prepare.py")
    parser.add_argument("--held_out", type=Path, help="held-out faces from prepare.py, to report PSNR on")
    parser.add_argument("--init", type=Path, help="model folder whose VAE to continue (default: from scratch)")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets vae/ and the training state")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="cosine to zero (default: 2e-3)")
    parser.add_argument("--train_batch_size", type=int, default=16, help="(default: 16)")
    parser.add_argument("--max_train_steps", type=int, default=20000, help="(default: 20000)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AMX")
    parser.add_argument("--train_part", choices=("all", "decoder"), default="all", help="decoder: latents stay as they are")
    parser.add_argument("--features", type=Path, help="folder that estimator.py wrote, for a loss of features (default: none)")
    parser.add_argument("--feature_weight", type=float, default=0.2, help="(default: 0.2)")
    parser.add_argument("--half_weight", type=float, default=0.0, help="of the halved, mirrored pairs (default: 0)")
    return parser.parse_args()


def main():
    args = parse_args()
    torch.manual_seed(0)
    vae = load_vae(args.init) if args.init else VAE(CONFIG)
    vae.train().requires_grad_(args.train_part == "all")
    for module in (vae.decoder, vae.post_quant_conv):
        module.requires_grad_(True)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_train_steps)
    ema, state_path = EMA(vae), args.output_dir / "state.pt"
    parts = {"vae": vae, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    step = load_state(state_path, parts)

    network = load_estimator(args.features).requires_grad_(False) if args.features else None
    pixels = np.load(args.data)["pixels"]
    progress = tqdm(batches(pixels, args.train_batch_size, step, args.max_train_steps), initial=step, total=args.max_train_steps)
    saved, average = monotonic(), None
    for x in progress:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            mean, logvar = (part.float() for part in vae.posterior(x))
            z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
            y = vae.decode(z * vae.config.scaling_factor).float()
            halved = half_loss(vae, x, z) if args.half_weight else 0.0
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        loss = reconstruction_loss(x, y) + args.half_weight * halved + 1e-6 * kl
        if network is not None:
            loss = loss + args.feature_weight * feature_loss(network, x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(vae)
        step += 1
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}")
        if monotonic() - saved > 120 or step == args.max_train_steps:
            save_state(state_path, step, parts)
            saved = monotonic()

    ema.copy_to(vae)
    vae.eval()
    vae.config = replace(vae.config, sample_size=pixels.shape[2])
    if args.train_part == "all":
        vae.config = replace(vae.config, scaling_factor=measure_scaling_factor(vae, pixels))
    save_model(vae, args.output_dir / "vae")
    report = {"steps": step, "loss": average}
    if args.held_out:
        x = tensors(np.load(args.held_out)["pixels"][:, 0])
        report["held_out_psnr"] = psnr(x, reconstructed(vae, x))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
