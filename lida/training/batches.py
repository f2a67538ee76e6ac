"""From examples to batches: which pictures a step sees, what chance decides for each, and what is computed once and kept.

All that chance decides is a function of (seed, step, number), where `number` counts the samples of a step over its passes and
over all processes. So neither an interruption nor the number of processes changes what is trained.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.folder import Example
from ..doors.errors import InputError
from ..photos.pictures import open_image, to_tensor, written_whole
from ..photos.masks import mask_to_tensor, open_mask
from ..nn.text import TextEncoder
from ..nn.vae import VAE

Size = tuple[int, int]  # width, height


def draws(*key: int) -> Generator:
    """A generator that depends on the key alone, and neighbouring keys do not resemble each other."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def bucket_of(size: Size, resolution: int, step: int, lowest: int, highest: int) -> Size:
    """The training size of a picture: sides in multiples of `step`, its shape as nearly as the area of resolution^2 allows."""
    lowest, highest = -(-lowest // step) * step, highest // step * step
    candidates = [(width, min(resolution**2 // width // step * step, highest)) for width in range(lowest, highest + 1, step)]
    aspect = math.log(size[0] / size[1])
    return min((s for s in candidates if s[1] >= lowest), key=lambda s: (abs(math.log(s[0] / s[1]) - aspect), -s[0] * s[1]))


class Order:
    """Which pictures each step sees: `batch` at a time, all of one size.

    An epoch sees every picture, in another order each; a size's last batch is filled up with pictures of that size. With
    `balance`, a value for each picture, an epoch draws as many with repetition, each value as often as another.
    """

    def __init__(self, sizes: Sequence[Size], batch: int, seed: int, balance: Sequence | None = None):
        self.batch, self.seed, self.epoch, self.plan = batch, seed, -1, np.empty(0)
        different = sorted(set(sizes))
        self.members = [np.array([i for i, size in enumerate(sizes) if size == s]) for s in different]
        self.chances: list[np.ndarray | None] = [None] * len(self.members)
        if balance:
            values, counts = np.unique([str(value) for value in balance], return_counts=True)
            rarity = 1 / counts[np.searchsorted(values, [str(value) for value in balance])]
            self.chances = [rarity[members] / rarity[members].sum() for members in self.members]
        self.steps_per_epoch = sum(-(-len(members) // batch) for members in self.members)

    def step(self, step: int) -> np.ndarray:
        """The pictures (batch,) of a step, by index."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            rng, plan = np.random.default_rng([self.seed, epoch]), []
            for members, chances in zip(self.members, self.chances):
                count = -(-len(members) // self.batch) * self.batch
                if chances is None:
                    passes = [rng.permutation(members) for _ in range(-(-count // len(members)))]
                    drawn = np.concatenate(passes)[:count]
                else:
                    drawn = rng.choice(members, count, p=chances)
                plan.append(drawn.reshape(-1, self.batch))
            self.epoch, self.plan = epoch, rng.permutation(np.concatenate(plan))
        return self.plan[k]


@dataclass(frozen=True)
class Chances:
    """What chance may do to a sample, and how often."""

    num_train_timesteps: int
    random_flip: bool = False
    random_crop: bool = False
    caption_dropout: float = 0.0
    noise_offset: float = 0.0


class Samples(Dataset):
    """What a pass needs of each sample, by (index of the picture, step, number): pixels or posterior, and what chance decided.

    `latent_shape` is (channels, factor) of the VAE. `stream` sets the draws of one data set apart from another's.
    """

    def __init__(
        self, examples: Sequence[Example], sizes: Sequence[Size], chances: Chances, latent_shape: tuple[int, int],
        seed: int, stream: int = 0, masked: bool = False,
    ):  # fmt: skip
        self.examples, self.sizes, self.chances, self.latent_shape = examples, sizes, chances, latent_shape
        self.seed, self.stream, self.masked = seed, stream, masked
        self.posteriors: "Posteriors | None" = None

    def __len__(self) -> int:
        return len(self.examples)

    def pixels(self, index: int, flipped: bool, place: Size | tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """pixel_values (3, H, W) in [-1, 1], cut at `place`: 0 to 1 from the left and from the top."""
        return to_tensor(self.fitted(open_image(self.examples[index].path), index, flipped, place))[0]

    def fitted(self, image: Image.Image, index: int, flipped: bool, place: tuple[float, float]) -> Image.Image:
        """The picture at its training size, its longer side cut, mirrored if that was drawn."""
        image = ImageOps.fit(image, self.sizes[index], Image.Resampling.LANCZOS, centering=place)
        return ImageOps.mirror(image) if flipped else image

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        index, step, number = key
        example, chances, generator = self.examples[index], self.chances, draws(self.seed, self.stream, step, number)
        flip, left, top, drop = torch.rand(4, generator=generator).tolist()
        flipped, place = chances.random_flip and flip < 0.5, (left, top) if chances.random_crop else (0.5, 0.5)
        channels, factor = self.latent_shape
        shape = (channels, *(side // factor for side in self.sizes[index][::-1]))
        sample = {
            "caption": "" if drop < chances.caption_dropout else example.text,
            "timesteps": torch.randint(chances.num_train_timesteps, (), generator=generator),
            "noise": torch.randn(shape, generator=generator),
            "posterior_noise": torch.randn(shape, generator=generator),
            "seed": torch.randint(2**62, (), generator=generator),
        }
        # A constant per channel beside the noise lets the model learn brightness (Guttenberg 2023).
        sample["noise"] += chances.noise_offset * torch.randn(channels, 1, 1, generator=generator)
        if self.posteriors is None:
            sample["pixel_values"] = self.pixels(index, flipped, place)
        else:
            sample["posterior"] = self.posteriors[index, flipped]
        if self.masked:
            mask = mask_to_tensor(self.fitted(open_mask(example.mask, example.size), index, flipped, place))
            sample["mask"] = F.interpolate(mask, size=shape[1:], mode="area")[0]  # (1, h, w)
        return sample


class Posteriors:
    """Mean and log-variance (2, 4, h, w) of the VAE's posterior of each picture, upright and mirrored, computed once.

    To draw from it at each step is to encode the picture at each step. In memory, 131 kB for a picture of 512 px; or in a
    folder, where a file's name depends on the VAE, the picture's bytes, its training size and whether it is mirrored.
    """

    def __init__(self, samples: Samples, vae: VAE, batch_size: int, folder: Path | None = None, rank: int = 0, world: int = 1):
        self.kept: dict[tuple[int, bool], Tensor | Path] = {}
        keys = [
            (i, flipped) for flipped in ([False, True] if samples.chances.random_flip else [False]) for i in range(len(samples))
        ]
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.kept = {key: folder / f"{cache_key(samples, vae, *key)}.safetensors" for key in keys}
            keys = [key for key in keys if not self.kept[key].exists()][rank::world]
        keys.sort(key=lambda key: samples.sizes[key[0]])
        device = next(vae.parameters()).device
        with torch.no_grad(), tqdm(total=len(keys), desc="latents", unit="picture", disable=rank > 0) as progress:
            for batch in batches_of_one_size(keys, samples.sizes, batch_size):
                pixel_values = torch.stack([samples.pixels(*key) for key in batch]).to(device)
                rows = torch.stack(vae.posterior(pixel_values), dim=1).float().cpu()  # (B, 2, 4, h, w)
                for key, row in zip(batch, rows):
                    if folder:
                        with written_whole(self.kept[key]) as part:
                            save_file({"posterior": row.contiguous()}, part)
                    else:
                        self.kept[key] = row
                progress.update(len(batch))

    def __getitem__(self, key: tuple[int, bool]) -> Tensor:
        kept = self.kept[key]
        return load_file(kept)["posterior"] if isinstance(kept, Path) else kept


def cache_key(samples: Samples, vae: VAE, index: int, flipped: bool) -> str:
    """A name for what this VAE makes of this picture at this size."""
    with open(samples.examples[index].path, "rb") as file:
        picture = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{vae.fingerprint} {vae.dtype} {picture} {samples.sizes[index]} {flipped}".encode()).hexdigest()


def batches_of_one_size(keys: Sequence[tuple[int, bool]], sizes: Sequence[Size], batch_size: int) -> Iterator[list]:
    """The keys, in order, at most `batch_size` at a time, never of two sizes."""
    batch: list = []
    for key in keys:
        if batch and (len(batch) == batch_size or sizes[batch[0][0]] != sizes[key[0]]):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


class Texts:
    """encoder_hidden_states (77, C) of each caption that can occur, computed once."""

    @torch.no_grad()
    def __init__(self, text_encoder: TextEncoder, captions: Iterable[str], batch_size: int = 64):
        different = sorted(set(captions))
        parts = [text_encoder(different[i : i + batch_size]).cpu() for i in range(0, len(different), batch_size)]
        self.kept = dict(zip(different, torch.cat(parts)))

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.kept[caption] for caption in captions])


class Passes:
    """The batches of one process, from a step on: each of its passes over the model has `batch_size` samples.

    Of a step's samples, this process takes every world-th stretch of `batch_size`.
    """

    def __init__(self, samples: Samples, order: Order, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0):
        if order.batch % (batch_size * world):
            raise ValueError(f"{order.batch} samples a step do not divide into passes of {batch_size} on {world} processes")
        self.samples, self.order, self.batch_size = samples, order, batch_size
        self.rank, self.world, self.workers = rank, world, workers

    def keys(self, first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
        """What to look up for each pass."""
        for step in range(first, last):
            indices = self.order.step(step).tolist()
            for start in range(self.rank * self.batch_size, self.order.batch, self.batch_size * self.world):
                yield [(indices[n], step, n) for n in range(start, start + self.batch_size)]

    def load(self, first: int, last: int) -> Iterator[dict]:
        """The passes of the steps from `first` up to `last`."""
        loader = DataLoader(
            self.samples, batch_sampler=self.keys(first, last), num_workers=self.workers, generator=torch.Generator()
        )
        yield from loader


def sizes_of(examples: Sequence[Example], resolution: int, buckets: tuple[int, int, int] | None) -> list[Size]:
    """The training size of each picture: the square, or with `buckets` (step, lowest, highest side) one of nearly its shape."""
    if buckets is None:
        return [(resolution, resolution)] * len(examples)
    return [bucket_of(example.size, resolution, *buckets) for example in examples]


def leaves_room(examples: Sequence[Example], sizes: Sequence[Size]) -> bool:
    """Whether a crop can lie here or there in any of the pictures."""
    return any(abs(e.size[0] * size[1] - e.size[1] * size[0]) > max(size) for e, size in zip(examples, sizes))


def require_masks(examples: Sequence[Example]) -> None:
    """Raise InputError with every picture that has no mask."""
    missing = [f"{e.path}: has no mask masks/{e.path.stem}.png, which --mask_loss wants" for e in examples if e.mask is None]
    if missing:
        raise InputError(*missing)
