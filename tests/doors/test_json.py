"""JSON from outside: what is refused, and declared types."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from lida.doors.errors import InputError
from lida.doors.json import Range, parse_json, read_json, typed


@pytest.mark.parametrize("text, message", [
    ('{"a": 1, "b": 2, "a": 1}', "the key 'a' occurs twice in one object"),
    ('{"a": [{"b": 1, "b": 1}]}', "the key 'b' occurs twice"),
    ("NaN", "NaN is not a finite number"),
    ("[-Infinity]", "-Infinity is not a finite number"),
    ("1e999", "1e999 is not a finite number"),
    ("9223372036854775808", "9223372036854775808 is not a finite number of 64 bits"),
    ("1" * 100_000, "1{20} is not a finite number"),
    ("[" * 65 + "1" + "]" * 65, "nested deeper than 64"),
    ("[" * 100_000, "recursion depth"),
    ('{"a":' * 100_000, "recursion depth"),
    (r'"a\u0000"', "holds NUL"),
    (r'{"a": {"\ud800": 1}}', "a lone surrogate"),
    (b'"na\xefve"', "can't decode byte 0xef"),
    ('{"a": 1,}', "line 1 column"),
    ("", "Expecting value"),
    ("1 2", "Extra data"),
    (" " * 1001, "is longer than 1000 bytes"),
])  # fmt: skip
def test_invalid_json_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=f"^place: .*{message}") as caught:
        parse_json(text, "place", limit=10**6 if len(text) > 1001 else 1000)
    assert "\n" not in str(caught.value)


def test_valid_json_is_read_from_texts_and_files(tmp_path):
    value = {"a": [1, -(2**63), 2**63 - 1, 0.5, -1e-300, True, None], "ä 😀": {"": ""}}
    text = '{"a": [1, -9223372036854775808, 9223372036854775807, 5e-1, -1e-300, true, null], "\\u00e4 \\ud83d\\ude00": {"": ""}}'
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert parse_json(text, "place") == read_json(tmp_path / "a.json") == value
    assert parse_json("[" * 64 + "1" + "]" * 64, "place")
    with pytest.raises(InputError, match="is a folder; give a JSON file"):
        read_json(tmp_path)


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    layers: Annotated[int, Range(1, 64)]
    rate: float = 1.0
    kind: Literal["linear", "scaled"] = "linear"
    flag: bool = False
    prompt: str | None = None
    pair: tuple[int, float] | None = None
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    inner: Inner | None = None

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate {self.rate} is below 0")


def test_values_of_the_declared_types():
    value = {
        "layers": 2, "rate": 3, "kind": "scaled", "flag": True, "prompt": "x", "pair": [1, 2], "names": ["a"],
        "weights": {"a": 1}, "inner": {"name": "n", "sizes": [1, 2]}, "_version": "1",
    }  # fmt: skip
    known = typed(Outer, value, "place", ignore={"_version"})
    assert known == Outer(2, 3.0, "scaled", True, "x", (1, 2.0), ["a"], {"a": 1.0}, Inner("n", (1, 2)))
    assert type(known.rate) is type(known.pair[1]) is type(known.weights["a"]) is float
    assert typed(Outer, {"layers": 1, "prompt": None}, "place") == Outer(1)


@pytest.mark.parametrize("value, faults", [
    ([], ["place: [] is not Outer"]),
    ({}, ["place: layers: is missing; give int from 1 to 64"]),
    ({"layers": 1, "rank": 4}, ["place: 'rank' is not a field; these are: layers, rate, kind, flag, prompt, pair, names, weights, inner"]),
    ({"layers": 10**8}, ["place: layers: 100000000 is not int from 1 to 64"]),
    ({"layers": True}, ["place: layers: True is not int"]),
    ({"layers": 2.0}, ["place: layers: 2.0 is not int"]),
    ({"layers": "2"}, ["place: layers: '2' is not int"]),
    ({"layers": 1, "flag": 1, "names": "ab"}, ["place: flag: 1 is not bool", "place: names: 'ab' is not list[str]"]),
    ({"layers": 1, "rate": True}, ["place: rate: True is not float"]),
    ({"layers": 1, "rate": float("nan")}, ["place: rate: nan is not float"]),
    ({"layers": 1, "rate": 10**400}, ["place: rate: 1000"]),
    ({"layers": 1, "rate": -1}, ["place: rate -1.0 is below 0"]),
    ({"layers": 1, "kind": "x"}, ["place: kind: 'x' is not Literal['linear', 'scaled']"]),
    ({"layers": 1, "pair": [1]}, ["place: pair: [1] is not tuple[int, float]"]),
    ({"layers": 1, "pair": [1, "x"]}, ["place: pair[1]: 'x' is not float"]),
    ({"layers": 1, "weights": {"a": None, "b": "x"}}, ["place: weights: a: None is not float", "place: weights: b: 'x' is not float"]),
    ({"layers": 1, "inner": {"name": 3, "sizes": [1, None]}}, ["place: inner: name: 3 is not str", "place: inner: sizes[1]: None is not int"]),
    ({"layers": 1, "inner": {}}, ["place: inner: name: is missing; give str"]),
])  # fmt: skip
def test_every_fault_has_its_place(value, faults):
    with pytest.raises(InputError) as caught:
        typed(Outer, value, "place")
    assert len(caught.value.args) == len(faults)
    assert all(found.startswith(fault) for found, fault in zip(caught.value.args, faults)), caught.value.args
