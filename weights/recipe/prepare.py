"""Stage 1: crops of All-Age-Faces for training the small model, one .npz of 96-px squares.

    python weights/recipe/prepare.py "All-Age-Faces Dataset" --output faces.npz

Faces whose serial number ends in 9 are left out of --split train: that tenth is only ever measured on.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lida.data.aaf import read_faces, read_landmarks


def squares(image: Image.Image, landmarks: np.ndarray, count: int, rng: np.random.Generator) -> list[tuple]:
    """`count` squares within the image: the whole width, then ever tighter about the landmarks, jittered."""
    width, height = image.size
    side = min(width, height)
    boxes = [((width - side) / 2, (height - side) / 2, side)]
    centre = (landmarks.min(0) + landmarks.max(0)) / 2
    for low, high in zip(np.linspace(0.70, 1.0, count)[:-1], np.linspace(0.70, 1.0, count)[1:]):
        s = side * rng.uniform(low, high)
        x, y = centre - s / 2 + rng.uniform(-0.03, 0.03, 2) * s
        boxes.append((float(np.clip(x, 0, width - s)), float(np.clip(y, 0, height - s)), s))
    return boxes[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aaf", type=Path, help="the dataset's folder, as downloaded")
    parser.add_argument("--output", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--split", choices=("train", "held_out"), default="train", help="which faces (default: train)")
    parser.add_argument("--resolution", type=int, default=96, help="side of the squares in pixels (default: 96)")
    parser.add_argument("--crops", type=int, default=4, help="squares a face (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter (default: 0)")
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    faces = read_faces(args.aaf, args.split)
    size = args.resolution
    pixels = np.empty((len(faces), args.crops, size, size, 3), dtype=np.uint8)
    for row, face in enumerate(tqdm(faces, unit="face")):
        with Image.open(face.path) as image:
            image = image.convert("RGB")
        for crop, (x, y, side) in enumerate(squares(image, read_landmarks(args.aaf, face), args.crops, rng)):
            square = image.resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side), reducing_gap=3)
            pixels[row, crop] = np.asarray(square)
    np.savez(
        args.output,
        pixels=pixels,
        ages=np.array([face.age for face in faces]),
        men=np.array([face.man for face in faces]),
        serials=np.array([face.serial for face in faces]),
    )


if __name__ == "__main__":
    main()
