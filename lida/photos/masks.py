"""Masks, white where the face is repainted: from a file, a box, landmarks or the face finder; and at the latents' size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from ..doors.errors import InputError
from ..doors.files import regular_file
from ..doors.pictures import open_image

if TYPE_CHECKING:
    from .faces import Face

# Parts of a face: centre and half size, across and down the face, in units of half the face's size
ZONES = {"eyes": ((0.0, -0.27), (0.85, 0.16)), "mouth": ((0.0, 0.38), (0.5, 0.17)), "hairline": ((0.0, -0.85), (1.0, 0.3))}
BLACK = 8  # of 255: darker values are the ringing of JPEG, and count as 0
LONGEST = 100_000  # bytes of a file of landmarks


@dataclass(frozen=True)
class Outline:
    """How a mask is drawn about landmarks: it grows by `growth` and fades over `feather`, both in heights of the face.

    The parts of the face in `zones`, by their names in ZONES, are multiplied by their numbers.
    """

    growth: float = 0.0
    feather: float = 0.0
    zones: Mapping[str, float] = field(default_factory=dict)


def open_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """Return the mask in a file as L: white where the face is repainted, grey where less of it is, black where transparent.

    Raises InputError unless it has `size` (width, height) as displayed, and where all of it is black.
    """
    mask = open_image(path, background="black").convert("L")
    if mask.size != size:
        width, height = mask.size
        raise InputError(f"{path}: the mask is {width}x{height}, the photograph {size[0]}x{size[1]}; make them equal")
    if mask.getextrema()[1] < BLACK:
        raise InputError(f"{path}: the mask is black (brightest value {mask.getextrema()[1]}); paint the face white")
    return without_ringing(mask)


def without_ringing(mask: Image.Image) -> Image.Image:
    """Return the mask with its almost black values made black."""
    return mask.point(lambda value: value * (value >= BLACK))


def mask_from_box(text: str, size: tuple[int, int]) -> Image.Image:
    """Return the rectangle "x0,y0,x1,y1" in pixels, x1 and y1 excluded; raises InputError unless the picture holds it."""
    try:
        x0, y0, x1, y1 = (int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--mask {text}: no such file, nor a box x0,y0,x1,y1; give auto, a picture or a box") from None
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise InputError(f"--mask {text}: is no box x0,y0,x1,y1 within the photograph, which is {size[0]}x{size[1]}")
    mask = Image.new("L", size, 0)
    mask.paste(255, (x0, y0, x1, y1))
    return mask


def read_masks(
    mask: str,
    image: Image.Image,
    face_models: str | Path | None = None,
    face: int | str | None = None,
    outline: Outline = Outline(),
) -> list[Image.Image]:
    """Return the masks that the user asks for: "auto" finds faces; the path of a picture or a box x0,y0,x1,y1 is one mask.

    For "auto", `face` is a number (1 is the largest face), "all", or None where there is only one.
    """
    if mask != "auto":
        return [open_mask(mask, image.size) if os.path.lexists(mask) else mask_from_box(mask, image.size)]
    from .faces import FaceNetworks  # masks from files need no face finder

    try:
        networks = FaceNetworks(face_models)
    except InputError as error:
        raise InputError(f"{error}; or give --mask a picture or a box x0,y0,x1,y1") from None
    found = networks.find(image)
    chosen = found if face == "all" and found else [choose_face(found, None if face == "all" else face)]
    return [mask_from_landmarks(face.landmarks, image.size, outline) for face in chosen]


def read_mask(
    mask: str, image: Image.Image, face_models: str | Path | None = None, face: int | None = None
) -> Image.Image:
    """Return the one mask of a photograph, as read_masks() does."""
    return read_masks(mask, image, face_models, face)[0]


def choose_face(faces: list[Face], number: int | None) -> Face:
    """Return the only face, or the one of that number; raises InputError, listing the faces, where that is none."""
    if not faces:
        raise InputError("--mask auto: no face is found in the photograph; give a mask as a picture or as x0,y0,x1,y1")
    boxes = [f"{i}: {w:.0f}x{h:.0f} at {x:.0f},{y:.0f}" for i, (x, y, w, h) in enumerate((face.box for face in faces), 1)]
    if number is None and len(faces) > 1:
        raise InputError(f"--mask auto: {len(faces)} faces are found ({'; '.join(boxes)}); choose one with --face")
    if number is not None and not 1 <= number <= len(faces):
        raise InputError(f"--face {number}: the photograph has {len(faces)} ({'; '.join(boxes)}); choose one of them")
    return faces[(number or 1) - 1]


def read_landmarks(path: str | Path, count: int | None = None) -> np.ndarray:
    """Return the landmarks (N, 2) in a text file, x and y in pixels a line.

    Raises InputError unless they are `count`, by default 5, 49 or 68, and those of a face.
    """
    try:
        if regular_file(path, "file of landmarks").stat().st_size > LONGEST:
            raise ValueError("the file is too long")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        landmarks = np.array([[float(x) for x in line.split()] for line in lines if line.strip()], ndmin=2)
        face_frame(landmarks)
        if not np.abs(landmarks).max() < 1e5:
            raise ValueError("a number is no place in a picture")
        if len(landmarks) != (count or len(landmarks)):
            raise ValueError(f"they are {len(landmarks)}, not {count}")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as landmarks ({error}); write x and y in pixels a line") from None
    return landmarks


def mask_from_landmarks(landmarks: np.ndarray, size: tuple[int, int], outline: Outline = Outline()) -> Image.Image:
    """Return the mask (L, of `size`) of the face of landmarks (N, 2): their hull, extended over the forehead and the jaw.

    N is 5 (eyes, nose, corners of the mouth), 49 (All-Age-Faces: brows, nose, eyes, mouth) or 68 (a jaw before these).
    What lies beyond the landmarks follows the proportions of a face and its tilt.
    """
    middle, axes, half = face_frame(landmarks)
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    border = np.concatenate([landmarks, middle + half * np.stack([np.cos(turn), np.sin(turn)], -1) @ axes])
    away, height = border - middle, 2 * half[1]
    further = outline.growth * height + 1  # a pixel more, to hold the pixels of the landmarks themselves
    border = border + further * away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-6)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon(hull(border), fill=255)
    if outline.feather:
        mask = mask.filter(ImageFilter.GaussianBlur(float(outline.feather * height / 2)))
    values = np.asarray(mask, dtype=np.float32)
    for name, factor in outline.zones.items():
        place, extent = (np.array(pair) for pair in ZONES[name])
        ellipse = middle + half * (place + extent * np.stack([np.cos(turn), np.sin(turn)], -1)) @ axes
        zone = Image.new("L", size, 0)
        ImageDraw.Draw(zone).polygon([tuple(point) for point in ellipse.tolist()], fill=255)
        inside = np.asarray(zone.filter(ImageFilter.GaussianBlur(float(0.03 * height))), dtype=np.float32) / 255
        values = values * (1 + (factor - 1) * inside)
    return without_ringing(Image.fromarray(values.clip(0, 255).round().astype(np.uint8)))


def face_frame(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a face's centre (2,), its directions across and down (2, 2) and half its size (2,) from landmarks (N, 2).

    The size follows the proportions of a face, from the brows to the mouth or from the eyes and the mouth. Raises ValueError
    for another N than mask_from_landmarks() takes, and where the eyes and the mouth are less than a pixel apart.
    """
    parts = {5: (slice(0, 2), slice(3, 5)), 49: (slice(19, 31), slice(31, 49)), 68: (slice(36, 48), slice(48, 68))}
    if landmarks.shape not in [(count, 2) for count in parts]:
        raise ValueError(f"landmarks are {' x '.join(map(str, landmarks.shape))} numbers, not 5, 49 or 68 x 2")
    eyes, mouth = (landmarks[part].mean(0) for part in parts[len(landmarks)])
    unit = np.linalg.norm(mouth - eyes)
    if not 1 <= unit < np.inf:
        raise ValueError("the landmarks' eyes and mouth are in one place")
    down = (mouth - eyes) / unit
    axes = np.stack([[down[1], -down[0]], down])
    if len(landmarks) == 5:  # the means, over 290 faces of All-Age-Faces, of what their 49 landmarks give
        apart = np.linalg.norm(landmarks[1] - landmarks[0])
        return eyes + 0.41 * unit * down, axes, np.array([max(1.16 * apart, 0.95 * unit), 1.53 * unit])
    inner = (landmarks[-51:] - eyes) @ axes.T  # without the jaw
    low, high = inner.min(0), inner.max(0)
    return eyes + (low + high) / 2 @ axes, axes, np.array([0.66, 0.92]) * (high - low)


def hull(points: np.ndarray) -> list[tuple[float, float]]:
    """Return the corners of the convex hull of points (N, 2), in order, by Andrew's monotone chain."""
    ordered, corners = sorted(map(tuple, points.tolist())), []
    for way in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in way:
            while len(chain) > 1:
                (x0, y0), (x1, y1) = chain[-2:]
                if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):  # a left turn
                    break
                chain.pop()
            chain.append((x, y))
        corners += chain[:-1]
    return corners


def mask_to_tensor(mask: Image.Image) -> Tensor:
    """Return an L picture as a mask (1, 1, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)[None, None]


def mask_to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a pixel mask (B, 1, H, W) at the latents' size (B, 1, h, w): each cell is as white as its whitest pixel.

    diffusers takes a cell's first pixel instead, which loses small masks.
    """
    return F.adaptive_max_pool2d(mask, size)
