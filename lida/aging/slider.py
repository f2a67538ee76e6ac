"""A slider in years: how many years to ask for so that a face looks a given number of years older or younger.

`python -m lida.study.slider` fits it to photographs, and writes the file that read_slider() reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..doors.errors import InputError
from ..doors.json import read_json, typed
from .stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Slider:
    """A rising curve of the years gained over the years asked for, measured on one model with its adapters by one estimator."""

    asked: list[float]
    years: list[float]
    error: float  # the mean error in years on photographs that the curve was not fitted to
    faces: int
    base: dict[str, str]  # StableDiffusion.base
    adapters: dict[str, str]  # fingerprints and weights of the adapters that know ages
    method: str
    guidance_scale: float

    def ask(self, years: float) -> float:
        """Return the years to request for a change of `years`, clamped to the curve's ends."""
        return inverse(self.asked, self.years, years)

    @property
    def reach(self) -> tuple[float, float]:
        """Return the least and the most years that the model gains."""
        return self.years[0], self.years[-1]


def inverse(asked: Sequence[float], years: Sequence[float], wanted: float) -> float:
    """Return where a rising curve reaches `wanted`, by linear interpolation; where it is flat, the point nearest to 0."""
    order = sorted(range(len(asked)), key=lambda k: -abs(asked[k]))
    points = sorted({round(years[k], 6): asked[k] for k in order}.items())
    return float(np.interp(wanted, [x for x, _ in points], [y for _, y in points]))


def aging_adapters(sd: StableDiffusion) -> dict[str, str]:
    """Return the fingerprints of the merged adapters whose captions have ages, with their weights."""
    merged = [(sd.adapters[name], weight) for name, weight in sd.weights.items()]
    return {adapter.fingerprint: str(weight) for adapter, weight in merged if "template" in adapter.metadata}


def read_slider(path: str | Path, sd: StableDiffusion) -> Slider:
    """Return the slider of a file. Raises InputError if it is broken, or was fitted to another model or age adapter."""
    slider = typed(Slider, read_json(path), str(path))
    if len(slider.asked) != len(slider.years) or not slider.asked or sorted(slider.years) != slider.years:
        raise InputError(f"{path}: its curve does not rise; fit it again with python -m lida.study.slider")
    numbers = [*slider.asked, *slider.years, slider.guidance_scale]
    if sorted(set(slider.asked)) != slider.asked or max(map(abs, numbers)) > 200 or slider.error < 0 or slider.faces < 1:
        raise InputError(f"{path}: its numbers are out of range; fit it again with python -m lida.study.slider")
    parts = ("unet", "text_encoder", "vae")  # not the folder's name
    if any(slider.base.get(part) != sd.base[part] for part in parts) or slider.adapters != aging_adapters(sd):
        raise InputError(f"{path}: was fitted to another base, age adapter or weight; fit one with python -m lida.study.slider")
    return slider
