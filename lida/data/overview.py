"""A contact sheet of a dataset."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ..doors.pictures import open_image, save_image
from ..photos.masks import open_mask
from ..photos.squares import sheet
from .folder import Example

COUNT, SIDE = 60, 150  # pictures on a sheet, and the longer side of each in pixels


def write_overview(examples: Sequence[Example], folder: Path) -> Path:
    """Write <folder>-sheet.png beside the folder, with at most COUNT of its pictures, evenly spread. Return its path.

    Each picture has its mask's outline, and below it its age, if recorded, and its caption.
    """
    path = folder.resolve().with_name(f"{folder.resolve().name}-sheet.png")
    chosen = [examples[i] for i in np.linspace(0, len(examples) - 1, min(COUNT, len(examples))).round().astype(int)]
    labels = [f"{e.row['age']}: {e.text}" if "age" in e.row else e.text for e in chosen]
    labels = ["\n".join(textwrap.wrap(label, 26)[:3]) for label in labels]
    save_image(sheet([outlined(example) for example in chosen], labels, SIDE, columns=10, size=11), path)
    return path


def outlined(example: Example) -> Image.Image:
    """Return the picture, at most SIDE pixels long, with the outline of its mask in green."""
    image = open_image(example.path)
    mask = open_mask(example.mask, image.size) if example.mask else None
    image.thumbnail((SIDE, SIDE))
    if mask:
        white = mask.resize(image.size).point(lambda value: 255 * (value > 127))
        image.paste("lime", mask=ImageChops.difference(white, white.filter(ImageFilter.MinFilter(3))))
    return image
