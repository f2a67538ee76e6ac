"""From an uploaded photograph to aged pictures, as infer.py paints them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .. import __version__
from ..adapters import load_adapter
from ..aging import StableDiffusion, age_targets, aging_edit, prepare, repaint
from ..diffusion import Sampling
from ..doors.errors import InputError
from ..doors.pictures import open_photo
from ..photos.ages import AgeEstimator
from ..photos.captions import captioning_of, with_article
from ..photos.marking import file_hash, save_marked
from ..photos.masks import Outline, read_masks
from ..photos.squares import cut, largest_change_outside, sheet, square_about

SEED = 4  # as infer.py's, and so is the mask's edge
LONGEST_SUBJECT = 60  # characters


@dataclass(frozen=True)
class Order:
    """What the page asks for: whom to paint, the adapters' weights, and the file of an adapter to use."""

    photo: str | None
    face: int = 1
    subject: str = "person"
    age_weight: float = 1.0
    identity_weight: float = 1.0
    adapter: str | None = None


class Reported(list):
    """Steps, of which each is reported by `progress(step, steps)` when it is done."""

    def __init__(self, steps: Sequence, progress: Callable[[int, int], object]):
        super().__init__(steps)
        self.progress = progress

    def __iter__(self) -> Iterator:
        for number, step in enumerate(super().__iter__(), 1):
            yield step
            self.progress(number, len(self))


class Painter:
    """The model, the files of its adapters by role ("age", "identity"), and the age estimator. It serves one order at a time."""

    def __init__(self, model: str, adapters: dict[str, str], age_estimator: str, sampling: Sampling = Sampling()):
        self.model, self.adapters, self.sampling = model, adapters, sampling
        self.sd = StableDiffusion.load(model, device="cuda" if torch.cuda.is_available() else "cpu")
        self.estimator = AgeEstimator(age_estimator)
        self.merge(Order(None))  # a file that cannot be used is refused at the start

    def find(self, photo: str) -> tuple[Image.Image, list[Image.Image], list[float]]:
        """Return a photograph, the masks of its faces, the largest first, and how old they look. Raises InputError for none."""
        image = open_photo(photo)
        masks = read_masks("auto", image, None, "all", Outline(feather=0.04))
        return image, masks, [self.estimator.of(image, mask) for mask in masks]

    def merge(self, order: Order) -> list[str]:
        """Merge the adapters; return them as --adapter of infer.py takes them, an uploaded one by its file's name."""
        files = {role: (path, path) for role, path in self.adapters.items()}
        if order.adapter:
            role = "age" if load_adapter(order.adapter).metadata.get("role") == "age" else "identity"
            files[role] = (Path(order.adapter).name, order.adapter)
        weights = {"age": order.age_weight, "identity": order.identity_weight}
        self.sd.set_adapters([], [])
        self.sd.adapters.clear()
        for name, path in files.values():
            self.sd.load_adapter(name, path)
        self.sd.set_adapters([name for name, _ in files.values()], [weights[role] for role in files])
        return [f"{name}={weights[role]}" for role, (name, _) in files.items()]

    def paint(self, order: Order, years: Sequence[int], folder: Path, progress: Callable[[int, int], object]) -> tuple:
        """Paint a face so many years older or younger, all in one batch; call `progress(step, steps)` after each step.

        Returns the photograph, the paths of the pictures in `folder`, with that of a sheet behind several, and a label for each
        picture. They hold the settings from which `infer.py --reproduce` makes them again. Raises InputError, or ValueError.
        """
        if order.photo is None or not 0 < len(order.subject.strip()) <= LONGEST_SUBJECT:
            raise InputError(f"give a photograph, and a subject of up to {LONGEST_SUBJECT} characters such as man or woman")
        image, masks, looks = self.find(order.photo)
        if order.face > len(masks):
            raise InputError(f"face {order.face}: the photograph has {len(masks)}; choose one of them")
        mask, current, merged = masks[order.face - 1], looks[order.face - 1], self.merge(order)
        low, high = captioning_of({name: self.sd.adapters[name].metadata for name in self.sd.weights}).ages
        ages = list(dict.fromkeys(min(max(round(current + more), low), high) for more in years))  # no age twice
        subject = with_article(order.subject.strip())
        targets = age_targets(self.sd, ages, current, subject, aging_edit(subject))
        edit = replace(aging_edit(subject), strength=max(target.strength for target in targets))
        prepared = prepare(self.sd, image, mask, edit, self.sampling, generator=torch.Generator().manual_seed(SEED))
        pictures = repaint(self.sd, prepared, targets, self.sampling, progress=lambda steps: Reported(steps, progress))
        name, stem, folder = Path(order.photo).name, Path(order.photo).stem, folder / uuid4().hex
        arguments = {
            "photo": [name], "face": order.face, "ages": ages, "current_age": current, "subject": [order.subject.strip()],
            "pretrained_model_name_or_path": self.model, "adapter": merged, "seed": SEED,
            "num_inference_steps": self.sampling.num_inference_steps,
        }  # fmt: skip
        settings = {"lida": __version__, "base": self.sd.base, "seed": SEED, "arguments": arguments}
        settings["adapters"] = {name: adapter.fingerprint for name, adapter in self.sd.adapters.items()}
        settings["files"] = {name: file_hash(order.photo)}
        paths, labels = [], [f"age {age}, looks {self.estimator.of(p, mask):.0f}" for age, p in zip(ages, pictures)]
        for age, target, picture in zip(ages, targets, pictures):
            change = largest_change_outside(image, picture, mask)
            own: dict = {"label": f"age {age}", "whole_prompt": target.prompt, "strength": target.strength}
            own |= {"detail": target.detail, "current_age": current, "report": {"largest_change_outside": change}, **settings}
            paths.append(save_marked(picture, folder / f"{stem}-age{age:02d}", own))
        if len(paths) > 1:
            shown = [cut(picture, square_about(mask, 1.6), 320) for picture in [image, *pictures]]
            row = sheet(shown, [f"input, looks {current:.0f}", *labels])
            paths.append(save_marked(row, folder / f"{stem}-sheet", settings))
        for path in paths:
            path.with_suffix(".json").unlink()  # the picture holds the settings
        return image, paths, labels


def outlined(image: Image.Image, masks: Sequence[Image.Image], side: int = 480) -> Image.Image:
    """Return the photograph, `side` pixels long, with a line around each face, and its number where there are several."""
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    shown = image.resize(size, Image.Resampling.BICUBIC)
    for number, mask in enumerate(masks, 1):
        inside = mask.resize(size, Image.Resampling.BICUBIC).point(lambda value: 255 * (value > 127))
        line = np.asarray(inside.filter(ImageFilter.MaxFilter(5))) > np.asarray(inside)
        shown.paste("orange", mask=Image.fromarray(line))
        if len(masks) > 1 and (box := inside.getbbox()):
            font = ImageFont.load_default(size=24)
            ImageDraw.Draw(shown).text(box[:2], str(number), "orange", font, stroke_width=2, stroke_fill="black")
    return shown
