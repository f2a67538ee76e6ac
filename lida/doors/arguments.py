"""Types for argparse: each turns a flag's text, or a number of Python's, into a checked value."""

import argparse
import math
from collections.abc import Callable
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
