"""Years older or younger: which age to ask for, so that a face looks so many years older to an age estimator.

How much a face changes for an age differs from face to face. So the face is painted at the decades, the estimator reads the
paintings, and their curve is inverted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Generator

from ..diffusion.samplers import Sampling
from ..photos.ages import AgeEstimator
from .edit import Edit, plan_ages
from .editing import repaint_all
from .generation import Progress
from .stable_diffusion import StableDiffusion

DECADES = range(0, 90, 10)


@dataclass(frozen=True)
class Slider:
    """How old one face looks, `looks`, where it is asked to be one of `ages`. Both rise."""

    ages: list[float]
    looks: list[float]

    def ask(self, age: float) -> float:
        """Return the age to ask for so that the face looks `age` years old, or as near to that as the curve reaches."""
        return float(np.interp(age, self.looks, self.ages))

    @property
    def reach(self) -> tuple[float, float]:
        """Return the youngest and the oldest that the face looks."""
        return self.looks[0], self.looks[-1]


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
    """Return the slider of a face that is `current` years old, towards the signs of `years` alone.

    Paint with the same edit, sampling and generator afterwards. If the estimator reads another age than `current` from the
    photograph, its readings are shifted by the difference.
    """
    low, high = sd.captioning.ages
    younger, older = min(years) < 0, max(years) > 0
    asked = [age for age in DECADES if low <= age <= high and ((younger and age < current) or (older and age > current))]
    if not asked:
        return rising(current, {})
    plan = plan_ages(sd, asked, current, subject, edit)
    pictures = repaint_all(sd, image, mask, plan, sampling, batch_size=batch_size, generator=generator, progress=progress)
    shift = current - estimator.of(image, mask)
    return rising(current, {age: estimator.of(picture, mask) + shift for age, picture in zip(asked, pictures)})
