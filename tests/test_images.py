"""Squares, pasting, sheets and PNGs."""

import numpy as np
import pytest
from conftest import box_mask, noise_image
from PIL import Image, ImageCms

import lida
from lida.photos.pictures import cut, cut_turned, open_image, open_photo, paste, sheet, square_about, to_images, to_tensor


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


def test_pictures_of_every_kind_look_as_in_a_viewer(tmp_path):
    """What each file holds, known by how it was made."""
    image = noise_image(40, 30)
    pixels, grey = np.asarray(image), np.asarray(image.convert("L"))
    clear = np.linspace(0, 255, 1200).astype(np.uint8).reshape(30, 40)
    on_white = pixels * (clear[..., None] / 255) + 255 - clear[..., None]
    sixteen = Image.fromarray(grey.astype(np.uint16) << 8 | grey)
    cut_out = Image.fromarray(np.dstack([pixels, clear]))
    palette = image.quantize(16)
    with_hole = np.where((np.asarray(palette) == 3)[..., None], 255, palette.convert("RGB"))
    cmyk = Image.merge("CMYK", [Image.fromarray(255 - pixels[..., i]) for i in range(3)] + [Image.new("L", (40, 30), 0)])
    masked = Image.fromarray(np.dstack([grey, clear]))
    for name, picture, expected, tolerance, options in (
        ("grey.png", Image.fromarray(grey), grey, 0, {}),
        ("sixteen.png", sixteen, grey, 0, {}),
        ("sixteen.tif", sixteen, grey, 0, {}),
        ("thirty-two.tif", Image.fromarray(grey.astype(np.int32) * 257), grey, 0, {}),
        ("one.png", Image.fromarray(grey > 127), 255 * (grey > 127), 0, {}),
        ("palette.png", palette, palette.convert("RGB"), 0, {}),
        ("palette.gif", palette, palette.convert("RGB"), 0, {}),
        ("hole.gif", palette, with_hole, 0, {"transparency": 3}),
        ("alpha.png", cut_out, on_white, 1, {}),
        ("alpha.webp", cut_out, on_white, 1, {"lossless": True, "exact": True}),
        ("grey-alpha.png", masked, grey * (clear / 255) + 255 - clear, 1, {}),
        ("cmyk.tif", cmyk, pixels, 0, {}),
        ("cmyk.jpg", cmyk, pixels, 12, {"quality": 100}),
        ("animated.gif", palette, palette.convert("RGB"), 0, {"save_all": True, "append_images": [noise_image(40, 30, 9)]}),
        ("animated.webp", image, pixels, 0, {"save_all": True, "append_images": [noise_image(40, 30, 9)], "lossless": True}),
        ("photo.heic", image, pixels, 12, {"quality": 100, "chroma": "444"}),
    ):  # fmt: skip
        if name.endswith(".heic"):
            pytest.importorskip("pillow_heif").register_heif_opener()
        picture.save(tmp_path / name, **options)
        expected = np.asarray(expected, dtype=float)
        expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
        opened = open_image(tmp_path / name)
        assert opened.mode == "RGB" and np.abs(np.asarray(opened) - expected).max() <= tolerance, name


def test_colours_go_through_their_profile(tmp_path):
    """A profile whose red is sRGB's blue and the reverse; and sRGB's own, after which not a bit may differ."""
    image, srgb = noise_image(40, 30), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "BGR ".encode("utf-16-be"))
    for name, profile in (("srgb.png", srgb), ("swapped.png", swapped), ("broken.png", b"profile")):
        image.save(tmp_path / name, icc_profile=profile)
    assert np.array_equal(np.asarray(open_image(tmp_path / "srgb.png")), np.asarray(image))
    there = np.asarray(open_image(tmp_path / "swapped.png")).astype(int)
    assert np.abs(there - np.asarray(image)[..., ::-1]).max() <= 2
    clear = image.convert("RGBA")
    clear.putalpha(Image.new("L", (40, 30), 255))
    clear.save(tmp_path / "clear.png", icc_profile=swapped)
    assert np.abs(np.asarray(open_image(tmp_path / "clear.png")) - there).max() <= 2
    with pytest.warns(UserWarning, match="broken.png: its colour profile cannot be used"):
        assert np.array_equal(np.asarray(open_image(tmp_path / "broken.png")), np.asarray(image))


def test_a_photograph_keeps_its_profile_and_its_exif(tmp_path):
    """Its pixels are as they are in the file, upright; and back through the profile they are the same."""
    image, srgb = noise_image(40, 30), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "BGR ".encode("utf-16-be"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    image.save(tmp_path / "a.png", icc_profile=swapped, exif=exif)
    photo = open_photo(tmp_path / "a.png")
    assert np.array_equal(np.asarray(photo), np.rot90(np.asarray(image), -1)) and photo.info["icc_profile"] == swapped
    kept = Image.Exif()
    kept.load(photo.info["exif"])
    assert kept.get(0x010F) == "a camera" and kept.get(0x0112, 1) == 1
    converted = lida.photos.pictures.in_srgb(photo)
    assert np.abs(np.asarray(converted)[..., ::-1].astype(int) - np.asarray(photo)).max() <= 2
    back = lida.photos.pictures.from_srgb(converted, photo)
    assert np.abs(np.asarray(back).astype(int) - np.asarray(photo)).max() <= 3
    assert np.array_equal(np.asarray(converted), np.asarray(open_image(tmp_path / "a.png")))
    for box in ((2, 2, 10), (-5, -5, 20)):  # within the picture and beyond it
        assert cut(photo, box, 8).info["icc_profile"] == swapped


def test_bad_pictures_are_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    noise_image(200, 200).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.new("F", (9, 9)).save(tmp_path / "float.tif")
    for name, message in (
        ("none.png", "no such file"),
        ("text.png", "not an image"),
        ("half.png", "not an image"),
        (".", "is a folder"),
    ):
        with pytest.raises(lida.InputError, match=f"{name.strip('.')}.*: {message}"):
            open_image(tmp_path / name)
    with pytest.raises(lida.InputError, match="float.tif: not an image .*floating-point"):
        open_image(tmp_path / "float.tif")
    monkeypatch.setattr("lida.doors.pictures.find_spec", lambda name: None)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(lida.InputError, match=r"a.HEIC: pillow-heif is not installed.*pip install lida-aging\[heic\]"):
        open_image(tmp_path / "a.HEIC")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 200 // 2 - 1)
    with pytest.raises(lida.InputError, match="whole.png: not an image .*decompression bomb"):
        open_image(tmp_path / "whole.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_damaged_files_open_or_are_refused(tmp_path, suffix):
    """Forty copies of a picture with bytes changed or the end lost: Pillow's own errors never come through."""
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    noise_image(60, 50).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(40):
        damaged = whole[: rng.integers(len(whole) // 4, len(whole) + 1)].copy()
        places = rng.integers(0, min(len(damaged), 400), 8)
        damaged[places] = rng.integers(0, 256, 8)
        path.write_bytes(damaged.tobytes())
        try:
            assert open_image(path).mode == "RGB"
        except lida.InputError as error:
            assert f"a.{suffix}: " in str(error)


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


def test_a_sheet():
    row = sheet([noise_image(64, 64), noise_image(50, 100)], ["input", "age 10"], height=100)
    assert row.height == 142 and row.width == 100 + 50 + 3 * 8
