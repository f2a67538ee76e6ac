"""Squares cut out and pasted back, and sheets."""

import numpy as np
import pytest
from conftest import box_mask, noise_image
from PIL import Image

from lida.photos.squares import (
    colour_bounded,
    colour_matched,
    cut,
    cut_turned,
    largest_change_outside,
    paste,
    sheet,
    square_about,
    with_detail,
)


@pytest.mark.parametrize("context", [1.0, 1.5, 9.0])
@pytest.mark.parametrize("box", [(10, 10, 30, 40), (0, 0, 8, 8), (90, 50, 100, 60), (0, 5, 100, 20), (3, 0, 20, 60)])
def test_the_square_holds_the_mask_and_stays_inside_if_it_can(box, context):
    left, top, side = square_about(box_mask(100, 60, box), context)
    assert left <= box[0] and top <= box[1] and left + side >= box[2] and top + side >= box[3]
    if side <= 60:
        assert left >= 0 and left + side <= 100 and top >= 0 and top + side <= 60
    assert side >= max(box[2] - box[0], box[3] - box[1])


def test_a_square_cut_at_its_own_size_is_pasted_back_exactly():
    image = noise_image(100, 60)
    mask = box_mask(100, 60, (30, 10, 70, 50))
    box = square_about(mask, 1.2)
    assert np.array_equal(np.asarray(paste(image, cut(image, box, box[2]), box, mask)), np.asarray(image))


def test_nothing_is_squashed():
    """A mask as long as the picture needs a square beyond it, where the border's pixels repeat."""
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


def test_what_is_cut_out_turned_lies_where_it_lay():
    """Turned by a quarter and not at all, a square is the picture's own pixels; at 30 degrees its middle is."""
    image = noise_image(100, 100).convert("RGB")
    pixels, centre = np.asarray(image), np.array([52.0, 48.0])
    for turn in range(4):
        across = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][turn], float)
        square = np.asarray(cut_turned(image, centre, np.stack([across, [-across[1], across[0]]]), 40.0, 40))
        assert np.array_equal(square, np.rot90(pixels[28:68, 32:72], turn))
    c, s = np.cos(0.5), np.sin(0.5)
    beyond = np.asarray(cut_turned(image, np.array([2.0, 3.0]), np.array([[c, s], [-s, c]]), 60.0, 30))
    assert beyond.shape == (30, 30, 3) and np.abs(beyond[15, 15].astype(int) - pixels[3, 2]).max() <= 12


def test_a_sheet_has_equally_high_pictures_in_a_row():
    row = sheet([noise_image(64, 64), noise_image(50, 100)], ["input", "age 10"], height=100)
    assert row.height == 142 and row.width == 100 + 50 + 3 * 8


def test_colours_at_the_seam_are_matched():
    """A patch that is the picture itself in another brightness and contrast comes back, but for rounding."""
    image, mask = noise_image(100, 100), box_mask(100, 100, (30, 30, 70, 70))
    patch = Image.fromarray((np.asarray(image) * 0.85 + 12).round().astype(np.uint8))
    off = lambda p: np.abs(np.asarray(p).astype(int) - np.asarray(image)).mean()  # noqa: E731
    assert off(colour_matched(patch, image, mask)) < 0.15 * off(patch)
    assert colour_matched(patch, image, Image.new("L", (100, 100), 255)) is patch  # no ring is left to compare
    assert largest_change_outside(image, paste(image, patch, (0, 0, 100), mask), mask) == 0
    assert largest_change_outside(image, patch, mask) > 5


def test_detail_is_what_the_autoencoder_lost():
    """A full share gives the unchanged picture back; a change is added to the photograph at its full size."""
    square, reconstruction = noise_image(90, 90), noise_image(32, 32, 1)
    assert np.array_equal(np.asarray(with_detail(reconstruction, reconstruction, square, 1.0)), np.asarray(square))
    patch = Image.fromarray((np.asarray(reconstruction) * 0.9).astype(np.uint8))
    large = [np.asarray(x.resize((90, 90), Image.Resampling.LANCZOS), dtype=np.float32) for x in (patch, reconstruction)]
    expected = (large[0] + 0.5 * (np.asarray(square, dtype=np.float32) - large[1])).clip(0, 255).round()
    everywhere = with_detail(patch, reconstruction, square, 0.5, tolerance=1e6)  # any change is tolerated
    assert np.array_equal(np.asarray(everywhere), expected.astype(np.uint8))


def test_detail_does_not_come_back_where_a_feature_changed():
    reconstruction = np.full((64, 64, 3), 128, np.uint8)
    square = reconstruction + np.random.default_rng(0).integers(-20, 20, (64, 64, 3)).astype(np.uint8)
    patch = reconstruction.copy()
    patch[25:29, 25:29] = 255
    detailed = np.asarray(with_detail(*map(Image.fromarray, (patch, reconstruction, square)), 1.0)).astype(int)
    assert np.abs(detailed - square)[:8, :8].max() <= 1  # the photograph, far away
    assert np.abs(detailed - patch)[25:29, 25:29].max() <= 1  # the patch, there


def test_a_cast_is_bounded_and_features_stay():
    square = noise_image(64, 64)
    cast = Image.fromarray((np.asarray(square, dtype=int) + (40, 0, 0)).clip(0, 255).astype(np.uint8))
    near = np.asarray(colour_bounded(cast, square, 10.0), dtype=int) - np.asarray(square, dtype=int)
    assert near[..., 0].mean() == pytest.approx(10, abs=3) and np.abs(near[..., 1:]).max() <= 1
    plain, fine = np.full((64, 64, 3), 128, np.uint8), np.full((64, 64, 3), 128, np.uint8)
    fine[::2], fine[1::2] = 168, 88
    assert np.array_equal(np.asarray(colour_bounded(Image.fromarray(fine), Image.fromarray(plain))), fine)
