"""Types for argparse: each turns a flag's text, or a number of Python's, into a checked value."""

import argparse
import math
import re
from collections.abc import Callable
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
