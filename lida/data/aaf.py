"""All-Age-Faces (Cheng et al. 2019) as a training dataset: `python -m lida.data.aaf AAF_FOLDER --output_dir DIR`.

The dataset as downloaded: `original images/%05dA%02d.jpg` (serial number, age), `key points/*.txt` (49 landmarks in the
image's frame), `image sets/train.txt` and `val.txt` (name and gender: 0 female, 1 male). 13,322 faces, each another person.
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
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..photos.captions import CAPTIONING, DEFAULT_TEMPLATE, caption, check_template
from .folder import MASKS, METADATA, read_examples
from ..doors.errors import InputError, output_folder, run
from ..photos.pictures import cut, open_image, save_image, square_about, written_whole
from ..photos.masks import mask_from_landmarks
from .overview import write_overview

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

    @property
    def decade(self) -> str:
        """As captions have it: "60s"."""
        return f"{self.age // 10 * 10}s"

    def gender(self, child: int = 0) -> str:
        """Man or woman; boy or girl for those younger than `child`."""
        return ("boy" if self.man else "girl") if self.age < child else ("man" if self.man else "woman")


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


def choose(
    faces: Sequence[Face],
    ages: tuple[int, int] = (0, 99),
    exclude: Sequence[str] = (),
    count: int | None = None,
    balance: bool = False,
    seed: int = 0,
) -> list[Face]:
    """The faces of `ages` (both ends included) whose names match none of the patterns; of these `count`, drawn by `seed`.

    With `balance` each decade gives equally many, or all that it has where those are fewer; without a count, as many as the
    smallest decade has. Raises InputError where none remain, or fewer than `count`.
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
    faces: Sequence[Face],
    folder: str | Path,
    template: str = DEFAULT_TEMPLATE,
    child: int = 0,
    landmarks: str | Path | None = None,
    resolution: int | None = None,
    context: float = 1.5,
) -> None:
    """Fill a folder with the faces, their captions, and their masks where `landmarks`, the dataset's folder, is given.

    The pictures are the dataset's own files, hard-linked where the disk allows it, copied elsewhere; or for a `resolution`
    squares of that side about the face, as age_face cuts them. What is there already is left. The metadata is written last,
    so that a folder that has one is whole. Raises InputError for the folder that the faces lie in, and for one that was
    filled otherwise: captions of two kinds do not mix.
    """
    folder = Path(folder)
    if folder.resolve() == faces[0].path.parent.resolve():
        raise InputError(f"--output_dir {folder}: is the dataset itself; give another one")
    if resolution and landmarks is None:
        raise ValueError("to cut squares about the faces their landmarks are needed")
    ages, names = [face.age for face in faces], "\n".join(face.path.name for face in faces)
    settings = {"template": template, "ages": [min(ages), max(ages)], "child": child, "masks": landmarks is not None}
    settings |= {"resolution": resolution, "context": context if resolution else None}
    begin(folder, settings | {"faces": len(faces), "names": hashlib.sha256(names.encode()).hexdigest()[:12]})
    (folder / MASKS).mkdir(exist_ok=True)

    def write(face: Face) -> str:
        target, mask = folder / face.path.name, folder / MASKS / f"{face.path.stem}.png"
        if landmarks is not None and not (target.exists() and mask.exists()):
            image, points = open_image(face.path), read_landmarks(landmarks, face)
            painted = mask_from_landmarks(points, image.size)
            if resolution:
                box = square_about(painted, context)
                square = cut(image, box, resolution)
                painted = mask_from_landmarks((points - box[:2]) * resolution / box[2], square.size)
                save_image(square, target, quality=95, subsampling=0)
            save_image(painted, mask)
        if not target.exists():
            try:
                os.link(face.path.resolve(), target)
            except OSError:  # another disk
                with written_whole(target) as part:
                    shutil.copyfile(face.path, part)
        gender = face.gender(child)
        row = {"file_name": target.name, "text": caption(template, f"a {gender}", face.age)}
        return json.dumps(row | {"age": face.age, "decade": face.decade, "gender": gender}) + "\n"

    with ThreadPoolExecutor() as pool:
        lines = list(tqdm(pool.map(write, faces), total=len(faces), desc="faces", unit="face"))
    splits = folder / "splits"
    splits.mkdir(exist_ok=True)
    for name, held_out in (("train", False), ("held_out", True)):
        (splits / f"{name}.txt").write_text("".join(f"{f.path.name}\n" for f in faces if f.held_out == held_out))
    with written_whole(folder / METADATA) as part:
        part.write_text("".join(lines), encoding="utf-8")


def begin(folder: Path, settings: dict) -> None:
    """Record in the folder how it is filled; raises InputError where it was filled otherwise, or by something else."""
    record = output_folder(folder) / CAPTIONING
    if record.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        if before != settings:
            differing = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            what = ", ".join(f"{key} {before.get(key)!r} there, {settings.get(key)!r} now" for key in differing)
            raise InputError(
                f"{folder}: was filled with other settings ({what}); give another --output_dir, or remove that one"
            )
    elif (folder / METADATA).exists():
        raise InputError(f"{folder / METADATA}: exists; give another --output_dir, or remove that one")
    else:
        record.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lida.data.aaf", description="All-Age-Faces as a captioned training dataset.")
    add = parser.add_argument
    add("aaf", type=Path, metavar="AAF_FOLDER", help="the dataset as downloaded: 'All-Age-Faces Dataset'")
    add("--output_dir", type=Path, required=True, help="gets the pictures, masks/, splits/ and metadata.jsonl")
    # Captions
    add(
        "--template",
        default=DEFAULT_TEMPLATE,
        help=f"with {{subject}}, {{gender}}, {{decade}}, {{age}} (default: {DEFAULT_TEMPLATE!r})",
    )
    add(
        "--children",
        type=int,
        nargs="?",
        const=13,
        default=0,
        metavar="AGE",
        help="below this age, boy and girl (13 if not given)",
    )
    # Which faces
    help = (
        "train leaves out the serial numbers ending in 9, a tenth kept for measuring; held_out is that tenth (default: train)"
    )
    add("--split", choices=("train", "held_out", "all"), default="train", help=help)
    add("--ages", type=int, nargs=2, default=(0, 99), metavar=("LOW", "HIGH"), help="both included (default: all)")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="of file names, such as '*9A??.jpg'; any number of times",
    )
    add("--count", type=int, help="so many faces, drawn by --seed (default: all)")
    add(
        "--balance",
        action="store_true",
        help="equally many of each decade, as far as there are; without --count, as the fewest",
    )
    add("--seed", type=int, default=0, help="of the draw (default: 0)")
    # Pictures
    add("--no_masks", action="store_true", help="do not draw masks of the faces, which want the folder 'key points'")
    add("--crop", choices=("face",), help="squares about the faces instead of the pictures as they are")
    add("--resolution", type=int, help="the squares' side in pixels")
    add("--context", type=float, default=1.5, help="their side in lengths of the face's mask (default: 1.5)")
    args = parser.parse_args()
    if (args.crop is None) != (args.resolution is None) or (args.resolution or 8) < 8:
        raise InputError(f"--resolution {args.resolution}: goes with --crop face, which needs one of at least 8")
    if args.crop and args.no_masks:
        raise InputError("--no_masks: --crop face is cut by the masks; leave out one of the two")
    if args.count is not None and args.count < 1:
        raise InputError(f"--count must be at least 1, not {args.count}")
    if not 1 <= args.context < 100:
        raise InputError(f"--context must be at least 1, not {args.context}")
    template = check_template(args.template)
    faces = choose(read_faces(args.aaf, args.split), tuple(args.ages), args.exclude, args.count, args.balance, args.seed)
    landmarks = None if args.no_masks else args.aaf
    write_dataset(faces, args.output_dir, template, args.children, landmarks, args.resolution, args.context)
    for path in write_overview(read_examples(args.output_dir), args.output_dir):
        print(path)
    print(f"{len(faces)} captioned faces in {args.output_dir} (split: {args.split})")


if __name__ == "__main__":
    run(main)
