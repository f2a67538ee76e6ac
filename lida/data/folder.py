"""Training pictures with captions: a folder with a metadata.jsonl, as the datasets library's "imagefolder" reads it."""

import codecs
import csv
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..doors.errors import InputError
from ..photos.pictures import open_image
from ..photos.masks import open_mask

METADATA = "metadata.jsonl"
MASKS = "masks"  # the folder of masks, each named like its picture, as .png
PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}


@dataclass(frozen=True)
class Example:
    """A picture, its caption, its size (width, height) as displayed, its mask if it has one, and its whole line."""

    path: Path
    text: str
    size: tuple[int, int]
    mask: Path | None = None
    row: dict = field(default_factory=dict)


def read_examples(
    folder: str | Path,
    image_column: str = "image",
    caption_column: str = "text",
    smallest: int = 1,
    caption: str | None = None,
) -> list[Example]:
    """The pictures that the metadata.jsonl (or .csv) in a folder and in those below it name, one a line, each checked.

    Every picture is decoded. A line has the picture's path from its metadata's folder as `file_name`, or for another
    `image_column` as `<image_column>_file_name` or under that name itself, and its caption as `caption_column`. Without any
    metadata, each picture's caption is the .txt beside it, or `caption` for all. Raises InputError with every fault, by file
    and line: a broken line, a text that is missing or empty, a picture that is missing, broken, named twice, outside of the
    folder or shorter than `smallest` pixels on a side, a mask (masks/<stem>.png) that is broken or of another size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with pictures and a {METADATA}")
    names = ([f"{image_column}_file_name", image_column] + ["file_name"] * (image_column == "image"), caption_column)
    lines = list(lines_of(folder, caption))
    counts = Counter(os.path.normpath(base / picture) for _, base, row in lines if (picture := picture_of(row, names[0])))

    def check(line: tuple[str, Path, dict | str]) -> Example | str:
        where, base, row = line
        try:
            example = example_of(base, row, *names, smallest)
        except InputError as error:
            return f"{where}: {error}"
        times = counts[os.path.normpath(example.path)]
        return example if times == 1 else f"{where}: {example.path} is named {times} times; take out all lines but one"

    with ThreadPoolExecutor() as pool:
        checked = list(tqdm(pool.map(check, lines), total=len(lines), desc="checking pictures", unit="picture", disable=None))
    faults = [fault for fault in checked if isinstance(fault, str)]
    if faults:
        raise InputError(*faults)
    if not checked:
        raise InputError(f'{folder}: names no pictures; write a {METADATA} with one {{"file_name": ..., "text": ...}} a line')
    warn_of_the_rest(folder, checked)
    return checked


def read_aged(folder: str | Path) -> list[Example]:
    """The pictures that a folder's metadata names with a number as `age`, in each Example's row; captions are not asked for.

    Raises InputError with every fault, as read_examples does.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give one with photographs and a {METADATA}")
    examples, faults = [], []
    for where, base, row in lines_of(Path(folder), "a face"):
        try:
            example = example_of(base, {"text": "a face", **row} if isinstance(row, dict) else row, ["file_name"], "text", 1)
            if not isinstance(example.row.get("age"), int | float):
                raise InputError(f"{example.path.name} has no age; write it as a number under age")
            examples.append(example)
        except InputError as error:
            faults.append(f"{where}: {error}")
    if faults or not examples:
        raise InputError(*(faults or [f'{folder}: names no pictures; write lines of {{"file_name": ..., "age": ...}}']))
    return examples


def lines_of(folder: Path, caption: str | None) -> Iterator[tuple[str, Path, dict | str]]:
    """Where each line stands, the folder that its picture's path starts from, and its columns, or what is wrong with it."""
    metadata = sorted(path for path in folder.rglob("metadata.*") if path.suffix in (".jsonl", ".csv", ".parquet"))
    for path in metadata:
        if path.suffix == ".parquet":
            yield str(path), path.parent, f"is not read here; write it as {METADATA}"
        elif path.suffix == ".csv" and path.with_suffix(".jsonl") in metadata:
            yield str(path), path.parent, f"lies beside a {METADATA}; remove one of the two"
        else:
            for number, row in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
                if row.strip() and path.suffix == ".jsonl":
                    yield f"{path}:{number}", path.parent, json_of(row)
            if path.suffix == ".csv":
                yield from csv_lines_of(path)
    if not metadata:
        for path in pictures_below(folder):
            text = path.with_suffix(".txt")
            try:
                said = text.read_text("utf-8-sig").strip() if caption is None else caption
                yield str(path), folder, {"file_name": str(path.relative_to(folder)), "text": said}
            except FileNotFoundError:
                yield str(path), folder, f"has no caption: neither a {METADATA} nor {text.name} beside it; write one of them"
            except UnicodeDecodeError as error:
                yield str(text), folder, f"is not UTF-8 ({error.reason} at byte {error.start}); save it as that"


def json_of(line: bytes) -> dict | str:
    """The line's object, or what is wrong with the line."""
    cure = 'make it {"file_name": ..., "text": ...}'
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"{line[:80]!r} is not UTF-8 ({error.reason} at byte {error.start}); save the file as that"
    except (ValueError, RecursionError) as error:
        return f"{line.decode()[:80]!r} is not JSON ({error}); {cure}"
    return row if isinstance(row, dict) else f"{line.decode()[:80]!r} is not an object; {cure}"


def csv_lines_of(path: Path) -> Iterator[tuple[str, Path, dict | str]]:
    """The lines of a metadata.csv, as lines_of() has them."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                whole = None not in row and None not in row.values()
                yield f"{path}:{reader.line_num}", path.parent, row if whole else "has not as many columns as the first line"
    except (UnicodeDecodeError, csv.Error) as error:
        yield str(path), path.parent, f"not readable as CSV in UTF-8 ({error}); save it as that"


def picture_of(row: dict | str, columns: Sequence[str]) -> str | None:
    """The path that the line gives its picture in one of the columns, if it does."""
    names = [row[column] for column in columns if column in row] if isinstance(row, dict) else []
    return names[0] if names and isinstance(names[0], str) else None


def example_of(base: Path, row: dict | str, columns: Sequence[str], caption_column: str, smallest: int) -> Example:
    """The example that a line stands for; raises InputError for the first fault of the line, its picture or its mask."""
    if isinstance(row, str):
        raise InputError(row)
    name, text = picture_of(row, columns), row.get(caption_column)
    if name is None:
        raise InputError(f"{str(row)[:80]} names no picture as {columns[-1]!r}; add it, or choose another --image_column")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{caption_column!r} of {name} is {text!r}, no caption; write one, or choose another --caption_column")
    path = inside(base, name)
    size = open_image(path).size
    if min(size) < smallest:
        raise InputError(
            f"{path}: is {size[0]}x{size[1]} pixels, too small; below {smallest} there is too little to learn from"
        )
    mask = base / MASKS / Path(name).with_suffix(".png")
    if not mask.is_file():
        return Example(path, text, size, None, row)
    open_mask(inside(base, str(mask.relative_to(base))), size)
    return Example(path, text, size, mask, row)


def inside(base: Path, name: str) -> Path:
    """The file of that name below the folder; raises InputError where it is not there, or leads out of it."""
    path = base / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{name} leaves the folder; give a path from {base} downwards")
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; add the file or take out the line")
    if not path.resolve().is_relative_to(base.resolve()):
        raise InputError(f"{path} is a link out of the folder, to {path.resolve()}; copy the file here")
    return path


def pictures_below(folder: Path) -> list[Path]:
    """The files that look like pictures in a folder and those below it, but for masks and what is hidden, by name."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    return sorted(p for p in found if not any(part == MASKS or part[0] == "." for part in p.relative_to(folder).parts))


def photographs(given: Sequence[str | Path]) -> list[Path]:
    """The pictures given, and those in folders given; raises InputError for an empty folder, and a stem that comes twice."""
    paths: list[Path] = []
    for path in map(Path, given):
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: has no photographs in it; give a folder that does")
        paths += found
    stem, times = Counter(path.stem for path in paths).most_common(1)[0]
    if times > 1:
        raise InputError(f"{stem}: is the name of two photographs, whose pictures would have one; rename one of them")
    return paths


def warn_of_the_rest(folder: Path, examples: Iterable[Example]) -> None:
    """Say which pictures and masks in the folder are not used."""
    used = {example.path for example in examples} | {example.mask for example in examples}
    masks = (path for path in folder.rglob("*.png") if MASKS in path.relative_to(folder).parts)
    for what, found in (("pictures stand in no line", pictures_below(folder)), ("masks belong to no picture", masks)):
        rest = sorted(path for path in found if path not in used)
        if rest:
            warnings.warn(f"{folder}: {len(rest)} {what} and are not used, such as {rest[0]}")


def data_fingerprint(examples: Sequence[Example]) -> dict:
    """How many pictures, and a SHA-256 over their bytes, masks and captions, whatever their order; no name, no path."""
    rows = []
    for example in examples:
        paths = [path for path in (example.path, example.mask) if path]
        rows.append(" ".join([*(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths), example.text]))
    return {"count": len(rows), "sha256": hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()}
