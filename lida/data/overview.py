"""A dataset at a glance: a contact sheet of its pictures, and a chart of how many there are of each age."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ..doors.files import written_whole
from ..doors.pictures import open_image, save_image
from ..photos.masks import open_mask
from .folder import Example


def write_overview(examples: Sequence[Example], folder: Path, count: int = 60) -> list[Path]:
    """Write <folder>-sheet.png of `count` pictures, evenly spread, and where all ages are recorded <folder>-counts.png.

    Both lie beside the folder. The chart needs matplotlib, the extra `lida-aging[charts]`. Returns the paths written to.
    """
    folder = folder.resolve()
    paths = [folder.with_name(f"{folder.name}-sheet.png")]
    chosen = [examples[i] for i in np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)]
    save_image(contact_sheet(chosen), paths[0])
    if all(type(example.row.get("age")) is int for example in examples):
        if find_spec("matplotlib") is None:
            print("no chart of the ages: matplotlib is not installed; pip install lida-aging[charts]")
        else:
            paths.append(folder.with_name(f"{folder.name}-counts.png"))
            chart_of_ages(examples, paths[1])
    return paths


def contact_sheet(examples: Sequence[Example], columns: int = 10, side: int = 150) -> Image.Image:
    """Return the pictures with their masks' outlines, each above its age, where that is recorded, and its caption."""
    font, gap, strip = ImageFont.load_default(size=11), 6, 44
    columns = min(columns, len(examples))
    rows = -(-len(examples) // columns)
    page = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + strip) + gap), "white")
    draw = ImageDraw.Draw(page)
    for i, example in enumerate(examples):
        left, top = gap + i % columns * (side + gap), gap + i // columns * (side + strip)
        image = outlined(example, side)
        page.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
        text = f"{example.row['age']}: {example.text}" if "age" in example.row else example.text
        draw.multiline_text((left, top + side + 2), wrapped(text[:300], draw, font, side), "black", font, spacing=1)
    return page


def outlined(example: Example, side: int) -> Image.Image:
    """Return the picture, at most `side` pixels long, with its mask's outline in green."""
    image = open_image(example.path)
    mask = open_mask(example.mask, image.size) if example.mask else None
    image.thumbnail((side, side))
    if mask:
        white = mask.resize(image.size).point(lambda value: 255 * (value > 127))
        image.paste("lime", mask=ImageChops.difference(white, white.filter(ImageFilter.MinFilter(3))))
    return image


def wrapped(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, width: int, lines: int = 3) -> str:
    """Return the first lines of a text wrapped at `width` pixels."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    return "\n".join(rows[:lines])


def chart_of_ages(examples: Sequence[Example], path: Path) -> None:
    """Write a bar chart of how many pictures there are of each decade, and of each gender where that is recorded."""
    from matplotlib.figure import Figure

    decades = sorted({example.row["age"] // 10 * 10 for example in examples})
    genders = sorted({str(example.row.get("gender", "all")) for example in examples})
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for k, gender in enumerate(genders):
        ages = [e.row["age"] for e in examples if str(e.row.get("gender", "all")) == gender]
        counts = [sum(age // 10 * 10 == decade for age in ages) for decade in decades]
        places = np.arange(len(decades)) + (k - (len(genders) - 1) / 2) * 0.8 / len(genders)
        axes.bar_label(axes.bar(places, counts, 0.8 / len(genders), label=gender), fontsize=8)
    axes.set_xticks(range(len(decades)), [f"{decade}s" for decade in decades])
    axes.set_xlabel("age")
    axes.set_ylabel("pictures")
    axes.legend()
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=120)
