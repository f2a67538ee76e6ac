"""Masks, white where the face is repainted: from a file, a box, landmarks or the face finder; and as tensors."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from ..doors.errors import InputError
from ..doors.pictures import open_image
from .faces import Face, FaceNetworks

# Parts of a face: centre and half size, across and down the face, in units of half the face's size
ZONES = {"eyes": ((0.0, -0.27), (0.85, 0.16)), "mouth": ((0.0, 0.38), (0.5, 0.17)), "hairline": ((0.0, -0.85), (1.0, 0.3))}
BLACK = 8  # of 255: lower values are artefacts of JPEG, and count as 0


@dataclass(frozen=True)
class Outline:
    """How a mask is drawn around landmarks: it grows by `growth` and fades over `feather`, both in heights of the face.

    `zones` has factors for the mask in parts of the face; ZONES has the names of the parts.
    """

    growth: float = 0.0
    feather: float = 0.0
    zones: Mapping[str, float] = field(default_factory=dict)


SOFT = Outline(feather=0.04)  # of faces that are found, so that no seam shows


def open_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """Return the mask in a file as L: white where the face is repainted, grey where it is in fewer steps, black where transparent.

    Raises InputError if it does not have `size` (width, height) as displayed, or is all black.
    """
    mask = open_image(path, background="black").convert("L")
    if mask.size != size:
        width, height = mask.size
        raise InputError(f"{path}: the mask is {width}x{height}, the photograph {size[0]}x{size[1]}; make them equal")
    if (brightest := int(np.asarray(mask).max())) < BLACK:
        raise InputError(f"{path}: the mask is black (brightest value {brightest}); paint the face white")
    return without_ringing(mask)


def without_ringing(mask: Image.Image) -> Image.Image:
    """Return the mask with values below BLACK set to 0."""
    return mask.point(lambda value: value * (value >= BLACK))


def mask_from_box(text: str, size: tuple[int, int]) -> Image.Image:
    """Return the rectangle "x0,y0,x1,y1" in pixels, x1 and y1 excluded. Raises InputError unless it lies within the picture."""
    try:
        x0, y0, x1, y1 = (int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--mask {text}: no such file, nor a box x0,y0,x1,y1; give auto, a picture or a box") from None
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise InputError(f"--mask {text}: is not a box x0,y0,x1,y1 within the photograph, which is {size[0]}x{size[1]}")
    mask = Image.new("L", size, 0)
    mask.paste(255, (x0, y0, x1, y1))
    return mask


def read_masks(
    mask: str, image: Image.Image, face_models: str | Path | None = None, face: int | str | None = None, outline: Outline = SOFT
) -> list[Image.Image]:
    """Return the masks of `mask`: "auto" finds faces; the path of a picture or a box x0,y0,x1,y1 gives one mask.

    For "auto", `face` is a number (1 is the largest face), "all", or None if there is only one.
    """
    if mask != "auto":
        return [open_mask(mask, image.size) if os.path.lexists(mask) else mask_from_box(mask, image.size)]
    try:
        networks = FaceNetworks(face_models)
    except InputError as error:
        raise InputError(f"{error}; or give --mask a picture or a box x0,y0,x1,y1") from None
    return [mask_from_landmarks(found.landmarks, image.size, outline) for found in choose_faces(networks.find(image), face)]


def choose_faces(faces: list[Face], chosen: int | str | None) -> list[Face]:
    """Return the faces that `face` of read_masks() selects. Raises InputError, with a list of the faces, if there are none."""
    if not faces:
        raise InputError("--mask auto: no face is found in the photograph; give a mask as a picture or as x0,y0,x1,y1")
    if isinstance(chosen, str):  # all
        return faces
    boxes = "; ".join("{}: {:.0f}x{:.0f} at {:.0f},{:.0f}".format(i, *f.box[2:], *f.box[:2]) for i, f in enumerate(faces, 1))
    if chosen is None and len(faces) > 1:
        raise InputError(f"--mask auto: {len(faces)} faces are found ({boxes}); choose one with infer.py's --face")
    number = 1 if chosen is None else chosen
    if not 1 <= number <= len(faces):
        raise InputError(f"--face {number}: the photograph has {len(faces)} ({boxes}); choose one of them")
    return [faces[number - 1]]


def mask_from_landmarks(landmarks: np.ndarray, size: tuple[int, int], outline: Outline = Outline()) -> Image.Image:
    """Return the mask (L, of `size`) of a face with landmarks (N, 2): their hull, extended over the forehead and the jaw.

    The extension follows the proportions of a face and its tilt. N is as for face_frame().
    """
    middle, axes, half = face_frame(landmarks)
    height, turn = 2 * half[1], np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], -1)
    border = np.concatenate([landmarks, middle + half * circle @ axes])
    away = border - middle
    further = outline.growth * height + 1  # one pixel more, so that the mask includes the landmarks' own pixels
    border = border + further * away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-6)
    mask = filled(hull(border), size, outline.feather * height / 2)
    values: np.ndarray = np.asarray(mask, dtype=np.float32)
    for name, factor in outline.zones.items():
        place, extent = (np.array(pair) for pair in ZONES[name])
        zone = filled(middle + half * (place + extent * circle) @ axes, size, 0.03 * height)
        values = values * (1 + (factor - 1) * np.asarray(zone, dtype=np.float32) / 255)
    return without_ringing(Image.fromarray(values.clip(0, 255).round().astype(np.uint8)))


def filled(corners: np.ndarray, size: tuple[int, int], blur: float) -> Image.Image:
    """Return a polygon of corners (N, 2), white on black, blurred by a Gaussian of `blur` pixels."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    return mask.filter(ImageFilter.GaussianBlur(float(blur)))


def face_frame(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a face's centre (2,), its directions across and down (2, 2) and half its size (2,) from landmarks (N, 2).

    N is 5 (eyes, nose, corners of the mouth) or 49 (All-Age-Faces: brows, nose, eyes, mouth). The size follows the proportions
    of a face. Raises ValueError for another N, and if the eyes and the mouth are less than a pixel apart.
    """
    if landmarks.shape not in ((5, 2), (49, 2)):
        raise ValueError(f"landmarks are {' x '.join(map(str, landmarks.shape))} numbers, not 5 or 49 x 2")
    five = len(landmarks) == 5
    eyes = landmarks[:2].mean(0) if five else landmarks[19:31].mean(0)
    mouth = landmarks[3:].mean(0) if five else landmarks[31:].mean(0)
    unit = np.linalg.norm(mouth - eyes)
    if not 1 <= unit < np.inf:
        raise ValueError("the landmarks of eyes and mouth coincide")
    down = (mouth - eyes) / unit
    axes = np.stack([[down[1], -down[0]], down])
    if five:  # factors are means over 290 faces of All-Age-Faces, fitted to the frames from their 49 landmarks
        apart = np.linalg.norm(landmarks[1] - landmarks[0])
        return eyes + 0.41 * unit * down, axes, np.array([max(1.16 * apart, 0.95 * unit), 1.53 * unit])
    places = (landmarks - eyes) @ axes.T
    low, high = places.min(0), places.max(0)
    return eyes + (low + high) / 2 @ axes, axes, np.array([0.66, 0.92]) * (high - low)


def hull(points: np.ndarray) -> np.ndarray:
    """Return the corners (M, 2) of the convex hull of points (N, 2), in order: the farthest point in each of 4,096 directions."""
    turn = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
    farthest = (points @ np.stack([np.cos(turn), np.sin(turn)])).argmax(0)
    return points[farthest[np.diff(farthest, prepend=-1) != 0]]


def mask_to_tensor(mask: Image.Image) -> Tensor:
    """Return an L picture as a mask (1, 1, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)[None, None]
