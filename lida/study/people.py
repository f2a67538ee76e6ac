"""The people that an evaluation ages: photograph, age, adapters, and real photographs of them at other ages."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image

from ..data.folder import Example, read_examples
from ..doors.errors import InputError
from ..doors.files import regular_file
from ..doors.json import Range, parse_json, typed

Kind = Literal["man", "woman", "person"]
KINDS = get_args(Kind)
Age = Annotated[float, Range(0, 120)]


@dataclass(frozen=True)
class Dated:
    """A real photograph of a person and the age that it shows."""

    photo: str
    age: Age


@dataclass(frozen=True)
class Person:
    """One photograph to age, and its person.

    `age` is the age in the photograph; the first judge reads it where it is None. `subject` is the word for the
    person that their own adapters learnt, `kind` the noun in captions without an adapter. `identity` has the adapters by name,
    `references` real photographs that no adapter was trained on. `name` defaults to the photograph's. Raises ValueError for a
    name that cannot be a folder's name.
    """

    photo: str
    name: str = ""
    age: Age | None = None
    mask: str = "auto"
    kind: Kind = "person"
    subject: str = "sks"
    identity: dict[str, str] = field(default_factory=dict)
    references: list[Dated] = field(default_factory=list)

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", Path(self.photo).stem)
        if "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name: {self.name!r} cannot be a folder's name; choose another")


def read_people(path: str | Path) -> list[Person]:
    """Return the people of a .jsonl file, one a line; paths start from its folder. Raises InputError with every fault."""
    faults: list[str] = []
    people, path = [], regular_file(path, "file with a person a line, as JSON")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                people.append(located(typed(Person, parse_json(line, where), where), path.parent, where))
            except InputError as error:
                faults += error.args
    names = [person.name for person in people]
    faults += [
        f"{path}: {name!r} is the name of two people; rename one" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if faults or not people:
        raise InputError(*(faults or [f"{path}: names nobody; write a line of JSON for each person"]))
    return people


def located(person: Person, folder: Path, where: str) -> Person:
    """Return the person with paths that start from `folder`. Raises InputError for every file that does not exist."""
    photo, identity = str(folder / person.photo), {name: str(folder / path) for name, path in person.identity.items()}
    references = [replace(reference, photo=str(folder / reference.photo)) for reference in person.references]
    mask = str(folder / person.mask) if (folder / person.mask).is_file() else person.mask
    paths = [photo, *identity.values(), *(reference.photo for reference in references)]
    if missing := [path for path in paths if not Path(path).exists()]:
        raise InputError(*(f"{where}: {name} does not exist; give a path from {folder}" for name in missing))
    return replace(person, photo=photo, mask=mask, identity=identity, references=references)


def read_aged(folder: str | Path) -> list[Example]:
    """Return the pictures of a folder, of real people of different ages. Captions are not needed.

    Raises InputError for each picture whose line has no `age`, and for what read_examples() refuses.
    """
    examples = read_examples(folder, caption_column=None)
    faults = [
        f"{example.path}: its age is {age!r}, not a number from 0 to 120; write it as `age` in its line"
        for example in examples
        if not isinstance(age := example.row.get("age"), int | float) or isinstance(age, bool) or not 0 <= age <= 120
    ]
    if faults:
        raise InputError(*faults)
    return examples


@dataclass(frozen=True)
class Reference:
    """A real photograph, measured: the age in it, each identity judge's vector, and the age that each age judge reads."""

    age: float
    vectors: list[np.ndarray]
    readings: list[float]


@dataclass(frozen=True)
class Subject:
    """A person with the photograph and mask opened, the age given or read, and all photographs measured."""

    person: Person
    image: Image.Image
    mask: Image.Image
    current: float
    vectors: list[np.ndarray]  # of each identity judge
    references: list[Reference]

    def near(self, age: float, years: float) -> list[Reference]:
        """Return the real photographs within so many years of an age."""
        return [reference for reference in self.references if abs(reference.age - age) <= years]
