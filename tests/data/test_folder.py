"""Training folders: what is read from them, as the datasets library reads it, and every fault that is reported."""

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
from lida.data.folder import data_fingerprint, read_captioning, read_examples
from lida.doors.pictures import open_image


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
    assert sorted((e.text, open_image(e.path).tobytes()) for e in examples) == expected
    assert all(e.size == Image.open(e.path).size for e in examples)


def test_a_line_brings_its_mask_and_its_other_columns(tmp_path):
    folder = fill(tmp_path, SOUND["masks and others"][0])
    with pytest.warns(UserWarning, match="1 pictures are in no line and are not used, such as .*b.png"):
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
    with pytest.raises(lida.InputError, match="a.png: it has no caption(?s:.*)b.txt: is not UTF-8"):
        read_examples(folder)


FAULTS = {
    '{"file_name": "a.png"}': "'text' of a.png is None, not a caption",
    line("a.png", 3): "'text' of a.png is 3, not a caption",
    line("a.png", " "): "'text' of a.png is ' ', not a caption",
    line("a.png", ["a", "b"]): "'text' of a.png is ['a', 'b'], not a caption",
    '{"text": "x"}': "names no picture as 'file_name'",
    line(3): "names no picture as 'file_name'",
    '{"file_name": "a.png", "text": "x"': "not readable as JSON",
    '{"file_name": "a.png", "text": "a\u2028b': "not readable as JSON",
    '{"file_name": "a.png", "text": "x", "text": "y"}': "the key 'text' occurs twice",
    '{"file_name": "a.png", "text": "x", "age": NaN}': "NaN is not a finite number",
    '{"file_name": "a.png", "text": "x", "age": 1e999}': "1e999 is not a finite number",
    "[" * 100000: "recursion",
    '["a.png", "x"]': "is not an object",
    "null": "is not an object",
    "text": "not readable as JSON",
    line("none.png"): "none.png: no such file",
    line(""): "is a folder",
    line("x"): "x: is a folder",
    line("pipe.png"): "pipe.png: is not a regular file",
    line("a\0.png"): "NUL",
    line("a" * 5000): "File name too long",
    line("metadata.jsonl"): "metadata.jsonl: not an image",
    line("half.png"): "half.png: not an image",
    line("half.jpg"): "half.jpg: not an image",
    line("empty.jpg"): "empty.jpg: not an image",
    line("float.tif"): "floating-point",
    line("tiny.png"): "tiny.png: is 5x70 pixels, too small; below 16",
    line("../outside.png"): "../outside.png is outside the folder",
    line("x/../a.png"): "is outside the folder",
    line(os.path.abspath("a.png")): "is outside the folder",
    line("out.png"): "out.png: is a link out of the folder",
    line("linked/outside.png"): "is a link out of the folder",
    line("dangling.png"): "dangling.png: is a link to a file that does not exist",
    line("l.png"): "masks/l.png: is a link out of the folder",
    line("p.png"): "masks/p.png: is not a regular file",
    line("m.png"): "the mask is 60x64, the photograph 70x80",
    line("k.png"): "the mask is black",
    line("n.png"): "masks/n.png: not an image",
}


@pytest.fixture
def broken(tmp_path):
    """A folder with a picture for each fault, and a file outside of it."""
    names = ("a.png", "k.png", "l.png", "m.png", "n.png", "p.png", "x/a.png", "half.jpg", "half.png")
    folder = fill(tmp_path / "data", dict.fromkeys(names, A))
    fill(tmp_path, {"elsewhere/outside.png": A, "outside.png": A})
    for name in ("half.jpg", "half.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-900])
    fill(folder, {"empty.jpg": b"", "tiny.png": noise_image(5, 70), "float.tif": Image.new("F", (70, 80))})
    fill(folder / "masks", {"m.png": B.convert("L"), "k.png": Image.new("L", A.size, 7), "n.png": b"no picture"})
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    (folder / "masks" / "l.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "masks" / "p.png")
    return folder


def test_every_fault_is_reported_at_once_with_its_line(broken):
    path = broken / "metadata.jsonl"
    path.write_bytes("\n".join(FAULTS).encode() + b"\n" + '{"file_name": "naïve.png", "text": "x"}'.encode("latin-1"))
    with pytest.raises(lida.InputError) as error:
        read_examples(broken, smallest=16)
    told = error.value.args
    expected = list(FAULTS.values()) + ["can't decode"]
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
        ({"a.png": A, "metadata.csv": "file_name,text\na.png,x\n"}, "a.png: it has no caption, neither in a metadata.jsonl or"),
        ({"captions.json": '{"image": "a.png"}'}, "captions.json: is not a list; make it"),
        ({"captions.json": "[1]"}, "captions.json: entry 1: 1 is not an object"),
        ({"a.png": A, "a.txt": "a" * (2**20 + 1)}, "a.txt: is longer than 1048576 bytes, too long for a caption"),
        ({"metadata.jsonl": line("a.png").encode("utf-16")}, "metadata.jsonl:1: the line: not readable as JSON .*decode"),
    ],
)  # fmt: skip
def test_other_folders_are_refused(files, message, tmp_path):
    with pytest.raises(lida.InputError, match=message):
        read_examples(fill(tmp_path / "data", {"readme.md": ""} | files))
    with pytest.raises(lida.InputError, match="none: no such folder"):
        read_examples(tmp_path / "none")


def test_many_faults_are_printed_up_to_a_number(dataset, capsys):
    shutil.copy(dataset / "metadata.jsonl", dataset / "was")
    (dataset / "metadata.jsonl").write_text("x\n" * 300)
    with pytest.raises(SystemExit, match="2"):
        lida.doors.errors.run(lambda: read_examples(dataset))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 201 and lines[-1] == "error: ... and 100 more" and ":200: " in lines[-2]


def test_the_original_authors_list_of_captions_is_read(tmp_path):
    entries = [{"image": "x/a.png", "text": "a photo of a man in his 20s"}, {"image": "b.png", "text": "a woman"}]
    folder = fill(tmp_path, {"x/a.png": A, "b.png": B, "captions.json": json.dumps(entries)})
    assert [(e.path, e.text, e.size) for e in read_examples(folder)] == [
        (folder / "x" / "a.png", "a photo of a man in his 20s", (70, 80)),
        (folder / "b.png", "a woman", (60, 64)),
    ]
    fill(tmp_path, {"captions.json": json.dumps([*entries, {"image": "none.png", "text": "x"}, {"image": "b.png"}])})
    with pytest.raises(lida.InputError, match="entry 3: .*none.png: no such file(?s:.*)entry 4: 'text' of b.png is None"):
        read_examples(folder)


def test_links_out_of_the_folder_are_refused_for_captions_and_metadata(tmp_path):
    secret = fill(tmp_path, {"secret.txt": "a secret", "secret.jsonl": line("a.png", "a secret")})
    folder = fill(tmp_path / "data", {"a.png": A})
    for name, target in (("a.txt", "secret.txt"), ("metadata.jsonl", "secret.jsonl"), ("captions.json", "secret.jsonl")):
        (folder / name).symlink_to(secret / target)
        with pytest.raises(lida.InputError, match=f"{name}: is a link out of the folder, to .*secret"):
            read_examples(folder)
        (folder / name).unlink()
    (folder / "captioning.json").symlink_to(secret / "secret.jsonl")
    with pytest.raises(lida.InputError, match="captioning.json: is a link out of the folder"):
        read_captioning(folder)
    (folder / "a.txt").symlink_to(fill(folder, {"all.txt": "a man"}) / "all.txt")  # a link within the folder
    assert [example.text for example in read_examples(folder)] == ["a man"]


def test_metadata_and_captions_that_are_no_regular_files_are_refused(tmp_path):
    folder = fill(tmp_path, {"a.png": A})
    for name in ("a.txt", "metadata.jsonl", "captions.json"):
        os.mkfifo(folder / name)
        with pytest.raises(lida.InputError, match=f"{name}: is not a regular file"):
            read_examples(folder)
        (folder / name).unlink()


def test_two_pictures_that_share_a_mask_are_faults_of_both_lines(tmp_path):
    files = {"a.png": A, "a.jpg": A, "b.png": B, "b.jpg": B, "masks/a.png": A.convert("L")}
    lines = "\n".join(line(name) for name in ("a.png", "a.jpg", "b.png", "b.jpg"))
    folder = fill(tmp_path, files | {"metadata.jsonl": lines})
    with pytest.raises(lida.InputError) as error:
        read_examples(folder)
    assert [fault.split(" shares ")[0].split(":")[-2:] for fault in error.value.args] == [["1", " a.png"], ["2", " a.jpg"]]


def test_the_record_of_captions_is_checked(tmp_path):
    assert read_captioning(tmp_path) == {}
    record = {"template": "{age}", "ages": [2, 80], "child": 13, "old": 0, "faces": 9, "names": "b"}
    fill(tmp_path, {"captioning.json": json.dumps(record)})
    assert read_captioning(tmp_path) == {"template": "{age}", "ages": [2, 80], "child": 13, "old": 0}
    for bad, message in (
        ("[]", "is not an object"),
        ('{"ages": [0, 1000000000]}', r"captioning.json: ages\[1\]: 1000000000 is not int from 0 to 120"),
        ('{"ages": [80, 2]}', "captioning.json: ages"),
        ('{"ages": [2], "template": 3}', "captioning.json: template: 3 is not str.*captioning.json: ages"),
        ('{"template": "{age:>9999999999}"}', "captioning.json: template .*cannot be filled in"),
    ):
        fill(tmp_path, {"captioning.json": bad})
        with pytest.raises(lida.InputError, match=f"(?s){message}"):
            read_captioning(tmp_path)


def test_the_fingerprint_is_of_pictures_and_captions(dataset, tmp_path):
    examples = read_examples(dataset)
    assert data_fingerprint(examples[::-1]) == data_fingerprint(examples)
    changed = np.asarray(Image.open(examples[0].path)) // 2
    Image.fromarray(changed).save(examples[0].path)
    assert data_fingerprint(read_examples(dataset)) != data_fingerprint(examples[1:])
