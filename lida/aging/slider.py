"""Years older or younger: which ages to ask for, so that a face looks so many years older to an age estimator.

How much a face changes for an age differs from face to face. So the face is painted at several ages, the estimator reads the
paintings, and their curve is inverted.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator

from ..diffusion.samplers import Sampling
from ..doors.errors import blamed
from ..photos.ages import AgeEstimator
from .edit import Edit, plan_ages
from .editing import repaint_all
from .generation import Progress
from .photograph import SEED, Photograph
from .stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Slider:
    """How old one face looks, `looks`, where it is asked to be one of `ages`. Both rise."""

    ages: list[float]
    looks: list[float]

    def ask(self, age: float) -> float:
        """Return the age to ask for so that the face looks `age` years old, or as near to that as the curve reaches."""
        return float(np.interp(age, self.looks, self.ages))


def rising(current: float, looks: Mapping[float, float]) -> Slider:
    """Return the slider through (current, current) and those ages that look further from it than every age between."""
    points = [(current, current)]
    for age in sorted(age for age in looks if age > current):
        points += [(age, looks[age])] * (looks[age] > points[-1][1])
    for age in sorted((age for age in looks if age < current), reverse=True):
        points[:0] = [(age, looks[age])] * (looks[age] < points[0][1])
    return Slider(*(list(values) for values in zip(*points)))


def fit_slider(
    sd: StableDiffusion, image: Image.Image, mask: Image.Image, current: float, years: Sequence[float], estimator: AgeEstimator,
    subject: str = "a person", edit: Edit = Edit(), sampling: Sampling = Sampling(), *,
    batch_size: int | None = None, generator: Generator | None = None, progress: Progress = list,
) -> Slider:  # fmt: skip
    """Return the slider of a face that is `current` years old.

    It is painted at the adapter's youngest and oldest age and at the decades from 10 to 80: at younger ones if one of `years` is
    below 0, at older ones if one is above. Paint with the same edit, sampling and seed afterwards. If the estimator reads another
    age than `current` from the photograph, its readings are shifted by the difference.
    """
    low, high = sd.captioning.ages
    ages = sorted({low, high, *(age for age in range(10, 90, 10) if low < age < high)})
    asked = [age for age in ages if (age < current and min(years) < 0) or (age > current and max(years) > 0)]
    if not asked:
        return rising(current, {})
    plan = plan_ages(sd, asked, current, subject, edit)
    pictures = repaint_all(sd, image, mask, plan, sampling, batch_size=batch_size, generator=generator, progress=progress)
    shift = current - estimator.of(image, mask)
    return rising(current, {age: estimator.of(picture, mask) + shift for age, picture in zip(asked, pictures)})


def ages_for(
    sd: StableDiffusion, photo: Photograph, years: Sequence[float], estimator: AgeEstimator, edit: Edit, sampling: Sampling, *,
    seed: int = SEED, batch_size: int | None = None, progress: Progress = list,
) -> list[list[float]]:  # fmt: skip
    """Return the ages to ask for so that each face looks so many `years` older or younger. Print those that it does not reach."""
    asked = []
    for number, (mask, current) in enumerate(zip(photo.masks, photo.ages), 1):
        assert current is not None
        with blamed(f"{photo.path}: "):
            slider = fit_slider(
                sd, photo.image, mask, current, years, estimator, photo.subject, edit, sampling,
                batch_size=batch_size, generator=torch.Generator().manual_seed(seed), progress=progress,
            )  # fmt: skip
        for age in (current + more for more in years):
            if not slider.looks[0] <= age <= slider.looks[-1]:
                nearest = slider.looks[0] if age < current else slider.looks[-1]
                print(f"warning: {photo.path}, face {number}: is to look {age:.0f}: it looks {nearest:.0f}", file=sys.stderr)
        asked.append([slider.ask(current + more) for more in years])
    return asked
