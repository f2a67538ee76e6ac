"""Masks, white where the face is repainted: from a file, from landmarks, and on their way to the latents' grid."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .errors import InputError
from .images import open_image


def open_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """A mask of `size` (width, height), L, white where the face is repainted; InputError for another size or no white."""
    mask = open_image(path).convert("L")
    if mask.size != size:
        width, height = mask.size
        raise InputError(f"{path}: the mask is {width}x{height}, the photograph {size[0]}x{size[1]}; make them equal")
    if mask.getextrema()[1] < 128:
        raise InputError(f"{path}: the mask has no white (brightest value {mask.getextrema()[1]}); paint the face white")
    return mask


def mask_from_landmarks(landmarks: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An ellipse over the face for landmarks (N, 2) that reach from the brows to the mouth, in a picture of `size`.

    It goes on from them to the forehead and the chin by the proportions of a face, and turns with its eyes.
    All-Age-Faces' 49 landmarks are such; of the 68 of other datasets, take the last 51.
    """
    eyes, mouth = landmarks[19:31].mean(0), landmarks[31:49].mean(0)
    down = (mouth - eyes) / np.linalg.norm(mouth - eyes)
    axes = np.stack([[down[1], -down[0]], down])  # across the face and down it
    across, along = axes @ (landmarks - eyes).T
    brow, lip = along.min(), along.max()
    middle = eyes + np.array([(across.min() + across.max()) / 2, brow + 0.5 * (lip - brow)]) @ axes
    half = np.array([0.66 * (across.max() - across.min()), 0.92 * (lip - brow)])
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    outline = middle + (half * np.stack([np.cos(turn), np.sin(turn)], -1)) @ axes
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in outline.tolist()], fill=255)
    return mask


def mask_to_tensor(mask: Image.Image) -> Tensor:
    """L -> mask (1, 1, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)[None, None]


def mask_to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A pixel mask (B, 1, H, W) at the latents' size (B, 1, h, w): 1 where any pixel of the cell is to be repainted.

    Sampling one pixel a cell, as diffusers does, loses small masks; the maximum never does.
    """
    return F.adaptive_max_pool2d((mask >= 0.5).to(mask.dtype), size)
