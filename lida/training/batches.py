"""From examples to batches: which pictures a step sees, and the random draws for each.

Everything random is a function of (seed, stream, step, number), where `number` counts the samples of a step over its
micro-batches and over all processes. So neither an interruption nor the number of processes changes what is trained.
"""

import math
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.folder import Example, data_fingerprint, read_examples
from ..doors.errors import InputError
from ..doors.pictures import open_image, to_tensor
from ..photos.masks import mask_to_tensor, open_mask
from .caches import LatentCache
from .processes import Processes

TRAINING, CLASS, VALIDATION = 0, 1, 2  # streams of random numbers


def read_data(args: Namespace) -> tuple[list[Example], list[Example]]:
    """Return the training pictures and the held-out ones. Raises InputError if they do not fit the flags."""
    examples = read_examples(args.train_data_dir, args.image_column, args.caption_column, max(8, args.resolution // 4))
    if args.balance_column and not all(args.balance_column in example.row for example in examples):
        raise InputError(f"--balance_column {args.balance_column}: not every line of {args.train_data_dir} has that column")
    missing = [f"{e.path}: has no mask masks/{e.path.stem}.png, which --mask_loss needs" for e in examples if e.mask is None]
    if args.mask_loss and missing:
        raise InputError(*missing)
    if small := sum(min(example.size) < args.resolution for example in examples):
        warnings.warn(f"{small} of {len(examples)} pictures are smaller than --resolution {args.resolution} and are enlarged")
    return hold_out(examples, args.validation_split, args.seed)


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and a held-out share, drawn by `seed`, to measure the loss on."""
    count = math.ceil(share * len(examples))
    if count == len(examples):
        raise InputError(f"--validation_split {share}: leaves none of the {count} pictures to train on")
    held = set(np.random.default_rng([seed, len(examples)]).permutation(len(examples))[:count].tolist())
    return [e for i, e in enumerate(examples) if i not in held], [examples[i] for i in sorted(held)]


def random_generator(*key: int) -> Generator:
    """Return a generator that depends on the key alone; those of neighbouring keys are independent."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class BatchSampler:
    """Chooses which of `count` pictures each step sees, `batch` at a time.

    An epoch has every picture, in a new order, and some twice to fill the last batch. With `balance`, a value for each picture,
    an epoch draws as many pictures with replacement, each value equally often.
    """

    def __init__(self, count: int, batch: int, seed: int, balance: Sequence | None = None):
        self.count, self.batch, self.seed = count, batch, seed
        self.steps_per_epoch = -(-count // batch)
        self.epoch, self.plan = -1, np.empty(0)
        self.shares = None
        if balance:
            _, kinds, counts = np.unique([str(value) for value in balance], return_inverse=True, return_counts=True)
            self.shares = 1 / counts[kinds] / len(counts)

    def step(self, step: int) -> np.ndarray:
        """Return the indices (batch,) of a step's pictures."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            rng, size = np.random.default_rng([self.seed, epoch]), self.steps_per_epoch * self.batch
            if self.shares is None:
                drawn = np.concatenate([rng.permutation(self.count) for _ in range(-(-size // self.count))])[:size]
            else:
                drawn = rng.choice(self.count, size, p=self.shares)
            self.epoch, self.plan = epoch, rng.permutation(drawn.reshape(-1, self.batch))
        return self.plan[k]


class Samples(Dataset):
    """A dataset of samples, indexed by (picture, step, number). With a cache, samples have latents instead of pixels."""

    def __init__(self, examples: Sequence[Example], sd, args: Namespace, stream: int = TRAINING):
        self.examples, self.args, self.stream = examples, args, stream
        self.num_train_timesteps = len(sd.schedule)
        side = args.resolution // sd.vae.factor
        self.latent_shape = (sd.unet.config.in_channels, side, side)  # (C, h, w)
        release = args.validation_prompt is None
        self.latents = LatentCache(self, sd.vae, args.cache_dir, release) if args.cache_latents else None

    @cached_property
    def fingerprint(self) -> dict:
        """Return the data_fingerprint() of the examples, for which every file is read."""
        return data_fingerprint(self.examples)

    def pixels(self, index: int, flipped: bool, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """Return pixel_values (3, H, W) in [-1, 1] of a picture, cut at `place`: 0 to 1 from the left and from the top."""
        return to_tensor(self.fitted(open_image(self.examples[index].path), flipped, place))[0]

    def fitted(self, image: Image.Image, flipped: bool, place: tuple[float, float]) -> Image.Image:
        """Return the training square of a picture or mask: the longer side is cut, and it is mirrored if `flipped`."""
        image = ImageOps.fit(image, (self.args.resolution,) * 2, Image.Resampling.LANCZOS, centering=place)
        return ImageOps.mirror(image) if flipped else image

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        index, step, number = key
        example, args = self.examples[index], self.args
        generator = random_generator(args.seed, self.stream, step, number)
        flip, left, top, drop = torch.rand(4, generator=generator).tolist()
        flipped, place = args.random_flip and flip < 0.5, (0.5, 0.5) if args.center_crop else (left, top)
        sample = {
            "caption": "" if drop < args.caption_dropout else example.text,
            "timesteps": torch.randint(self.num_train_timesteps, (), generator=generator),
            "noise": torch.randn(self.latent_shape, generator=generator),
            "posterior_noise": torch.randn(self.latent_shape, generator=generator),
            "seed": torch.randint(2**62, (), generator=generator),
        }
        # A constant per channel beside the noise lets the model learn brightness (Guttenberg 2023).
        sample["noise"] += args.noise_offset * torch.randn(self.latent_shape[0], 1, 1, generator=generator)
        if self.latents:
            sample["posterior"] = self.latents(index, flipped)
        else:
            sample["pixel_values"] = self.pixels(index, flipped, place)
        if args.mask_loss and self.stream != CLASS:
            assert example.mask is not None  # read_data() has checked it
            mask = mask_to_tensor(self.fitted(open_mask(example.mask, example.size), flipped, place))
            sample["mask"] = F.interpolate(mask, size=self.latent_shape[1:], mode="area")[0]  # (1, h, w)
        return sample


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one process.

    The samples of a step are split into groups of `batch_size`, the last of which may be smaller; process r of n takes the groups
    r, r + n, r + 2n, ...
    """

    samples: Samples
    sampler: BatchSampler
    batch_size: int
    processes: Processes = Processes()
    workers: int = 0

    def keys(self, first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
        """Yield the keys of `samples` for each micro-batch of the steps from `first` up to `last`."""
        for step in range(first, last):
            indices, (rank, count) = self.sampler.step(step).tolist(), (self.processes.rank, self.processes.count)
            for start in range(rank * self.batch_size, len(indices), self.batch_size * count):
                yield [(indices[n], step, n) for n in range(start, min(start + self.batch_size, len(indices)))]

    def load(self, first: int, last: int) -> Iterator[dict]:
        """Yield the micro-batches of the steps from `first` up to `last`."""
        keys, own_generator = self.keys(first, last), torch.Generator()  # instead of PyTorch's global one
        yield from DataLoader(self.samples, batch_sampler=keys, num_workers=self.workers, generator=own_generator)

    def captions(self, first: int, last: int) -> set[str]:
        """Return the captions of the pictures in the steps from `first` up to `last`."""
        return {self.samples.examples[i].text for step in range(first, last) for i in self.sampler.step(step)}


def micro_batches(examples: list[Example], sd, args: Namespace, processes: Processes, stream: int = TRAINING) -> MicroBatches:
    """Return the micro-batches of these examples. Each `stream` has random numbers of its own; validation sees each once a step."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * processes.count
    batch = len(examples) if stream == VALIDATION else batch
    balance = [e.row[args.balance_column] for e in examples] if args.balance_column and stream == TRAINING else None
    sampler = BatchSampler(len(examples), batch, args.seed + stream, balance)
    workers = 0 if args.cache_latents else min(args.dataloader_num_workers, len(examples))
    return MicroBatches(Samples(examples, sd, args, stream), sampler, args.train_batch_size, processes, workers)
