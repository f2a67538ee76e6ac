"""Captions that tell a person's age: the template they are made from, and where it is recorded for those who read them."""

import string
from collections.abc import Mapping
from pathlib import Path

from ..doors.errors import InputError
from ..doors.json import read_json

CAPTIONING = "captioning.json"  # in a dataset's folder: how its captions were made, where a tool of this library made them
DEFAULT_TEMPLATE = "a portrait photo of {subject}, age {decade}"
FIELDS = ("subject", "gender", "decade", "age")


def caption(template: str, subject: str, age: int) -> str:
    """The template with {subject} ("a man"), {gender} ("man"), {decade} ("60s") and {age} ("64") filled in."""
    return template.format(subject=subject, gender=subject.removeprefix("a "), decade=f"{age // 10 * 10}s", age=age)


def with_article(subject: str) -> str:
    """The subject as captions have it: "a man", but a name as it is."""
    return f"a {subject}" if subject in ("man", "woman", "person") else subject


def mixed_caption(template: str, subject: str, age: int, ages: tuple[int, int] = (0, 99)) -> str | dict[str, float]:
    """The caption of an age, or the two whose embeddings are mixed by these shares; `ages` are the least and most in training.

    A template with {age} says it by itself. Of {decade}, a decade's caption stands for its first year, and between two of
    them they are mixed in proportion: 34 is 0.6 of "30s" and 0.4 of "40s".
    """
    lower = caption(template, subject, age)
    upper = caption(template, subject, min(age // 10 * 10 + 10, 90))
    if "{age}" in template or age % 10 == 0 or upper == lower or age // 10 * 10 + 10 > ages[1]:
        return lower
    return {lower: 1 - age % 10 / 10, upper: age % 10 / 10}


def check_template(template: str, where: str = "--template") -> str:
    """The template itself; raises InputError unless its fields are some of FIELDS, and {decade} or {age} among them."""
    cure = "fields are {subject}, {gender}, {decade} and {age}"
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if names <= set(FIELDS):
            caption(template, "a man", 64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} {template!r}: {error}; {cure}") from None
    if names - set(FIELDS) or not names & {"decade", "age"}:
        raise InputError(f"{where} {template!r}: must name {{decade}} or {{age}}; {cure}")
    return template


def read_captioning(folder: str | Path) -> dict:
    """What the tool that captioned the folder recorded: the `template` and the `ages` it saw; {} where none did."""
    path = Path(folder, CAPTIONING)
    if not path.exists():
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, not an object; caption the folder again")
    return check_captioning({key: values[key] for key in ("template", "ages") if key in values}, path)


def check_captioning(values: dict, where: str | Path) -> dict:
    """What was recorded of captions, from a folder or an adapter's metadata; raises InputError where it cannot be used."""
    if "template" in values:
        check_template(values["template"], f"{where}: template")
    ages = values.get("ages", [0, 99])
    if not isinstance(ages, list) or [type(age) for age in ages] != [int, int]:
        raise InputError(f"{where}: ages is {ages!r}, not the youngest and the oldest, such as [2, 80]")
    return values


def captioning_of(adapters: Mapping[str, Mapping]) -> tuple[str, tuple[int, int]]:
    """The template and the span of ages of the first adapter whose metadata has them, by name; else the defaults, 0 to 99."""
    known = [check_captioning(dict(metadata), name) for name, metadata in adapters.items()]
    aging = next((values for values in known if "template" in values), {})
    return aging.get("template", DEFAULT_TEMPLATE), tuple(aging.get("ages", (0, 99)))
