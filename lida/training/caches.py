"""What frozen networks make of a picture or a caption, computed once."""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ..doors.files import output_folder, written_whole
from ..nn.text import TextEncoder
from ..nn.vae import VAE


class LatentCache:
    """The VAE's posterior of each picture, upright and mirrored, computed when it is first drawn.

    Each is a tensor (2, 4, h, w), mean and log-variance, in memory (131 kB for a picture of 512 px) or in a folder, which
    runs may share. A picture is encoded alone, so that its latents do not depend on what else is in its batch.
    `release` frees the memory of the decoder.
    """

    def __init__(self, samples, vae: VAE, folder: str | Path | None = None, release: bool = False):
        self.samples, self.vae = samples, vae
        self.folder = output_folder(folder, "--cache_dir") if folder else None
        self.cache: dict[tuple[int, bool], Tensor | Path] = {}
        if release:
            vae.decoder.to("meta")

    def __call__(self, index: int, flipped: bool) -> Tensor:
        posterior = self.cache.get((index, flipped))
        if posterior is None:
            posterior = self.cache[index, flipped] = self.file(index, flipped) if self.folder else self.encode(index, flipped)
        return posterior if isinstance(posterior, Tensor) else load(posterior.read_bytes())["posterior"]

    @torch.no_grad()
    def encode(self, index: int, flipped: bool) -> Tensor:
        """Return the posterior of a picture in float32 on the CPU."""
        device = next(self.vae.encoder.parameters()).device
        posterior = self.vae.posterior(self.samples.pixels(index, flipped)[None].to(device))
        return torch.cat(posterior).float().cpu()

    def file(self, index: int, flipped: bool) -> Path:
        """Return the file of a picture's posterior, written now if it is missing or damaged.

        Its name depends on the VAE, the picture's bytes, its training size and whether it is mirrored.
        """
        picture = hashlib.sha256(self.samples.examples[index].path.read_bytes()).hexdigest()
        key = f"{self.vae.fingerprint} {self.vae.dtype} {picture} {self.samples.sizes[index]} {flipped}"
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        try:
            load(path.read_bytes())["posterior"]
        except (OSError, SafetensorError, KeyError):
            with written_whole(path) as part:
                save_file({"posterior": self.encode(index, flipped).contiguous()}, part)
        return path


class TextCache:
    """The encoder_hidden_states (77, C) of captions, each computed once and alone. `release` frees the encoder."""

    @torch.no_grad()
    def __init__(self, text_encoder: TextEncoder, captions: Iterable[str], release: bool = False):
        with warnings.catch_warnings(record=True) as caught:
            self.hidden = {caption: text_encoder([caption])[0].cpu() for caption in sorted(set(captions))}
        if caught:  # of captions that are too long
            warnings.warn(f"{caught[0].message}" + f"; and so with {len(caught) - 1} other captions" * (len(caught) > 1))
        if release:
            text_encoder.to("meta")

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.hidden[caption] for caption in captions])
