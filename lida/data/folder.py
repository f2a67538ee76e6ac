"""Training folders: pictures with captions, masks and ages, read as the datasets library reads an "imagefolder", and checked.

The captions are in a metadata.jsonl, in a captions.json (a list of {"image": ..., "text": ...}), or in a .txt beside each
picture. Nothing outside the folder is read, not even through a link.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..doors.errors import InputError
from ..doors.files import file_hash, regular_file
from ..doors.json import as_object, parse_json, read_json
from ..doors.pictures import PICTURES, open_image
from ..photos.captions import recorded
from ..photos.masks import open_mask

METADATA, LIST = "metadata.jsonl", "captions.json"
CAPTIONING = "captioning.json"  # written by lida's tools: how the captions were made from ages
MASKS = "masks"  # the folder of masks, each named like its picture, as .png
LONGEST = 2**20  # bytes of a line of metadata, and of a caption's file
LINE = '{"file_name": ..., "text": ...}'
Row = dict[str, Any]
Line = tuple[str, Path, Callable[[], Row]]  # its place, the folder of its paths, a function that returns its columns


@dataclass(frozen=True)
class Example:
    """A picture, its caption, its size (width, height) as displayed, its mask if it has one, and its line of metadata."""

    path: Path
    text: str
    size: tuple[int, int]
    mask: Path | None = None
    row: Row = field(default_factory=dict)


def read_examples(
    folder: str | Path, image_column: str = "image", caption_column: str | None = "text", smallest: int = 1,
    caption: str | None = None,
) -> list[Example]:  # fmt: skip
    """Return the pictures that the metadata of a folder, and of those below it, names. Every picture is decoded once.

    A line has the picture's path, from its metadata's folder, as `file_name`, or for another `image_column` as
    `<image_column>_file_name` or under that name itself, and its caption as `caption_column` (None: no captions are needed).
    Without any metadata, each picture's caption is the .txt beside it, or `caption` for all. Raises InputError with every
    fault and its line: a broken line; a caption that is missing or empty; a picture that is missing, broken, named twice,
    outside the folder or shorter than `smallest` pixels on a side; a mask (masks/<stem>.png) that is broken, of another size or
    of two pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with pictures and a {METADATA}")
    names = [f"{image_column}_file_name", image_column] + ["file_name"] * (image_column == "image")
    lines = list(lines_of(folder, "" if caption_column is None else caption))
    check = partial(example_of, folder, names, caption_column, smallest)
    with ThreadPoolExecutor() as pool:
        checked = list(tqdm(pool.map(check, lines), total=len(lines), desc="checking pictures", unit="picture", disable=None))
    examples = [found for found in checked if isinstance(found, Example)]
    times = Counter(os.path.normpath(path) for e in examples for path in (e.path, e.mask) if path)
    faults: list[str] = []
    for (where, *_), found in zip(lines, checked):
        if isinstance(found, InputError):
            faults += found.args
        elif (count := times[os.path.normpath(found.path)]) > 1:
            faults.append(f"{where}: {found.path} is named {count} times; remove all lines but one")
        elif found.mask and times[os.path.normpath(found.mask)] > 1:
            faults.append(f"{where}: {found.path.name} shares the mask {found.mask} with another picture; rename one")
    if faults or not examples:
        raise InputError(*faults or [f"{folder}: names no pictures; write a {METADATA} of lines {LINE}"])
    warn_of_unused(folder, examples)
    return examples


def read_captioning(folder: str | Path) -> dict[str, Any]:
    """Return the folder's record of its captions, fields of photos.captions.Captioning; {} without a record."""
    path = Path(folder, CAPTIONING)
    if not os.path.lexists(path):
        return {}
    return recorded(as_object(read_json(inside(Path(folder), path)), path), path)


def lines_of(folder: Path, caption: str | None) -> Iterator[Line]:
    """Yield the lines of all metadata in the folder, not yet parsed; without any metadata, a line for each picture."""
    files = sorted(folder.rglob(METADATA))
    for path in files:
        with open(inside(folder, path), "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):  # without the byte-order mark of UTF-8
                    yield f"{path}:{number}", path.parent, partial(columns_of, line)
    for path in sorted(folder.rglob(LIST)) if not files else ():
        files, entries = [path], read_json(inside(folder, path))
        if not isinstance(entries, list):
            raise InputError(f'{path}: is not a list; make it [{{"image": ..., "text": ...}}, ...]')
        for number, entry in enumerate(entries, 1):
            yield f"{path}: entry {number}", path.parent, partial(columns_of, entry)
    for path in pictures_below(folder) if not files else ():
        yield str(path), folder, partial(text_row, folder, path, caption)


def columns_of(row: Any) -> Row:
    """Return the columns of a line of metadata. Raises InputError unless it is an object."""
    row = parse_json(row, "the line", LONGEST) if isinstance(row, bytes) else row
    if not isinstance(row, dict):
        raise InputError(f"{repr(row)[:80]} is not an object; make it {LINE}")
    return row


def text_row(folder: Path, path: Path, caption: str | None) -> Row:
    """Return the columns of a picture without metadata. Its caption is `caption`, or in the .txt beside it."""
    file = path.with_suffix(".txt")
    if caption is None and not os.path.lexists(file):
        raise InputError(f"it has no caption, neither in a {METADATA} or {LIST} nor in {file.name}; write one of them")
    if caption is None:
        if inside(folder, file).stat().st_size > LONGEST:
            raise InputError(f"{file}: is longer than {LONGEST} bytes, too long for a caption; shorten it")
        try:
            caption = file.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start}); save it as that") from None
    return {"file_name": str(path.relative_to(folder)), "text": caption}


def example_of(
    folder: Path, columns: Sequence[str], caption_column: str | None, smallest: int, line: Line
) -> Example | InputError:
    """Return the example of a line, or the first fault of the line, its picture or its mask."""
    where, base, read = line
    try:
        row = read()
        name = next((row[column] for column in columns if column in row), None)
        if not isinstance(name, str):
            raise InputError(f"{str(row)[:80]} names no picture as {columns[-1]!r}; add it, or give --image_column")
        text = "" if caption_column is None else row.get(caption_column)
        if not isinstance(text, str) or not (text.strip() or caption_column is None):
            raise InputError(f"{caption_column!r} of {name} is {text!r}, not a caption; write one, or give --caption_column")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{name} is outside the folder; give a path below {base}")
        path = inside(folder, base / name)
        size = open_image(path).size
        if min(size) < smallest:
            raise InputError(f"{path}: is {size[0]}x{size[1]} pixels, too small; below {smallest} there is little to learn")
        mask = base / MASKS / Path(name).with_suffix(".png")
        if os.path.lexists(mask):
            open_mask(inside(folder, mask), size)
        return Example(path, text, size, mask if os.path.lexists(mask) else None, row)
    except InputError as error:
        return InputError(f"{where}: {error}")


def inside(folder: Path, path: Path) -> Path:
    """Return the path. Raises InputError unless it is a regular file in the folder, after following links."""
    if not regular_file(path, "file in the folder").resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: is a link out of the folder, to {path.resolve()}; copy the file here")
    return path


def pictures_below(folder: Path) -> list[Path]:
    """Return the files with a picture's ending in a folder and those below it, without masks and hidden files."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    return sorted(p for p in found if not any(part == MASKS or part[0] == "." for part in p.relative_to(folder).parts))


def warn_of_unused(folder: Path, examples: Sequence[Example]) -> None:
    """Warn of the pictures and masks in the folder that are not used."""
    used = {os.path.normpath(path) for example in examples for path in (example.path, example.mask) if path}
    masks = [path for path in folder.rglob("*.png") if MASKS in path.relative_to(folder).parts]
    for what, found in (("pictures are in no line", pictures_below(folder)), ("masks belong to no picture", masks)):
        rest = sorted(path for path in found if os.path.normpath(path) not in used)
        if rest:
            warnings.warn(f"{folder}: {len(rest)} {what} and are not used, such as {rest[0]}")


def data_fingerprint(examples: Sequence[Example]) -> dict[str, Any]:
    """Return the number of pictures, and a SHA-256 over their bytes, masks and captions, independent of order and names."""
    rows = [" ".join([*map(file_hash, filter(None, (e.path, e.mask))), e.text]) for e in examples]
    return {"count": len(rows), "sha256": hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()}
