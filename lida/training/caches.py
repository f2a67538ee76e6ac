"""Caches of the frozen networks' outputs: the VAE's posterior of each picture, the hidden states of each caption."""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..doors.files import output_folder
from ..doors.tensors import is_finite, read_tensors, write_tensors
from ..nn.text import TextEncoder
from ..nn.vae import VAE


class LatentCache:
    """The VAE's posterior of each picture, plain and mirrored, computed when it is first drawn.

    Each is a tensor (2, C, h, w), mean and log-variance, in memory or in a folder, which runs may share. Pictures are encoded one
    by one, so their latents do not depend on the other pictures of a batch. `release` frees the memory of the decoder.
    """

    def __init__(self, samples, vae: VAE, folder: str | Path | None = None, release: bool = False):
        self.samples, self.vae = samples, vae
        self.folder = output_folder(folder, "--cache_dir") if folder else None
        self.cached: dict[tuple[int, bool], Tensor | Path] = {}
        if release:
            vae.decoder.to("meta")

    def __call__(self, index: int, flipped: bool) -> Tensor:
        if (index, flipped) not in self.cached:
            self.cached[index, flipped] = self.file(index, flipped) if self.folder else self.encode(index, flipped)
        posterior = self.cached[index, flipped]
        return posterior if isinstance(posterior, Tensor) else read_tensors(posterior)["posterior"].clone()

    @torch.no_grad()
    def encode(self, index: int, flipped: bool) -> Tensor:
        """Return the posterior of a picture in float32 on the CPU."""
        pixel_values = self.samples.pixels(index, flipped)[None].to(next(self.vae.encoder.parameters()).device)
        return torch.cat(self.vae.posterior(pixel_values)).float().cpu()

    def file(self, index: int, flipped: bool) -> Path:
        """Return the file of a posterior, named by the VAE and the pixels, and written now if it is missing or damaged."""
        pixels = self.samples.pixels(index, flipped).numpy().tobytes()
        digest = hashlib.sha256(f"{self.vae.fingerprint} {self.vae.dtype} ".encode() + pixels).hexdigest()
        assert self.folder is not None
        path = self.folder / f"{digest}.safetensors"
        try:
            posterior = read_tensors(path, ["posterior"])["posterior"]
            shape = (2, *self.samples.latent_shape)
            if posterior.dtype != torch.float32 or posterior.shape != shape or not is_finite(posterior):
                raise InputError(f"{path}: is damaged")
        except InputError:
            write_tensors(path, {"posterior": self.encode(index, flipped)})
        return path


class TextCache:
    """The encoder_hidden_states (77, C) of captions, each computed once, one by one. `release` frees the encoder's memory."""

    @torch.no_grad()
    def __init__(self, text_encoder: TextEncoder, captions: Iterable[str], release: bool = False):
        with warnings.catch_warnings(record=True) as caught:
            self.hidden = {caption: text_encoder([caption])[0].cpu() for caption in sorted(set(captions))}
        if caught:  # of captions that are too long
            warnings.warn(f"{caught[0].message}" + f"; the same holds for {len(caught) - 1} other captions" * (len(caught) > 1))
        if release:
            text_encoder.to("meta")

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.hidden[caption] for caption in captions])
