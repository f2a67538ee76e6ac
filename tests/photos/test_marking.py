"""Marked pictures: what is written into them, and the settings read back."""

import json
import os
import zlib

import numpy as np
import pytest
from conftest import noise_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lida.doors.errors import InputError
from lida.photos.marking import Encoding, encoding_of, origin, read_settings, save_marked

SETTINGS = {"seed": 4, "prompt": "naïve 😀", "strength": 0.3}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_has_its_settings_and_says_that_it_is_synthetic(tmp_path, suffix):
    noise_image(40, 30).save(tmp_path / f"like{suffix}", quality=70)
    encoding = encoding_of(tmp_path / f"like{suffix}")
    path = save_marked(noise_image(40, 30, 1), tmp_path / "out" / "a", SETTINGS, encoding=encoding)
    assert path == tmp_path / "out" / f"a{suffix}" and read_settings(path) == SETTINGS
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == SETTINGS
    assert b"compositeWithTrainedAlgorithmicMedia" in path.read_bytes()
    if suffix == ".png":
        path.with_suffix(".json").unlink()
        assert read_settings(path) == SETTINGS
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(noise_image(40, 30, 1)))
    if suffix == ".jpg":
        assert Image.open(path).quantization == Image.open(tmp_path / "like.jpg").quantization


def test_the_encoding_is_that_of_the_file_whatever_its_name(tmp_path):
    noise_image(40, 30).save(tmp_path / "a.jpg", format="WEBP")
    noise_image(40, 30).convert("L").save(tmp_path / "grey.jpg")
    noise_image(40, 30).save(tmp_path / "a.png")
    assert encoding_of(tmp_path / "a.jpg").suffix == ".webp" and encoding_of(tmp_path / "a.png") == Encoding()
    assert encoding_of(tmp_path / "grey.jpg") == Encoding(".jpg", {"quality": 95})
    noise_image(40, 30).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="--format same: .*a.tif is TIFF, not JPEG, WebP or PNG"):
        encoding_of(tmp_path / "a.tif")


def png_with(path, text: str | bytes) -> None:
    """A PNG with the text under lida's key; bytes are a compressed text as they are."""
    info = PngInfo()
    if isinstance(text, str):
        info.add_itxt("lida", text)
    else:
        info.add(b"iTXt", b"lida\0\1\0\0\0" + text)
    noise_image(8, 8).save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "not readable as JSON"),
        ("[1]", "is not an object"),
        ("[" * 100000, "has no settings"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        (zlib.compress(b" " * 10**8, 9), "not an image"),  # a hundred megabytes in a hundred kilobytes
    ],
)
def test_broken_settings_are_refused(tmp_path, text, message):
    png_with(tmp_path / "a.png", text)
    with pytest.raises(InputError, match=message) as error:
        read_settings(tmp_path / "a.png")
    assert len(str(error.value).splitlines()) == 1


def test_relative_paths_start_where_the_picture_was_made(tmp_path, monkeypatch):
    for folder in ("made/out", "here/out"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("made/a.png", "made/b=c.safetensors"):
        (tmp_path / file).touch()
    told = {"made_in": "..", "arguments": {"photo": ["a.png"], "mask": "0,0,9,9", "adapter": ["b=c.safetensors=1.0"]}}
    there = tmp_path / "made" / "out" / ".."
    monkeypatch.chdir(tmp_path / "here")
    assert origin(told, "../made/out/x.png") == there
    (tmp_path / "here" / "a.png").touch()  # another photograph of that name
    assert origin(told, "../made/out/x.png") == there
    (tmp_path / "made" / "a.png").unlink()
    assert origin(told, "../made/out/x.png") is None  # more lies here than there
    for other in ({}, {"made_in": 3}, {"made_in": "none"}, {"arguments": []}, {"arguments": {"photo": [str(tmp_path)]}}):
        assert origin({"made_in": "..", "arguments": {"photo": ["a.png"]}} | other, "out/x.png") is None
    monkeypatch.chdir(tmp_path / "made")
    assert origin(told, "out/x.png") is None  # it was made here


def test_a_picture_without_settings_is_refused(tmp_path):
    noise_image(8, 8).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: has no settings of lida's"):
        read_settings(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match="a.json: is not a regular file"):
        read_settings(tmp_path / "a.png")
