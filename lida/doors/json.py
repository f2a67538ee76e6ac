"""Foreign JSON: of bounded size and depth, unambiguous, every field of a declared type."""

import json
import math
import re
import reprlib
import types
from collections import Counter
from collections.abc import Collection
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InputError
from .files import regular_file

LIMIT = 64 * 2**20  # bytes
DEPTH = 64
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates
T = TypeVar("T")
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


@dataclass(frozen=True)
class Range:
    """The bounds of a number, both included: a field `Annotated[int, Range(1, 64)]`."""

    least: float = -math.inf
    most: float = math.inf

    def __repr__(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


def read_json(path: str | Path) -> Any:
    """Return the value of a JSON file. Raises InputError as parse_json() does, and for a path that is not a regular file."""
    with open(regular_file(path, "JSON file"), "rb") as file:
        return parse_json(file.read(LIMIT + 1), path)


def parse_json(text: str | bytes, where: str | Path, limit: int = LIMIT) -> Any:
    """Return the value of a JSON text, which is in UTF-8 if it is bytes.

    Raises InputError for a text longer than `limit`, nesting deeper than DEPTH, a key that occurs twice in an object, NaN and
    infinity, integers beyond 64 bits, NUL and lone surrogates.
    """
    if len(text) > limit:
        raise InputError(f"{where}: is longer than {limit} bytes; give a JSON file of the usual size")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=unique, parse_constant=number, parse_int=number, parse_float=number)
        check_inside(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not readable as JSON ({error}); correct it or make it again") from None
    return value


def as_object(value: Any, where: str | Path) -> dict[str, Any]:
    """Return the value as a JSON object. Raises InputError for any other value."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: {SHORT.repr(value)} is not an object; correct it or make it again")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Raises ValueError if a key occurs twice."""
    if len(result := dict(pairs)) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {SHORT.repr(twice)} occurs twice in one object")
    return result


def number(text: str) -> int | float:
    """Return the number of a text. Raises ValueError if it is not finite, and for an integer beyond 64 bits."""
    whole = text.lstrip("-").isdigit()
    value = int(text) if whole and len(text) <= 20 else float(text)
    if not (-(2**63) <= value < 2**63 if whole else math.isfinite(value)):
        raise ValueError(f"{text[:20]} is not a finite number of 64 bits")
    return value


def check_inside(value: Any, depth: int = 0) -> None:
    """Raise ValueError for nesting deeper than DEPTH, and for strings that are not text."""
    if depth > DEPTH:
        raise ValueError(f"it is nested deeper than {DEPTH}")
    if isinstance(value, str) and NOT_TEXT.search(value):
        raise ValueError(f"{SHORT.repr(value)} holds NUL or a lone surrogate")
    if isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            check_inside(inner, depth + 1)


def typed(cls: type[T], value: Any, where: str | Path, ignore: Collection[str] = ()) -> T:
    """Return an instance of the dataclass `cls` from a JSON object without the keys in `ignore`.

    Annotations are int, float, str, bool, list[X], tuple[X, ...], tuple[X, Y], dict[str, X], Literal, dataclasses,
    Annotated[int, Range(1, 64)] and X | None. An integer passes for a float; a bool passes for no number.
    Raises one InputError with a message for every fault: its place, the value, and what is wanted.
    """
    kept = {key: x for key, x in value.items() if key not in ignore} if isinstance(value, dict) else value
    faults: list[str] = []
    result = convert(cls, kept, str(where), faults)
    if faults:
        raise InputError(*faults)
    return result


def convert(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Return the value as an instance of the annotation `kind`, or append what is wrong to `faults`."""
    origin, parts = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return build(kind, value, where, faults)
    if origin in (Union, types.UnionType):  # X | None
        return None if value is None else convert(parts[0], value, where, faults)
    if origin is Annotated:
        inner: list[str] = []
        result = convert(parts[0], value, where, inner)
        if not inner and parts[1].least <= result <= parts[1].most:
            return result
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        kinds = parts if origin is tuple and parts[-1] is not ... else parts[:1] * len(value)
        if len(kinds) == len(value):
            return origin([convert(part, x, f"{where}[{i}]", faults) for i, (part, x) in enumerate(zip(kinds, value))])
    elif origin is dict and isinstance(value, dict):
        return {str(key): convert(parts[1], x, f"{where}: {key}", faults) for key, x in value.items()}
    elif origin is Literal and any(type(value) is type(part) and value == part for part in parts):
        return value
    elif kind is float and type(value) in (int, float) and abs(value) < 2.0**1023:  # false for NaN
        return float(value)
    elif kind is not float and type(value) is kind:
        return value
    faults.append(f"{where}: {SHORT.repr(value)} is not {wanted(kind)}")
    return None


def build(cls: type, value: dict, where: str, faults: list[str]) -> Any:
    """Return the dataclass made of an object's fields, or append what is wrong to `faults`."""
    hints, values, before = get_type_hints(cls, include_extras=True), {}, len(faults)
    names = [field.name for field in fields(cls)]  # a class variable has a hint, too
    for key in sorted(value.keys() - set(names), key=str):
        faults.append(f"{where}: {SHORT.repr(key)} is not a field; these are: {', '.join(names)}")
    for field in fields(cls):
        if field.name in value:
            values[field.name] = convert(hints[field.name], value[field.name], f"{where}: {field.name}", faults)
        elif field.default is MISSING and field.default_factory is MISSING:
            faults.append(f"{where}: {field.name}: is missing; give {wanted(hints[field.name])}")
    if len(faults) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # from its __post_init__
        return faults.extend(f"{where}: {fault}" for fault in error.args)


def wanted(kind: Any) -> str:
    """Return the annotation as people write it: `int | None`, `tuple[int, ...]`, `int from 1 to 64`."""
    text = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    return re.sub(r"Annotated\[(\w+), (from [^]]+)\]", r"\1 \2", text)
