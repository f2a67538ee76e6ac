"""All-Age-Faces as downloaded, at toy size: captions, masks, and what is refused."""

import json
import os

import datasets
import numpy as np
import pytest
from conftest import noise_image
from PIL import Image

import lida
from lida.data.aaf import main, read_faces, read_landmarks, write_dataset
from lida.data.folder import read_captioning, read_examples
from lida.photos.captions import DEFAULT_TEMPLATE

AGES = [2, 9, 10, 12, 21, 22, 23, 24, 64, 80]  # of serial numbers 0 to 9; the odd ones are men


@pytest.fixture
def aaf(tmp_path):
    """Ten faces in the layout of the download; the last is held out."""
    folder, rng = tmp_path / "All-Age-Faces Dataset", np.random.default_rng(0)
    for name in ("original images", "key points", "image sets"):
        (folder / name).mkdir(parents=True)
    names = [f"{serial:05d}A{age:02d}" for serial, age in enumerate(AGES)]
    for i, name in enumerate(names):
        noise_image(90, 102, i).save(folder / "original images" / f"{name}.jpg")
        parts = [
            (10, 30, 60, 36, 42),
            (9, 42, 48, 40, 55),
            (12, 32, 58, 43, 47),
            (18, 36, 54, 60, 68),
        ]  # brows, nose, eyes, mouth
        points = [np.stack([rng.uniform(a, b, n), rng.uniform(c, d, n)], -1) for n, a, b, c, d in parts]
        np.savetxt(folder / "key points" / f"{name}.txt", np.concatenate(points))
    lines = [f"{name}.jpg {serial % 2}\n" for serial, name in enumerate(names)]
    (folder / "image sets" / "train.txt").write_text("".join(lines[:5]))
    (folder / "image sets" / "val.txt").write_text("".join(lines[5:]))
    return folder


@pytest.fixture
def command():
    """Run the command line."""
    return lambda *arguments: main([*map(str, arguments)])


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_command_makes_a_checked_dataset(aaf, tmp_path, command):
    out = tmp_path / "out"
    command(aaf, "--output_dir", out)
    rows = rows_of(out)
    assert [row["file_name"] for row in rows] == sorted(path.name for path in (aaf / "original images").iterdir())[:9]
    assert rows[0]["text"] == "a portrait photo of a girl, age 0s" and rows[0]["age"] == 2 and rows[0]["decade"] == "0s"
    assert rows[3]["text"] == "a portrait photo of a boy, age 10s" and rows[3]["gender"] == "man"
    for row in rows:  # the very files, not copies and not symbolic links
        assert (out / row["file_name"]).samefile(aaf / "original images" / row["file_name"])
        assert not (out / row["file_name"]).is_symlink()
    assert read_captioning(out) == {"template": DEFAULT_TEMPLATE, "ages": [2, 64], "child": 13, "old": 60}
    faces = read_faces(aaf, "train")
    for example, face in zip(read_examples(out), faces, strict=True):
        mask = np.asarray(Image.open(example.mask))
        x, y = read_landmarks(aaf, face).round().astype(int).T
        assert (mask[y, x] == 255).all() and 0.1 < (mask > 0).mean() < 0.5
    assert Image.open(tmp_path / "out-sheet.png").width > 1000
    datasets.disable_progress_bars()
    theirs = datasets.load_dataset("imagefolder", data_files={"train": f"{out}/**"}, cache_dir=tmp_path / "cache")["train"]
    assert theirs["text"] == [row["text"] for row in rows] and theirs[0]["image"].size == (90, 102)


def test_captions_are_made_from_the_template(aaf, tmp_path, command):
    options = ("--split", "all", "--template", "a {gender} of {age} in the {decade}", "--children", 0, "--no_masks")
    command(aaf, "--output_dir", tmp_path / "a", *options)
    assert [row["text"] for row in rows_of(tmp_path / "a")] == [
        f"a {'man' if i % 2 else 'woman'} of {age} in the {age // 10 * 10}s" for i, age in enumerate(AGES)
    ]
    options = ("--split", "all", "--template", "{subject} of {age}", "--old", 64, "--no_masks")
    command(aaf, "--output_dir", tmp_path / "b", *options)
    words = ["a girl", "a boy", "a girl", "a boy", "a woman", "a man", "a woman", "a man", "an old woman", "an old man"]
    assert [row["text"].split(" of ")[0] for row in rows_of(tmp_path / "b")] == words
    assert [row["gender"] for row in rows_of(tmp_path / "b")] == ["woman", "man"] * 5
    assert read_captioning(tmp_path / "b") == {"template": "{subject} of {age}", "ages": [2, 80], "child": 13, "old": 64}
    assert not list((tmp_path / "b" / "masks").iterdir())


def test_crop_face_writes_squares_centred_on_the_faces(aaf, tmp_path, command):
    command(aaf, "--output_dir", tmp_path / "out", "--crop", "face", "--resolution", 48)
    for example, face in zip(read_examples(tmp_path / "out"), read_faces(aaf, "train"), strict=True):
        assert example.size == (48, 48) and example.path.name == face.path.name
        left, top, right, bottom = Image.open(example.mask).getbbox()
        assert max(right - left, bottom - top) == pytest.approx(48 / 1.2, abs=2) and abs(left + right - 48) <= 4


def test_a_dataset_is_written_whole_into_a_new_folder(aaf, tmp_path, command):
    out, points = tmp_path / "out", aaf / "key points" / "00008A64.txt"
    landmarks = points.read_text()
    points.write_text("1 2\n")
    with pytest.raises(lida.InputError, match="not readable as landmarks"):
        command(aaf, "--output_dir", out)
    assert [path.name for path in tmp_path.iterdir()] == [aaf.name]
    points.write_text(landmarks)
    command(aaf, "--output_dir", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(lida.InputError, match="out: is not empty; give the name of a new folder"):
        command(aaf, "--output_dir", out, "--template", "{age}")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_disk_gets_copies(aaf, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another disk")))
    write_dataset(read_faces(aaf), tmp_path / "out")
    for face in read_faces(aaf):
        copy = tmp_path / "out" / face.path.name
        assert copy.read_bytes() == face.path.read_bytes() and not copy.samefile(face.path) and not copy.is_symlink()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".jpg", ".json", ".jsonl", ""}


def test_faces_are_selected_by_age_and_by_split(aaf):
    assert [face.age for face in read_faces(aaf, ages=(9, 22))] == [9, 10, 12, 21, 22]
    assert [face.age for face in read_faces(aaf, "held_out")] == [80] and [f.age for f in read_faces(aaf, "train")] == AGES[:9]
    with pytest.raises(lida.InputError, match="no faces of 81 to 99 years in the split 'train'"):
        read_faces(aaf, "train", (81, 99))


def test_the_dataset_itself_is_never_written_to(aaf):
    pictures = {path.name: path.read_bytes() for path in (aaf / "original images").iterdir()}
    with pytest.raises(lida.InputError, match="original images: is not empty"):
        write_dataset(read_faces(aaf), aaf / "original images")
    assert {path.name: path.read_bytes() for path in (aaf / "original images").iterdir()} == pictures
    with pytest.raises(lida.InputError, match="val.txt: is not a folder"):
        write_dataset(read_faces(aaf), aaf / "image sets" / "val.txt")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("image sets/val.txt", "00008A09.jpg 2\n", "val.txt:1: '00008A09.jpg 2'"),
        ("image sets/val.txt", "", "00005A22.jpg: its gender"),
        ("original images/face.jpg", "", "face.jpg: not named like"),
    ],
)
def test_broken_downloads_are_refused(aaf, file, text, message):
    (aaf / file).write_text(text)
    with pytest.raises(lida.InputError, match=message):
        read_faces(aaf)


def test_what_cannot_be_done_is_said_before_anything_is_written(aaf, tmp_path, command):
    (aaf / "aglined faces").mkdir()  # spelt like this in the download; not needed
    for arguments, message in (
        (("--crop", "face"), "--resolution None: goes with --crop face"),
        (("--resolution", 64), "--resolution 64: goes with --crop face"),
        (("--crop", "face", "--resolution", 64, "--no_masks"), "--no_masks"),
        (("--template", "a face"), "--template 'a face': must name {decade} or {age}"),
        (("--template", "{age:>9999999999}"), "--template .*: cannot be filled in"),
        (("--ages", 0, 1e9), "--ages: '1000000000.0' is not a whole number from 0 to 99"),
        (("--ages", 81, 99), "holds no faces of 81 to 99 years"),
    ):
        with pytest.raises(lida.InputError, match=message):
            command(aaf, "--output_dir", tmp_path / "out", *arguments)
        assert not (tmp_path / "out").exists()
    with pytest.raises(lida.InputError, match="no folder 'original images'"):
        read_faces(tmp_path)


def test_pictures_that_are_links_or_pipes_are_refused(aaf, tmp_path, command):
    picture = aaf / "original images" / "00003A12.jpg"
    secret = picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(secret)
    with pytest.raises(lida.InputError, match="00003A12.jpg: is a link or no regular file"):
        command(aaf, "--output_dir", tmp_path / "out")
    picture.unlink()
    os.mkfifo(picture)
    with pytest.raises(lida.InputError, match="00003A12.jpg: is a link or no regular file"):
        command(aaf, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["1 2\n", "nan 3\n" * 49, "1e30 3\n" * 48 + "2 2\n", "a b\n" * 49, "1 2 3\n" * 49, "5 5\n" * 49])
def test_broken_landmarks_are_refused(aaf, tmp_path, command, text):
    (aaf / "key points" / "00000A02.txt").write_text(text)
    with pytest.raises(lida.InputError, match="00000A02.txt: not readable as landmarks"):
        command(aaf, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out" / "metadata.jsonl").exists()


def test_landmarks_outside_of_the_picture_are_refused(aaf, tmp_path, command):
    path = aaf / "key points" / "00000A02.txt"
    np.savetxt(path, np.loadtxt(path) + 1000)
    with pytest.raises(lida.InputError, match="00000A02.jpg: its landmarks lie outside the picture"):
        command(aaf, "--output_dir", tmp_path / "out")
