"""All-Age-Faces (Cheng et al. 2019) as a training dataset: `python -m lida.data.aaf AAF_FOLDER --output_dir DIR`.

The dataset as downloaded: `original images/%05dA%02d.jpg` (serial number, age), `key points/*.txt` (49 landmarks in the
image's frame), `image sets/train.txt` and `val.txt` (name and gender: 0 female, 1 male). 13,322 faces of as many people.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..doors.arguments import Parser, age, text, whole
from ..doors.errors import InputError, blamed, run
from ..doors.files import folder_written_whole, regular_file, write_json, write_text
from ..doors.pictures import open_image, save_image
from ..photos.captions import CHILD, DEFAULT_TEMPLATE, OLD, Captioning
from ..photos.masks import face_frame, mask_from_landmarks
from ..photos.squares import cut, square_about
from .folder import CAPTIONING, MASKS, METADATA, read_examples
from .overview import write_overview

NAME = re.compile(r"([0-9]{5})A([0-9]{2})\.jpg")
LONGEST = 100_000  # characters that are read of a file of landmarks
CONTEXT = 1.2  # side of a square, in lengths of the face's mask, as age_face cuts it


@dataclass(frozen=True)
class AgedFace:
    """One photograph of the dataset: its path, serial number, age and gender."""

    path: Path
    serial: int
    age: int
    man: bool

    @property
    def held_out(self) -> bool:
        """Return whether the face belongs to the tenth that is for measuring only, never for training."""
        return self.serial % 10 == 9


def read_faces(folder: str | Path, split: str = "all", ages: Sequence[int] = (0, 99)) -> list[AgedFace]:
    """Return the faces of a split ("train", "held_out" or "all") and of `ages` (both included), by serial number.

    Raises InputError for a broken download, and if no face remains.
    """
    folder = Path(folder)
    images, faces = folder / "original images", []
    if not images.is_dir():
        raise InputError(f"{folder}: has no folder 'original images'; give the folder 'All-Age-Faces Dataset' as downloaded")
    genders = {**read_genders(folder / "image sets" / "train.txt"), **read_genders(folder / "image sets" / "val.txt")}
    for path in sorted(path for path in images.iterdir() if path.name[0] != "."):
        if not NAME.fullmatch(path.name):
            raise InputError(f"{path}: not named like 01234A56.jpg (serial number, age); move it elsewhere")
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path}: is a link or no regular file; put the photograph itself there")
        if path.name not in genders:
            raise InputError(f"{path}: its gender is in neither train.txt nor val.txt of 'image sets'; move it elsewhere")
        faces.append(AgedFace(path, int(path.name[:5]), int(path.name[6:8]), genders[path.name]))
    faces = [face for face in faces if split == "all" or face.held_out == (split == "held_out")]
    faces = [face for face in faces if ages[0] <= face.age <= ages[1]]
    if not faces:
        raise InputError(f"{images}: holds no faces of {ages[0]} to {ages[1]} years in the split {split!r}; choose more widely")
    return faces


def read_genders(path: Path) -> dict[str, bool]:
    """Return whether the face is a man's, by file name."""
    genders: dict[str, bool] = {}
    for number, line in enumerate(regular_file(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if words and (len(words) != 2 or not NAME.fullmatch(words[0]) or words[1] not in ("0", "1")):
            raise InputError(f"{path}:{number}: {line[:80]!r} is not a name and a gender 0 or 1; download the dataset again")
        genders |= {words[0]: words[1] == "1"} if words else {}
    return genders


def read_landmarks(folder: str | Path, face: AgedFace) -> np.ndarray:
    """Return the 49 landmarks (49, 2) of a face in pixels: brows 0-9, nose 10-18, eyes 19-30, mouth 31-48."""
    path = regular_file(Path(folder, "key points", f"{face.path.stem}.txt"), "file of landmarks")
    try:
        with open(path, encoding="utf-8") as file:
            landmarks = np.array([line.split() for line in file.read(LONGEST).splitlines() if line.strip()], dtype=float)
        face_frame(landmarks)
        if len(landmarks) != 49 or not np.abs(landmarks).max() < 1e5:  # false for NaN
            raise ValueError("they are not 49 points in a picture")
    except ValueError as error:
        raise InputError(f"{path}: not readable as landmarks ({error}); download the dataset again") from None
    return landmarks


def write_dataset(
    faces: Sequence[AgedFace], folder: str | Path, captioning: Captioning = Captioning(),
    landmarks: str | Path | None = None, resolution: int | None = None,
) -> None:  # fmt: skip
    """Write a new folder with the faces and their captions, and if `landmarks`, the dataset's folder, is given, their masks.

    The pictures are hard links to the dataset's files, or copies on another disk. With a `resolution` they are squares of that
    side around the face, which needs the landmarks. Raises InputError for a folder that is not empty.
    """
    captioning = replace(captioning, ages=(min(face.age for face in faces), max(face.age for face in faces)))
    with folder_written_whole(folder) as part, ThreadPoolExecutor() as pool:
        (part / MASKS).mkdir()
        write = partial(write_face, part, captioning, landmarks, resolution)
        lines = list(tqdm(pool.map(write, faces), total=len(faces), desc="faces", unit="face"))
        write_json(part / CAPTIONING, asdict(captioning))
        write_text(part / METADATA, "".join(lines))


def write_face(folder: Path, captioning: Captioning, landmarks: str | Path | None, resolution: int | None, face: AgedFace) -> str:
    """Write the picture and the mask of a face, as write_dataset() says; return its line of metadata."""
    target = folder / face.path.name
    if landmarks is not None:
        image, points = open_image(face.path), read_landmarks(landmarks, face)
        mask = mask_from_landmarks(points, image.size)
        if mask.getbbox() is None:
            raise InputError(f"{face.path}: its landmarks lie outside the picture; download the dataset again")
        if resolution:
            box = square_about(mask, CONTEXT)
            save_image(cut(image, box, resolution), target, quality=95, subsampling=0)
            mask = mask_from_landmarks((points - box[:2]) * resolution / box[2], (resolution, resolution))
        save_image(mask, folder / MASKS / f"{face.path.stem}.png")
    if not resolution:
        try:
            os.link(face.path, target)
        except OSError:  # another disk
            shutil.copyfile(face.path, target)
    gender = "man" if face.man else "woman"
    row = {"file_name": target.name, "text": captioning.caption(f"a {gender}", face.age), "age": face.age}
    return json.dumps(row | {"decade": f"{face.age // 10 * 10}s", "gender": gender}) + "\n"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked arguments of the command line."""
    parser = Parser(prog="python -m lida.data.aaf", description="All-Age-Faces as a captioned training dataset.")
    add = parser.add_argument
    add("aaf", type=Path, metavar="AAF_FOLDER", help="the dataset as downloaded: 'All-Age-Faces Dataset'")
    add("--output_dir", type=Path, required=True, help="a new folder; gets the pictures, masks/ and metadata.jsonl")
    # Captions
    help = f"with {{subject}}, {{gender}}, {{decade}}, {{age}} (default: {DEFAULT_TEMPLATE!r})"
    add("--template", type=text, default=DEFAULT_TEMPLATE, help=help)
    help = f"write boy and girl below this age (default: {CHILD}; 0: never)"
    add("--children", type=age, default=CHILD, metavar="AGE", help=help)
    help = f"write old man and old woman from this age on (default: {OLD}; 0: never)"
    add("--old", type=age, default=OLD, metavar="AGE", help=help)
    # Which faces
    help = "train leaves out the serial numbers ending in 9, a tenth that is for measuring only; held_out is that tenth"
    add("--split", choices=("train", "held_out", "all"), default="train", help=f"{help} (default: train)")
    add("--ages", type=age, nargs=2, default=(0, 99), metavar=("LOW", "HIGH"), help="both included (default: all)")
    # Pictures
    add("--no_masks", action="store_true", help="write no masks of the faces, which need the folder 'key points'")
    add("--crop", choices=("face",), help="write squares around the faces instead of whole pictures; needs --resolution")
    add("--resolution", type=whole(8, 8192), help="the squares' side in pixels")
    args = parser.parse_args(argv)
    if (args.crop is None) != (args.resolution is None):
        raise InputError(f"--resolution {args.resolution}: goes with --crop face; give both or neither")
    if args.crop and args.no_masks:
        raise InputError("--no_masks: --crop face cuts by the masks; leave out one of the two")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    with blamed("--"):
        captioning = Captioning(args.template, child=args.children, old=args.old)
    faces = read_faces(args.aaf, args.split, args.ages)
    write_dataset(faces, args.output_dir, captioning, None if args.no_masks else args.aaf, args.resolution)
    print(write_overview(read_examples(args.output_dir), args.output_dir))
    print(f"{len(faces)} captioned faces in {args.output_dir} (split: {args.split})")


if __name__ == "__main__":
    run(main)
