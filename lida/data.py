"""Training pictures with captions: a folder with a metadata.jsonl, as the datasets library's "imagefolder" reads it."""

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .errors import InputError
from .images import centre_square, open_image, to_tensor
from .vae import VAE

METADATA = "metadata.jsonl"
CAPTIONING = "captioning.json"  # how the captions were made, where a tool of this library made them
DEFAULT_TEMPLATE = "a portrait photo of {subject}, age {decade}"


def caption(template: str, subject: str, age: int) -> str:
    """The template with {subject} ("a man"), {decade} ("60s") and {age} ("64") filled in."""
    return template.format(subject=subject, decade=f"{age // 10 * 10}s", age=age)


def check_template(template: str, where: str = "--template") -> str:
    """The template itself; raises InputError unless its fields are some of {subject}, {decade} and {age}."""
    cure = "fields are {subject}, {decade} and {age}"
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} {template!r}: {error}; {cure}") from None
    if names - {"subject", "decade", "age"} or not names & {"decade", "age"}:
        raise InputError(f"{where} {template!r}: must name {{decade}} or {{age}}; {cure}")
    return template


@dataclass(frozen=True)
class Example:
    """A picture and its caption."""

    path: Path
    text: str


def read_examples(folder: str | Path) -> list[Example]:
    """The pictures that folder/metadata.jsonl names, one {"file_name", "text"} a line.

    Raises InputError with file, line and value where a line is broken or its picture is absent or no picture.
    """
    path = Path(folder, METADATA)
    if not path.is_file():
        raise InputError(f'{path}: no such file; it has one {{"file_name": ..., "text": ...}} a line')
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 ({error}); save it as that") from None
    examples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file_name", "text")):
            raise InputError(f'{path}:{number}: {line[:80]!r} is not {{"file_name": ..., "text": ...}}; mend the line')
        picture = Path(folder, row["file_name"])
        try:
            with Image.open(picture):  # reads the header alone
                pass
        except (OSError, Image.DecompressionBombError):
            what = "is not an image that Pillow can read" if picture.exists() else "does not exist"
            raise InputError(f"{path}:{number}: {picture} {what}; mend the file or take out the line") from None
        examples.append(Example(picture, row["text"]))
    if not examples:
        raise InputError(f"{path}: names no pictures; write one line for each")
    return examples


def data_fingerprint(examples: Sequence[Example]) -> dict:
    """How many pictures, and a SHA-256 over their bytes and captions, whatever their order and names: no name, no path."""
    rows = []
    for example in examples:
        with open(example.path, "rb") as file:
            rows.append(hashlib.file_digest(file, "sha256").hexdigest() + example.text)
    return {"count": len(rows), "sha256": hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()}


def read_captioning(folder: str | Path) -> dict:
    """What the tool that captioned the folder recorded: `template` and the `ages` it saw; {} where none did."""
    path = Path(folder, CAPTIONING)
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); caption the folder again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, not an object; caption the folder again")
    return check_captioning(values, path)


def check_captioning(values: dict, where: str | Path) -> dict:
    """What was recorded of captions, from a folder or an adapter's metadata; raises InputError where it cannot be used."""
    if "template" in values:
        check_template(values["template"], f"{where}: template")
    ages = values.get("ages", [0, 99])
    if not isinstance(ages, list) or [type(age) for age in ages] != [int, int]:
        raise InputError(f"{where}: ages is {ages!r}, not the youngest and the oldest, such as [2, 80]")
    return values


def with_posteriors(images: "CaptionedImages", vae: VAE, batch_size: int) -> list[tuple[Tensor, str]]:
    """(mean and log-variance (2, 4, h, w) of the VAE's posterior, caption) of each example, computed once.

    To draw from it at each step is to encode the picture at each step. Kept in memory: 131 kB for a picture of 512 px.
    """
    device, rows = next(vae.parameters()).device, []
    with torch.no_grad(), tqdm(total=len(images), desc="latents", unit="picture") as progress:
        for pixel_values, captions in DataLoader(images, batch_size, generator=torch.Generator()):  # leaves the global one be
            posteriors = torch.stack(vae.posterior(pixel_values.to(device)), dim=1).cpu()  # (B, 2, 4, h, w)
            rows += zip(posteriors, captions)
            progress.update(len(captions))
    return rows


class CaptionedImages(Dataset):
    """(pixel_values (3, size, size) in [-1, 1], caption) of the centre square of each example."""

    def __init__(self, examples: list[Example], size: int):
        self.examples, self.size = examples, size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        example = self.examples[i]
        return to_tensor(centre_square(open_image(example.path), self.size))[0], example.text
