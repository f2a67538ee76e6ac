"""Stage 1: squares around the faces of All-Age-Faces and UTKFace, as infer.py cuts them, for training the small model.

    python weights/recipe/prepare.py "All-Age-Faces Dataset" UTKFace --output_dir squares

Each folder is one of the two datasets; its layout tells which. Faces whose serial number (All-Age-Faces) or time stamp (UTKFace)
ends in 9 are left out of --split train: that tenth is only ever measured on. `pixels.npy` gets (faces, crops, size, size, 3)
bytes, `points.npy` the five landmarks of each square in its pixels, `faces.npz` ages, genders, sources and names.

A face is dropped where YuNet finds none with a score of --least_score, and where the picture is blurred (enlarged from few
pixels, or out of focus), by `sharpness`: below 0.12 lie a tenth of UTKFace's faces and a hundredth of All-Age-Faces'.
"""

import argparse
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lida.data.aaf import read_faces
from lida.photos.faces import FaceNetworks
from lida.photos.masks import mask_from_landmarks

UTKFACE = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)\.\w+")
AAF, UTK = 0, 1  # sources
CONTEXT = (0.9, 1.3)  # sides of the squares, in longer sides of the mask: infer.py's own lies between


@dataclass(frozen=True)
class Photo:
    """One photograph of a dataset. `race` is UTKFace's number, -1 in All-Age-Faces."""

    path: Path
    source: int
    age: int
    man: bool
    race: int
    held_out: bool


def read_photos(folder: Path, split: str) -> list[Photo]:
    """Return the photographs of a split ("train" or "held_out") of either dataset, in the order of their names."""
    if (folder / "original images").is_dir():
        faces = read_faces(folder, split)
        return [Photo(face.path, AAF, face.age, face.man, -1, face.held_out) for face in faces]
    photos = []
    for path in sorted(folder.iterdir()):
        if match := UTKFACE.fullmatch(path.name):
            age, woman, race, time = (int(group) for group in match.groups())
            photos.append(Photo(path, UTK, age, not woman, race, time % 10 == 9))
    return [photo for photo in photos if photo.held_out == (split == "held_out")]


def sharpness(square: Image.Image) -> float:
    """Return the spread of a picture's Laplacian relative to its contrast: about 0.2 to 0.4 for faces, less for blurred ones."""
    x = np.asarray(square.convert("L"), dtype=np.float32)[8:-8, 8:-8]
    laplacian = 4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    return float(laplacian.std() / max(x.std(), 1.0))


def boxes(landmarks: np.ndarray, size: tuple[int, int], count: int, rng: np.random.Generator) -> list[tuple]:
    """Return `count` squares (left, top, side) around the face's mask, of sides between the CONTEXTs, within the picture."""
    left, top, right, bottom = mask_from_landmarks(landmarks, size).getbbox()
    middle, longer = np.array([left + right, top + bottom]) / 2, max(right - left, bottom - top)
    contexts = np.linspace(*CONTEXT, count + 1)
    chosen = []
    for low, high in zip(contexts[:-1], contexts[1:]):
        side = min(longer * rng.uniform(low, high), min(size) * rng.uniform(0.88, 1.0))
        x, y = (middle - side / 2 + rng.uniform(-0.04, 0.04, 2) * side).clip(0, np.array(size) - side)
        chosen.append((float(x), float(y), float(side)))
    return chosen


def squares_of(job: tuple) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Return pixels (crops, size, size, 3), landmarks (crops, 5, 2) and sharpness of a photograph; None without a face."""
    photo, number, args = job
    with Image.open(photo.path) as image:
        image = image.convert("RGB")
    faces = networks().find(image)
    if not faces or faces[0].score < args.least_score:
        return None
    rng, landmarks, size = np.random.default_rng((args.seed, number)), faces[0].landmarks, args.resolution
    pixels, points = [], []
    for x, y, side in boxes(landmarks, image.size, args.crops, rng):
        square = image.resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side))
        pixels.append(np.asarray(square))
        points.append((landmarks - (x, y)) * size / side)
    return np.stack(pixels), np.stack(points), sharpness(Image.fromarray(pixels[len(pixels) // 2]))


def networks() -> FaceNetworks:
    """Return this process's networks."""
    if not hasattr(networks, "kept"):
        import cv2

        cv2.setNumThreads(1)
        networks.kept = FaceNetworks()
    return networks.kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", help="datasets as downloaded: All-Age-Faces, UTKFace, or both")
    add("--output_dir", type=Path, required=True, help="gets pixels.npy, points.npy and faces.npz")
    add("--split", choices=("train", "held_out"), default="train", help="which faces (default: train)")
    add("--resolution", type=int, default=128, help="side of the squares in pixels (default: 128)")
    add("--crops", type=int, default=8, help="squares a face (default: 8)")
    add("--least_score", type=float, default=0.85, help="of YuNet (default: 0.85)")
    add("--least_sharpness", type=float, default=0.12, help="0 keeps all (default: 0.12)")
    add("--limit", type=int, help="only so many photographs a folder, evenly spread (default: all)")
    add("--seed", type=int, default=0, help="of the squares' places (default: 0)")
    args = parser.parse_args()

    photos = []
    for folder in args.folders:
        found = read_photos(folder, args.split)
        photos += found[:: max(1, len(found) // args.limit)] if args.limit else found
    args.output_dir.mkdir(parents=True, exist_ok=True)
    part = args.output_dir / "pixels.part"
    side, kept, points, sharp = args.resolution, [], [], []
    with ProcessPoolExecutor() as pool, open(part, "wb") as file:
        jobs = [(photo, number, args) for number, photo in enumerate(photos)]
        for photo, result in zip(photos, tqdm(pool.map(squares_of, jobs, chunksize=16), total=len(jobs), unit="face")):
            if result is None or result[2] < args.least_sharpness:
                continue
            file.write(result[0].tobytes())
            points.append(result[1])
            sharp.append(result[2])
            kept.append(photo)
    raw = np.memmap(part, np.uint8, "r", shape=(len(kept), args.crops, side, side, 3))
    np.save(args.output_dir / "pixels.npy", raw)
    part.unlink()
    np.save(args.output_dir / "points.npy", np.stack(points).astype(np.float32))
    np.savez(
        args.output_dir / "faces.npz",
        ages=np.array([photo.age for photo in kept]),
        men=np.array([photo.man for photo in kept]),
        races=np.array([photo.race for photo in kept]),
        sources=np.array([photo.source for photo in kept]),
        sharpness=np.array(sharp),
        names=np.array([photo.path.name for photo in kept]),
    )
    print(f"{len(kept)} of {len(photos)} faces kept")


if __name__ == "__main__":
    main()
