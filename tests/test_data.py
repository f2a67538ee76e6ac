"""Datasets: an imagefolder as written by hand, and All-Age-Faces as downloaded."""

import json

import numpy as np
import pytest
from conftest import noise_image

import lida
from lida.aaf import read_faces, read_landmarks, write_dataset
from lida.data import (
    DEFAULT_TEMPLATE,
    CaptionedImages,
    caption,
    check_captioning,
    check_template,
    read_captioning,
    read_examples,
)


@pytest.fixture
def aaf(tmp_path):
    """Five faces in the layout of the download; one is held out."""
    folder = tmp_path / "All-Age-Faces Dataset"
    for name in ("original images", "key points", "image sets"):
        (folder / name).mkdir(parents=True)
    names = ["00000A02", "00008A09", "00009A10", "07380A64", "13321A80"]
    for i, name in enumerate(names):
        noise_image(30, 34, i).save(folder / "original images" / f"{name}.jpg")
        np.savetxt(folder / "key points" / f"{name}.txt", np.random.default_rng(i).random((49, 2)) * 30)
    (folder / "image sets" / "train.txt").write_text("00000A02.jpg 0\n00009A10.jpg 0\n13321A80.jpg 1\n")
    (folder / "image sets" / "val.txt").write_text("00008A09.jpg 0\n07380A64.jpg 1\n")
    return folder


def test_aaf_becomes_an_imagefolder(aaf, tmp_path):
    assert [face.age for face in read_faces(aaf)] == [2, 9, 10, 64, 80]
    assert [face.serial for face in read_faces(aaf, "held_out")] == [9]
    write_dataset(read_faces(aaf, "train"), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert rows == [
        {"file_name": "00000A02.jpg", "text": "a portrait photo of a woman, age 0s"},
        {"file_name": "00008A09.jpg", "text": "a portrait photo of a woman, age 0s"},
        {"file_name": "07380A64.jpg", "text": "a portrait photo of a man, age 60s"},
        {"file_name": "13321A80.jpg", "text": "a portrait photo of a man, age 80s"},
    ]
    for row in rows:
        assert (tmp_path / "out" / row["file_name"]).read_bytes() == (aaf / "original images" / row["file_name"]).read_bytes()
    assert read_captioning(tmp_path / "out") == {"template": DEFAULT_TEMPLATE, "ages": [2, 80]}
    assert read_landmarks(aaf, read_faces(aaf)[0]).shape == (49, 2)
    with pytest.raises(lida.InputError, match="metadata.jsonl: exists"):
        write_dataset(read_faces(aaf), tmp_path / "out")


def test_templates():
    assert caption("{subject} {age} {decade}", "Anna", 7) == "Anna 7 0s"
    assert check_template("a {age} year old") == "a {age} year old"
    for bad in ("a face", "{name} {age}", "{age", "{} {age}", "{age.real}"):
        with pytest.raises(lida.InputError, match="--template"):
            check_template(bad)


def test_the_dataset_itself_is_never_written_to(aaf):
    pictures = {path.name: path.read_bytes() for path in (aaf / "original images").iterdir()}
    with pytest.raises(lida.InputError, match="is the dataset itself"):
        write_dataset(read_faces(aaf), aaf / "original images")
    assert {path.name: path.read_bytes() for path in (aaf / "original images").iterdir()} == pictures
    with pytest.raises(lida.InputError, match="--output_dir .*val.txt: "):
        write_dataset(read_faces(aaf), aaf / "image sets" / "val.txt")


def test_what_captioning_recorded_is_checked():
    assert check_captioning({"template": "{age}", "ages": [2, 80]}, "x")
    for bad in ({"template": "{name} {age}"}, {"template": 3}, {"template": "{subject.x} {age}"}, {"ages": [2]}, {"ages": "2"}):
        with pytest.raises(lida.InputError, match="^x: "):
            check_captioning(bad, "x")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("image sets/val.txt", "00008A09.jpg 2\n", "val.txt:1: '00008A09.jpg 2'"),
        ("image sets/val.txt", "", "00008A09.jpg: its gender"),
        ("original images/face.jpg", "", "face.jpg: not named like"),
    ],
)
def test_broken_aaf_is_refused(aaf, file, text, message):
    (aaf / file).write_text(text)
    with pytest.raises(lida.InputError, match=message):
        read_faces(aaf)


def test_other_folders_are_refused(aaf, tmp_path):
    with pytest.raises(lida.InputError, match="no folder 'original images'"):
        read_faces(tmp_path)
    face = read_faces(aaf)[0]
    (aaf / "key points" / "00000A02.txt").write_text("1 2\n")
    with pytest.raises(lida.InputError, match="00000A02.txt: "):
        read_landmarks(aaf, face)


def test_examples(dataset):
    examples = read_examples(dataset)
    pixel_values, text = CaptionedImages(examples, 64)[1]
    assert len(examples) == 6 and pixel_values.shape == (3, 64, 64) and text == "a portrait photo of a man, age 10s"
    assert read_captioning(dataset) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "0.png"}', "metadata.jsonl:7: "),
        ('{"file_name": "0.png", "text": 3}', "metadata.jsonl:7: "),
        ('{"file_name": "0.png", "text": "x"', "metadata.jsonl:7: "),
        ('{"file_name": "9.png", "text": "x"}', "9.png does not exist"),
        ('{"file_name": "metadata.jsonl", "text": "x"}', "metadata.jsonl is not an image"),
    ],
)
def test_broken_lines_are_refused(dataset, line, message):
    with (dataset / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(lida.InputError, match=message) as error:
        read_examples(dataset)
    assert "\n" not in str(error.value)


def test_lines_are_lines_of_utf8(dataset):
    """A byte-order mark is no fault, nor a separator that Python's splitlines would break at; another encoding is one."""
    path = dataset / "metadata.jsonl"
    path.write_text('{"file_name": "0.png", "text": "a\u2028b"}\n', encoding="utf-8-sig")
    assert [example.text for example in read_examples(dataset)] == ["a\u2028b"]
    path.write_text('{"file_name": "0.png", "text": "a"}\n', encoding="utf-16")
    with pytest.raises(lida.InputError, match="not readable as UTF-8"):
        read_examples(dataset)


def test_empty_datasets_are_refused(dataset, tmp_path):
    (dataset / "metadata.jsonl").write_text("\n")
    with pytest.raises(lida.InputError, match="names no pictures"):
        read_examples(dataset)
    with pytest.raises(lida.InputError, match="no such file"):
        read_examples(tmp_path)
    (dataset / "captioning.json").write_text("[]")
    with pytest.raises(lida.InputError, match="holds a list"):
        read_captioning(dataset)
