"""A dataset at a glance: a contact sheet of its pictures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ..doors.pictures import open_image, save_image
from ..photos.masks import open_mask
from .folder import Example

COLUMNS, SIDE, STRIP, GAP = 10, 150, 44, 6  # pictures a row; pixels of a picture, of the text below it, between pictures


def write_overview(examples: Sequence[Example], folder: Path, count: int = 60) -> Path:
    """Write <folder>-sheet.png, beside the folder, of `count` pictures evenly spread over it. Returns its path."""
    path = folder.resolve().with_name(f"{folder.resolve().name}-sheet.png")
    chosen = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    save_image(contact_sheet([examples[i] for i in chosen]), path)
    return path


def contact_sheet(examples: Sequence[Example]) -> Image.Image:
    """Return the pictures with their masks' outlines, each above its age, where that is recorded, and its caption."""
    columns, rows = min(COLUMNS, len(examples)), -(-len(examples) // COLUMNS)
    page = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + STRIP) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for i, example in enumerate(examples):
        left, top = GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + STRIP)
        image = outlined(example)
        page.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        text = f"{example.row['age']}: {example.text}" if "age" in example.row else example.text
        draw.multiline_text((left, top + SIDE + 2), "\n".join(textwrap.wrap(text, 26)[:3]), "black", font, spacing=1)
    return page


def outlined(example: Example) -> Image.Image:
    """Return the picture, at most SIDE pixels long, with its mask's outline in green."""
    image = open_image(example.path)
    mask = open_mask(example.mask, image.size) if example.mask else None
    image.thumbnail((SIDE, SIDE))
    if mask:
        white = mask.resize(image.size).point(lambda value: 255 * (value > 127))
        image.paste("lime", mask=ImageChops.difference(white, white.filter(ImageFilter.MinFilter(3))))
    return image
