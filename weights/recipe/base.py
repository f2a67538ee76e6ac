"""Stage 4: the UNet, on the latents of stage 2's VAE and the hidden states of stage 3's text encoder, which both stay frozen.

    python weights/recipe/base.py --data squares --vae vae-run --text_encoder words-run --scheduler weights/lida-tiny \
        --output_dir base-run

Captions have coarse ages only ("an old woman", "a boy"); half of them have no age, some the colour of the skin, and a tenth
are empty. Decades are left to the Age-LoRA.
The learning rate is constant and falls linearly to zero over the last --decay_steps, so that a run can be prolonged.
With --init, a UNet of fewer latent channels than the VAE has gets the others (grow.py).
A square is encoded when it is first drawn, and its latents are kept in --output_dir. State is saved every five minutes; the
same command goes on from it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from ema import EMA
from grow import widened
from torch import Tensor, nn
from tqdm import tqdm
from words import WIDTH

from lida.checkpoints import load_schedule, load_text_encoder, load_unet, load_vae, save_model, save_text_encoder
from lida.kernels import fastest_attention, use_attention
from lida.nn.layers import ResnetBlock, Transformer2D
from lida.nn.unet import UNet, UNetConfig
from lida.nn.vae import VAE
from lida.training.state import load_state, save_state

UNET = UNetConfig(
    sample_size=16,
    block_out_channels=(112, 144, 144),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=WIDTH,
    attention_head_dim=4,
)
LAST = {ResnetBlock: "conv2", Transformer2D: "proj_out"}  # the last layer of each residual branch
SKIN = {0: "white", 1: "black", 3: "brown"}  # by UTKFace's number; the vocabulary has no word for the others


def caption(age: int, man: bool, race: int, rng: np.random.Generator) -> str:
    """Return a caption as on the web: a tenth are empty, almost half have no age, the rest a coarse one."""
    draw = rng.random()
    if draw < 0.1:
        return ""
    template = "a portrait photo of a {}" if rng.random() < 0.7 else rng.choice(["a photo of a {}", "a portrait of a {}", "a {}"])
    noun = ("man" if man else "woman") if rng.random() < 0.7 else "person"
    if draw > 0.55 and age < 13:
        noun = {"man": "boy", "woman": "girl", "person": "child"}[noun] if age > 2 or rng.random() < 0.5 else "baby"
    elif draw > 0.55:
        noun = f"young {noun}" if age < 30 else f"middle-aged {noun}" if age < 55 else f"old {noun}"
    if rng.random() < 0.25 and race in SKIN:
        noun = f"{SKIN[race]} {noun}"
    return template.format(noun).replace("a old", "an old")


def chances_of(ages: np.ndarray, sources: np.ndarray, balance: float) -> np.ndarray:
    """Return each face's chance (faces,) to be drawn: its decade's count to the power of -balance, 70 and older as one decade.

    Both datasets have equal chances.
    """
    decades = np.minimum(ages // 10, 7)
    chances = np.bincount(decades)[decades] ** -balance
    for source in np.unique(sources):
        chances[sources == source] /= chances[sources == source].sum()
    return chances / chances.sum()


class Latents:
    """The latents of squares and of their mirror images, encoded when they are first drawn."""

    def __init__(self, data: Path, vae: VAE, folder: Path, bf16: bool):
        self.bf16, self.device = bf16, next(vae.parameters()).device
        self.pixels, self.vae = np.load(data / "pixels.npy", mmap_mode="r"), vae.to(memory_format=torch.channels_last)
        faces, squares, side = self.pixels.shape[:3]
        shape = (faces, 2 * squares, vae.config.latent_channels, side // vae.factor, side // vae.factor)
        path = folder / f"latents-{vae.fingerprint[:12]}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(path, "w+", np.float16, shape)[:] = np.nan
        self.latents = np.lib.format.open_memmap(path, "r+")
        self.known = ~np.isnan(self.latents[:, :, 0, 0, 0])  # (faces, squares)

    def choose(self, faces: np.ndarray, new: float, rng: np.random.Generator) -> np.ndarray:
        """Return a square of each face: any with the chance `new`, else one that is encoded already."""
        squares = rng.integers(self.known.shape[1], size=len(faces))
        for k, face in enumerate(faces):
            found = np.flatnonzero(self.known[face])
            if len(found) and rng.random() >= new:
                squares[k] = rng.choice(found)
        return squares

    @torch.no_grad()
    def __getitem__(self, pairs: tuple[np.ndarray, np.ndarray]) -> Tensor:
        """Return latents (B, C, h, w) of faces and squares; squares from `squares` on are mirrored."""
        found = self.latents[pairs]
        new = np.flatnonzero(np.isnan(found[:, 0, 0, 0]))
        if len(new):
            count = self.pixels.shape[1]
            pixels = np.stack([self.pixels[face, square % count] for face, square in zip(*(part[new] for part in pairs))])
            x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            mirrored = torch.from_numpy(pairs[1][new] >= count).to(self.device)[:, None, None, None]
            x = torch.where(mirrored, x.flip(-1), x).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                encoded = [self.vae.encode(part, sample=False).float().cpu() for part in x.split(64)]
            found[new] = torch.cat(encoded).numpy()
            self.latents[pairs[0][new], pairs[1][new]] = found[new]
            self.known[pairs[0][new], pairs[1][new]] = True
        return torch.from_numpy(found).float().to(self.device)


class LossAwareTimesteps(nn.Module):
    """Draws timesteps in proportion to the root of the loss's second moment, so few go where nothing is learnt.

    The weights undo the draw: the loss's expectation is that of uniform timesteps (Nichol and Dhariwal 2021, section 3.3).
    """

    def __init__(self, steps: int = 1000, bins: int = 20):
        super().__init__()
        self.width = steps // bins
        self.register_buffer("moments", torch.ones(bins))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return timesteps (count,) and their weights (count,)."""
        chances = 0.9 * self.moments.sqrt() / self.moments.sqrt().sum() + 0.1 / len(self.moments)
        bins = torch.multinomial(chances, count, replacement=True)
        timesteps = bins * self.width + torch.randint(self.width, (count,), device=bins.device)
        return timesteps, 1 / (len(self.moments) * chances[bins])

    def update(self, timesteps: Tensor, losses: Tensor) -> None:
        """Record the losses (B,), without the weights of the draw."""
        moments = self.moments.tolist()
        for bin, loss in zip((timesteps // self.width).tolist(), losses.tolist()):
            moments[bin] = 0.98 * moments[bin] + 0.02 * loss**2
        self.moments.copy_(torch.tensor(moments))


def new_unet(channels: int) -> UNet:
    """Return a UNet for so many latent channels, whose residual branches start at zero, as in latent diffusion."""
    unet = UNet(replace(UNET, in_channels=channels, out_channels=channels))
    for module in unet.modules():
        if type(module) in LAST or module is unet:
            layer = getattr(module, LAST.get(type(module), "conv_out"))
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return unet


def hidden_states(text_encoder, captions: list[str], cache: dict[str, Tensor]) -> Tensor:
    """Return hidden states (B, 77, C) of captions, with equal captions encoded once."""
    for text in {text for text in captions if text not in cache}:
        with torch.no_grad():
            cache[text] = text_encoder(text)[0]
    return torch.stack([cache[text] for text in captions])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="squares from prepare.py")
    add("--vae", type=Path, required=True, help="model folder with the VAE")
    add("--text_encoder", type=Path, required=True, help="model folder with stage 3's text encoder")
    add("--scheduler", type=Path, required=True, help="model folder with scheduler/")
    add("--init", type=Path, help="model folder whose UNet to go on from (default: from scratch)")
    add("--output_dir", type=Path, required=True, help="gets unet/, text_encoder/, tokenizer/ and the state")
    add("--learning_rate", type=float, default=5e-4, help="(default: 5e-4)")
    add("--lr_warmup_steps", type=int, default=200, help="(default: 200)")
    add("--decay_steps", type=int, default=4000, help="over which the learning rate falls to zero (default: 4000)")
    add("--train_batch_size", type=int, default=64, help="(default: 64)")
    add("--max_train_steps", type=int, default=32000, help="(default: 32000)")
    help = "draw a face in proportion to its decade's count to the power of minus this; 70 and older are one (default: 0.5)"
    add("--age_balance", type=float, default=0.5, help=help)
    add("--new_squares", type=float, default=0.2, help="share of draws that may be of a square not yet encoded (default: 0.2)")
    add("--snr_gamma", type=float, default=5.0, help="weigh the steps by min(snr, gamma) / snr (default: 5)")
    add("--device", default="cpu", help="(default: cpu)")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: faster where the CPU has AVX-512 BF16 or AMX")
    return parser.parse_args()


def main():
    args = parse_args()
    bf16 = args.mixed_precision == "bf16"
    vae, text_encoder = load_vae(args.vae, device=args.device), load_text_encoder(args.text_encoder, device=args.device)
    schedule, faces = load_schedule(args.scheduler), np.load(args.data / "faces.npz")
    ages, men, races = faces["ages"], faces["men"], faces["races"]
    chances, latents = chances_of(ages, faces["sources"], args.age_balance), Latents(args.data, vae, args.output_dir, bf16)
    torch.manual_seed(0)
    channels = vae.config.latent_channels
    unet = widened(load_unet(args.init), channels) if args.init else new_unet(channels)
    unet.to(args.device, memory_format=torch.channels_last).train().requires_grad_(True)
    dtype = torch.bfloat16 if bf16 else torch.float32
    use_attention(unet, fastest_attention(dtype, args.device, unet.config.sample_size**2), dtype)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ema, state_path = EMA(unet, 0.999), args.output_dir / "state.pt"
    drawn = LossAwareTimesteps(schedule.config.num_train_timesteps).to(args.device)
    parts = {"unet": unet, "optimizer": optimizer, "ema": ema, "timesteps": drawn}
    deviation = float(latents[np.arange(64) % len(ages), np.zeros(64, int)].std())
    if not 0.8 < deviation < 1.25:  # the noise would be too strong or too weak at every step
        raise SystemExit(f"{args.vae}: latents deviate by {deviation:.2f}, and the schedule assumes 1: mend scaling_factor")
    start = load_state(state_path, parts)

    saved, average, texts = monotonic(), None, {}
    progress = tqdm(range(start, args.max_train_steps), initial=start, total=args.max_train_steps, mininterval=20)
    for step in progress:
        for group in optimizer.param_groups:
            falling = (args.max_train_steps - step) / args.decay_steps
            group["lr"] = args.learning_rate * min(1.0, (step + 1) / args.lr_warmup_steps, falling)
        rng = np.random.default_rng(step)  # what a step sees depends on its number, and on which squares are encoded
        torch.manual_seed(step)
        rows = rng.choice(len(ages), size=args.train_batch_size, p=chances)
        x = latents[rows, latents.choose(rows, args.new_squares, rng)]
        captions = [caption(ages[row], men[row], races[row], rng) for row in rows]
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            hidden = hidden_states(text_encoder, captions, texts)
            timesteps, weights = drawn.draw(len(x))
            noise = torch.randn_like(x)
            noise_pred = unet(schedule.add_noise(x, noise, timesteps), timesteps, hidden).float()
        abar = schedule.alphas_cumprod.to(x.device)[timesteps]
        losses = (args.snr_gamma * (1 - abar) / abar).clamp(max=1) * ((noise_pred - noise) ** 2).mean(dim=(1, 2, 3))
        drawn.update(timesteps, losses.detach())
        loss = (weights * losses).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(unet)
        average = loss.item() if average is None else 0.99 * average + 0.01 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}", refresh=False)
        if monotonic() - saved > 300 or step + 1 == args.max_train_steps:
            save_state(state_path, step + 1, parts)
            ema.copy_to(averaged := UNet(unet.config).to(args.device))
            save_model(averaged, args.output_dir / "unet")
            save_text_encoder(text_encoder, args.output_dir)
            saved = monotonic()
            moments = [round(moment, 3) for moment in drawn.moments.sqrt().tolist()]
            print(json.dumps({"step": step + 1, "loss": round(average, 5), "moments": moments}), flush=True)


if __name__ == "__main__":
    main()
