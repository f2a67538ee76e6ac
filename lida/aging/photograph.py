"""Open a photograph, repaint its faces, and save the pictures with their settings: for infer.py and the page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageChops

from .. import __version__
from ..diffusion.samplers import Sampling
from ..doors.errors import blamed
from ..doors.files import file_hash
from ..doors.pictures import open_photo
from ..photos.ages import AgeEstimator
from ..photos.captions import Captioning
from ..photos.marking import Encoding, save_marked
from ..photos.masks import SOFT, Outline, read_masks
from ..photos.squares import cut, largest_change_outside, not_black, sheet, square_about
from .edit import Plan
from .editing import repaint_all
from .generation import Progress
from .stable_diffusion import StableDiffusion

SEED = 4  # default of infer.py and of the page
ADULT, UNDER_AGE = 18, "a face under 18: age pictures of children only with their guardians' consent"


@dataclass(frozen=True)
class Photograph:
    """A photograph, the masks of the faces to repaint, and their ages (None where no age is needed).

    `subject` is what captions call the person. `files` are the files that it was read from, with their SHA-256.
    """

    path: Path
    image: Image.Image
    masks: list[Image.Image]
    ages: list[float | None]
    subject: str
    files: dict[str, str]
    encoding: Encoding = Encoding()


def open_photograph(
    path: Path, subject: str = "person", mask: str = "auto", *, face: int | str | None = None, age: float | None = None,
    estimator: AgeEstimator | None = None, outline: Outline = SOFT, face_models: str | None = None,
    encoding: Encoding = Encoding(),
) -> Photograph:  # fmt: skip
    """Open a photograph and its masks. `age` is that of all its faces; if it is None, the estimator reads them, if there is one.

    `mask` is as for read_masks(), or a folder of masks that are named as the photographs. Raises InputError.
    """
    image, given = open_photo(path), mask not in ("auto", "")
    if given and Path(mask).is_dir():
        mask = str(Path(mask, f"{path.stem}.png"))
    masks = read_masks(mask, image, face_models, face, outline)
    ages = [estimator.of(image, one) if age is None and estimator else age for one in masks]
    files = {str(file): file_hash(file) for file in (path, *[Path(mask)] * given) if file.is_file()}
    return Photograph(path, image, masks, ages, subject, files, encoding)


def repaint_faces(
    sd: StableDiffusion, photo: Photograph, plans: Sequence[Plan], sampling: Sampling, *, seed: int = SEED,
    num_images_per_prompt: int = 1, batch_size: int | None = None, progress: Progress = list,
) -> list[Image.Image]:  # fmt: skip
    """Repaint each face as its plan says, one target for each picture; return pictures with all faces repainted.

    Raises InputError, which names the photograph, if its mask or the settings cannot be used.
    """
    painted = [photo.image] * (len(plans[0].targets) * num_images_per_prompt)
    for mask, plan in zip(photo.masks, plans):
        generator, inside = torch.Generator().manual_seed(seed), not_black(mask)
        with blamed(f"{photo.path}: "):
            pictures = repaint_all(
                sd, photo.image, mask, plan, sampling, num_images_per_prompt=num_images_per_prompt, batch_size=batch_size,
                generator=generator, progress=progress,
            )  # fmt: skip
        painted = [Image.composite(new, old, inside) for new, old in zip(pictures, painted)]
    return painted


def warn_of_ages(photos: Sequence[Photograph], ages: Sequence[int], years: Sequence[int], captioning: Captioning) -> None:
    """Print which ages asked for are beyond those that the adapter saw, and whether a face is under 18."""
    low, high = captioning.ages
    for age in ages:
        if not low <= age <= high:
            print(f"warning: {age} years: the adapter saw {low} to {high} in training", file=sys.stderr)
    seen = [age for photo in photos for age in photo.ages if age is not None]
    if min([*seen, *ages, *(age + more for age in seen for more in years)], default=ADULT) < ADULT:
        print(f"notice: {UNDER_AGE}", file=sys.stderr)


def made_with(sd: StableDiffusion, seed: int = SEED) -> dict[str, Any]:
    """Return the settings that are not arguments: lida's version, the fingerprints of model and adapters, and the seed."""
    adapters = {name: adapter.fingerprint for name, adapter in sd.adapters.items()}
    return {"lida": __version__, "base": sd.base, "adapters": adapters, "seed": seed}


def save_row(
    photo: Photograph, plans: Sequence[Plan], pictures: Sequence[Image.Image], names: Sequence[str],
    labels: Sequence[str], folder: Path, settings: dict[str, Any],
) -> list[Path]:  # fmt: skip
    """Save repaint_faces()'s pictures under their names, and a sheet with a label for each target; return the paths.

    Each picture holds its own targets and the settings. The sheet shows the photograph's faces first.
    """
    union, count, paths = reduce(ImageChops.lighter, photo.masks), len(pictures) // len(plans[0].targets), []
    for k, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        targets = [plan.targets[k // count] for plan in plans]
        own: dict[str, Any] = {
            "whole_prompt": [target.prompt for target in targets],
            "strength": [target.strength for target in targets],
            "detail": [target.detail for target in targets],
            "current_age": photo.ages,
        }
        if len(plans) == 1:  # one face
            own = {key: values[0] for key, values in own.items()}
        own["report"] = {"largest_change_outside": largest_change_outside(photo.image, picture, union)}
        paths.append(save_marked(picture, folder / name, {**own, **settings, "files": photo.files}, encoding=photo.encoding))
    box, ages = square_about(union, 1.6), [f"{age:.0f}" for age in photo.ages if age is not None]
    shown = [cut(picture, box, 320) for picture in [photo.image, *pictures[::count]]]
    row = sheet(shown, [", ".join(["input", *ages]), *labels])
    return [*paths, save_marked(row, folder / f"{photo.path.stem}-sheet", {**settings, "files": photo.files})]
