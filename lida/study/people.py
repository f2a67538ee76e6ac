"""The people that an evaluation ages: photograph, age, adapters, and real photographs of them at other ages."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.folder import as_row, photographs
from ..doors.errors import InputError
from ..doors.pictures import open_image, open_photo
from .judges import IDENTITY_CONTEXT, AgeJudge, IdentityJudge, square_of
from ..photos.masks import read_mask

FIELDS = {"name", "photo", "age", "mask", "kind", "subject", "identity", "references"}
KINDS = ("man", "woman", "person")


@dataclass(frozen=True)
class Person:
    """One photograph to age, and what is known of who it shows.

    `subject` is what the person's own adapters learnt to call them, `kind` what others are called. `identity` has the
    adapters by name, `references` the real photographs (path, age) that no adapter was trained on.
    """

    name: str
    photo: Path
    age: float | None = None  # in the photograph; read by the first judge where it is not told
    mask: str = "auto"
    kind: str = "person"
    subject: str = "sks"
    identity: dict[str, Path] = field(default_factory=dict)
    references: tuple[tuple[Path, float], ...] = ()


def read_people(path: str | Path) -> list[Person]:
    """The lines of a .jsonl, one a person, of Person's fields; paths are from the file's folder.

    `identity` is {"name": "adapter", ...}, `references` [{"photo": ..., "age": ...}, ...]. Raises InputError with every fault.
    """
    path, people, faults = Path(path), [], []
    if not path.is_file():
        raise InputError(f"--people {path}: no such file; write one line of JSON a person")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                row = as_row(line, f"{path}:{number}")
            except InputError as error:
                faults += error.args
                continue
            try:
                people.append(person_of(row, path.parent))
            except InputError as error:
                faults.append(f"{path}:{number}: {error}")
    names = [person.name for person in people]
    faults += [f"{path}: {name} is the name of two people; rename one" for name in {n for n in names if names.count(n) > 1}]
    if faults or not people:
        raise InputError(*(faults or [f"{path}: names nobody; write one line of JSON a person"]))
    return people


def person_of(row: dict, base: Path) -> Person:
    """The person whom a line tells of; raises InputError for the first fault."""
    unknown = row.keys() - FIELDS
    if unknown or "photo" not in row:
        what = f"{sorted(unknown)[0]!r} is no field" if unknown else "has no photo"
        raise InputError(f"{what}; fields are {', '.join(sorted(FIELDS))}")
    try:
        references = tuple((existing(base / r["photo"]), float(r["age"])) for r in row.get("references", []))
        identity = {name: existing(base / adapter) for name, adapter in row.get("identity", {}).items()}
        age = None if row.get("age") is None else float(row["age"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"identity must be {{name: path}}, references [{{photo, age}}], ages numbers ({type(error).__name__}: {error})"
        ) from None
    mask = row.get("mask", "auto")
    person = Person(
        str(row.get("name", Path(row["photo"]).stem)), existing(base / row["photo"]), age,
        str(base / mask) if (base / mask).is_file() else mask, row.get("kind", "person"), row.get("subject", "sks"), identity,
        references,
    )  # fmt: skip
    if person.kind not in KINDS:
        raise InputError(f"kind {person.kind!r} is not one of {', '.join(KINDS)}")
    if "/" in person.name or person.name.startswith("."):
        raise InputError(f"name {person.name!r} cannot be a folder's; take another")
    return person


def existing(path: Path) -> Path:
    """The path; raises InputError where nothing is there."""
    if not path.exists():
        raise InputError(f"{path} does not exist; give a path from the file's own folder")
    return path


def people_of(photos: Sequence[str], **known) -> list[Person]:
    """A person for each photograph, or for each in a folder, of whom the same is known."""
    return [Person(path.stem, path, **known) for path in photographs(photos)]


@dataclass(frozen=True)
class Reference:
    """A real photograph: the age in it, its identity vector, and what each judge reads."""

    age: float
    vector: np.ndarray
    readings: list[float]


@dataclass(frozen=True)
class Sitter:
    """A person with the photograph and mask opened, the age known or read, and the real photographs measured."""

    person: Person
    image: Image.Image
    mask: Image.Image
    current: float
    vector: np.ndarray
    references: list[Reference]

    def near(self, age: float, years: float) -> list[Reference]:
        """The real photographs within so many years of an age."""
        return [reference for reference in self.references if abs(reference.age - age) <= years]


def seated(person: Person, ages: Sequence[AgeJudge], identity: IdentityJudge, face_models: str | None = None) -> Sitter:
    """Open a person's photographs; raises InputError where one has no face."""
    image = open_photo(person.photo)
    mask = read_mask(person.mask, image, face_models)
    vector = identity(square_of(image, mask, IDENTITY_CONTEXT))
    if vector is None:
        raise InputError(f"{person.photo}: {identity.name} finds no face in it; give another photograph")
    references = []
    for path, age in person.references:
        other = open_image(path)
        outline = read_mask("auto", other, face_models, face=1)
        known = identity(square_of(other, outline, IDENTITY_CONTEXT))
        if known is None:
            raise InputError(f"{path}: {identity.name} finds no face in it; take it out of the references")
        references.append(Reference(age, known, [float(judge([square_of(other, outline)])[0]) for judge in ages]))
    current = person.age if person.age is not None else float(ages[0]([square_of(image, mask)])[0])
    return Sitter(person, image, mask, current, vector, references)
