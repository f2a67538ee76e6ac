"""Masks, white where the face is repainted: from a file, a box, landmarks or a face finder; and on the latents' grid."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from ..doors.errors import InputError
from ..doors.pictures import open_image
from .faces import Face, FaceNetworks

# Places in a face, by their middle and half their size, across and down it, in halves of the face from its middle
ZONES = {"eyes": ((0.0, -0.27), (0.85, 0.16)), "mouth": ((0.0, 0.38), (0.5, 0.17)), "hairline": ((0.0, -0.85), (1.0, 0.3))}
BLACK = 8  # of 255: values below it are the ringing of JPEG, and count as 0


def open_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """A mask of `size` (width, height) as displayed, L, white where the face is repainted, grey where less of it is.

    Where the file is transparent it is black. Raises InputError for another size, and where all is black.
    """
    mask = open_image(path, background="black").convert("L")
    if mask.size != size:
        width, height = mask.size
        raise InputError(f"{path}: the mask is {width}x{height}, the photograph {size[0]}x{size[1]}; make them equal")
    if mask.getextrema()[1] < BLACK:
        raise InputError(f"{path}: the mask is black (brightest value {mask.getextrema()[1]}); paint the face white")
    return without_ringing(mask)


def without_ringing(mask: Image.Image) -> Image.Image:
    """The mask with its almost black made black."""
    return mask.point(lambda value: value * (value >= BLACK))


def mask_from_box(text: str, size: tuple[int, int]) -> Image.Image:
    """The rectangle "x0,y0,x1,y1" in pixels, the last two just outside of it; InputError unless the picture holds it."""
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
    growth: float = 0.0,
    feather: float = 0.0,
    zones: Mapping[str, float] | None = None,
) -> list[Image.Image]:
    """Return the masks of a photograph: "auto" finds the face of that number, the only one, or "all"; else one mask.

    `mask` is "auto", a picture's path, or a box x0,y0,x1,y1.
    """
    if mask != "auto":
        return [open_mask(mask, image.size) if Path(mask).exists() else mask_from_box(mask, image.size)]
    try:
        networks = FaceNetworks(face_models)
    except InputError as error:
        raise InputError(f"{error}; or give --mask a picture or a box x0,y0,x1,y1") from None
    found = networks.find(image)
    faces = found if face == "all" and found else [choose_face(found, None if face == "all" else face)]
    return [mask_from_landmarks(face.landmarks, image.size, growth, feather, zones) for face in faces]


def read_mask(mask: str, image: Image.Image, face_models: str | Path | None = None) -> Image.Image:
    """Return the one mask of a photograph, as read_masks does."""
    return read_masks(mask, image, face_models)[0]


def choose_face(faces: list[Face], number: int | None) -> Face:
    """The only face, or the one of that number; raises InputError, listing the faces, where that is none."""
    if not faces:
        raise InputError("--mask auto: no face is found in the photograph; give a mask as a picture or as x0,y0,x1,y1")
    boxes = [f"{i}: {w:.0f}x{h:.0f} at {x:.0f},{y:.0f}" for i, (x, y, w, h) in enumerate((face.box for face in faces), 1)]
    if number is None and len(faces) > 1:
        raise InputError(f"--mask auto: {len(faces)} faces are found ({'; '.join(boxes)}); choose one with --face")
    if number is not None and not 1 <= number <= len(faces):
        raise InputError(f"--face {number}: the photograph has {len(faces)} ({'; '.join(boxes)}); choose one of them")
    return faces[(number or 1) - 1]


def mask_from_landmarks(
    landmarks: np.ndarray,
    size: tuple[int, int],
    growth: float = 0.0,
    feather: float = 0.0,
    zones: Mapping[str, float] | None = None,
) -> Image.Image:
    """The face that landmarks (N, 2) lie in, in a picture of `size`: their hull, extended over the forehead and to the jaw.

    N is 5 (eyes, nose, corners of the mouth), 49 (All-Age-Faces: brows, nose, eyes, mouth) or 68 (those after the jaw).
    What lies beyond the landmarks is drawn by the proportions of a face, and turns with its eyes. The outline grows by
    `growth` and fades over `feather`, both in heights of the face. `zones` (of ZONES) are multiplied by their numbers.
    """
    middle, axes, half = face_frame(landmarks)
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    outline = np.concatenate([landmarks, middle + half * np.stack([np.cos(turn), np.sin(turn)], -1) @ axes])
    away, height = outline - middle, 2 * half[1]
    further = growth * height + 1  # a pixel more, to hold the pixels of the landmarks themselves
    outline = outline + further * away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-6)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon(hull(outline), fill=255)
    if feather:
        mask = mask.filter(ImageFilter.GaussianBlur(float(feather * height / 2)))
    values = np.asarray(mask, dtype=np.float32)
    for name, factor in (zones or {}).items():
        place, extent = (np.array(pair) for pair in ZONES[name])
        ellipse = middle + half * (place + extent * np.stack([np.cos(turn), np.sin(turn)], -1)) @ axes
        zone = Image.new("L", size, 0)
        ImageDraw.Draw(zone).polygon([tuple(point) for point in ellipse.tolist()], fill=255)
        inside = np.asarray(zone.filter(ImageFilter.GaussianBlur(float(0.03 * height))), dtype=np.float32) / 255
        values = values * (1 + (factor - 1) * inside)
    return without_ringing(Image.fromarray(values.clip(0, 255).round().astype(np.uint8)))


def shrunk(mask: Image.Image, share: float) -> Image.Image:
    """The mask made smaller, to a share of its width and height, about the middle of its white."""
    left, top, right, bottom = mask.getbbox()
    width, height = max(1, round(share * (right - left))), max(1, round(share * (bottom - top)))
    inner = Image.new("L", mask.size, 0)
    small = mask.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.BILINEAR)
    inner.paste(small, ((left + right - width) // 2, (top + bottom - height) // 2))
    return inner


def face_frame(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the face of landmarks (N, 2) lies: its middle (2,), the directions across and down it (2, 2), half its size (2,).

    By the proportions of a face, from the brows to the mouth or from eyes and mouth. Raises ValueError for another number of
    landmarks than mask_from_landmarks knows, and where eyes and mouth are in one place.
    """
    parts = {5: (slice(0, 2), slice(3, 5)), 49: (slice(19, 31), slice(31, 49)), 68: (slice(36, 48), slice(48, 68))}
    if landmarks.shape not in [(count, 2) for count in parts]:
        raise ValueError(f"landmarks are {' x '.join(map(str, landmarks.shape))} numbers, not 5, 49 or 68 x 2")
    eyes, mouth = (landmarks[part].mean(0) for part in parts[len(landmarks)])
    unit = np.linalg.norm(mouth - eyes)
    if not unit > 0:
        raise ValueError("the landmarks' eyes and mouth are in one place")
    down = (mouth - eyes) / unit
    axes = np.stack([[down[1], -down[0]], down])
    if len(landmarks) == 5:  # of 290 faces of All-Age-Faces, what the 49 landmarks of the same face give in the middle
        apart = np.linalg.norm(landmarks[1] - landmarks[0])
        return eyes + 0.41 * unit * down, axes, np.array([max(1.16 * apart, 0.95 * unit), 1.53 * unit])
    inner = (landmarks[-51:] - eyes) @ axes.T  # without the jaw
    low, high = inner.min(0), inner.max(0)
    return eyes + (low + high) / 2 @ axes, axes, np.array([0.66, 0.92]) * (high - low)


def hull(points: np.ndarray) -> list[tuple[float, float]]:
    """The corners of the convex hull of points (N, 2), in order, by Andrew's monotone chain."""
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
    """L -> mask (1, 1, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)[None, None]


def mask_to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a pixel mask (B, 1, H, W) to the latents' size (B, 1, h, w): a cell is as white as the whitest of its pixels."""
    return F.adaptive_max_pool2d(mask, size)
