"""Albums: who is in the pictures, which pictures are left out and why, and what is written."""

import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import ROOT, noise_image
from PIL import Image, ImageFilter

import lida
from lida.data.album import choose_portraits, main, person_in, portraits_in
from lida.data.folder import read_examples
from lida.doors.pictures import open_image
from lida.photos.faces import FaceNetworks
from lida.photos.masks import face_frame

WEIGHTS = ROOT / "weights"


@pytest.fixture
def command(capsys):
    """Run the command line; returns what it printed."""

    def run(*arguments) -> str:
        main([*map(str, arguments)])
        return capsys.readouterr().out

    return run


def enlarged(path) -> Image.Image:
    """A painted picture of 96 pixels at 300, with the grain that photographs have."""
    image = np.asarray(open_image(path).resize((300, 300), Image.Resampling.BICUBIC)).astype(float)
    grain = 8 * np.random.default_rng(0).normal(size=(300, 300, 1))
    return Image.fromarray((image + grain).clip(0, 255).astype(np.uint8))


@cache
def strangers() -> str:
    """The other invented persons whom SFace distinguishes from person a."""
    networks = FaceNetworks()
    a, *others = (networks.embed(enlarged(WEIGHTS / "demo" / f"person-{letter}.png")) for letter in "abcd")
    return "".join(letter for letter, vector in zip("bcd", others) if a @ vector < 0.25)


@pytest.fixture
def photos(tmp_path):
    """Ten pictures of person a, two of them turned by EXIF; some of others; a copy, a blurred one, a small one, one without a face."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        image, exif = enlarged(WEIGHTS / "person-a" / f"{i:02d}.png"), Image.Exif()
        if i in (2, 6):
            exif[0x0112] = 6
            image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(folder / f"own{i}.png", exif=exif)
    for letter in strangers():
        enlarged(WEIGHTS / "demo" / f"person-{letter}.png").save(folder / f"{letter}.jpg", quality=95)
    open_image(folder / "own0.png").resize((200, 200)).save(folder / "copy.jpg", quality=70)
    open_image(folder / "own1.png").filter(ImageFilter.GaussianBlur(9)).save(folder / "soft.png")
    open_image(folder / "own3.png").resize((44, 44)).save(folder / "small.png")
    noise_image(300, 300).save(folder / "none.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "film.mov").write_bytes(b"film")
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    enlarged(WEIGHTS / "person-a" / "11.png").save(tmp_path / "outside.png")
    (folder / "outside.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    return folder


@pytest.mark.filterwarnings("ignore:.*were enlarged", "ignore:.*are few", "ignore:.*reach beyond")
def test_an_album_keeps_the_person_and_says_what_it_leaves_out(photos, tmp_path, command):
    out = command(photos, "--subject", "Person A", "--output_dir", tmp_path / "out", "--resolution", 128)
    told = dict(line.removeprefix("left out: ").split(": ", 1) for line in out.splitlines() if line.startswith("left out: "))
    assert strangers()
    for letter in strangers():
        assert told[f"{letter}.jpg"].startswith("somebody else (cosine ")
    for name, reason in (
        ("none.png", "no face is found"),
        ("broken.jpg", "not an image"),
        ("film.mov", "not a picture, by its name"),
        ("pipe.png", "is not a regular file"),
        ("dangling.png", "is a link to a file that does not exist"),
        ("outside.png", "is a link out of the folder"),
        ("linked", "is a folder"),
    ):
        assert told[name].startswith(reason)
    assert told["small.png"].startswith("the face is too small, ") and told["soft.png"].startswith("the face is too blurred")
    examples = read_examples(tmp_path / "out")
    kept = {example.row["photograph"] for example in examples}
    assert not kept & set(told) and kept | set(told) == {path.name for path in photos.iterdir()}
    duplicates = {name for name, reason in told.items() if reason.startswith("a near-duplicate of ")}
    assert len({"copy.jpg", "own0.png"} & duplicates) >= 1  # the album itself, repaintings of one portrait, may have more
    assert all(name.startswith("own") or name == "copy.jpg" for name in kept | duplicates)
    assert {e.text for e in examples} == {"a portrait photo of Person A"} and len(examples) == len(kept) >= 3
    networks = FaceNetworks()
    for example in examples:
        assert example.size == (128, 128)
        (face,) = networks.find(open_image(example.path))[:1]
        eyes = face.landmarks[1] - face.landmarks[0]
        assert abs(np.degrees(np.arctan2(eyes[1], eyes[0]))) < 12  # upright, including those that EXIF turned
        left, top, right, bottom = Image.open(example.mask).getbbox()
        assert (face.landmarks > (left, top)).all() and (face.landmarks < (right, bottom)).all()
    assert (tmp_path / "out-sheet.png").is_file()
    with pytest.raises(lida.InputError, match="out: is not empty"):
        command(photos, "--subject", "x", "--output_dir", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*were enlarged", "ignore:.*are few", "ignore:.*reach beyond")
def test_a_reference_says_who_is_meant(photos, tmp_path, command):
    letter = strangers()[0]
    reference = ("--reference", WEIGHTS / "demo" / f"person-{letter}.png")
    out = command(photos, "--subject", "B", "--output_dir", tmp_path / "b", "--resolution", 64, *reference)
    assert "own0.png: somebody else" in out and "1 pictures of B" in out
    with pytest.raises(lida.InputError, match="--reference .*none.png: no face is found"):
        command(photos, "--subject", "B", "--output_dir", tmp_path / "c", "--reference", photos / "none.png")


@pytest.mark.filterwarnings("ignore:.*were enlarged")
def test_squares_beyond_their_photographs_are_reported(tmp_path, command):
    """One face in the middle of a photograph, one of which the photograph shows the face alone."""
    (tmp_path / "photos").mkdir()
    portrait = enlarged(WEIGHTS / "demo" / "person-a.png")
    portrait.save(tmp_path / "photos" / "near.png")
    page = noise_image(900, 900, 1)
    page.paste(portrait.rotate(5).crop((40, 40, 260, 260)), (340, 340))
    page.save(tmp_path / "photos" / "far.png")
    with pytest.warns(UserWarning) as warned:
        command(tmp_path / "photos", "--subject", "sks", "--resolution", 64, "--output_dir", tmp_path / "all")
    messages = [str(warning.message) for warning in warned]
    assert any(text.startswith("1 of ") and "squares reach beyond their photographs" in text for text in messages)
    assert any("pictures are few; an album needs 20 to 30" in text for text in messages)


def test_a_small_face_in_the_background_leaves_no_photograph_out(tmp_path):
    page = noise_image(700, 500, 1)
    page.paste(enlarged(WEIGHTS / "demo" / "person-a.png"), (300, 100))
    page.paste(enlarged(WEIGHTS / "demo" / "person-b.png").resize((60, 60)), (40, 60))
    page.save(tmp_path / "a.png")
    networks = FaceNetworks()
    assert len(networks.find(page)) == 2
    (portrait,) = portraits_in(tmp_path / "a.png", networks, 64)
    assert portrait.vector @ networks.embed(enlarged(WEIGHTS / "demo" / "person-a.png")) > 0.6


def test_a_blurred_face_is_not_called_somebody_else(photos, tmp_path):
    """However far its embedding is from the person's."""
    networks = FaceNetworks()
    own = [portraits_in(photos / f"own{i}.png", networks, 64) for i in range(3)]
    blurred = portraits_in(photos / "soft.png", networks, 64)
    blurred[0] = replace(blurred[0], vector=-own[0][0].vector)
    kept, left_out = choose_portraits([*own, blurred])
    reasons = [reason for path, reason in left_out if path.name == "soft.png"]
    assert len(reasons) == 1 and reasons[0].startswith("the face is too blurred")
    assert kept and all(portrait.path.name.startswith("own") for portrait in kept)


def test_the_person_is_whom_most_photographs_show():
    """Of vectors about three directions, in groups of one to three faces a photograph."""
    rng = np.random.default_rng(0)
    people = np.linalg.qr(rng.normal(size=(128, 3)))[0].T

    class Fake:
        def __init__(self, who):
            vector = people[who] + 0.06 * rng.normal(size=128)
            self.vector = vector / np.linalg.norm(vector)

    photos = [[Fake(0)] for _ in range(5)] + [[Fake(1), Fake(0)] for _ in range(3)] + [[Fake(1)] for _ in range(2)] + [[Fake(2)]]
    assert people[0] @ person_in(photos) > 0.9
    assert people[1] @ person_in(photos, people[1]) > 0.9


def test_the_face_is_level_in_the_middle_of_the_square(tmp_path):
    """However the photograph is turned, the square is about the same."""
    face, portrait = open_image(WEIGHTS / "demo" / "person-c.png"), Image.new("RGB", (500, 500), "grey")
    portrait.paste(face.resize((300, 300), Image.Resampling.BICUBIC), (100, 100))
    networks = FaceNetworks()
    for degrees in (-90, -25, 0, 25, 180):
        portrait.rotate(degrees, Image.Resampling.BICUBIC).save(tmp_path / "a.png")
        (cut,) = portraits_in(tmp_path / "a.png", networks, 200)
        (face,) = networks.find(cut.square)
        middle, axes, half = face_frame(face.landmarks)
        assert np.abs(middle - 100).max() < 12 and abs(np.degrees(np.arctan2(axes[0, 1], axes[0, 0]))) < 8
        assert 2 * half.max() == pytest.approx(200 / 1.5, rel=0.12)


def test_what_cannot_be_done_is_said_before_anything_is_written(photos, tmp_path, command):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "nowhere",), "nowhere: no such folder"),
        ((tmp_path / "empty",), "empty: none of its 0 files can be used; an album needs 20 to 30 sharp photographs"),
        ((photos, "--output_dir", photos / "x"), "lies inside the folder of photographs"),
        ((photos, "--resolution", 4), "--resolution: '4' is not a whole number from 8"),
        ((photos, "--context", 9), "--context: '9' is not a number from 1 to 4"),
    ):
        with pytest.raises(lida.InputError, match=message):
            command("--subject", "x", "--output_dir", tmp_path / "out", *arguments)
        assert not (tmp_path / "out").exists() and not (photos / "x").exists()
    assert choose_portraits([]) == ([], [])
