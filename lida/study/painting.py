"""The pictures of an evaluation: every person at every setting, seed and age, on disk as soon as they are painted."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..adapters import Adapter
from ..aging.editing import age_to
from ..aging.stable_diffusion import StableDiffusion
from ..diffusion.blending import mask_to_latents
from ..doors.errors import InputError
from ..doors.files import file_hash, write_json
from ..doors.json import as_object, read_json
from ..doors.pictures import open_photo, save_image
from ..nn.lora import LowRank
from ..photos.masks import mask_to_tensor
from ..photos.squares import cut, square_about
from ..training.processes import Processes
from .people import Person, Subject
from .regional import applied_within
from .settings import Setting

UNIT = "unit.json"  # written last into a folder of pictures: they are complete, and made from this
IDENTITY, AGE = "identity", "age"  # names of the adapters in the model


@dataclass(frozen=True)
class Unit:
    """A unit of painting: a person at a setting, from a seed."""

    subject: Subject
    setting: Setting
    seed: int
    output_dir: Path

    @property
    def folder(self) -> Path:
        """Return the folder of the pictures."""
        return self.output_dir / "pictures" / self.subject.person.name / self.setting.name / f"seed{self.seed}"

    def picture(self, age: int, name: str = "age") -> Image.Image:
        """Return the picture at an age, or with name "back" aged back from it. Raises InputError if it was not painted."""
        return open_photo(self.folder / f"{name}{age:02d}.png") if self.setting.paints else self.subject.image


class Painter:
    """The model with one person's adapters. It paints a person at each of `ages`.

    With `back`, each result is also aged back to the person's current age.
    """

    def __init__(self, model: str, age_adapter: str, device: str, ages: Sequence[int], back: bool):
        self.ages, self.back = tuple(ages), back
        self.person: Person | None = None
        self.sd = StableDiffusion.load(model, device=device)
        self.age = self.sd.load_adapter(AGE, age_adapter)
        self.sd.load_adapter(f"random {AGE}", random_adapter(self.age, 0))

    def load_adapters_of(self, person: Person) -> None:
        """Load the person's adapters, and remove the last person's."""
        if self.person == person:
            return
        self.sd.set_adapters([], [])
        for name in [name for name in self.sd.adapters if IDENTITY in name]:
            self.sd.remove_adapter(name)
        for name, path in person.identity.items():
            adapter = self.sd.load_adapter(f"{IDENTITY} {name}", path)
            self.sd.load_adapter(f"random {IDENTITY} {name}", random_adapter(adapter, 0))
        self.person = person

    def record(self, unit: Unit) -> dict:
        """Return everything that decides a unit's pictures, as JSON values."""
        person = unit.subject.person
        self.load_adapters_of(person)
        identity = self.sd.adapters.get(f"{IDENTITY} {unit.setting.adapter}")
        values = {
            "base": self.sd.base, "age": self.age.fingerprint, "identity": identity and identity.fingerprint,
            "photo": file_hash(person.photo), "mask": file_hash(person.mask) if Path(person.mask).is_file() else person.mask,
            "kind": person.kind, "subject": person.subject, "current": round(unit.subject.current, 2), "seed": unit.seed,
            "ages": self.ages, "back": self.back, "setting": unit.setting.record(),
        }  # fmt: skip
        return json.loads(json.dumps(values))

    @torch.no_grad()
    def paint(self, unit: Unit) -> dict[str, Image.Image]:
        """Return {"age50": the person at 50, "back50": that picture aged back, ...}."""
        subject, setting, person = unit.subject, unit.setting, unit.subject.person
        self.load_adapters_of(person)
        word = person.subject if setting.has_identity and person.identity else f"a {person.kind}"
        edit = setting.edit_for(word)

        def aged(image: Image.Image, ages: Sequence[float], current: float) -> list[Image.Image]:
            generator = torch.Generator().manual_seed(unit.seed)
            return age_to(self.sd, image, subject.mask, ages, current, word, edit, setting.sampling, generator=generator)

        with self.merged(subject, setting):
            pictures = aged(subject.image, self.ages, subject.current)
            painted = {f"age{age:02d}": picture for age, picture in zip(self.ages, pictures)}
            for age, picture in zip(self.ages, pictures if self.back else []):
                painted[f"back{age:02d}"] = aged(picture, [subject.current], age)[0]
        return painted

    def merged(self, subject: Subject, setting: Setting) -> AbstractContextManager:
        """Merge the setting's adapters; return a context that adds an adapter acting in a part of the face only.

        The age adapter comes first, because rules that take something from the later adapter should take it from the person's.
        """
        names, weights = [f"random {AGE}" if setting.random == AGE else AGE], [setting.age]
        if subject.person.identity:
            names.append(f"{'random ' if setting.random == IDENTITY else ''}{IDENTITY} {setting.adapter}")
            weights.append(setting.identity)
        if not setting.within or not subject.person.identity:
            self.sd.set_adapters(names, weights, setting.rule)
            return nullcontext()
        box, side = square_about(subject.mask, setting.edit.context), self.sd.resolution // self.sd.vae.factor
        inner = mask_to_tensor(cut(shrunk(subject.mask, setting.within), box, self.sd.resolution))
        self.sd.set_adapters(names[:1], weights[:1], setting.rule)
        layers, places = self.sd.adapters[names[1]].layers, mask_to_latents(inner, (side, side)).to(self.sd.device)
        return applied_within(self.sd.module, layers, weights[1], places)


def shrunk(mask: Image.Image, share: float) -> Image.Image:
    """Return the mask scaled to a share of its width and height, about the middle of its white."""
    white = mask.getbbox()
    assert white is not None  # black masks were refused
    left, top, right, bottom = white
    width, height = max(1, round(share * (right - left))), max(1, round(share * (bottom - top)))
    inner = Image.new("L", mask.size, 0)
    small = mask.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.BILINEAR)
    inner.paste(small, ((left + right - width) // 2, (top + bottom - height) // 2))
    return inner


def paint_all(painter: Painter, units: Sequence[Unit], processes: Processes) -> None:
    """Paint the units that are not on disk, each process its share. Raises InputError if other pictures are in their place."""
    todo = []
    for unit in units:
        path, record = unit.folder / UNIT, painter.record(unit)
        if path.is_file():
            check_same(path, record)
        else:
            todo.append((unit, path, record))
    processes.wait()  # until all have looked at the disk
    mine = todo[processes.rank :: processes.count]
    for unit, path, record in tqdm(mine, desc="painting", unit="unit", disable=not processes.first):
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, picture in painter.paint(unit).items():
            save_image(picture, path.parent / f"{name}.png")
        write_json(path, record)
    processes.wait()


def check_same(path: Path, wanted: dict) -> None:
    """Raise InputError unless the pictures beside a unit.json were made from the same."""
    found = as_object(read_json(path), path)
    keys = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if keys:
        what = "; ".join(f"{key} was {found.get(key)!r:.400} and is {wanted.get(key)!r:.400}" for key in keys)
        raise InputError(f"{path.parent}: holds pictures of other settings ({what}); give another --output_dir, or remove them")


def random_adapter(like: Adapter, seed: int) -> Adapter:
    """Return an adapter of independent normal factors, each layer with the rank and norm of that of another adapter."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for path, layer in like.layers.items():
        down, up = (torch.randn(factor.shape, generator=generator) for factor in (layer.down, layer.up))
        other = LowRank(down, up, layer.alpha)
        layers[path] = LowRank(down, up * float(layer.delta.norm() / other.delta.norm()), layer.alpha)
    return Adapter(layers)
