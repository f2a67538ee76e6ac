"""Instruments: a face finder and an identity network (YuNet and SFace, through OpenCV) and the age estimator.

`pip install opencv-python-headless`; the two networks' files are OpenCV Zoo's face_detection_yunet_2023mar and
face_recognition_sface_2021dec, here their int8 versions. Scripts of this folder import it; it is no part of the library.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from estimator import read_ages
from PIL import Image
from transformers import ResNetForImageClassification

# Where SFace wants the eyes, the nose's tip and the mouth's corners in a square of 112 pixels (Deng et al. 2019)
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
SAME_PERSON = 0.363  # OpenCV's threshold for the cosine of SFace


class Instruments:
    """The three networks, loaded. Pictures are RGB."""

    def __init__(self, opencv_models: Path, estimator: Path):
        yunet, sface = (next(opencv_models.glob(f"*{name}*.onnx")) for name in ("yunet", "sface"))
        self.finder = cv2.FaceDetectorYN.create(str(yunet), "", (0, 0), score_threshold=0.6)
        self.identity = cv2.dnn.readNetFromONNX(str(sface))
        self.estimator = ResNetForImageClassification.from_pretrained(estimator).eval()

    def find(self, image: Image.Image) -> np.ndarray | None:
        """The five landmarks (5, 2) of the largest face, or None. Small pictures are enlarged first: YuNet wants 100 pixels."""
        factor = max(1.0, 256 / min(image.size))
        large = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        self.finder.setInputSize(large.size)
        _, faces = self.finder.detect(np.asarray(large)[..., ::-1].copy())
        if faces is None:
            return None
        return max(faces, key=lambda face: face[2] * face[3])[4:14].reshape(5, 2) / factor

    def embed(self, image: Image.Image) -> np.ndarray | None:
        """The unit vector (128,) of the largest face's identity, or None where no face is found."""
        landmarks = self.find(image)
        if landmarks is None:
            return None
        warp, _ = cv2.estimateAffinePartial2D(landmarks.astype(np.float32), TEMPLATE.astype(np.float32), method=cv2.LMEDS)
        if warp is None:
            return None
        aligned = cv2.warpAffine(np.asarray(image), warp, (112, 112))
        self.identity.setInput(cv2.dnn.blobFromImage(aligned), "data")
        vector = self.identity.forward().ravel()
        return vector / np.linalg.norm(vector)

    def ages(self, squares: list[Image.Image]) -> np.ndarray:
        """Ages in years of squares about faces, cut as prepare.py cuts them."""
        pixels = np.stack([np.asarray(square.resize((96, 96), Image.Resampling.LANCZOS)) for square in squares])
        return read_ages(self.estimator, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
