"""All-Age-Faces (Cheng et al. 2019) as a training dataset: `python -m lida.data.aaf AAF_FOLDER --output_dir DIR`.

The dataset as downloaded: `original images/%05dA%02d.jpg` (serial number, age), `key points/*.txt` (49 landmarks in the
image's frame), `image sets/train.txt` and `val.txt` (name and gender: 0 female, 1 male). 13,322 faces of as many people.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..doors.arguments import Parser, age, checked, positive_int, seed, whole
from ..doors.errors import InputError, run
from ..doors.files import locked, output_folder, regular_file, write_json, write_text, written_whole
from ..doors.json import read_json
from ..doors.pictures import open_image, save_image
from ..photos.captions import CHILD, DEFAULT_TEMPLATE, OLD, Captioning
from ..photos.masks import mask_from_landmarks
from ..photos.masks import read_landmarks as landmarks_in
from ..photos.squares import cut, square_about
from .folder import CAPTIONING, MASKS, METADATA, read_examples
from .overview import write_overview

NAME = re.compile(r"([0-9]{5})A([0-9]{2})\.jpg")


@dataclass(frozen=True)
class AgedFace:
    """One photograph of the dataset."""

    path: Path
    serial: int
    age: int
    man: bool

    @property
    def held_out(self) -> bool:
        """Whether the face is one of the tenth that is only measured on, never trained on."""
        return self.serial % 10 == 9

    @property
    def decade(self) -> str:
        """The decade of the age as captions write it, such as "60s"."""
        return f"{self.age // 10 * 10}s"

    @property
    def gender(self) -> str:
        """The word for the gender."""
        return "man" if self.man else "woman"


def read_faces(folder: str | Path, split: str = "all") -> list[AgedFace]:
    """Return the faces of a split ("train", "held_out" or "all"), by serial number; raises InputError for a broken download."""
    folder = Path(folder)
    images, faces = folder / "original images", []
    if not images.is_dir():
        raise InputError(f"{folder}: has no folder 'original images'; give the folder 'All-Age-Faces Dataset' as downloaded")
    genders = {**read_genders(folder / "image sets" / "train.txt"), **read_genders(folder / "image sets" / "val.txt")}
    for path in sorted(images.iterdir()):
        if path.name.startswith("."):
            continue
        if not NAME.fullmatch(path.name):
            raise InputError(f"{path}: not named like 01234A56.jpg (serial number, age); move it elsewhere")
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path}: is a link or no regular file; put the photograph itself there")
        if path.name not in genders:
            raise InputError(f"{path}: its gender stands in neither train.txt nor val.txt of 'image sets'; move it elsewhere")
        faces.append(AgedFace(path, int(path.name[:5]), int(path.name[6:8]), genders[path.name]))
    faces = [face for face in faces if split == "all" or face.held_out == (split == "held_out")]
    if not faces:
        raise InputError(f"{images}: holds no faces of the split {split!r}; download the dataset again")
    return faces


def read_genders(path: Path) -> dict[str, bool]:
    """Return, by file name, whether the face is a man's."""
    genders = {}
    for number, line in enumerate(regular_file(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if words and (len(words) != 2 or not NAME.fullmatch(words[0]) or words[1] not in ("0", "1")):
            raise InputError(f"{path}:{number}: {line[:80]!r} is not a name and a gender 0 or 1; download the dataset again")
        genders |= {words[0]: words[1] == "1"} if words else {}
    return genders


def read_landmarks(folder: str | Path, face: AgedFace) -> np.ndarray:
    """Return the 49 landmarks (49, 2) of a face in pixels: brows 0-9, nose 10-18, eyes 19-30, mouth 31-48."""
    return landmarks_in(Path(folder, "key points", f"{face.path.stem}.txt"), 49)


def choose_faces(
    faces: Sequence[AgedFace],
    ages: tuple[int, int] = (0, 99),
    exclude: Sequence[str] = (),
    count: int | None = None,
    balance: bool = False,
    seed: int = 0,
) -> list[AgedFace]:
    """Return the faces of `ages` (both ends included) whose names match no pattern; of these `count`, drawn by `seed`.

    With `balance` each decade gives equally many, or all that it has where those are fewer; without a count, as many as the
    smallest decade has. Raises InputError where none are left, or fewer than `count`.
    """
    left = [f for f in faces if ages[0] <= f.age <= ages[1] and not any(fnmatch(f.path.name, p) for p in exclude)]
    if not left or len(left) < (count or 0):
        raise InputError(f"--ages, --exclude and --split leave {len(left)} faces, not {count or 'any'}; choose more widely")
    shuffled = [left[i] for i in np.random.default_rng(seed).permutation(len(left))]
    if balance:  # the first of each decade, the second of each, and so on
        sizes, turn = Counter(face.decade for face in left), Counter()
        count = count or min(sizes.values()) * len(sizes)
        turns = [turn.update([face.decade]) or turn[face.decade] for face in shuffled]
        shuffled = [shuffled[i] for i in np.argsort(turns, kind="stable")]
    return sorted(shuffled[:count], key=lambda face: face.serial)


def write_dataset(
    faces: Sequence[AgedFace],
    folder: str | Path,
    captioning: Captioning = Captioning(),
    landmarks: str | Path | None = None,
    resolution: int | None = None,
    context: float = 1.5,
) -> None:
    """Fill a folder with the faces, their captions, and where `landmarks`, the dataset's folder, is given, their masks.

    The pictures are the dataset's own files, hard-linked where the disk allows it, copied elsewhere; or for a `resolution`
    squares of that side about the face, `context` times the mask's longer side, as age_face cuts them. What is there
    already stays. The metadata is written last: a folder that has one is complete. Raises InputError for the dataset's own
    folder, and for one that was filled with other settings.
    """
    folder = Path(folder)
    if folder.resolve() == faces[0].path.parent.resolve():
        raise InputError(f"--output_dir {folder}: is the dataset itself; give another one")
    if resolution and landmarks is None:
        raise ValueError("squares about the faces are cut by their landmarks; give these, too")
    ages, names = [face.age for face in faces], "\n".join(face.path.name for face in faces)
    settings = asdict(captioning) | {"ages": [min(ages), max(ages)], "masks": landmarks is not None}
    settings |= {"resolution": resolution, "context": context if resolution else None, "faces": len(faces)}
    settings |= {"names": hashlib.sha256(names.encode()).hexdigest()[:12]}

    def write(face: AgedFace) -> str:
        target, mask_path = folder / face.path.name, folder / MASKS / f"{face.path.stem}.png"
        if landmarks is not None and not (target.exists() and mask_path.exists()):
            image, points = open_image(face.path), read_landmarks(landmarks, face)
            mask = mask_from_landmarks(points, image.size)
            if mask.getbbox() is None:
                raise InputError(f"{face.path}: its landmarks lie outside of the picture; download the dataset again")
            if resolution:
                box = square_about(mask, context)
                square = cut(image, box, resolution)
                mask = mask_from_landmarks((points - box[:2]) * resolution / box[2], square.size)
                save_image(square, target, quality=95, subsampling=0)
            save_image(mask, mask_path)
        if not target.exists():
            try:
                os.link(face.path, target)
            except OSError:  # another disk
                with written_whole(target) as part:
                    shutil.copyfile(face.path, part)
        row = {"file_name": target.name, "text": captioning.caption(f"a {face.gender}", face.age), "age": face.age}
        return json.dumps(row | {"decade": face.decade, "gender": face.gender}) + "\n"

    with locked(output_folder(folder)):
        record_settings(folder, settings)
        (folder / MASKS).mkdir(exist_ok=True)
        with ThreadPoolExecutor() as pool:
            lines = list(tqdm(pool.map(write, faces), total=len(faces), desc="faces", unit="face"))
        write_text(folder / METADATA, "".join(lines))


def record_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Record how the folder is filled; raises InputError where it was filled otherwise, or by something else."""
    record = folder / CAPTIONING
    if os.path.lexists(record):
        before = read_json(record)
        before = before if isinstance(before, dict) else {}
        changed = sorted(key for key in before.keys() | settings.keys() if (before.get(key) or 0) != (settings.get(key) or 0))
        if changed:
            what = ", ".join(f"{key} {before.get(key)!r} there, {settings.get(key)!r} now" for key in changed)
            raise InputError(f"{folder}: was filled with other settings ({what}); give another --output_dir or remove it")
    elif (folder / METADATA).exists():
        raise InputError(f"{folder / METADATA}: exists; give another --output_dir, or remove that one")
    else:
        write_json(record, settings)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked arguments of the command line."""
    description = "All-Age-Faces as a captioned training dataset."
    parser = Parser(prog="python -m lida.data.aaf", description=description)
    add = parser.add_argument
    add("aaf", type=Path, metavar="AAF_FOLDER", help="the dataset as downloaded: 'All-Age-Faces Dataset'")
    add("--output_dir", type=Path, required=True, help="gets the pictures, masks/ and metadata.jsonl")
    # Captions
    help = f"with {{subject}}, {{gender}}, {{decade}}, {{age}} (default: {DEFAULT_TEMPLATE!r})"
    add("--template", default=DEFAULT_TEMPLATE, help=help)
    help = f"write boy and girl below this age ({CHILD} if the flag has no number)"
    add("--children", type=age, nargs="?", const=CHILD, default=0, metavar="AGE", help=help)
    help = f"write old man and old woman from this age on ({OLD} if the flag has no number)"
    add("--old", type=age, nargs="?", const=OLD, default=0, metavar="AGE", help=help)
    # Which faces
    help = "train leaves out the serial numbers ending in 9, a tenth that is only measured on; held_out is that tenth"
    add("--split", choices=("train", "held_out", "all"), default="train", help=f"{help} (default: train)")
    add("--ages", type=age, nargs=2, default=(0, 99), metavar=("LOW", "HIGH"), help="both included (default: all)")
    help = "of file names to leave out, such as '*9A??.jpg'; any number of times"
    add("--exclude", action="append", default=[], metavar="PATTERN", help=help)
    add("--count", type=positive_int, help="how many faces, drawn by --seed (default: all)")
    help = "equally many of each decade, as far as there are; without --count, as many as the smallest decade has"
    add("--balance", action="store_true", help=help)
    add("--seed", type=seed, default=0, help="of the draw (default: 0)")
    # Pictures
    add("--no_masks", action="store_true", help="draw no masks of the faces; they need the folder 'key points'")
    add("--crop", choices=("face",), help="squares about the faces instead of whole pictures; needs --resolution")
    add("--resolution", type=whole(8, 8192), help="the squares' side in pixels")
    context = checked(float, "a number from 1 to 100", lambda x: 1 <= x <= 100)
    add("--context", type=context, default=1.5, help="their side in lengths of the face's mask (default: 1.5)")
    args = parser.parse_args(argv)
    if (args.crop is None) != (args.resolution is None):
        raise InputError(f"--resolution {args.resolution}: goes with --crop face; give both or neither")
    if args.crop and args.no_masks:
        raise InputError("--no_masks: --crop face cuts by the masks; leave out one of the two")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    try:
        captioning = Captioning(args.template, child=args.children, old=args.old)
    except InputError as error:
        raise InputError(f"--{error}") from None
    faces = choose_faces(read_faces(args.aaf, args.split), tuple(args.ages), args.exclude, args.count, args.balance, args.seed)
    landmarks = None if args.no_masks else args.aaf
    write_dataset(faces, args.output_dir, captioning, landmarks, args.resolution, args.context)
    for path in write_overview(read_examples(args.output_dir), args.output_dir):
        print(path)
    print(f"{len(faces)} captioned faces in {args.output_dir} (split: {args.split})")


if __name__ == "__main__":
    run(main)
