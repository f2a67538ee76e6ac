"""Types for argparse. Each turns a flag's text, or a Python number, into a checked value."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import InputError


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


def between(least: float, most: float) -> Callable:
    """Return an argparse type of the numbers from `least` to `most`."""
    return checked(float, f"a number from {least:g} to {most:g}", lambda value: least <= value <= most)


positive_int, non_negative_int, age = whole(1), whole(0), whole(0, 99)
seed = whole(0, 2**63 - 1)
share, years = between(0, 1), between(0, 120)
fraction = checked(float, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)
rate = checked(float, "a learning rate above 0 and up to 1", lambda value: 0 < value <= 1)
positive = checked(float, "a number above 0 and up to 1e30", lambda value: 0 < value <= 1e30)  # float32 overflows at 1e39
non_negative = checked(float, "a number of at least 0", lambda value: value >= 0)


def text(given: str) -> str:
    """Return the text, as an argparse type of texts that can be encoded in UTF-8."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{given[:60]!r} is not UTF-8") from None
    return given


def words(given: str) -> str:
    """Return a text that is not blank."""
    if not given.strip():
        raise argparse.ArgumentTypeError(f"{given[:60]!r} is blank; write a word or more")
    return text(given)


def not_empty(given: str) -> str:
    """Return the name, as an argparse type of names that are not empty. An unset shell variable would give an empty one."""
    if not given:
        raise argparse.ArgumentTypeError("'' is no name; give one, or leave the flag out")
    return given


class Once(argparse.Action):
    """Keep each of a flag's values once, in order."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def existing_folder(text: str | Path) -> Path:
    """Return the path, as an argparse type of existing folders."""
    if not Path(not_empty(str(text))).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: {'is not a folder' if Path(text).exists() else 'no such folder'}")
    return Path(text)


def named_number(names: Collection[str]) -> Callable[[object], tuple[str, float]]:
    """Return an argparse type of NAME=NUMBER, with one of the names and a number of at least 0."""

    def convert(text: object) -> tuple[str, float]:
        name, _, value = str(text).partition("=")
        if name not in names:
            raise argparse.ArgumentTypeError(f"{str(text)[:60]!r} is not one of {', '.join(names)}, = and a number")
        return name, non_negative(value)

    return convert


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors: one line, and exit code 2 from run().

    Arguments without a type, and paths, must not be empty.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register("type", None, not_empty)
        self.register("type", Path, lambda given: Path(not_empty(given)))

    def parse_known_args(self, args=None, namespace=None):
        for given in sys.argv[1:] if args is None else args:
            if "\0" in given:  # from a caller in Python; invalid in paths and prompts
                raise InputError(f"{given[:60]!r}: holds the character NUL; leave it out")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        raise InputError(message.removeprefix("argument "))


def as_argv(parser: argparse.ArgumentParser, values: Mapping[str, object]) -> list[str]:
    """Return the command line of these values, so that recorded arguments pass the parser's own checks.

    Raises InputError for a name that the parser does not have.
    """
    actions = {action.dest: action for action in parser._actions}
    positional, flags = [], []
    for name, value in values.items():
        if name not in actions or name == "help":
            raise InputError(f"the recorded argument {name!r} is not known; it may be of another version")
        if value is None or value is False or value in ([], {}):
            continue
        items = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        items = [str(item) for item in (items if isinstance(items, list) else [items])]
        flag, count = next(iter(actions[name].option_strings), None), actions[name].nargs
        items = [] if value is True and count == 0 else items
        if isinstance(count, int) and len(items) != count:  # an extra value would be parsed as a photograph
            raise InputError(f"the recorded argument {name!r} has {len(items)} values, not {count}")
        if count is not None and flag and (inside := [x for x in items if re.match("-[^0-9.]", x)]):
            raise InputError(f"the recorded argument {name!r} holds a flag, {inside[0]!r:.60}")
        if flag is None:
            positional += items
        elif count is None:
            flags += [f"{flag}={item}" for item in items]
        else:
            flags += [flag, *items]
    return [*flags, "--", *positional]
