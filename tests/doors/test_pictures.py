"""Pictures of every kind, and what is no picture."""

import os

import numpy as np
import pytest
from conftest import noise_image
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from lida.doors.errors import InputError
from lida.doors.pictures import from_srgb, in_srgb, open_image, open_photo, opened, photographs, save_image, to_images, to_tensor
from lida.photos.squares import cut


def test_a_picture_becomes_a_tensor_and_comes_back_unchanged():
    image = noise_image(20, 30)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 30, 20) and tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(np.asarray(to_images(tensor)[0]), np.asarray(image))


def test_photographs_are_turned_upright(tmp_path):
    image = noise_image(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), np.rot90(np.asarray(image), -1))


def test_exif_that_cannot_be_read_is_left_out(tmp_path):
    for name in ("a.jpg", "a.png", "a.webp"):
        noise_image(30, 20).save(tmp_path / name, exif=b"Exif\0\0garbage-garbage")
        with pytest.warns(UserWarning, match=f"{name}: its EXIF cannot be read"):
            image = open_photo(tmp_path / name)
        assert image.size == (30, 20) and "exif" not in image.info


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
    converted = in_srgb(photo)
    assert np.abs(np.asarray(converted)[..., ::-1].astype(int) - np.asarray(photo)).max() <= 2
    back = from_srgb(converted, photo)
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
        with pytest.raises(InputError, match=f"{name.strip('.')}.*: {message}"):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match="float.tif: not an image .*floating-point"):
        open_image(tmp_path / "float.tif")
    monkeypatch.setattr("lida.doors.pictures.find_spec", lambda name: None)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(InputError, match=r"a.HEIC: not an image .*it wants pillow-heif: pip install lida-aging\[heic\]"):
        open_image(tmp_path / "a.HEIC")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 200 // 2 - 1)
    with pytest.raises(InputError, match="whole.png: not an image .*decompression bomb"):
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
        except InputError as error:
            assert f"a.{suffix}: " in str(error)


def test_only_known_formats_are_opened(tmp_path):
    """Pillow would run Ghostscript on the first of these, whatever its name; and a pipe would be waited for."""
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    noise_image(9, 9).save(tmp_path / "ppm.png", format="PPM")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nothing")
    for name, message in (
        ("eps.jpg", "not an image that Pillow can read"),
        ("ppm.png", "not an image that Pillow can read"),
        ("pipe.png", "is not a regular file; give a photograph"),
        ("link.png", "is a link to a file that does not exist"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            open_image(tmp_path / name)


def test_shape_and_text_are_bounded(tmp_path):
    for size in ((1, 5000), (5000, 1)):
        Image.new("RGB", size).save(tmp_path / f"narrow{size[0]}.png")
    info = PngInfo()
    info.add_text("lida", "x" * 2**21, zip=True)  # 2 kB that unpack to 2 MB
    noise_image(9, 9).save(tmp_path / "text.png", pnginfo=info)
    for name, message in (
        ("narrow1.png", "is 1x5000 pixels, too narrow"),
        ("narrow5000.png", "is 5000x1 pixels, too narrow"),
        ("text.png", "not an image .*MAX_TEXT_CHUNK"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            open_image(tmp_path / name)


def test_a_foreign_profile_is_ignored_with_one_warning(tmp_path):
    """That of another colour space; a photograph then has none, so that nothing stumbles over it later."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = noise_image(40, 30)
    image.save(tmp_path / "lab.png", icc_profile=lab)
    with pytest.warns(UserWarning, match="lab.png: its colour profile cannot be used") as caught:
        photo = open_photo(tmp_path / "lab.png")
        in_srgb(photo)
    assert len(caught) == 1 and photo.info == {} and np.array_equal(np.asarray(photo), np.asarray(image))
    image.info["icc_profile"] = lab
    assert from_srgb(image, image) is image


def test_opening_a_picture_reads_only_its_header(tmp_path):
    noise_image(60, 40).save(tmp_path / "a.jpg", quality=100)
    with opened(tmp_path / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (60, 40))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    with opened(tmp_path / "a.jpg") as image:
        assert image.size == (60, 40)
    with pytest.raises(InputError, match="a.jpg: not an image .*truncated"), opened(tmp_path / "a.jpg") as image:
        image.load()


def test_a_large_png_is_packed_less_tightly_and_has_the_same_pixels(tmp_path, monkeypatch):
    image = noise_image(100, 80)
    save_image(image, tmp_path / "a.png")
    monkeypatch.setattr("lida.doors.pictures.LARGE", 7999)
    save_image(image, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size < (tmp_path / "b.png").stat().st_size
    assert open_photo(tmp_path / "a.png") == open_photo(tmp_path / "b.png") == image


def test_what_cannot_be_saved_is_one_line(tmp_path):
    save_image(noise_image(9, 9), tmp_path / "a.PNG")
    assert Image.open(tmp_path / "a.PNG").format == "PNG"
    for name, size, message in (
        ("a.xyz", (9, 9), "its ending is not that of a picture format"),
        ("a", (9, 9), "its ending is not that of a picture format"),
        ("a.webp", (20_000, 1), "cannot be saved as WEBP"),
        ("a.jpg", (70_000, 1), "cannot be saved as JPEG"),
        ("none/a.png", (9, 9), "cannot be written, its folder does not exist"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            save_image(Image.new("RGB", size), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]


def test_hidden_files_of_a_folder_are_no_photographs(tmp_path):
    for name in ("me.png", "._me.png", "notes.txt"):
        (tmp_path / name).touch()
    assert photographs([tmp_path]) == [tmp_path / "me.png"]
