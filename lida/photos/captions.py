"""Captions with a person's age: their template, how a dataset or an adapter records it, and the prompt for an age."""

import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from ..doors.errors import InputError
from ..doors.json import Range, typed

NO_AGE = "a portrait photo of {subject}"
DEFAULT_TEMPLATE = NO_AGE + ", age {decade}"
FIELDS = ("subject", "gender", "decade", "age")
CHILD, OLD = 13, 60  # below CHILD a man is a boy; from OLD on he is an old man
CHILDREN = {"a man": "a boy", "a woman": "a girl", "a person": "a child"}
NEAR, FAR = 20, 70  # ages of the young and the old person whose captions are mixed into a grown-up's
FULL, MOST = 65, 1.5  # the age at which the old person's caption has the share 1, and its largest share
SOON, MIDDLE, AWAY = 5, 40, 60  # years before the old noun; the caption to lead away from; years for which its share is -1
Age = Annotated[int, Range(0, 120)]
Prompt = str | Mapping[str, float]  # a prompt, or several with the shares by which their embeddings are mixed


def caption(template: str, subject: str, age: int) -> str:
    """Return the template with {subject} ("an old man"), {gender} ("man"), {decade} ("60s") and {age} ("64") filled in."""
    return template.format(subject=subject, gender=subject.split()[-1], decade=f"{age // 10 * 10}s", age=age)


def with_article(subject: str) -> str:
    """Return the subject as in captions: "man" becomes "a man", a name stays as it is."""
    return f"a {subject}" if f"a {subject}" in CHILDREN else subject


def noun_of(subject: str, age: float, child: float = CHILD, old: float = OLD) -> str:
    """Return the subject with the noun of its age: "a man" is "a boy" below `child` and "an old man" from `old` on.

    The last word decides: man, woman or person, also after an adapter's word, as in "sks man". Other subjects stay as they are.
    `child=0` or `old=0` disables that noun.
    """
    name, _, noun = subject.rpartition(" ")
    if not name or f"a {noun}" not in CHILDREN:
        return subject
    if age < child:
        return f"{name} {CHILDREN[f'a {noun}'].removeprefix('a ')}"
    return f"{'an' if name == 'a' else name} old {noun}" if old and age >= old else subject


@dataclass(frozen=True)
class Captioning:
    """How ages are written in captions: the template, the youngest and oldest age in training, and noun_of's two ages.

    Raises InputError for a template without an age, or with other fields than FIELDS.
    """

    template: str = DEFAULT_TEMPLATE
    ages: tuple[Age, Age] = (0, 99)
    child: Age = CHILD
    old: Age = OLD

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.ages[0] > self.ages[1]:
            raise InputError(f"ages: {list(self.ages)} are not the youngest and the oldest, such as [2, 80]")

    def caption(self, subject: str, age: int) -> str:
        """Return the caption of a subject at an age."""
        return caption(self.template, noun_of(subject, age, self.child, self.old), age)

    def nearest(self, age: float) -> int:
        """Return the whole age of the training nearest to an age."""
        return min(max(round(age), self.ages[0]), self.ages[1])

    def prompt_from(self, subject: str, age: float, current: float) -> Prompt:
        """Return the prompt that leads a face from its current age to another.

        It is the caption of that age, but for a grown-up and for an old person other captions are mixed in, if training had their
        ages: between two decades of a grown-up little else in the caption changes, and the picture hardly does.
        """
        if round(age) > round(current) and self.ages[1] >= FAR:
            return self.older(subject, age, current)
        if round(age) < round(current) and self.ages[0] <= NEAR:
            return self.younger(subject, age, current)
        return self.prompt(subject, age)

    def older(self, subject: str, age: float, current: float) -> Prompt:
        """Return the prompt for an older age.

        A grown-up's mixes the current caption with that of an old person of FAR. The old person's share is the square root of
        (age - current) / (FULL - current), because the ratio itself ages too little, and may be above 1, up to MOST: then the
        current caption has a negative share. The caption of somebody who is old, or soon will be, is led away from that of MIDDLE
        (all measured).
        """
        now, soon, old = (noun_of(subject, round(years), self.child, self.old) for years in (current, current + SOON, FAR))
        if now == soon == subject != old:
            share = ((age - current) / (FULL - current)) ** 0.5
            return mixed(self.prompt(subject, current), self.prompt(subject, FAR), min(share, MOST))
        if soon == old != subject:
            return mixed(self.prompt(subject, age), self.prompt(subject, MIDDLE), (current - age) / AWAY)
        return self.prompt(subject, age)

    def younger(self, subject: str, age: float, current: float) -> Prompt:
        """Return the prompt for a younger age: of a grown-up, the caption of a young person, or above NEAR a mixture with it."""
        now, then, old = (noun_of(subject, round(years), self.child, self.old) for years in (current, age, FAR))
        if not now == then == subject != old:
            return self.prompt(subject, age)
        name, _, noun = subject.rpartition(" ")
        young = f"{name} young {noun}"
        if age <= NEAR:
            return self.prompt(young, age)
        return mixed(self.prompt(subject, current), self.prompt(young, NEAR), (current - age) / (current - NEAR))

    def prompt(self, subject: str, age: float) -> Prompt:
        """Return the caption of an age, or the two captions whose embeddings are mixed, with their shares.

        The age is rounded, and clamped to 0 to 99. A template with {age} has a caption for every age. With {decade}, a decade's
        caption stands for its first year, and the years between two decades are mixed in proportion: 34 is 0.6 of "30s" and
        0.4 of "40s".
        """
        age = min(max(round(age), 0), 99)
        next_decade = age // 10 * 10 + 10
        lower, upper = self.caption(subject, age), self.caption(subject, min(next_decade, 90))
        if "{age}" in self.template or age % 10 == 0 or upper == lower or next_decade > self.ages[1]:
            return lower
        return {lower: 1 - age % 10 / 10, upper: age % 10 / 10}


def mixed(first: Prompt, second: Prompt, share: float) -> dict[str, float]:
    """Return the mixture of two prompts or mixtures with a share of the second; below 0 and above 1 it leads beyond them."""
    parts: dict[str, float] = {}
    for prompt, weight in ((first, 1 - share), (second, share)):
        for text, part in ({prompt: 1.0} if isinstance(prompt, str) else prompt).items():
            parts[text] = parts.get(text, 0.0) + weight * part
    return parts


def check_template(template: str) -> None:
    """Raise InputError for a template with a field that is not in FIELDS, with a format, or with neither {decade} nor {age}."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
        sound = len(template) <= 1000 and all(name in FIELDS and not spec and not conversion for name, spec, conversion in parts)
    except ValueError:  # such as a brace that is not closed
        sound = False
    if not sound:
        cure = f"its fields are {', '.join(f'{{{name}}}' for name in FIELDS)}, without a format"
        raise InputError(f"template {template[:80]!r}: cannot be filled in; {cure}")
    if not {"decade", "age"} & {name for name, *_ in parts}:
        raise InputError(f"template {template!r}: must name {{decade}} or {{age}}")


def recorded(values: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Return the fields of Captioning in a dataset's or an adapter's record. Raises InputError if they are not valid."""
    record = {field.name: values[field.name] for field in fields(Captioning) if field.name in values}
    typed(Captioning, record, where)
    return record


def captioning_of(adapters: Mapping[str, Mapping]) -> Captioning:
    """Return the captioning of the first adapter whose metadata has a template, else the default. Metadata is by adapter name."""
    found = [typed(Captioning, recorded(metadata, name), name) for name, metadata in adapters.items() if "template" in metadata]
    return next(iter(found), Captioning())
