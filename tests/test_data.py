"""Training folders: what is read from them, as the datasets library reads it, and every fault that is told."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import noise_image
from PIL import Image

import lida
from lida.photos.captions import caption, check_captioning, check_template, read_captioning
from lida.data.folder import read_examples


def line(name: str, text: str = "a man", **more) -> str:
    return json.dumps({"file_name": name, "text": text, **more})


def fill(folder: Path, files: dict[str, str | bytes | Image.Image]) -> Path:
    """A folder with these texts, bytes and pictures."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


A, B = noise_image(70, 80, 0), noise_image(60, 64, 1)
SOUND = {
    "plain": ({"a.png": A, "b.png": B, "metadata.jsonl": f"{line('a.png')}\n\n{line('b.png', 'naïve 😀')}\n"}, {}),
    "byte-order mark, CRLF": ({"a.png": A, "metadata.jsonl": f"\ufeff{line('a.png')}\r\n"}, {}),
    "folder below": ({"x/a.png": A, "metadata.jsonl": line("x/a.png")}, {}),
    "metadata below": (
        {"x/a.png": A, "y/a.png": B, "x/metadata.jsonl": line("a.png", "x"), "y/metadata.jsonl": line("a.png", "y")},
        {},
    ),
    "csv": ({"a.png": A, "b.png": B, "metadata.csv": 'file_name,text\na.png,a man\nb.png,"a, b"\n'}, {}),
    "masks and others": ({"a.png": A, "b.png": B, "masks/a.png": A.convert("L"), "metadata.jsonl": line("a.png", age=3)}, {}),
    "other columns": (
        {"a.png": A, "metadata.jsonl": '{"pic_file_name": "a.png", "said": "x"}'},
        {"image_column": "pic", "caption_column": "said"},
    ),
    "image_file_name": ({"a.png": A, "metadata.jsonl": '{"image_file_name": "./a.png", "text": "x"}'}, {}),
    "kinds of picture": (
        {"a.jpg": A, "b.webp": B, "c.gif": A.convert("P"), "d.png": B.convert("L"), "e.tif": A.convert("CMYK")}
        | {"f.bmp": B.convert("1")}
        | {"metadata.jsonl": "\n".join(line(name) for name in ("a.jpg", "b.webp", "c.gif", "d.png", "e.tif", "f.bmp"))},
        {},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*not used")
@pytest.mark.parametrize("name", SOUND)
def test_folders_are_read_as_datasets_reads_them(name, tmp_path):
    """The call is that of diffusers' training scripts."""
    files, columns = SOUND[name]
    folder = fill(tmp_path / "data", files)
    datasets.disable_progress_bars()
    theirs = datasets.load_dataset("imagefolder", data_files={"train": f"{folder}/**"}, cache_dir=tmp_path / "cache")["train"]
    image_column, caption_column = columns.get("image_column", "image"), columns.get("caption_column", "text")
    expected = sorted((row[caption_column], row[image_column].convert("RGB").tobytes()) for row in theirs)
    examples = read_examples(folder, **columns)
    assert sorted((e.text, lida.doors.pictures.open_image(e.path).tobytes()) for e in examples) == expected
    assert all(e.size == Image.open(e.path).size for e in examples)


def test_a_line_brings_its_mask_and_its_other_columns(tmp_path):
    folder = fill(tmp_path, SOUND["masks and others"][0])
    with pytest.warns(UserWarning, match="1 pictures stand in no line and are not used, such as .*b.png"):
        (example,) = read_examples(folder)
    assert example.mask == folder / "masks" / "a.png" and example.row["age"] == 3 and example.size == (70, 80)
    fill(tmp_path, {"masks/c.png": A.convert("L"), "metadata.jsonl": "\n".join(map(line, ("a.png", "b.png")))})
    with pytest.warns(UserWarning, match="1 masks belong to no picture and are not used, such as .*c.png"):
        assert [example.mask is None for example in read_examples(folder)] == [False, True]


def test_texts_beside_the_pictures_are_captions(tmp_path):
    folder = fill(tmp_path, {"a.png": A, "a.txt": " a man\n", "x/b.png": B, "x/b.txt": "a b", "masks/a.png": A.convert("L")})
    assert [(e.path.name, e.text, e.mask is None) for e in read_examples(folder)] == [
        ("a.png", "a man", False),
        ("b.png", "a b", True),
    ]
    (folder / "x" / "b.txt").write_bytes(b"\xff\xfe")
    (folder / "a.txt").unlink()
    with pytest.raises(lida.InputError, match="a.png: has no caption(?s:.*)b.txt: is not UTF-8"):
        read_examples(folder)


FAULTS = {
    '{"file_name": "a.png"}': "'text' of a.png is None, no caption",
    line("a.png", 3): "'text' of a.png is 3, no caption",
    line("a.png", " "): "'text' of a.png is ' ', no caption",
    line("a.png", ["a", "b"]): "'text' of a.png is ['a', 'b'], no caption",
    '{"text": "x"}': "names no picture as 'file_name'",
    line(3): "names no picture as 'file_name'",
    '{"file_name": "a.png", "text": "x"': "is not JSON",
    '{"file_name": "a.png", "text": "a\u2028b': "is not JSON",
    "[" * 100000: "is not JSON",
    '["a.png", "x"]': "is not an object",
    "null": "is not an object",
    "text": "is not JSON",
    line("none.png"): "none.png does not exist",
    line(""): "does not exist",
    line("x"): "x does not exist",
    line("a\0.png"): "does not exist",
    line("a" * 5000): "does not exist",
    line("metadata.jsonl"): "metadata.jsonl: not an image",
    line("half.png"): "half.png: not an image",
    line("half.jpg"): "half.jpg: not an image",
    line("empty.jpg"): "empty.jpg: not an image",
    line("float.tif"): "floating-point",
    line("tiny.png"): "tiny.png: is 5x70 pixels, too small; below 16",
    line("../outside.png"): "../outside.png leaves the folder",
    line("x/../a.png"): "leaves the folder",
    line(os.path.abspath("a.png")): "leaves the folder",
    line("out.png"): "out.png is a link out of the folder",
    line("linked/outside.png"): "is a link out of the folder",
    line("dangling.png"): "dangling.png does not exist",
    line("m.png"): "the mask is 60x64, the photograph 70x80",
    line("k.png"): "the mask is black",
    line("n.png"): "masks/n.png: not an image",
}


@pytest.fixture
def broken(tmp_path):
    """A folder with a picture for each fault, and a file outside of it."""
    folder = fill(
        tmp_path / "data", {name: A for name in ("a.png", "m.png", "k.png", "n.png", "x/a.png", "half.jpg", "half.png")}
    )
    fill(tmp_path, {"elsewhere/outside.png": A, "outside.png": A})
    for name in ("half.jpg", "half.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-900])
    fill(folder, {"empty.jpg": b"", "tiny.png": noise_image(5, 70), "float.tif": Image.new("F", (70, 80))})
    fill(folder / "masks", {"m.png": B.convert("L"), "k.png": Image.new("L", A.size, 7), "n.png": b"no picture"})
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    return folder


def test_every_fault_is_told_at_once_with_its_line(broken):
    path = broken / "metadata.jsonl"
    path.write_bytes("\n".join(FAULTS).encode() + b"\n" + '{"file_name": "naïve.png", "text": "x"}'.encode("latin-1"))
    with pytest.raises(lida.InputError) as error:
        read_examples(broken, smallest=16)
    told = error.value.args
    expected = list(FAULTS.values()) + ["is not UTF-8"]
    assert len(told) == len(expected)
    for number, (fault, what) in enumerate(zip(told, expected), 1):
        assert fault.startswith(f"{path}:{number}: ") and what in fault and "\n" not in fault, (number, fault, what)


def test_a_picture_named_twice_is_a_fault_of_both_lines(broken):
    (broken / "metadata.jsonl").write_text("\n".join([line("a.png"), line("x/a.png"), line("./a.png", "other")]))
    with pytest.raises(lida.InputError) as error:
        read_examples(broken)
    assert [fault.split(": ")[0].rsplit(":")[-1] for fault in error.value.args] == ["1", "3"]
    assert all("a.png is named 2 times" in fault for fault in error.value.args)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "names no pictures"),
        ({"metadata.jsonl": "\n"}, "names no pictures"),
        ({"metadata.parquet": b"PAR1"}, "metadata.parquet: is not read here"),
        ({"metadata.csv": "file_name,text\na.png\n"}, "metadata.csv:2: has not as many columns"),
        ({"metadata.csv": "file_name,text\na.png,b,c\n"}, "metadata.csv:2: has not as many columns"),
        ({"metadata.csv": 'file_name,text\na.png,"b\n'}, "metadata.csv: not readable as CSV"),
        ({"metadata.csv": b"file_name,text\na.png,na\xefve\n"}, "metadata.csv: not readable as CSV in UTF-8"),
        ({"metadata.csv": "file_name,text\n", "metadata.jsonl": ""}, "metadata.csv: lies beside a metadata.jsonl"),
        ({"metadata.jsonl": line("a.png").encode("utf-16")}, "metadata.jsonl:1: .* is not UTF-8"),
    ],
)  # fmt: skip
def test_other_folders_are_refused(files, message, tmp_path):
    with pytest.raises(lida.InputError, match=message):
        read_examples(fill(tmp_path / "data", {"readme.md": ""} | files))
    with pytest.raises(lida.InputError, match="none: no such folder"):
        read_examples(tmp_path / "none")


def test_many_faults_are_told_up_to_a_number(dataset, capsys):
    shutil.copy(dataset / "metadata.jsonl", dataset / "was")
    (dataset / "metadata.jsonl").write_text("x\n" * 300)
    with pytest.raises(SystemExit, match="2"):
        lida.doors.errors.run(lambda: read_examples(dataset))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 201 and lines[-1] == "error: ... and 100 more" and ":200: " in lines[-2]


def test_templates():
    assert caption("{subject} {age} {decade}", "Anna", 7) == "Anna 7 0s"
    assert caption("a {gender} in his {decade}", "a man", 64) == "a man in his 60s"
    assert check_template("a {age} year old") == "a {age} year old"
    for bad in ("a face", "{name} {age}", "{age", "{} {age}", "{age.real}", "{decade:02d}"):
        with pytest.raises(lida.InputError, match="--template"):
            check_template(bad)


def test_what_captioning_recorded_is_checked(dataset):
    assert check_captioning({"template": "{age}", "ages": [2, 80]}, "x")
    for bad in ({"template": "{name} {age}"}, {"template": 3}, {"template": "{subject.x} {age}"}, {"ages": [2]}, {"ages": "2"}):
        with pytest.raises(lida.InputError, match="^x: "):
            check_captioning(bad, "x")
    (dataset / "captioning.json").write_text("[]")
    with pytest.raises(lida.InputError, match="holds a list"):
        read_captioning(dataset)


def test_the_fingerprint_is_of_pictures_and_captions(dataset, tmp_path):
    examples = read_examples(dataset)
    assert lida.data.folder.data_fingerprint(examples[::-1]) == lida.data.folder.data_fingerprint(examples)
    changed = np.asarray(Image.open(examples[0].path)) // 2
    Image.fromarray(changed).save(examples[0].path)
    assert lida.data.folder.data_fingerprint(read_examples(dataset)) != lida.data.folder.data_fingerprint(examples[1:])
