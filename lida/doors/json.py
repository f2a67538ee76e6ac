"""JSON from outside: bounded, without what programs read differently, and every field of a declared type."""

import json
import math
import re
import types
from collections.abc import Collection
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InputError
from .files import regular_file

LIMIT = 64 * 2**20  # bytes
DEPTH = 64
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates, which no file name or encoding takes
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The bounds of a number, both included, for a field `Annotated[int, Range(1, 64)]`."""

    least: float = -math.inf
    most: float = math.inf


def read_json(path: str | Path, limit: int = LIMIT) -> Any:
    """Read a JSON file; raises InputError, naming it and the place, for what parse_json() refuses."""
    with open(regular_file(path, "JSON file"), "rb") as file:
        return parse_json(file.read(limit + 1), path, limit)


def parse_json(text: str | bytes, where: str | Path, limit: int = LIMIT) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises InputError for a text longer than `limit`, nesting deeper than DEPTH, duplicate keys, NaN and infinity, integers
    beyond 64 bits, lone surrogates and NUL.
    """
    if len(text) > limit:
        raise InputError(f"{where}: is longer than {limit} bytes, too long for JSON of its kind")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=unique, parse_constant=no_constant, parse_int=bounded, parse_float=finite
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not valid JSON ({error.msg}, {place}); correct it") from None
    except RecursionError:
        raise InputError(f"{where}: nested deeper than {DEPTH}; make it flatter") from None
    except ValueError as error:  # the hooks' and the decoder's
        raise InputError(f"{where}: not valid JSON ({error}); correct it") from None
    check_inside(value, where)
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} occurs twice in one object")
    return known


def no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON's")


def bounded(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text[:20]}... is an integer beyond 64 bits")
    return int(text)


def finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is beyond the range of a float")
    return float(text)


def check_inside(value: Any, where: str | Path) -> None:
    """Raise InputError for nesting deeper than DEPTH, and for strings that are not text."""
    level = [value]
    for _ in range(DEPTH + 1):
        texts = [x for x in level if isinstance(x, str)] + [key for x in level if isinstance(x, dict) for key in x]
        if bad := next(filter(NOT_TEXT.search, texts), None):
            raise InputError(f"{where}: {shown(bad)} holds NUL or half a surrogate pair; correct it")
        level = [y for x in level if isinstance(x, dict | list) for y in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return
    raise InputError(f"{where}: nested deeper than {DEPTH}; make it flatter")


def typed(cls: type[T], value: Any, where: str | Path, ignore: Collection[str] = ()) -> T:
    """Return an instance of the dataclass `cls` from a JSON object, every field checked against its annotation.

    Annotations are int, float, str, bool, None, Any, list[X], tuple[X, ...], tuple[X, Y], dict[str, X], Literal, unions,
    dataclasses and Annotated[int, Range(1, 64)]. An integer passes for a float, a bool for no number. The fields in `ignore`
    are left out. Raises one InputError with a line for every fault: its place, the value, and what is wanted.
    """
    faults: list[str] = []
    result = convert(cls, {k: v for k, v in value.items() if k not in ignore} if isinstance(value, dict) else value, f"{where}", faults)
    if faults:
        raise InputError(*faults)
    return result


def convert(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Return the value as an instance of the annotation `kind`; append what is wrong to `faults`."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return build(kind, value, where, faults)
    if origin in (Union, types.UnionType):
        for part in parts:
            inner: list[str] = []
            result = convert(part, value, where, inner)
            if not inner:
                return result
        compound = [part for part in parts if isinstance(value, dict | list | tuple) and part is not type(None)]
        if len(compound) == 1:  # say what is wrong inside of it
            return convert(compound[0], value, where, faults)
    elif origin is Annotated:
        before = len(faults)
        result = convert(parts[0], value, where, faults)
        if len(faults) > before or all(x.least <= result <= x.most for x in parts[1:] if isinstance(x, Range)):
            return result
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        kinds = list(parts) if origin is tuple and parts[-1] is not ... else [parts[0]] * len(value)
        if len(kinds) == len(value):
            return origin(convert(k, x, f"{where}[{i}]", faults) for i, (k, x) in enumerate(zip(kinds, value)))
    elif origin is dict and isinstance(value, dict):
        return {str(key): convert(parts[1], x, f"{where}: {key}", faults) for key, x in value.items()}
    elif origin is Literal and any(type(value) is type(x) and value == x for x in parts):
        return value
    elif kind is Any or kind is None and value is None or type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    elif kind is type(None) and value is None:
        return value
    elif kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    faults.append(f"{where}: {shown(value)} is not {wanted(kind)}")


def build(cls: type, value: dict, where: str, faults: list[str]) -> Any:
    """Return the dataclass made of an object's fields."""
    hints, known, before = get_type_hints(cls, include_extras=True), {}, len(faults)
    names = [field.name for field in fields(cls) if field.init]
    for key in value.keys() - set(names):
        faults.append(f"{where}: {shown(key)} is not a field; these are: {', '.join(names)}")
    for field in fields(cls):
        if field.name in value and field.init:
            known[field.name] = convert(hints[field.name], value[field.name], f"{where}: {field.name}", faults)
        elif field.init and field.default is MISSING and field.default_factory is MISSING:
            faults.append(f"{where}: {field.name}: is missing; give {wanted(hints[field.name])}")
    if len(faults) > before:
        return None
    try:
        return cls(**known)
    except ValueError as error:  # of its __post_init__
        faults.extend(f"{where}: {fault}" for fault in error.args)


def wanted(kind: Any) -> str:
    """Return the name of what an annotation wants."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(wanted, parts))
    if origin is Annotated:
        bounds = [x for x in parts[1:] if isinstance(x, Range)]
        return wanted(parts[0]) + "".join(f" from {x.least:g} to {x.most:g}" for x in bounds)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is tuple and parts[-1] is not ...:
        return "a list of " + " and ".join(map(wanted, parts))
    if origin in (list, tuple):
        return f"a list, each {wanted(parts[0])}"
    if origin is dict:
        return f"an object, each value {wanted(parts[1])}"
    names = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(kind, "an object")


def shown(value: Any) -> str:
    """Return the value for a message, cut to some 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
