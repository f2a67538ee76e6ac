"""Squares of photographs: cut out, matched in colour and detail, and pasted back. Sheets and films of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ..doors.files import written_whole
from ..doors.pictures import with_profile

Box = tuple[int, int, int]  # left, top, side of a square in pixels; it may reach beyond the picture


def square_about(mask: Image.Image, context: float) -> Box:
    """Return the square around the white of a mask, `context` times its longer side; inside the picture if it fits."""
    white = mask.getbbox()
    assert white is not None  # black masks were refused
    left, top, right, bottom = white
    side = round(context * max(right - left, bottom - top))
    side = max(min(side, *mask.size), right - left, bottom - top)  # beyond the picture only if the mask needs it

    def start(low: int, high: int, length: int) -> int:
        middle = round((low + high - side) / 2)
        return min(max(middle, 0), length - side) if side <= length else middle

    return start(left, right, mask.width), start(top, bottom, mask.height), side


def cut(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Return the square of the picture, resized to size x size. Outside the picture its border pixels repeat."""
    left, top, side = box
    pads = [(max(-top, 0), max(top + side - image.height, 0)), (max(-left, 0), max(left + side - image.width, 0))]
    if np.any(pads):
        pixels, profile = np.asarray(image), image.info.get("icc_profile")
        image = with_profile(Image.fromarray(np.pad(pixels, pads + [(0, 0)] * (pixels.ndim - 2), mode="edge")), profile)
        left, top = left + pads[1][0], top + pads[0][0]
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def cut_turned(image: Image.Image, centre: np.ndarray, axes: np.ndarray, side: float, size: int) -> Image.Image:
    """Return the square of `side` pixels around `centre`, along `axes` (2, 2: across, down), resized to size x size."""
    reach = math.ceil(side * np.abs(axes).sum(0).max()) + 4
    left, top = (int(x) - reach // 2 for x in centre)
    upright = cut(image, (left, top, reach), reach)
    corner, step = centre - (left, top) - side / 2 * axes.sum(0), axes * side / round(side)
    affine = (step[0, 0], step[1, 0], corner[0], step[0, 1], step[1, 1], corner[1])  # to source pixels
    turned = upright.transform((round(side),) * 2, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    return turned.resize((size, size), Image.Resampling.LANCZOS)


def paste(image: Image.Image, patch: Image.Image, box: Box, mask: Image.Image, feather: float = 0.02) -> Image.Image:
    """Return the picture with `patch` in the square `box` where the mask is not 0, and every other pixel unchanged.

    The patch fades in from the mask's border inwards, over `feather` times the square's side.
    """
    left, top, side = box
    margin = round(4 * feather * side) + 1  # beyond the reach of the blur; the rest of a large picture need not be blurred
    x, y, right, bottom = max(left - margin, 0), max(top - margin, 0), left + side + margin, top + side + margin
    fading = fade_inwards(mask.crop((x, y, min(right, mask.width), min(bottom, mask.height))), feather * side)
    pasted, fading = image.copy(), fading.crop((left - x, top - y, left - x + side, top - y + side))
    pasted.paste(patch.resize((side, side), Image.Resampling.LANCZOS), (left, top), fading)
    return pasted


def colour_matched(patch: Image.Image, square: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the patch, each channel's mean and deviation matched to `square` in a ring just outside the mask.

    Both show the same thing there, so only the model's colours differ. The ring is 0.08 times as wide as the side. With fewer
    than a hundred pixels in it, the patch is returned unchanged.
    """
    grown = not_black(mask).filter(ImageFilter.GaussianBlur(0.04 * mask.width))
    ring = (np.asarray(grown) > 8) & (np.asarray(mask) == 0)
    if ring.sum() < 100:
        return patch
    p, q = np.asarray(patch, dtype=np.float32), np.asarray(square, dtype=np.float32)
    gain = ((q[ring].std(0) + 1) / (p[ring].std(0) + 1)).clip(0.8, 1.25)
    matched = (p - p[ring].mean(0)) * gain + q[ring].mean(0)
    return Image.fromarray(matched.clip(0, 255).round().astype(np.uint8))


def low_pass(pixels: np.ndarray, cells: int) -> np.ndarray:
    """Return pixels (H, W, C) reduced to cells x cells and enlarged again."""
    planes = []
    for plane in np.moveaxis(pixels.astype(np.float32), -1, 0):
        small = Image.fromarray(plane).resize((cells, cells), Image.Resampling.BOX)
        planes.append(np.asarray(small.resize(plane.shape[::-1], Image.Resampling.BICUBIC)))
    return np.stack(planes, -1)


def colour_bounded(patch: Image.Image, square: Image.Image, most: float = 20.0) -> Image.Image:
    """Return the patch with each channel's coarse colour, on 8 x 8 cells, at most `most` of 255 away from the photograph's.

    Age changes features and texture; a colour cast over the skin comes from the model.
    """
    p, s = (np.asarray(picture, dtype=np.float32) for picture in (patch, square))
    away = low_pass(p - s, 8)
    return Image.fromarray((p - away + away.clip(-most, most)).clip(0, 255).round().astype(np.uint8))


def with_detail(
    patch: Image.Image, reconstruction: Image.Image, square: Image.Image, share: float, tolerance: float = 28.0
) -> Image.Image:
    """Return the patch at the size of the photograph's square, with a share of the detail that the autoencoder lost.

    That is patch + share w (square - reconstruction). `reconstruction` is the unchanged square, encoded and decoded. The weight
    w = exp(-(d / tolerance)^2) falls with d, the local change of the features, from 0 to 255: where the face did not change, the
    photograph stays as sharp as it was; where a feature has moved, its old edges do not come back.
    """
    change = np.asarray(patch, dtype=np.float32) - np.asarray(reconstruction, dtype=np.float32)
    change = low_pass(np.abs(change - low_pass(change, 8)).mean(-1, keepdims=True), 32)[..., 0]  # without coarse colour
    fits = Image.fromarray(np.exp(-((change / tolerance) ** 2))).resize(square.size, Image.Resampling.BICUBIC)
    p, r = (np.asarray(x.resize(square.size, Image.Resampling.LANCZOS), dtype=np.float32) for x in (patch, reconstruction))
    detail = share * np.asarray(fits)[..., None] * (np.asarray(square, dtype=np.float32) - r)
    return Image.fromarray((p + detail).clip(0, 255).round().astype(np.uint8))


def is_grey(image: Image.Image) -> bool:
    """Return whether a picture is grey: the channels of each pixel differ by at most 6 of 255, as JPEG's rounding allows."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool((pixels.max(-1) - pixels.min(-1)).max() <= 6)


def largest_change_outside(before: Image.Image, after: Image.Image, mask: Image.Image) -> int:
    """Return the largest change of a pixel's value where the mask is 0."""
    change = ImageChops.difference(before, after)
    change.paste("black", mask=not_black(mask))
    return max(high for _, high in change.getextrema())  # type: ignore[misc]  # the stub knows pictures of one band too


def not_black(mask: Image.Image) -> Image.Image:
    """Return the mask, white wherever it is not black."""
    return mask.point(lambda value: 255 * (value > 0))


def fade_inwards(mask: Image.Image, radius: float) -> Image.Image:
    """Return a mask that is white inside and fades towards its border over `radius` pixels, or fewer if it is thin."""
    painted = not_black(mask)
    values = np.asarray(painted, dtype=np.float32)
    while radius >= 0.5:
        # A blurred edge is 1/2 at the edge itself: the upper half of its ramp lies inside.
        blurred = np.asarray(painted.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
        faded = np.minimum(values, 255 * np.clip(2 * blurred - 1, 0, 1))
        if faded.sum() >= 0.5 * values.sum():
            return Image.fromarray(faded.round().astype(np.uint8))
        radius /= 2
    return painted


def sheet(
    images: Sequence[Image.Image], labels: Sequence[str], height: int = 320, columns: int | None = None, size: int = 20
) -> Image.Image:
    """Return the pictures at one height, each above its label in letters of `size`, in rows of `columns` (None: one row)."""
    font, gap, columns = ImageFont.load_default(size), 8, columns or len(images)
    strip = round(1.7 * size) * max(label.count("\n") + 1 for label in labels)
    scaled = [i.resize((round(i.width * height / i.height), height), Image.Resampling.BICUBIC) for i in images]
    rows = [list(zip(scaled, labels, strict=True))[start : start + columns] for start in range(0, len(images), columns)]
    width = max(sum(image.width + gap for image, _ in row) for row in rows) + gap
    page = Image.new("RGB", (width, len(rows) * (height + gap + strip)), "white")
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        x, y = gap, number * (height + gap + strip) + gap
        for image, label in row:
            page.paste(image, (x, y))
            draw.text((x + image.width / 2, y + height + strip / 2), label, fill="black", font=font, anchor="mm")
            x += image.width + gap
    return page


def film(pictures: Sequence[Image.Image], path: Path) -> Path:
    """Write a GIF that shows the pictures in order and fades each into the next; return its path."""
    frames = []
    for a, b in zip(pictures, pictures[1:]):
        frames += [a] * 4 + [Image.blend(a, b, k / 6) for k in range(1, 6)]
    frames += [pictures[-1]] * 10
    with written_whole(path) as part:
        frames[0].save(part, format="GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)
    return path
