"""Stage 2: the VAE.

    python weights/recipe/vae.py --data squares --held_out held-out --output_dir vae-run --max_train_steps 20000

Steps alternate between crops of 64 pixels out of the squares and whole squares, of which SFace also says how much of the person
is left. The loss is L1 on a pyramid of three resolutions, twice the L1 of the edges, how far the energy of fine detail is off,
and a KL term so small that latents stay exact rather than normal; for whole squares also the L1 of SFace's first activations and
one minus the cosine of its embeddings. With --half_weight, halved latents are to decode to the halved crop: latents as smooth
as pictures are easier to diffuse (scale equivariance, Skorokhodov et al. 2025; Kouzelis et al. 2025). With --init and
--latent_channels, the VAE is grown to so many, and the first ones stay as they are (grow.py). From step --gan_start a
PatchGAN discriminator judges both, weighed against the reconstruction by their gradients at the last layer (Esser et al.
2021, equation 7; Rombach et al. 2022).
The learning rate is constant and falls linearly to zero over the last --decay_steps, so that a run can be prolonged.
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
from grow import growth_loss, more_channels, whiten
from sface import LEVELS, SFace, aligned
from torch import Tensor, nn
from tqdm import tqdm

from lida.checkpoints import load_vae, save_model
from lida.nn.vae import VAE, VAEConfig
from lida.training.state import load_state, save_state

CROP = 64
CONFIG = VAEConfig((24, 48, 96, 128), layers_per_block=1, latent_channels=8, norm_num_groups=8, sample_size=128)


class Batches:
    """Random squares, crops of them and mirrorings; the draw of a step depends on its number alone."""

    def __init__(self, folder: Path):
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        self.points = np.load(folder / "points.npy")

    def crops(self, step: int, count: int) -> Tensor:
        """Return crops (count, 3, CROP, CROP) in [-1, 1]."""
        rng = np.random.default_rng((step, 0))
        faces, squares = self.pixels.shape[:2]
        reach = self.pixels.shape[2] - CROP + 1
        found = []
        for face, square, x, y in zip(*(rng.integers(n, size=count) for n in (faces, squares, reach, reach))):
            found.append(self.pixels[face, square, y : y + CROP, x : x + CROP])
        return self.mirrored(np.stack(found), rng)[0]

    def squares(self, step: int, count: int) -> tuple[Tensor, np.ndarray]:
        """Return squares (count, 3, S, S) in [-1, 1] and their landmarks (count, 5, 2)."""
        rng = np.random.default_rng((step, 1))
        rows = [(rng.integers(self.pixels.shape[0]), rng.integers(self.pixels.shape[1])) for _ in range(count)]
        return self.mirrored(np.stack([self.pixels[row] for row in rows]), rng, np.stack([self.points[row] for row in rows]))

    @staticmethod
    def mirrored(pixels: np.ndarray, rng: np.random.Generator, points: np.ndarray | None = None) -> tuple:
        """Half of them left to right; the landmarks too, whose left ones stay the picture's left."""
        turn = rng.random(len(pixels)) < 0.5
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = torch.where(torch.from_numpy(turn)[:, None, None, None], x.flip(-1), x)
        if points is not None:
            flipped = (np.array([pixels.shape[2] - 1, 0]) - points * [1, -1])[:, [1, 0, 2, 4, 3]]
            points = np.where(turn[:, None, None], flipped, points)
        return x.contiguous(memory_format=torch.channels_last), points


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return the L1 of pixels at three resolutions and of their differences along both axes at the first."""
    edges = sum((torch.diff(x, dim=d) - torch.diff(y, dim=d)).abs().mean() for d in (2, 3))
    loss = 2 * edges
    for _ in range(3):
        loss = loss + (x - y).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def detail_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return how far the energy of fine detail is off: the L1 of its logarithm, in windows of 8 pixels, at two resolutions.

    The other losses favour a blur where the decoder does not know where a wrinkle or a hair lies. This one asks for as much
    detail as the photograph has there.
    """
    loss = 0.0
    for _ in range(2):
        a, b = (torch.log(F.avg_pool2d(laplacian(t) ** 2, 8, 4) + 1e-4) for t in (x, y))
        loss = loss + (a - b).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def feature_loss(ours: dict, target: dict) -> Tensor:
    """Return the L1 of SFace's activations at LEVELS, each relative to its own size (Johnson et al. 2016)."""
    return sum((ours[name] - target[name]).abs().mean() / target[name].abs().mean() for name in LEVELS)


def half_loss(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return the reconstruction loss of unscaled latents (B, C, h, w) and pictures (B, 3, H, W), both halved."""
    return reconstruction_loss(F.avg_pool2d(x, 2), vae.decode(F.avg_pool2d(z, 2) * vae.config.scaling_factor))


class Discriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): (B, 3, H, W) -> scores (B, 1, H / 8, W / 8), real high.

    It also sees the picture without its blur, four times as strong, in which blurred reconstructions differ most. There is no
    normalisation: that would hide by how much.
    """

    def __init__(self, width: int = 48):
        layers, widths = [], [6, width, 2 * width, 4 * width]
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, 1)
        return super().forward(torch.cat([x, 4 * (x - blurred)], dim=1))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, layer: Tensor) -> Tensor:
    """Return |gradient of the reconstruction| / |gradient of the adversary| at the last layer (Esser et al. 2021, equation 7)."""
    a, b = (torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial))
    return (a / (b + 1e-4)).clamp(0, 1e4).detach()


@torch.no_grad()
def latents_of(vae: VAE, batches: Batches) -> Tensor:
    """Return the scaled latents of 512 squares, or of about as many as there are, the posterior's means."""
    squares = batches.pixels.shape[0] * batches.pixels.shape[1]
    return torch.cat([vae.encode(batches.squares(step, 32)[0], sample=False) for step in range(min(16, -(-squares // 32)))])


def tensors(pixels: np.ndarray) -> Tensor:
    """Return squares (N, H, W, 3) of bytes as (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def reconstructed(vae: VAE, x: Tensor) -> Tensor:
    """Return reconstructions (N, 3, H, W) through the posterior's mean."""
    return torch.cat([vae.decode(vae.encode(part, sample=False)) for part in x.split(64)]).clamp(-1, 1)


def psnr(x: Tensor, y: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    return float((10 * torch.log10(4 / ((x - y) ** 2).mean(dim=(1, 2, 3)))).mean())


def laplacian(x: Tensor) -> Tensor:
    """Return the Laplacian (B, 1, H - 2, W - 2) of the grey pictures of x (B, 3, H, W)."""
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None]
    return F.conv2d(x.mean(1, keepdim=True), kernel)


def laplacian_variance(x: Tensor) -> Tensor:
    """Return the sharpness (B,) of pictures: the variance of the grey picture's Laplacian."""
    return laplacian(x).var(dim=(1, 2, 3))


@torch.no_grad()
def report(vae: VAE, sface: SFace, folder: Path, count: int = 128) -> dict:
    """Return PSNR, SFace's cosine and sharpness of reconstructions of held-out squares, of each dataset."""
    faces, pixels = np.load(folder / "faces.npz"), np.load(folder / "pixels.npy", mmap_mode="r")
    points, found = np.load(folder / "points.npy"), {}
    for source in np.unique(faces["sources"]):
        rows = np.flatnonzero(faces["sources"] == source)
        rows = rows[:: max(1, len(rows) // count)]
        x = tensors(pixels[rows, pixels.shape[1] // 2])
        y = reconstructed(vae, x)
        a, b = (
            torch.cat(
                [
                    sface(aligned(p, q))["identity"]
                    for p, q in zip(t.split(32), np.split(points[rows, pixels.shape[1] // 2], range(32, len(t), 32)))
                ]
            )
            for t in (x, y)
        )
        found[("aaf", "utkface")[source]] = {
            "psnr": round(psnr(x, y), 2),
            "sface_cosine": round(float((a * b).sum(-1).mean()), 3),
            "sharpness": round(float((laplacian_variance(y) / laplacian_variance(x)).median()), 3),
        }
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="squares from prepare.py")
    add("--held_out", type=Path, help="held-out squares from prepare.py, to report on")
    add("--init", type=Path, help="model folder whose VAE to go on from (default: from scratch)")
    add("--latent_channels", type=int, help="to which the VAE of --init is grown (default: it keeps its own)")
    add("--output_dir", type=Path, required=True, help="gets vae/ and the training state")
    add("--learning_rate", type=float, default=5e-4, help="(default: 5e-4)")
    add("--decay_steps", type=int, default=2000, help="over which the learning rate falls to zero (default: 2000)")
    add("--train_batch_size", type=int, default=8, help="squares a step, or four times as many crops (default: 8)")
    add("--max_train_steps", type=int, default=20000, help="(default: 20000)")
    add("--evaluation_steps", type=int, default=500, help="how often to report (default: 500)")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AVX-512 BF16 or AMX")
    add("--train_part", choices=("all", "decoder"), default="all", help="decoder: latents stay as they are")
    add("--detail_weight", type=float, default=0.1, help="(default: 0.1)")
    add("--feature_weight", type=float, default=0.1, help="(default: 0.1)")
    add("--identity_weight", type=float, default=0.5, help="(default: 0.5)")
    add("--half_weight", type=float, default=0.0, help="of the halved pairs (default: 0)")
    help = "largest deviation of noise on scaled latents: the decoder is to bear what a UNet paints (default: 0)"
    add("--latent_noise", type=float, default=0.0, help=help)
    add("--gan_start", type=int, help="step from which on the discriminator counts (default: never)")
    help = "steps from --gan_start on in which the discriminator alone learns (default: 200)"
    add("--gan_warmup", type=int, default=200, help=help)
    add("--gan_learning_rate", type=float, default=4e-4, help="of the discriminator (default: 4e-4)")
    add("--gan_weight", type=float, default=0.5, help="(default: 0.5)")
    return parser.parse_args()


def reconstruct(
    args: argparse.Namespace, vae: VAE, smaller: VAE | None, sface: SFace, x: Tensor, points: np.ndarray | None
) -> tuple[Tensor, dict]:
    """Return reconstructions of pictures and the terms of their loss; SFace's two are of whole squares, which have landmarks.

    `smaller` is the VAE that `vae` is grown from.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
        mean, logvar = (part.float() for part in vae.posterior(x))
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        noise = args.latent_noise * torch.rand(len(x), 1, 1, 1) * torch.randn_like(z)
        y = vae.decode(z * vae.config.scaling_factor + noise).float()
        terms = {"l1": reconstruction_loss(x, y)}
        if args.half_weight and points is None:
            terms["half"] = args.half_weight * half_loss(vae, x, z)
    terms["detail"] = args.detail_weight * detail_loss(x, y)
    terms["kl"] = 1e-6 * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean() * mean[0].numel()
    if smaller is not None:
        with torch.no_grad():
            first = smaller.encode(x, sample=False)
        terms["growth"] = growth_loss(mean * vae.config.scaling_factor, first)
    if points is not None:
        ours = sface(aligned(y, points))
        with torch.no_grad():
            target = sface(aligned(x, points))
        terms["identity"] = args.identity_weight * (1 - (ours["identity"] * target["identity"]).sum(-1).mean())
        terms["features"] = args.feature_weight * feature_loss(ours, target)
    return y, terms


def hinge_loss(discriminator: Discriminator, x: Tensor, y: Tensor) -> Tensor:
    """Return the discriminator's loss on photographs and their reconstructions (Lim and Ye 2017)."""
    return F.relu(1 - discriminator(x)).mean() + F.relu(1 + discriminator(y.detach())).mean()


def set_scale(vae: VAE, smaller: VAE | None, batches: Batches) -> None:
    """Make the scaled latents deviate by 1. Of a VAE that was grown from a smaller one, only the new channels are changed."""
    if smaller is not None:
        whiten(vae, latents_of(vae, batches), smaller.config.latent_channels)
    else:
        scale = vae.config.scaling_factor / float(latents_of(vae, batches).std())
        vae.config = replace(vae.config, scaling_factor=scale)


def main():
    args = parse_args()
    torch.manual_seed(0)
    vae, smaller = load_vae(args.init) if args.init else VAE(CONFIG), None
    if args.latent_channels:
        vae, smaller = more_channels(vae, args.latent_channels), vae.eval()
    vae.train().requires_grad_(args.train_part == "all").to(memory_format=torch.channels_last)
    for module in (vae.decoder, vae.post_quant_conv):
        module.requires_grad_(True)
    discriminator = Discriminator().to(memory_format=torch.channels_last)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    judge = torch.optim.AdamW(discriminator.parameters(), args.gan_learning_rate, (0.5, 0.9), weight_decay=0.0, fused=True)
    ema, state_path = EMA(vae), args.output_dir / "state.pt"
    parts = {"vae": vae, "optimizer": optimizer, "ema": ema, "discriminator": discriminator, "judge": judge}
    start = load_state(state_path, parts)
    sface, batches = SFace().eval(), Batches(args.data)

    saved, average = monotonic(), {}
    progress = tqdm(range(start, args.max_train_steps), initial=start, total=args.max_train_steps, mininterval=20)
    for step in progress:
        for group in optimizer.param_groups:
            falling = (args.max_train_steps - step) / args.decay_steps
            group["lr"] = args.learning_rate * min(1.0, (step + 1) / 200, falling)
        torch.manual_seed(step)
        judging = args.gan_start is not None and step >= args.gan_start
        if step % 2:
            x, points = batches.squares(step, args.train_batch_size)
        else:
            x, points = batches.crops(step, 4 * args.train_batch_size), None
        y, terms = reconstruct(args, vae, smaller, sface, x, points)
        if not judging or step >= args.gan_start + args.gan_warmup:  # else the discriminator learns alone
            loss = sum(terms.values())
            if judging:
                terms["adversarial"] = -discriminator(y).mean()
                weight = adaptive_weight(terms["l1"], terms["adversarial"], vae.decoder.conv_out.weight)
                loss = loss + args.gan_weight * weight * terms["adversarial"]
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(vae)
        if judging:
            judge.zero_grad(set_to_none=True)
            terms["judge"] = hinge_loss(discriminator, x, y)
            terms["judge"].backward()
            judge.step()
        average |= {name: 0.98 * average.get(name, term.item()) + 0.02 * term.item() for name, term in terms.items()}
        progress.set_postfix({name: f"{value:.3f}" for name, value in average.items()}, refresh=False)
        done = step + 1
        if monotonic() - saved > 120 or done == args.max_train_steps:
            save_state(state_path, done, parts)
            saved = monotonic()
        if args.held_out and (done % args.evaluation_steps == 0 or done == args.max_train_steps):
            ema.copy_to(averaged := VAE(vae.config))
            print(json.dumps({"step": done, **report(averaged.eval(), sface, args.held_out)}), flush=True)

    ema.copy_to(vae)
    if smaller is not None or args.train_part == "all":
        set_scale(vae.eval(), smaller, batches)
    save_model(vae, args.output_dir / "vae")


if __name__ == "__main__":
    main()
