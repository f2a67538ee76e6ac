"""Judges of an aged face: how old it looks, and whose it is. They are shipped networks, other classifiers, or functions."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..doors.errors import InputError
from ..doors.json import read_json, typed
from ..doors.pictures import open_image, open_photo
from ..photos.ages import AgeEstimator, square_of
from ..photos.faces import SAME_PERSON, FaceNetworks
from ..photos.masks import mask_from_landmarks, open_mask, read_masks
from .people import Person, Reference, Subject, read_aged

IDENTITY_CONTEXT = 1.8  # side of the square that a judge of identity sees, in lengths of the mask
READINGS = "readings.json"  # in an estimator's folder: its errors by decade on faces that it was not trained on
DLIB_FAR, DLIB_SAME = 1.2, 0.5  # the distance that counts as no similarity; the similarity at dlib's own threshold, 0.6
Vectors = Sequence[np.ndarray | None]  # one of each identity judge


@dataclass(frozen=True)
class Errors:
    """An age judge's mean error and bias in years, over real faces of a decade."""

    faces: int
    mean_error: float
    bias: float = 0.0


@dataclass(frozen=True)
class Readings:
    """A readings.json: errors by decade, such as "20s", and of "all"."""

    decades: dict[str, Errors]


def function_at(source: str) -> Callable | None:
    """Return the function "package.module:name"; None for another kind of source. Raises InputError if it cannot be imported."""
    module, colon, name = source.partition(":")
    if not colon or Path(source).exists():
        return None
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{source}: cannot be imported ({error}); write package.module:name, and see PYTHONPATH") from None
    if not callable(found):
        raise InputError(f"{source}: is a {type(found).__name__}, which cannot be called; give a function of pictures")
    return found


class AgeJudge:
    """Reads the ages of faces.

    `source` is a transformers classifier (folder or hub id), or the import path of a function from a list of RGB squares, 224
    pixels wide, to as many ages in years. `errors` has its errors on real faces by decade, from the classifier's readings.json.
    """

    def __init__(self, source: str):
        function, path = function_at(source), Path(source, READINGS)
        self.name = source if function else Path(source).name
        self.read: Callable = function or AgeEstimator(source)
        rows = typed(Readings, {"decades": read_json(path) if path.is_file() else {}}, path).decades
        self.errors = {int(decade[:-1]): errors for decade, errors in rows.items() if decade[:-1].isdecimal()}

    def __call__(self, squares: Sequence[Image.Image]) -> np.ndarray:
        """Return the ages (N,) in years."""
        try:
            years = np.asarray(self.read(list(squares)), dtype=np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.name}: does not return ages of squares ({error}); give another judge") from error
        if len(years) != len(squares) or not np.isfinite(years).all():
            raise InputError(f"{self.name}: returned {years[:5]} for {len(squares)} faces; it must return a number for each")
        return years

    def measure(self, squares: Sequence[Image.Image], ages: Sequence[float]) -> None:
        """Measure the errors on squares of real faces of these ages."""
        decades, errors = np.array(ages) // 10 * 10, self(squares) - np.array(ages)
        parts = {int(decade): errors[decades == decade] for decade in np.unique(decades)}
        self.errors = {d: Errors(len(e), float(np.abs(e).mean()), float(e.mean())) for d, e in parts.items()}

    @property
    def mean_error(self) -> float | None:
        """Return the mean error in years on real faces; None if it was not measured."""
        counts = [errors.faces for errors in self.errors.values()]
        return float(np.average([errors.mean_error for errors in self.errors.values()], weights=counts)) if counts else None

    def expected(self, age: float) -> float | None:
        """Return the mean age that it reads of real faces of that age; None if it was not measured.

        The bias is interpolated linearly between the middles of the decades.
        """
        decades = sorted(self.errors)
        biases = [self.errors[decade].bias for decade in decades]
        return float(age + np.interp(age, [decade + 4.5 for decade in decades], biases)) if decades else None


class IdentityJudge:
    """Tells people apart: "sface", "dlib" (King 2017), or the import path of a function.

    The function takes an RGB square and returns a vector, or None if it has no face. Similarity is the cosine of two vectors;
    dlib's is 1 - distance / 1.2, because its network was trained for distances. `same` is the threshold of similarity above which
    two faces are the same person; None if it is unknown.
    """

    def __init__(self, source: str, faces: FaceNetworks):
        self.name, self.by_distance = source, source == "dlib"
        self.measure = f"1 - distance / {DLIB_FAR}" if self.by_distance else "cosine"
        self.same = {"sface": SAME_PERSON, "dlib": DLIB_SAME}.get(source)
        embed = faces.embed if source == "sface" else dlib_embedding(faces) if self.by_distance else function_at(source)
        if embed is None:
            raise InputError(f"--identity_judge {source}: is not sface, dlib or an import path package.module:name")
        self.embed: Callable[[Image.Image], np.ndarray | None] = embed

    def __call__(self, square: Image.Image) -> np.ndarray | None:
        """Return the vector of the face, of unit length for a cosine; None without a face."""
        embedding = self.embed(square)
        if embedding is None:
            return None
        try:
            vector = np.asarray(embedding, dtype=np.float64)
        except (ValueError, TypeError):
            vector = np.zeros(0)
        if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
            raise InputError(f"{self.name}: returned {embedding!r:.60} for a face; it must return a vector of numbers, or None")
        return vector if self.by_distance else vector / np.linalg.norm(vector)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """Return the similarity of two vectors: 1 for the same vector, less the further they are apart."""
        return float(1 - np.linalg.norm(a - b) / DLIB_FAR if self.by_distance else a @ b)


def dlib_embedding(faces: FaceNetworks) -> Callable[[Image.Image], np.ndarray | None]:
    """Return dlib's face recognition as a function of an RGB picture. Raises InputError if a package is missing."""
    spec = find_spec("face_recognition_models")  # not imported: only its files are needed
    if find_spec("dlib") is None or spec is None or spec.origin is None:
        raise InputError("--identity_judge dlib: is not installed: pip install dlib-bin face_recognition_models")
    import dlib

    folder = Path(spec.origin).parent / "models"
    landmarks = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(image: Image.Image) -> np.ndarray | None:
        found = faces.find(image)
        if not found:
            return None
        left, top, width, height = found[0].box
        x, y, half = left + width / 2, top + height / 2, (width + height) / 4  # dlib's own boxes are squares
        box = dlib.rectangle(*(round(edge) for edge in (x - half, y - half, x + half, y + half)))
        pixels = np.asarray(image)
        return np.array(network.compute_face_descriptor(pixels, landmarks(pixels, box)))

    return embed


class Judges:
    """The judges of ages and of identities; the first of each is the main judge.

    A real photograph stands for an age that is at most `near` years away. Raises InputError if two judges have one name.
    """

    def __init__(self, ages: Sequence[str], identities: Sequence[str], near: float = 5.0, face_models: str | None = None):
        self.near, self.face_models, self.faces = near, face_models, FaceNetworks(face_models)
        self.ages = [AgeJudge(source) for source in ages]
        self.identities = [IdentityJudge(source, self.faces) for source in identities]
        names = [*(judge.name for judge in self.ages), *(judge.name for judge in self.identities)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{twice[0]}: is the name of two judges, whose columns would have the same name; rename a folder")

    def column(self, name: str, judge: AgeJudge | IdentityJudge) -> str:
        """Return a judge's column: `name` for a leading judge, `name:judge` for another."""
        return name if judge in (self.ages[0], self.identities[0]) else f"{name}:{judge.name}"

    def vectors(self, image: Image.Image, mask: Image.Image) -> Vectors:
        """Return the vector of each identity judge."""
        square = square_of(image, mask, IDENTITY_CONTEXT)
        return [judge(square) for judge in self.identities]

    def readings(self, images: Sequence[Image.Image], mask: Image.Image) -> np.ndarray:
        """Return the ages that each age judge reads (pictures, judges)."""
        squares = [square_of(image, mask) for image in images]
        return np.stack([judge(squares) for judge in self.ages], axis=1)

    def sees_face(self, image: Image.Image, mask: Image.Image) -> bool:
        """Return whether YuNet finds a face around the mask."""
        return bool(self.faces.find(square_of(image, mask, IDENTITY_CONTEXT)))

    def largest_face(self, path: str | Path) -> tuple[Image.Image, Image.Image] | None:
        """Return a real photograph and the mask of its largest face. Without a face, warn and return None."""
        image = open_image(path)
        found = self.faces.find(image)
        if found:
            return image, mask_from_landmarks(found[0].landmarks, image.size)
        warnings.warn(f"{path}: no face is found in it; it is left out")
        return None

    def measure(self, folder: str | Path) -> None:
        """Measure the age judges on a folder of real faces, with an `age` in each line of its metadata."""
        squares, ages = [], []
        for example in read_aged(folder):
            image = open_image(example.path)
            pair = (image, open_mask(example.mask, image.size)) if example.mask else self.largest_face(example.path)
            if pair is not None:
                squares.append(square_of(*pair))
                ages.append(example.row["age"])
        if not squares:
            raise InputError(f"{folder}: no face is found in any of its photographs; give others")
        for judge in self.ages:
            judge.measure(squares, ages)

    def open(self, person: Person) -> Subject:
        """Open and measure a person's photographs. References without a face are left out with a warning.

        Raises InputError if the photograph that is to be aged has no face.
        """
        image, references = open_photo(person.photo), []
        mask = read_masks(person.mask, image, self.face_models)[0]
        vectors = [vector for vector in self.vectors(image, mask) if vector is not None]
        if len(vectors) < len(self.identities):
            raise InputError(f"{person.photo}: a judge of identity finds no face in it; give another photograph")
        for dated in person.references:
            if pair := self.largest_face(dated.photo):
                seen = [vector for vector in self.vectors(*pair) if vector is not None]
                if len(seen) < len(self.identities):
                    warnings.warn(f"{dated.photo}: a judge of identity finds no face in it; it is left out")
                else:
                    references.append(Reference(dated.age, seen, self.readings(pair[:1], pair[1])[0].tolist()))
        current = float(self.readings([image], mask)[0, 0]) if person.age is None else person.age
        return Subject(person, image, mask, current, vectors, references)
