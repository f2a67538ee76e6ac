"""From examples to batches: which pictures a step sees, and what is drawn at random for each.

Everything random is a function of (seed, stream, step, number), where `number` counts the samples of a step over its
micro-batches and over all processes. So neither an interruption nor the number of processes changes what is trained.
"""

import math
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.folder import Example, read_captioning, read_examples
from ..doors.errors import InputError
from ..doors.pictures import open_image, to_tensor
from ..photos.masks import mask_to_tensor, open_mask
from .caches import LatentCache
from .processes import Processes

Size = tuple[int, int]  # width, height
TRAINING, CLASS, VALIDATION = 0, 1, 2  # streams of random numbers


def read_data(args: Namespace) -> tuple[list[Example], list[Example], dict]:
    """Read and check the training pictures; return them, the held-out ones, and how their captions were made."""
    examples = read_examples(args.train_data_dir, args.image_column, args.caption_column, max(8, args.resolution // 4))
    if args.balance_column and not all(args.balance_column in example.row for example in examples):
        raise InputError(f"--balance_column {args.balance_column}: not every line of {args.train_data_dir} has that column")
    missing = [f"{e.path}: has no mask masks/{e.path.stem}.png, which --mask_loss needs" for e in examples if e.mask is None]
    if args.mask_loss and missing:
        raise InputError(*missing)
    small = sum(min(example.size) < args.resolution for example in examples)
    if small:
        warnings.warn(f"{small} of {len(examples)} pictures are smaller than --resolution {args.resolution} and are enlarged")
    texts = [example.text for example in examples]
    if len(texts) < 5:
        warnings.warn(f"there are only {len(texts)} pictures: the adapter will learn them by heart; 20 to 30 are usual")
    if len(texts) >= 50 and len(set(texts)) == 1:
        warnings.warn(f"all {len(texts)} captions are equal ({texts[0]!r}): no difference between pictures can be asked for")
    return *hold_out(examples, args.validation_split, args.seed), read_captioning(args.train_data_dir)


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and a share of them, drawn by `seed`, to measure the loss on."""
    count = math.ceil(share * len(examples))
    if count == len(examples):
        raise InputError(f"--validation_split {share}: leaves none of the {count} pictures to train on")
    held = set(np.random.default_rng([seed, len(examples)]).permutation(len(examples))[:count].tolist())
    return [e for i, e in enumerate(examples) if i not in held], [examples[i] for i in sorted(held)]


def random_generator(*key: int) -> Generator:
    """Return a generator that depends on the key alone; those of neighbouring keys are independent."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def bucket_of(size: Size, resolution: int, step: int) -> Size:
    """Return the training size nearest to a picture's shape: sides multiples of `step`, about the area of resolution^2."""
    sides = range(-(-resolution // 2 // step) * step, 2 * resolution + 1, step)
    candidates = [(width, min(resolution**2 // width, 2 * resolution) // step * step) for width in sides]
    aspect = math.log(size[0] / size[1])
    return min((s for s in candidates if s[1] in sides), key=lambda s: (abs(math.log(s[0] / s[1]) - aspect), -s[0] * s[1]))


class BatchSampler:
    """Which pictures each step sees: `batch` at a time, all of one size.

    An epoch sees every picture, in another order each; a size's last batch is filled up with pictures of that size. With
    `balance`, a value for each picture, an epoch draws as many with repetition, each value as often as another.
    """

    def __init__(self, sizes: Sequence[Size], batch: int, seed: int, balance: Sequence | None = None):
        self.batch, self.seed, self.epoch, self.plan = batch, seed, -1, np.empty(0)
        self.members = [np.array([i for i, size in enumerate(sizes) if size == s]) for s in sorted(set(sizes))]
        self.shares: list[np.ndarray | None] = [None] * len(self.members)
        if balance:
            values, counts = np.unique([str(value) for value in balance], return_counts=True)
            rarity = 1 / counts[np.searchsorted(values, [str(value) for value in balance])]
            self.shares = [rarity[members] / rarity[members].sum() for members in self.members]
        self.steps_per_epoch = sum(-(-len(members) // batch) for members in self.members)

    def step(self, step: int) -> np.ndarray:
        """Return the indices (batch,) of a step's pictures."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            rng, plan = np.random.default_rng([self.seed, epoch]), []
            for members, shares in zip(self.members, self.shares):
                count = -(-len(members) // self.batch) * self.batch
                if shares is None:
                    orders = [rng.permutation(members) for _ in range(-(-count // len(members)))]
                    drawn = np.concatenate(orders)[:count]
                else:
                    drawn = rng.choice(members, count, p=shares)
                plan.append(drawn.reshape(-1, self.batch))
            self.epoch, self.plan = epoch, rng.permutation(np.concatenate(plan))
        return self.plan[k]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for a sample, and how often."""

    num_train_timesteps: int
    random_flip: bool = False
    random_crop: bool = False
    caption_dropout: float = 0.0
    noise_offset: float = 0.0


@dataclass(eq=False)
class Samples(Dataset):
    """A data set whose items are samples, by (index of the picture, step, number).

    `latent_shape` is (channels, factor) of the VAE. `stream` makes the random numbers of one data set differ from another's.
    With `latents`, a LatentCache, a sample has the VAE's posterior in the place of the pixels.
    """

    examples: Sequence[Example]
    sizes: Sequence[Size]
    augmentation: Augmentation
    latent_shape: tuple[int, int]
    seed: int
    stream: int = 0
    masked: bool = False
    latents: Callable[[int, bool], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def pixels(self, index: int, flipped: bool, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """Return pixel_values (3, H, W) in [-1, 1], cut at `place`: 0 to 1 from the left and from the top."""
        return to_tensor(self.fitted(open_image(self.examples[index].path), index, flipped, place))[0]

    def fitted(self, image: Image.Image, index: int, flipped: bool, place: tuple[float, float]) -> Image.Image:
        """Return a picture or mask at its training size, the longer side cut, mirrored if `flipped`."""
        image = ImageOps.fit(image, self.sizes[index], Image.Resampling.LANCZOS, centering=place)
        return ImageOps.mirror(image) if flipped else image

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        index, step, number = key
        example, drawn = self.examples[index], self.augmentation
        generator = random_generator(self.seed, self.stream, step, number)
        flip, left, top, drop = torch.rand(4, generator=generator).tolist()
        flipped, place = drawn.random_flip and flip < 0.5, (left, top) if drawn.random_crop else (0.5, 0.5)
        channels, factor = self.latent_shape
        shape = (channels, *(side // factor for side in self.sizes[index][::-1]))  # (C, h, w)
        sample = {
            "caption": "" if drop < drawn.caption_dropout else example.text,
            "timesteps": torch.randint(drawn.num_train_timesteps, (), generator=generator),
            "noise": torch.randn(shape, generator=generator),
            "posterior_noise": torch.randn(shape, generator=generator),
            "seed": torch.randint(2**62, (), generator=generator),
        }
        # A constant per channel beside the noise lets the model learn brightness (Guttenberg 2023).
        sample["noise"] += drawn.noise_offset * torch.randn(channels, 1, 1, generator=generator)
        if self.latents is None:
            sample["pixel_values"] = self.pixels(index, flipped, place)
        else:
            sample["posterior"] = self.latents(index, flipped)
        if self.masked:
            mask = mask_to_tensor(self.fitted(open_mask(example.mask, example.size), index, flipped, place))
            sample["mask"] = F.interpolate(mask, size=shape[1:], mode="area")[0]  # (1, h, w)
        return sample


@dataclass(frozen=True)
class MicroBatches:
    """The batches of one process, `batch_size` samples for each forward pass.

    Of a step's samples, a process takes every count-th stretch of `batch_size`.
    """

    samples: Samples
    sampler: BatchSampler
    batch_size: int
    processes: Processes = Processes()
    workers: int = 0

    def keys(self, first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
        """Yield what to look up in `samples` for each micro-batch of the steps from `first` up to `last`."""
        for step in range(first, last):
            indices, (rank, count) = self.sampler.step(step).tolist(), (self.processes.rank, self.processes.count)
            for start in range(rank * self.batch_size, len(indices), self.batch_size * count):
                yield [(indices[n], step, n) for n in range(start, start + self.batch_size)]

    def load(self, first: int, last: int) -> Iterator[dict]:
        """Yield the micro-batches of the steps from `first` up to `last`."""
        keys, own_generator = self.keys(first, last), torch.Generator()  # or it would draw from PyTorch's global one
        yield from DataLoader(self.samples, batch_sampler=keys, num_workers=self.workers, generator=own_generator)

    def captions(self, first: int, last: int) -> set[str]:
        """Return the captions of the pictures in the steps from `first` up to `last`."""
        return {self.samples.examples[i].text for step in range(first, last) for i in set(self.sampler.step(step).tolist())}


def micro_batches(
    examples: list[Example], sd, args: Namespace, processes: Processes, stream: int = TRAINING
) -> MicroBatches:
    """Return the batches of these examples; `stream` makes their random numbers differ from other examples'."""
    factor, T = sd.vae.factor, sd.schedule.config.num_train_timesteps
    sides = factor * 2 ** (len(sd.unet.config.block_out_channels) - 1)  # the UNet halves latents so often
    if args.enable_bucket and args.resolution < sides:
        raise InputError(f"--enable_bucket: needs a --resolution of at least {sides}, not {args.resolution}")
    square = (args.resolution, args.resolution)
    sizes = [bucket_of(e.size, args.resolution, sides) if args.enable_bucket else square for e in examples]
    drawn = (args.random_flip, not args.center_crop, args.caption_dropout, args.noise_offset) if stream != VALIDATION else ()
    shape, masked = (sd.unet.config.in_channels, factor), args.mask_loss and stream != CLASS
    samples = Samples(examples, sizes, Augmentation(T, *drawn), shape, args.seed, stream, masked)
    batch = args.train_batch_size * args.gradient_accumulation_steps * processes.count
    balance = [e.row[args.balance_column] for e in examples] if args.balance_column and stream == TRAINING else None
    sampler = BatchSampler(sizes, batch, args.seed + stream, balance)
    if args.cache_latents:
        samples.latents = LatentCache(samples, sd.vae, args.cache_dir, args.validation_prompt is None)
    elif args.center_crop and stream == TRAINING and sampler.steps_per_epoch < args.max_train_steps:
        warnings.warn("each picture is encoded anew whenever it is drawn; --cache_latents does it once")
    workers = 0 if args.cache_latents else args.dataloader_num_workers
    return MicroBatches(samples, sampler, args.train_batch_size, processes, workers)
