"""Types for argparse: each turns a flag's text, or a number of Python's, into a checked value."""

import argparse
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from .errors import InputError
from .files import regular_file

LARGEST = 2**31 - 1


def integer(least: int, most: int = LARGEST, multiple: int = 1) -> Callable[[object], int]:
    """Return a type of integers from `least` to `most`, which are multiples of `multiple`."""
    bounds = f"from {least} to {most}" if most < LARGEST else f"of at least {least}"
    wanted = f"a whole number {bounds}" + (f", a multiple of {multiple}" if multiple > 1 else "")

    def convert(text: object) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,20}", str(text)) and least <= int(str(text)) <= most and int(str(text)) % multiple == 0:
            return int(str(text))
        raise argparse.ArgumentTypeError(f"{str(text)[:60]!r} is not {wanted}")

    return convert


def number(wanted: str, holds: Callable[[float], bool] = lambda x: True) -> Callable[[object], float]:
    """Return a type of the finite numbers for which `holds` is true; `wanted` names them in the error."""

    def convert(text: object) -> float:
        try:
            value = float(str(text)) if "_" not in str(text) else math.nan
        except ValueError:
            value = math.nan
        if math.isfinite(value) and holds(value):
            return value
        raise argparse.ArgumentTypeError(f"{str(text)[:60]!r} is not {wanted}")

    return convert


positive_int = integer(1)
non_negative_int = integer(0)
multiple_of_8 = integer(8, LARGEST - 7, multiple=8)
seed = integer(0, 2**63 - 1)
age = integer(0, 99)
finite = number("a finite number")
positive = number("a number above 0", lambda x: x > 0)
non_negative = number("a number of at least 0", lambda x: x >= 0)
share = number("a number from 0 to 1", lambda x: 0 <= x <= 1)


def existing_file(text: str | Path) -> Path:
    """Return the path of a regular file."""
    try:
        return regular_file(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def existing_folder(text: str | Path) -> Path:
    """Return the path of a folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: {'is not a folder' if Path(text).exists() else 'no such folder'}")
    return Path(text)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors: one line, and exit code 2 from run()."""

    def error(self, message: str):
        raise InputError(message.removeprefix("argument "))


def as_argv(parser: argparse.ArgumentParser, values: Mapping[str, object]) -> list[str]:
    """Return the command line that gives these values, so that recorded arguments pass the parser's own checks.

    Raises InputError for a name that the parser does not have.
    """
    actions = {action.dest: action for action in parser._actions}
    positional, flags = [], []
    for name, value in values.items():
        if name not in actions:
            raise InputError(f"the recorded argument {name!r} is not known; it may be of another version")
        action = actions[name]
        if value is None or value is False or value == [] or value == {}:
            continue
        items = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        items = [str(item) for item in (items if isinstance(items, list) else [items])]
        if not action.option_strings:
            positional += items
        elif value is True:
            flags.append(action.option_strings[0])
        elif action.nargs is None:
            flags += [f"{action.option_strings[0]}={item}" for item in items]
        else:
            flags += [action.option_strings[0], *items]
    return [*flags, "--", *positional]


def face(text: object) -> int | str:
    """Return the number of a face, from 1, or "all"."""
    return "all" if text == "all" else integer(1, 1000)(text)


years = number("an age from 0 to 120", lambda x: 0 <= x <= 120)


def named_number(names: Collection[str]) -> Callable[[object], tuple[str, float]]:
    """Return a type of NAME=NUMBER with one of the names and a number of at least 0."""

    def convert(text: object) -> tuple[str, float]:
        name, _, value = str(text).partition("=")
        if name not in names:
            raise argparse.ArgumentTypeError(f"{str(text)[:60]!r} is not one of {', '.join(names)}, = and a number")
        return name, non_negative(value)

    return convert
