"""All-Age-Faces (Cheng et al. 2019) as a training dataset: `python -m lida.aaf AAF_FOLDER --output_dir DIR`.

The dataset as downloaded: `original images/%05dA%02d.jpg` (serial number, age), `key points/*.txt` (49 landmarks in the
image's frame), `image sets/train.txt` and `val.txt` (name and gender: 0 female, 1 male). 13,322 faces, each another person.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .data import CAPTIONING, DEFAULT_TEMPLATE, METADATA, caption, check_template
from .errors import InputError, output_folder, run

NAME = re.compile(r"(\d{5})A(\d{2})\.jpg")


@dataclass(frozen=True)
class Face:
    """One photograph of the dataset."""

    path: Path
    serial: int
    age: int
    man: bool

    @property
    def held_out(self) -> bool:
        """A tenth of the faces is never trained on, only measured on."""
        return self.serial % 10 == 9


def read_faces(folder: str | Path, split: str = "all") -> list[Face]:
    """The faces of a split ("train", "held_out" or "all"), by serial number; raises InputError where a file is amiss."""
    folder = Path(folder)
    images = folder / "original images"
    if not images.is_dir():
        raise InputError(f"{folder}: has no folder 'original images'; give the folder 'All-Age-Faces Dataset' as downloaded")
    genders = {}
    for path in (folder / "image sets" / "train.txt", folder / "image sets" / "val.txt"):
        if not path.is_file():
            raise InputError(f"{path}: no such file; it holds the genders, download the dataset again")
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or not NAME.fullmatch(words[0]) or words[1] not in ("0", "1"):
                raise InputError(f"{path}:{number}: {line!r} is not a name and a gender 0 or 1; download the dataset again")
            genders[words[0]] = words[1] == "1"
    faces = []
    for path in sorted(images.iterdir()):
        if path.name.startswith("."):
            continue
        match = NAME.fullmatch(path.name)
        if not match:
            raise InputError(f"{path}: not named like 01234A56.jpg (serial number, age); move it elsewhere")
        if path.name not in genders:
            raise InputError(f"{path}: its gender stands in neither train.txt nor val.txt of 'image sets'; move it elsewhere")
        faces.append(Face(path, int(match[1]), int(match[2]), genders[path.name]))
    faces = [face for face in faces if split == "all" or face.held_out == (split == "held_out")]
    if not faces:
        raise InputError(f"{images}: holds no faces of the split {split!r}; download the dataset again")
    return faces


def read_landmarks(folder: str | Path, face: Face) -> np.ndarray:
    """The 49 landmarks (49, 2) of a face in pixels: brows 0-9, nose 10-18, eyes 19-30, mouth 31-48."""
    path = Path(folder, "key points", face.path.stem + ".txt")
    try:
        landmarks = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as landmarks ({error}); download the dataset again") from None
    if landmarks.shape != (49, 2):
        raise InputError(f"{path}: holds an array {landmarks.shape}, not (49, 2); download the dataset again")
    return landmarks


def write_dataset(faces: Sequence[Face], folder: str | Path, template: str = DEFAULT_TEMPLATE) -> None:
    """Fill a new folder with the faces, hard-linked where the disk allows it, and their captions.

    Raises InputError for the folder that the faces lie in, and for one that has a metadata.jsonl: captions of two runs do
    not mix. That file is written last, so that a folder that has one is whole.
    """
    folder = Path(folder)
    if (folder / METADATA).exists():
        raise InputError(f"{folder / METADATA}: exists; give another --output_dir, or remove that one")
    if folder.resolve() == faces[0].path.parent.resolve():
        raise InputError(f"--output_dir {folder}: is the dataset itself; give another one")
    output_folder(folder)
    lines = []
    for face in faces:
        target = folder / face.path.name
        target.unlink(missing_ok=True)
        try:
            os.link(face.path, target)
        except OSError:  # another disk
            shutil.copyfile(face.path, target)
        text = caption(template, "a man" if face.man else "a woman", face.age)
        lines.append(json.dumps({"file_name": face.path.name, "text": text}) + "\n")
    ages = [face.age for face in faces]
    captioning = {"template": template, "ages": [min(ages), max(ages)]}
    (folder / CAPTIONING).write_text(json.dumps(captioning, indent=2) + "\n", encoding="utf-8")
    part = folder / (METADATA + ".part")
    part.write_text("".join(lines), encoding="utf-8")
    os.replace(part, folder / METADATA)


def main() -> None:
    """The command line."""
    description = "All-Age-Faces as a captioned training dataset."
    parser = argparse.ArgumentParser(prog="python -m lida.aaf", description=description)
    parser.add_argument("aaf", type=Path, metavar="AAF_FOLDER", help="the dataset as downloaded: 'All-Age-Faces Dataset'")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the pictures and metadata.jsonl")
    parser.add_argument("--template", default=DEFAULT_TEMPLATE, help=f"caption (default: {DEFAULT_TEMPLATE!r})")
    help = (
        "train leaves out the serial numbers ending in 9, a tenth kept for measuring; held_out is that tenth (default: train)"
    )
    parser.add_argument("--split", choices=("train", "held_out", "all"), default="train", help=help)
    args = parser.parse_args()
    template = check_template(args.template)
    faces = read_faces(args.aaf, args.split)
    write_dataset(faces, args.output_dir, template)
    print(f"{len(faces)} captioned faces in {args.output_dir} (split: {args.split})")


if __name__ == "__main__":
    run(main)
