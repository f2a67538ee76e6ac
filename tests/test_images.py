"""Squares, pasting, sheets and PNGs."""

import json

import numpy as np
import pytest
import torch
from conftest import box_mask, noise_image
from PIL import Image

import lida
from lida.images import centre_square, cut, open_image, paste, save_png, sheet, square_about, to_images, to_tensor
from lida.masks import mask_from_landmarks, open_mask


def test_tensor_and_back():
    image = noise_image(20, 30)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 30, 20) and tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(np.asarray(to_images(tensor)[0]), np.asarray(image))


@pytest.mark.parametrize("context", [1.0, 1.5, 9.0])
@pytest.mark.parametrize("box", [(10, 10, 30, 40), (0, 0, 8, 8), (90, 50, 100, 60), (0, 5, 100, 20), (3, 0, 20, 60)])
def test_the_square_holds_the_mask_and_stays_inside_if_it_can(box, context):
    left, top, side = square_about(box_mask(100, 60, box), context)
    assert left <= box[0] and top <= box[1] and left + side >= box[2] and top + side >= box[3]
    if side <= 60:
        assert 0 <= left and left + side <= 100 and 0 <= top and top + side <= 60
    assert side >= max(box[2] - box[0], box[3] - box[1])


def test_a_square_cut_at_its_own_size_is_pasted_back_exactly():
    image = noise_image(100, 60)
    mask = box_mask(100, 60, (30, 10, 70, 50))
    box = square_about(mask, 1.2)
    assert np.array_equal(np.asarray(paste(image, cut(image, box, box[2]), box, mask)), np.asarray(image))


def test_nothing_is_squashed():
    """A mask as long as the picture needs a square beyond it; there the border's pixel goes on."""
    image, mask = noise_image(40, 100), Image.new("L", (40, 100), 255)
    box = square_about(mask, 1.0)
    assert box == (-30, 0, 100)
    square = np.asarray(cut(image, box, 100))
    assert np.array_equal(square[:, 30:70], np.asarray(image))
    assert (square[:, :30] == np.asarray(image)[:, :1]).all()


def test_the_seam_fades_within_the_mask():
    black, white, mask = (
        Image.new("RGB", (100, 100)),
        Image.new("RGB", (100, 100), "white"),
        box_mask(100, 100, (20, 20, 80, 80)),
    )
    row = np.asarray(paste(black, white, (0, 0, 100), mask, feather=0.04))[50, :, 0].astype(int)
    assert (row[:20] == 0).all() and (np.diff(row[19:50]) >= 0).all() and 0 < row[22] < 255 and row[50] == 255


def test_photographs_are_turned_upright(tmp_path):
    image = noise_image(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), np.rot90(np.asarray(image), -1))


def test_bad_pictures_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    noise_image(200, 200).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.new("L", (9, 9), 40).save(tmp_path / "grey.png")
    for name, message in (("none.png", "no such file"), ("text.png", "not an image"), ("half.png", "not an image")):
        with pytest.raises(lida.InputError, match=f"{name}: {message}"):
            open_image(tmp_path / name)
    with pytest.raises(lida.InputError, match="the mask is 9x9, the photograph 9x8"):
        open_mask(tmp_path / "grey.png", (9, 8))
    with pytest.raises(lida.InputError, match="no white .brightest value 40"):
        open_mask(tmp_path / "grey.png", (9, 9))


def test_settings_travel_in_the_png(tmp_path):
    settings = {"prompt": "naïve 😀", "seed": 3}
    save_png(noise_image(8, 8), tmp_path / "a.png", settings)
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.info["lida"]) == settings == json.loads((tmp_path / "a.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_sheet_and_square():
    row = sheet([noise_image(64, 64), noise_image(50, 100)], ["input", "age 10"], height=100)
    assert row.height == 142 and row.width == 100 + 50 + 3 * 8
    assert centre_square(noise_image(50, 80), 32).size == (32, 32)
    assert torch.equal(to_tensor(centre_square(noise_image(32, 32), 32)), to_tensor(noise_image(32, 32)))


def test_the_mask_from_landmarks_turns_with_the_face():
    """An upright face of 49 landmarks, and the same turned by a quarter about the picture's middle."""
    rng = np.random.default_rng(0)
    spans = [(10, 40, 60, 40, 44), (9, 46, 54, 44, 56), (12, 42, 58, 46, 48), (18, 45, 55, 60, 64)]  # brows, nose, eyes, mouth
    points = np.concatenate([np.stack([rng.uniform(a, b, n), rng.uniform(c, d, n)], -1) for n, a, b, c, d in spans])
    upright = np.asarray(mask_from_landmarks(points, (100, 100))) > 0
    assert upright[points[:, 1].round().astype(int), points[:, 0].round().astype(int)].all()
    turned = np.asarray(mask_from_landmarks(np.stack([100 - points[:, 1], points[:, 0]], -1), (100, 100))) > 0
    assert (np.rot90(upright, -1) != turned).mean() < 0.02  # but for the pixels of the outline
