"""Types for argparse: each turns a flag's text, or a number of Python's, into a checked value."""

import argparse
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import InputError
from .files import regular_file


def checked(kind: type, wanted: str, holds: Callable = lambda value: True) -> Callable:
    """Return an argparse type of finite numbers, int or float, for which `holds` is true; the error says what is `wanted`."""

    def convert(text: object):
        text = str(text)
        with suppress(ValueError, OverflowError):
            value = kind(text)
            if math.isfinite(value) and holds(value) and "_" not in text:
                return value
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not {wanted}")

    return convert


def whole(least: int, most: int = 2**31 - 1, multiple: int = 1) -> Callable:
    """Return an argparse type of the integers from `least` to `most` that are multiples of `multiple`."""
    wanted = f"a whole number from {least} to {most}" + f", a multiple of {multiple}" * (multiple > 1)
    return checked(int, wanted, lambda value: least <= value <= most and value % multiple == 0)


positive_int = whole(1)
non_negative_int = whole(0)
multiple_of_8 = whole(8, 2**16, multiple=8)
seed = whole(0, 2**63 - 1)
age = whole(0, 99)
finite = checked(float, "a finite number")
positive = checked(float, "a number above 0", lambda value: value > 0)
non_negative = checked(float, "a number of at least 0", lambda value: value >= 0)
share = checked(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


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
    return "all" if text == "all" else whole(1, 1000)(text)


years = checked(float, "an age from 0 to 120", lambda x: 0 <= x <= 120)


def named_number(names: Collection[str]) -> Callable[[object], tuple[str, float]]:
    """Return a type of NAME=NUMBER with one of the names and a number of at least 0."""

    def convert(text: object) -> tuple[str, float]:
        name, _, value = str(text).partition("=")
        if name not in names:
            raise argparse.ArgumentTypeError(f"{str(text)[:60]!r} is not one of {', '.join(names)}, = and a number")
        return name, non_negative(value)

    return convert
