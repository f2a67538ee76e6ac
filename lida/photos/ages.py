"""Estimate ages of faces with an image classifier of the transformers library."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..doors.errors import InputError
from ..doors.files import regular_file
from ..doors.json import read_json
from ..doors.pictures import in_srgb
from .squares import cut, square_about

CURE = "give a transformers image classifier whose labels are ages"
SIDE, CONTEXT = 224, 1.3  # of the square: in pixels, and in lengths of the mask
DEEPEST = 1000  # layers of an image classifier


def years_of(label: str, source: str | Path) -> float:
    """Return the age that a label means: 34 for "34", the middle 25 for "20-29", 75 for the open range "more than 70".

    Raises InputError for a label without a number.
    """
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", label)]
    if len(numbers) not in (1, 2) or max(numbers) > 150:
        raise InputError(f"{source}: its label {label!r} names no age; {CURE}")
    if len(numbers) == 2:
        return (numbers[0] + numbers[1] + 1) / 2  # 20-29 ends at the thirtieth birthday
    return numbers[0] + 5 * (label.strip("() ") != re.findall(r"[\d.]+", label)[0])


def check_estimator(folder: Path) -> None:
    """Raise InputError for a folder that transformers would hang on: one with a pipe, or with a network of too many layers."""
    for path in folder.iterdir():
        if not path.is_dir():
            regular_file(path)
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    for key, value in config.items() if isinstance(config, dict) else ():
        numbers = [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, int)]
        if ("layers" in key or "depth" in key) and max(numbers, default=0) > DEEPEST:
            raise InputError(f"{folder}: {key} is {value} in its config.json, more than {DEEPEST}; {CURE}")


class AgeEstimator:
    """Estimates ages: the mean of a classifier's ages, weighted by their probabilities for a face and its mirror image.

    `source` is a folder or hub id that AutoModelForImageClassification loads, such as `weights/age-estimator`. No code of the
    source is run, and pickled weights are refused. Raises InputError if it cannot be loaded completely.
    """

    def __init__(self, source: str | Path):
        if Path(source).is_dir():
            check_estimator(Path(source))
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from transformers.utils import logging

        bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # missing tensors are reported below
        try:
            self.model, report = AutoModelForImageClassification.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # transformers raises anything for a broken folder
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{source}: no age estimator ({reason}); {CURE}") from None
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
        if missing := sorted(report["missing_keys"]):
            raise InputError(f"{source}: has no weights for {len(missing)} of its tensors, such as {missing[0]}; {CURE}")
        labels, self.source = self.model.eval().config.id2label, source
        self.years = torch.tensor([years_of(labels.get(i, ""), source) for i in range(self.model.config.num_labels)])

    @torch.no_grad()
    def __call__(self, faces: Sequence[Image.Image]) -> np.ndarray:
        """Return the ages (N,), in years, of RGB squares around faces."""
        ages = []
        for face in faces:
            pair = [face, face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
            try:
                logits = self.model(**self.processor(pair, return_tensors="pt")).logits
            except (ValueError, TypeError) as error:  # from a processor whose config is out of range
                raise InputError(f"{self.source}: no age estimator ({str(error)[:200]}); {CURE}") from None
            ages.append(float((logits.softmax(-1).mean(0) * self.years).sum()))
        if not np.isfinite(ages).all():
            raise InputError(f"{self.source}: reads no finite age; {CURE}")
        return np.array(ages)

    def of(self, image: Image.Image, mask: Image.Image) -> float:
        """Return the age in years of the face under a mask."""
        return float(self([square_of(image, mask)])[0])


def square_of(image: Image.Image, mask: Image.Image, context: float = CONTEXT) -> Image.Image:
    """Return the square around a face's mask, in sRGB, as in the training data of the shipped estimator."""
    return in_srgb(cut(image, square_about(mask, context), SIDE))
