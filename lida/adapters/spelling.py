"""How the command line spells adapters and their weights: `PATH=WEIGHT`, such as `me.safetensors=1.0@600-0,up=0.5`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..doors.errors import InputError
from .files import files_of
from .merging import BLOCKS, During, Weight, finite_weight

NUMBER = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?:@([0-9]{1,9})-([0-9]{1,9}))?")


def parse_pairs(texts: Sequence[str], flag: str = "--adapter") -> list[tuple[str, Weight]]:
    """Return the pairs of texts PATH=WEIGHT, as in infer.py's --adapter. A path alone has weight 1.

    Raises InputError for a text that is not a weight, and for a file that is given twice, even by different paths.
    """
    pairs: list[tuple[str, Weight]] = []
    seen = set()
    for text in texts:
        match = re.fullmatch(r"(.*?)=([-+\d.][^/=]*(?:,\w+=[^/=,]+)*)", text) or re.fullmatch(r"(.*)=(.*)", text)
        try:
            path, weight = (match[1], parse_weight(match[2])) if match and not os.path.exists(text) else (text, 1.0)
        except ValueError as error:
            raise InputError(f"{flag} {text}: {error}; write PATH=WEIGHT") from None
        if not path:
            raise InputError(f"{flag} {text!r}: names no adapter; write PATH=WEIGHT")
        file = os.path.realpath(files_of(Path(path))[0])
        if file in seen:
            raise InputError(f"{flag} {text}: the same adapter is given twice; add up its weights")
        seen.add(file)
        pairs.append((path, weight))
    return pairs


def parse_weight(text: str) -> Weight:
    """Return the weight of a text: `0.2`, `1.0@600-0` (timesteps 600 to 0), `1.0@600-0,up=0.5` (0.5 in the up blocks).

    Raises ValueError that names the wrong part.
    """
    first, *others = text.split(",")
    weights = {"default": parse_number(first)}
    for other in others:
        block, _, part = other.partition("=")
        if block not in BLOCKS or block in weights:
            raise ValueError(f"{other!r} is not a block and its weight; blocks are {', '.join(BLOCKS)}, each once")
        weights[block] = parse_number(part)
    return weights if others else weights["default"]


def parse_number(text: str) -> float | During:
    """Return one weight of a text, with or without timesteps."""
    match = NUMBER.fullmatch(text)
    if not match or (match[2] and int(match[2]) < int(match[3])):
        raise ValueError(f"{text!r} is not a finite number, or its timesteps do not fall; give one such as 0.2 or 1.0@600-0")
    value = finite_weight(float(match[1]))
    return During(value, int(match[2]), int(match[3])) if match[2] else value
