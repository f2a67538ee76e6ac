"""How old a face looks, by a network of transformers' classes."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..doors.errors import InputError
from ..doors.pictures import in_srgb
from .squares import cut, square_about


def years_of(label: str, source: str | Path) -> float:
    """The age that a class stands for: "34"; of "20-29" the middle, 25; of "more than 70", which has no end, five years more.

    Raises InputError for a label without a number.
    """
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", label)]
    if not numbers or len(numbers) > 2:
        raise InputError(f"{source}: its label {label!r} tells no years; give a classifier of ages")
    if len(numbers) == 2:
        return (numbers[0] + numbers[1] + 1) / 2  # 20-29 lasts until the thirtieth birthday
    return numbers[0] + 5 * (label.strip("() ") != re.findall(r"[\d.]+", label)[0])


class AgeEstimator:
    """An image classifier whose classes are years: the mean of its probabilities, over a face and its mirror image.

    `weights/age-estimator` is one; any other that AutoModelForImageClassification loads will do, whose labels tell years as
    years_of() reads them. Raises InputError where it cannot be loaded, or a label tells none.
    """

    def __init__(self, source: str | Path):
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # it is done in no time
        try:
            self.model = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float32).eval()
            self.processor = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{source}: no age estimator ({str(error).splitlines()[0]}); give a transformers classifier"
            ) from None
        finally:
            if bars:
                logging.enable_progress_bar()
        labels = self.model.config.id2label
        self.years = torch.tensor([years_of(labels[i], source) for i in range(len(labels))])

    @torch.no_grad()
    def __call__(self, faces: Sequence[Image.Image]) -> np.ndarray:
        """Years (N,) of squares about faces."""
        probabilities = [
            self.model(**self.processor([face, face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], return_tensors="pt")).logits
            for face in faces
        ]
        return np.array([float((logits.softmax(-1).mean(0) * self.years).sum()) for logits in probabilities])

    def of(self, image: Image.Image, mask: Image.Image) -> float:
        """Years of the face under a mask, cut out as the estimator's training pictures are."""
        box = square_about(mask, 1.3)
        return float(self([in_srgb(cut(image, box, 224))])[0])
