"""Types for argparse: what each takes and refuses."""

import argparse
import re
from pathlib import Path

import pytest

from lida.doors import arguments
from lida.doors.errors import InputError


@pytest.mark.parametrize("name, good, bad", [
    ("positive_int", {"1": 1, 7: 7, "+3": 3}, ["0", "-1", "1.0", "1e3", "x", "", "nan", "1_0", 2.5, True, "2147483648", "9" * 5000]),
    ("non_negative_int", {"0": 0}, ["-1"]),
    ("seed", {"0": 0, "9223372036854775807": 2**63 - 1}, ["-1", "9223372036854775808"]),
    ("age", {"0": 0, "99": 99}, ["-1", "100", "old", "30.5"]),
    ("years", {"0": 0.0, 34: 34.0, "61.5": 61.5}, ["nan", "inf", "-inf", "1e999", "x", "1_0.0", "-1"]),
    ("positive", {"1e-9": 1e-9}, ["0", "-1", "nan", "1e39"]),
    ("non_negative", {"0": 0.0}, ["-1e-9", "inf"]),
    ("share", {"0": 0.0, "1": 1.0, "0.5": 0.5}, ["-0.1", "1.1", "nan"]),
])  # fmt: skip
def test_numeric_types_convert_valid_texts_and_refuse_others(name, good, bad):
    convert = getattr(arguments, name)
    for text, value in good.items():
        assert convert(text) == value and type(convert(text)) is type(value)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^'{re.escape(str(text)[:60])}' is not a .*number"):
            convert(text)


def test_existing_folder_takes_only_folders_that_exist(tmp_path):
    (tmp_path / "file").touch()
    assert arguments.existing_folder(str(tmp_path)) == tmp_path
    for convert, path, message in (
        (arguments.existing_folder, tmp_path / "file", "is not a folder"),
        (arguments.existing_folder, tmp_path / "none", "no such folder"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{path}: {message}"):
            convert(path)


def test_argparse_names_the_flag(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--ages", type=arguments.age, nargs="+")
    assert parser.parse_args(["--ages", "10", "30"]).ages == [10, 30]
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--ages", "10", "130"])
    assert "argument --ages: '130' is not a whole number from 0 to 99" in capsys.readouterr().err


def test_no_argument_holds_nul():
    parser = arguments.Parser()
    parser.add_argument("--output_dir", nargs="+")
    assert parser.parse_args(["--output_dir", "a\nb"]).output_dir == ["a\nb"]
    for given in (["--output_dir", "a", "b\0c"], ["--output_dir=a\0"]):
        with pytest.raises(InputError, match="holds the character NUL"):
            parser.parse_args(given)


def test_a_name_is_not_empty_and_a_subject_not_blank():
    parser = arguments.Parser()
    parser.add_argument("--adapter", action="append")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--subject", type=arguments.words, nargs="+")
    parser.add_argument("--masks", type=arguments.existing_folder)
    parser.add_argument("--prompt", type=arguments.text)
    parser.add_argument("photo", nargs="*")
    args = parser.parse_args(["a b", "--adapter", " ", "--output_dir", "x", "--prompt", "", "--subject", "sks man"])
    assert (args.adapter, args.output_dir, args.prompt, args.subject) == ([" "], Path("x"), "", ["sks man"])
    for given in (["--adapter="], ["--output_dir", ""], ["--masks="], [""], ["a", ""]):
        with pytest.raises(InputError, match="'' is no name"):
            parser.parse_args(given)
    for blank in ("", " \t"):
        with pytest.raises(InputError, match="--subject: .* is blank"):
            parser.parse_args(["--subject", "man", blank])
