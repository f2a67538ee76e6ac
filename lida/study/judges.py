"""Who judges an aged face: how old it looks, and whose it is. The shipped networks, a classifier of others, or any function."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from ..photos.ages import AgeEstimator
from ..data.folder import read_aged
from ..doors.errors import InputError
from ..photos.faces import FaceNetworks
from ..doors.pictures import in_srgb, open_image
from ..photos.squares import cut, square_about
from ..photos.masks import read_mask

SIDE = 224  # pixels of the squares that judges see
AGE_CONTEXT, IDENTITY_CONTEXT = 1.3, 1.8  # of those squares, in lengths of the mask
READINGS = "readings.json"  # in an estimator's folder: its mean error, and its bias by decade, on faces it never saw


def by_import(path: str) -> Callable:
    """The object that "package.module:name" means; InputError where there is none that can be called."""
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: cannot be imported ({error}); write package.module:name, and see PYTHONPATH") from None
    if not callable(found):
        raise InputError(f"{path}: is a {type(found).__name__}, which cannot be called; give a function of pictures")
    return found


def is_import(text: str) -> bool:
    """Whether a judge is given by its import path."""
    return ":" in text and not Path(text).exists()


class AgeJudge:
    """Reads ages of faces, and knows how far it errs on real ones.

    `source` is a transformers classifier (folder or hub id), or the import path of a function from a list of RGB squares,
    224 pixels wide, to as many years. `real` is a folder of real faces with an `age` in each line of its metadata, to
    measure it on; an estimator's folder may tell the same in readings.json.
    """

    def __init__(self, source: str, real: str | Path | None = None, face_models: str | Path | None = None):
        self.name = source if is_import(source) else Path(source).name
        self.read = by_import(source) if is_import(source) else AgeEstimator(source)
        self.known: dict[int, tuple[float, float, int]] = {}  # decade -> mean error, bias, faces
        told = Path(source, READINGS)
        if real is not None:
            self.measure(real, face_models)
        elif told.is_file():
            rows = json.loads(told.read_text(encoding="utf-8"))
            self.known = {int(k[:-2]) * 10: (v["mean_error"], v["bias"], v["faces"]) for k, v in rows.items() if k != "all"}

    def __call__(self, squares: Sequence[Image.Image]) -> np.ndarray:
        """Years (N,)."""
        years = np.asarray(self.read(list(squares)), dtype=np.float64).reshape(-1)
        if len(years) != len(squares) or not np.isfinite(years).all():
            raise InputError(f"{self.name}: gave {years[:5]} for {len(squares)} faces; it must give a number for each")
        return years

    def measure(self, folder: str | Path, face_models: str | Path | None) -> None:
        """Read the real faces of a folder, and keep mean error and bias by decade."""
        examples, squares = read_aged(folder), []
        for example in examples:
            image = open_image(example.path)
            mask = str(example.mask) if example.mask else "auto"
            squares.append(square_of(image, read_mask(mask, image, face_models, face=None if example.mask else 1)))
        ages = np.array([example.row["age"] for example in examples])
        errors = self(squares) - ages
        for decade in sorted({int(age) // 10 * 10 for age in ages}):
            part = errors[ages // 10 * 10 == decade]
            self.known[decade] = float(np.abs(part).mean()), float(part.mean()), len(part)

    @property
    def mean_error(self) -> float | None:
        """Years, on real faces."""
        count = sum(n for *_, n in self.known.values())
        return sum(error * n for error, _, n in self.known.values()) / count if count else None

    def expected(self, age: float) -> float | None:
        """What it reads, on average, of real faces of that age; None where it was not measured.

        The bias runs in a straight line from the middle of each decade to the next one's.
        """
        if not self.known:
            return None
        middles = sorted(self.known)
        return float(age + np.interp(age, [d + 4.5 for d in middles], [self.known[d][1] for d in middles]))


class IdentityJudge:
    """Tells persons apart: SFace, or the import path of a function from an RGB square to a vector, or None without a face."""

    def __init__(self, source: str = "sface", face_models: str | Path | None = None):
        self.name = source
        self.networks = FaceNetworks(face_models)
        if source != "sface" and not is_import(source):
            raise InputError(f"--identity_judge {source}: is neither sface nor an import path package.module:name")
        self.embed = self.networks.embed if source == "sface" else by_import(source)

    def __call__(self, square: Image.Image) -> np.ndarray | None:
        """The face's unit vector."""
        vector = self.embed(square)
        return None if vector is None else np.asarray(vector, dtype=np.float64) / np.linalg.norm(vector)

    def sees_face(self, square: Image.Image) -> bool:
        """Whether YuNet finds a face in it."""
        return bool(self.networks.find(square))


def square_of(image: Image.Image, mask: Image.Image, context: float = AGE_CONTEXT) -> Image.Image:
    """The square about the mask that judges see."""
    return in_srgb(cut(image, square_about(mask, context), SIDE))
