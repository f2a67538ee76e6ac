"""Masks from files, boxes, landmarks and the face finder, and at the latents' size."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, box_mask, noise_image
from PIL import Image

import lida
from lida.doors.pictures import open_image
from lida.photos.faces import FaceNetworks
from lida.photos.masks import (
    ZONES,
    Outline,
    choose_faces,
    face_frame,
    hull,
    mask_from_landmarks,
    open_mask,
    read_masks,
)


@pytest.fixture
def landmarks():
    """49 of an upright face in a picture of 100 pixels: brows, nose, eyes, mouth."""
    rng = np.random.default_rng(0)
    spans = [(10, 40, 60, 40, 44), (9, 46, 54, 44, 56), (12, 42, 58, 46, 48), (18, 45, 55, 60, 64)]
    return np.concatenate([np.stack([rng.uniform(a, b, n), rng.uniform(c, d, n)], -1) for n, a, b, c, d in spans])


def test_a_mask_from_a_file_is_used_as_given(tmp_path):
    """But for JPEG's ringing: values below 8 are 0. It is upright as the photograph is, and black where it is transparent."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(open_mask(tmp_path / "mask.png", (16, 16))), np.where(values < 8, 0, values))
    mask = box_mask(64, 40, (10, 12, 30, 35))
    mask.save(tmp_path / "mask.jpg", quality=75)
    outside = np.asarray(box_mask(64, 40, (8, 8, 32, 40))) == 0  # the blocks of 8 pixels that the box touches
    assert (np.asarray(Image.open(tmp_path / "mask.jpg"))[~outside] % 255 != 0).any()
    assert (np.asarray(open_mask(tmp_path / "mask.jpg", (64, 40)))[outside] == 0).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    mask.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_mask(tmp_path / "turned.png", (40, 64))), np.rot90(np.asarray(mask), -1))
    Image.merge("LA", [Image.new("L", mask.size, 255), mask]).save(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(open_mask(tmp_path / "alpha.png", (64, 40))), np.asarray(mask))
    Image.new("L", (9, 9), 7).save(tmp_path / "black.png")
    with pytest.raises(lida.InputError, match="black.png: the mask is black .brightest value 7"):
        open_mask(tmp_path / "black.png", (9, 9))
    with pytest.raises(lida.InputError, match="the mask is 9x9, the photograph 9x8"):
        open_mask(tmp_path / "black.png", (9, 8))


def test_a_box_gives_a_rectangular_mask_and_must_lie_within_the_photograph(tmp_path):
    image = noise_image(30, 20)
    assert np.array_equal(np.asarray(read_masks("2,3,30,20", image)[0]), np.asarray(box_mask(30, 20, (2, 3, 30, 20))))
    for box in ("2,3,31,20", "-1,0,5,5", "5,0,5,5", "0,9,5,5"):
        with pytest.raises(lida.InputError, match="is not a box x0,y0,x1,y1 within the photograph, which is 30x20"):
            read_masks(box, image)
    for text in ("1,2,3", "a,b,c,d", "none.png", "1.5,2,3,4", ""):
        with pytest.raises(lida.InputError, match=f"--mask {text}: no such file, nor a box"):
            read_masks(text, image)


def test_a_mask_that_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    for path, message in (
        (tmp_path / "pipe.png", "pipe.png: is not a regular file"),
        (tmp_path / "dangling.png", "is a link to a file that does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(lida.InputError, match=message):
            read_masks(str(path), noise_image(9, 9))


def test_masks_from_files_import_no_face_finder():
    code = "import sys, lida.photos.masks; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_hull_holds_all_points_at_its_corners():
    points = np.random.default_rng(0).normal(size=(50, 2))
    corners = np.array(hull(points))
    assert {tuple(corner) for corner in corners} <= {tuple(point) for point in points}
    sides = np.roll(corners, -1, 0) - corners
    away = points[:, None] - corners
    assert (sides[:, 0] * away[..., 1] - sides[:, 1] * away[..., 0] >= -1e-12).all()  # to the left of every side


@pytest.mark.parametrize("count", [5, 49])
def test_the_mask_holds_the_landmarks_and_turns_with_them(landmarks, count):
    if count == 5:
        landmarks = np.array([[44.0, 46], [56, 47], [51, 54], [46, 61], [55, 62]])
    upright = np.asarray(mask_from_landmarks(landmarks, (100, 100))) > 0
    assert upright[landmarks[:, 1].round().astype(int), landmarks[:, 0].round().astype(int)].all()
    rows = np.flatnonzero(upright.any(1))
    assert rows[0] < landmarks[:, 1].min() - 8 and rows[-1] >= landmarks[-18:, 1].max() + 6  # forehead and jaw
    turned = np.asarray(mask_from_landmarks(np.stack([100 - landmarks[:, 1], landmarks[:, 0]], -1), (100, 100))) > 0
    assert (np.rot90(upright, -1) != turned).mean() < 0.02  # but for the pixels of the outline


def test_growth_and_feather_are_in_heights_of_the_face(landmarks):
    size, height = (100, 100), 2 * face_frame(landmarks)[2][1]
    plain = np.asarray(mask_from_landmarks(landmarks, size))
    rows = [np.flatnonzero((np.asarray(mask_from_landmarks(landmarks, size, Outline(g))) > 0).any(1)) for g in (0.0, 0.1, -0.1)]
    for grown, by in zip(rows[1:], (0.1, -0.1)):
        assert grown[0] - rows[0][0] == pytest.approx(-by * height, abs=1.5) == rows[0][-1] - grown[-1]
    soft = np.asarray(mask_from_landmarks(landmarks, size, Outline(feather=0.1))).astype(int)
    assert ((soft > 0) & (soft < 255)).any() and not ((soft > 0) & (soft < 8)).any()
    column = soft[:, 50][: rows[0][0] + 1]
    assert (np.diff(column) >= 0).all() and soft[plain == 0].max() < 140


@pytest.mark.parametrize("bad", [np.zeros((7, 2)), np.zeros((49, 3)), np.zeros((5, 2))])
def test_what_is_no_face_is_refused(bad):
    with pytest.raises(ValueError, match="landmarks"):
        mask_from_landmarks(bad, (10, 10))


def test_the_face_is_found_and_chosen():
    networks, portrait = FaceNetworks(), open_image(ROOT / "weights" / "demo" / "person-b.png")
    page = Image.new("RGB", (500, 400), "grey")
    page.paste(portrait.resize((120, 120)), (20, 30))
    page.paste(portrait.resize((200, 200)), (260, 150))
    with pytest.raises(lida.InputError, match=r"2 faces are found \(1: .*; 2: .*\); choose one with infer.py's --face"):
        read_masks("auto", page)
    with pytest.raises(lida.InputError, match="--face 3: the photograph has 2"):
        read_masks("auto", page, face=3)
    for number, (left, top, side) in ((1, (260, 150, 200)), (2, (20, 30, 120))):
        box = read_masks("auto", page, face=number)[0].getbbox()
        assert left < (box[0] + box[2]) / 2 < left + side and top < (box[1] + box[3]) / 2 < top + side
        assert side / 2 < box[3] - box[1] < 1.5 * side
    with pytest.raises(lida.InputError, match="no face is found"):
        read_masks("auto", noise_image(96, 96))
    assert read_masks("auto", portrait)[0].getextrema() == (0, 255)
    assert [mask.getbbox() for mask in read_masks("auto", page, face="all")] == [
        read_masks("auto", page, face=number)[0].getbbox() for number in (1, 2)
    ]
    with pytest.raises(lida.InputError, match="no face is found"):
        read_masks("auto", noise_image(96, 96), face="all")
    assert choose_faces(networks.find(portrait), None)[0].score > 0.6


def test_without_the_face_networks_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("lida.photos.faces.find_spec", lambda name: None)
    with pytest.raises(lida.InputError, match=r"pip install lida-aging\[face\]; or give --mask a picture or a box"):
        read_masks("auto", noise_image(9, 9))


def test_zones_weigh_less(landmarks):
    plain = np.asarray(mask_from_landmarks(landmarks, (100, 100))).astype(int)
    assert set(ZONES) == {"eyes", "mouth", "hairline"}
    places = {"eyes": landmarks[19:31].mean(0), "mouth": landmarks[31:49].mean(0)}
    for name, place in places.items():
        x, y = place.round().astype(int)
        less = np.asarray(mask_from_landmarks(landmarks, (100, 100), Outline(zones={name: 0.5}))).astype(int)
        assert 120 <= less[y, x] <= 170 and (less <= plain).all()
        other = next(p for n, p in places.items() if n != name).round().astype(int)
        assert less[other[1], other[0]] >= 250
