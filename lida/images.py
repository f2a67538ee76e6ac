"""Pictures: PIL <-> tensors, cutting a square out and pasting it back, contact sheets, settings inside a PNG."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import InputError

Box = tuple[int, int, int]  # left, top, side of a square in pixels; it may reach beyond the picture


def open_image(path: str | Path) -> Image.Image:
    """A photograph, upright and RGB; raises InputError where there is none."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a photograph") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not an image that Pillow can read ({error}); save it as PNG or JPEG") from None


def to_tensor(image: Image.Image) -> Tensor:
    """RGB -> pixel_values (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def to_images(pixel_values: Tensor) -> list[Image.Image]:
    """pixel_values (B, 3, H, W) in [-1, 1], clamped -> RGB pictures."""
    pixels = (pixel_values.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray((p * 255).round().astype(np.uint8)) for p in pixels]


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The picture's largest centred square at size x size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return cut(image, (left, top, side), size)


def square_about(mask: Image.Image, context: float) -> Box:
    """The square about the white of a mask, `context` times as long as its longer side, within the picture if it fits."""
    left, top, right, bottom = mask.getbbox()
    side = round(context * max(right - left, bottom - top))
    side = max(min(side, *mask.size), right - left, bottom - top)  # never beyond the picture but to hold the mask

    def start(low: int, high: int, length: int) -> int:
        middle = round((low + high - side) / 2)
        return min(max(middle, 0), length - side) if side <= length else middle

    return start(left, right, mask.width), start(top, bottom, mask.height), side


def cut(image: Image.Image, box: Box, size: int) -> Image.Image:
    """The square of the picture at size x size; beyond its border the nearest pixel goes on."""
    left, top, side = box
    pads = [(max(-top, 0), max(top + side - image.height, 0)), (max(-left, 0), max(left + side - image.width, 0))]
    if np.any(pads):
        pixels = np.asarray(image)
        image = Image.fromarray(np.pad(pixels, pads + [(0, 0)] * (pixels.ndim - 2), mode="edge"))
        left, top = left + pads[1][0], top + pads[0][0]
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def paste(image: Image.Image, patch: Image.Image, box: Box, mask: Image.Image, feather: float = 0.02) -> Image.Image:
    """The picture with `patch` at the square, mixed in by the mask; where that is 0 every pixel stays as it was.

    The seam lies inside the mask: over `feather` times the square's side the patch fades in from the mask's border.
    """
    left, top, side = box
    layer = image.copy()
    layer.paste(patch.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return Image.composite(layer, image, fade_inwards(mask, feather * side))


def fade_inwards(mask: Image.Image, radius: float) -> Image.Image:
    """The mask, fading from its border inwards over about `radius` pixels, or over fewer where it is too thin for that."""
    painted, values = mask.point(lambda value: 255 * (value > 0)), np.asarray(mask, dtype=np.float32)
    while radius >= 0.5:
        # A blurred edge is 1/2 on the edge itself: the upper half of the ramp begins there and goes inwards.
        blurred = np.asarray(painted.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
        faded = np.minimum(values, 255 * np.clip(2 * blurred - 1, 0, 1))
        if faded.sum() >= 0.5 * values.sum():
            return Image.fromarray(faded.round().astype(np.uint8))
        radius /= 2
    return mask


def sheet(images: Sequence[Image.Image], labels: Sequence[str], height: int = 320) -> Image.Image:
    """The pictures in a row at one height, each over its label."""
    font = ImageFont.load_default(size=20)
    scaled = [i.resize((round(i.width * height / i.height), height), Image.Resampling.BICUBIC) for i in images]
    gap, strip = 8, 34
    row = Image.new("RGB", (sum(i.width + gap for i in scaled) + gap, height + gap + strip), "white")
    draw, x = ImageDraw.Draw(row), gap
    for image, label in zip(scaled, labels, strict=True):
        row.paste(image, (x, gap))
        draw.text((x + image.width / 2, gap + height + strip / 2), label, fill="black", font=font, anchor="mm")
        x += image.width + gap
    return row


def save_png(image: Image.Image, path: str | Path, settings: dict) -> None:
    """Write a PNG whole or not at all, with `settings` as JSON under the key "lida" and in a .json file beside it."""
    path, text = Path(path), json.dumps(settings, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt("lida", text)
    part = path.with_suffix(".part")
    image.save(part, format="PNG", pnginfo=info)
    os.replace(part, path)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
