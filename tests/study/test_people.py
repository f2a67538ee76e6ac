"""A file with a person in each line: its fields, and every fault with its place."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lida.doors.errors import InputError
from lida.study.people import Dated, Person, read_aged, read_people


@pytest.fixture
def line(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.safetensors").touch()
    line = {"photo": "a.png", "age": 30, "kind": "man", "identity": {"x": "a.safetensors"}}
    return {**line, "mask": "0,0,9,9", "references": [{"photo": "a.png", "age": 50}]}


def write(folder: Path, *lines) -> Path:
    path = folder / "people.jsonl"
    path.write_text("\n\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_people_are_read_with_paths_from_the_files_folder(line, tmp_path):
    photo, adapter = str(tmp_path / "a.png"), str(tmp_path / "a.safetensors")
    expected = Person(photo, "a", 30.0, "0,0,9,9", "man", "sks", {"x": adapter}, [Dated(photo, 50.0)])
    assert read_people(write(tmp_path, line)) == [expected]
    (person,) = read_people(write(tmp_path, {"photo": "a.png", "mask": "a.png", "name": "b"}))
    assert (person.name, person.mask, person.age) == ("b", photo, None)


def test_every_fault_has_its_place(line, tmp_path):
    wrong = [{}, {"photo": "b.png", "name": "b"}, {**line, "kind": "child"}, {**line, "color": 1}, {**line, "age": "old"}]
    wrong += [{**line, "references": [{"photo": "a.png"}]}, {**line, "name": "../up"}, "nonsense"]
    path = write(tmp_path, line, line, *wrong)
    with pytest.raises(InputError) as error:
        read_people(path)
    faults = str(error.value).splitlines()
    said = [
        "photo",
        "b.png does not exist",
        "'child'",
        "'color' is not a field",
        "'old'",
        "references[0]: age",
        "../up",
        "not readable as JSON",
    ]
    for number, (fault, text) in enumerate(zip(faults, said, strict=False)):
        assert fault.startswith(f"{path}:{2 * number + 5}: ") and text in fault
    assert len(faults) == 9 and "'a' is the name of two people" in faults[8]


@pytest.mark.parametrize("text, said", [("", "names nobody"), (None, "no such file")])
def test_nobody_is_refused(tmp_path, text, said):
    path = write(tmp_path, text) if text is not None else tmp_path / "none.jsonl"
    with pytest.raises(InputError, match=said):
        read_people(path)


def test_ages_of_a_folder_are_numbers_of_years(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    for age, fault in ((30, None), (2.5, None), ("30", "'30'"), (None, "None"), (True, "True"), (121, "121"), (-1, "-1")):
        rows = [{"file_name": "a.png", "age": 3}, {"file_name": "b.png", "age": age}]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        if fault is None:
            assert [example.row["age"] for example in read_aged(tmp_path)] == [3, age]
        else:
            with pytest.raises(InputError, match=f"b.png: its age is {fault}, not a number from 0 to 120") as error:
                read_aged(tmp_path)
            assert len(error.value.args) == 1
