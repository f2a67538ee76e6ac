"""The pictures of an evaluation: every person at every setting, seed and age, on disk as soon as they are painted."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..adapters.adapter import load_adapter, random_adapter
from ..adapters.merging import applied_within, parse_rule
from ..diffusion.samplers import Sampling
from ..doors.errors import InputError
from ..photos.pictures import cut, save_image, square_about, written_whole
from ..photos.marking import file_hash
from ..photos.masks import mask_to_latents, mask_to_tensor, shrunk
from ..aging.stable_diffusion import StableDiffusion
from .people import Person, Sitter
from ..aging.editing import age_to, aging_edit
from .settings import Setting
from ..training.processes import Processes

UNIT = "unit.json"  # written last into a folder of pictures: they are whole, and made from this
IDENTITY, AGE = "identity", "age"  # the adapters' names while they are merged
CONTEXT = 1.5  # of the square that is worked on, in lengths of the mask


@dataclass(frozen=True)
class Options:
    """What is the same for every setting."""

    ages: tuple[int, ...]
    method: str
    strength: float | None  # by the years between the ages where it is None
    num_inference_steps: int
    back: bool  # whether results are aged back


class Painter:
    """The model with one person's adapters, and the pictures that it makes for a setting."""

    def __init__(self, model: str, age_adapter: str, device: str, options: Options):
        self.options, self.person = options, None
        self.sd = StableDiffusion.load(model, device=device)
        self.age = self.sd.load_adapter(AGE, age_adapter)
        self.sd.load_adapter(f"random {AGE}", random_adapter(self.age, 0))

    def meet(self, person: Person) -> None:
        """Load the person's adapters in the place of the last one's."""
        if self.person == person:
            return
        self.sd.set_adapters([], [])
        for name in [name for name in self.sd.adapters if IDENTITY in name]:
            self.sd.remove_adapter(name)
        for name, path in person.identity.items():
            adapter = load_adapter(path, self.sd)
            self.sd.load_adapter(f"{IDENTITY} {name}", adapter)
            self.sd.load_adapter(f"random {IDENTITY} {name}", random_adapter(adapter, 0))
        self.person = person

    def made_from(self, sitter: Sitter, setting: Setting, seed: int) -> dict:
        """All that decides the pictures of a person at a setting and seed, as JSON has it."""
        person = sitter.person
        self.meet(person)
        identity = f"{IDENTITY} {setting.adapter}"
        known = {
            "base": self.sd.base, "age": self.age.fingerprint, "photo": file_hash(person.photo), "seed": seed,
            "mask": file_hash(person.mask) if Path(person.mask).is_file() else person.mask, "kind": person.kind,
            "identity": self.sd.adapters[identity].fingerprint if identity in self.sd.adapters else None,
            "subject": person.subject, "current": round(sitter.current, 2), "options": asdict(self.options),
            "setting": {name: value for name, value in asdict(setting).items() if name not in ("family", "control")},
        }  # fmt: skip
        return json.loads(json.dumps(known))

    @torch.no_grad()
    def paint(self, sitter: Sitter, setting: Setting, seed: int) -> dict[str, Image.Image]:
        """{"age50": the person at 50, "back50": that picture aged back, ...}."""
        person, ages = sitter.person, self.options.ages
        self.meet(person)
        subject = person.subject if setting.has_identity and person.identity else f"a {person.kind}"
        sampling = Sampling(
            self.options.num_inference_steps, setting.guidance_scale, setting.guidance_rescale, setting.interval
        )  # fmt: skip
        edit = aging_edit(
            subject, method=self.options.method, strength=self.options.strength, context=CONTEXT, detail=setting.share
        )  # fmt: skip
        edit = edit if setting.against else replace(edit, negative_prompt="")

        def aged(image: Image.Image, ages: Sequence[float], current: float) -> list[Image.Image]:
            generator = torch.Generator().manual_seed(seed)
            return age_to(self.sd, image, sitter.mask, ages, current, subject, edit, sampling, generator=generator)

        with self.merged(sitter, setting):
            pictures = aged(sitter.image, ages, sitter.current)
            made = {f"age{age:02d}": picture for age, picture in zip(ages, pictures)}
            for age, picture in zip(ages, pictures if self.options.back else []):
                made[f"back{age:02d}"] = aged(picture, [sitter.current], age)[0]
        return made

    def merged(self, sitter: Sitter, setting: Setting) -> AbstractContextManager:
        """Merge the setting's adapters; the context adds what acts in a part of the face alone.

        The age's come first: what a rule takes from the one for the other, it takes from the person's.
        """
        identity, age = setting.weights
        swapped = setting.name.removeprefix("random ") if setting.control else ""
        names, weights = [f"random {AGE}" if swapped == AGE else AGE], [age]
        if sitter.person.identity:
            names.append(f"{'random ' if swapped == IDENTITY else ''}{IDENTITY} {setting.adapter}")
            weights.append(identity)
        if not setting.within:
            self.sd.set_adapters(names, weights, parse_rule(setting.rule))
            return nullcontext()
        inner = shrunk(sitter.mask, setting.within)
        box, side = square_about(sitter.mask, CONTEXT), self.sd.resolution // self.sd.vae.factor
        places = mask_to_latents(mask_to_tensor(cut(inner, box, self.sd.resolution)), (side, side)).to(self.sd.device)
        layers, weight = self.sd.adapters[names.pop()].layers, weights.pop()
        self.sd.set_adapters(names, weights, parse_rule(setting.rule))
        return applied_within(self.sd.module, layers, weight, places)


Unit = tuple[Sitter, Setting, int]  # and the seed


def units_of(sitters: Sequence[Sitter], settings: Sequence[Setting], seeds: Sequence[int]) -> list[Unit]:
    """All that is to be painted, person by person."""
    return [(sitter, setting, seed) for sitter in sitters for setting in settings if setting.paints for seed in seeds]


def folder_of(output_dir: Path, sitter: Sitter, setting: Setting, seed: int) -> Path:
    """Where a unit's pictures lie."""
    return output_dir / "pictures" / sitter.person.name / setting.name / f"seed{seed}"


def paint_all(painter: Painter, units: Sequence[Unit], output_dir: Path, world: Processes) -> None:
    """Paint what is not on disk yet, each process its share; raises InputError where other pictures lie in a place."""
    todo = []
    for unit in units:
        path, wanted = folder_of(output_dir, *unit) / UNIT, painter.made_from(*unit)
        if path.is_file():
            check_same(path, wanted)
        else:
            todo.append((unit, path, wanted))
    world.wait()  # until all have seen what there was
    mine = todo[world.rank :: world.count]
    for unit, path, wanted in tqdm(mine, desc="painting", unit="unit", disable=not world.first):
        pictures = painter.paint(*unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            save_image(picture, path.parent / f"{name}.png")
        with written_whole(path) as part:
            part.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def check_same(path: Path, wanted: dict) -> None:
    """Raise InputError unless the pictures beside a unit.json were made from the same."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); remove its folder, to have it painted again") from None
    differing = sorted(key for key in wanted.keys() | known.keys() if wanted.get(key) != known.get(key))
    if differing:
        what = "; ".join(f"{key} was {known.get(key)!r} and is {wanted.get(key)!r}" for key in differing)
        raise InputError(f"{path.parent}: holds pictures made otherwise ({what}); give another --output_dir, or remove them")
