"""Safetensors files are read as they are or refused, and written whole, with equal bytes for equal contents."""

import json
import os
import struct

import pytest
import torch

from lida.doors.errors import InputError
from lida.doors.files import folder_written_whole
from lida.doors.tensors import check_device, is_finite, read_header, read_tensors, write_tensors

TENSORS = {"a": torch.randn(3, 4), "b": torch.ones(2).half(), "é": torch.arange(4.0)}
HEADER = {"x": 'é\x01\x7f\n\t"\\\u2028 </', "lida": "{}", "format": "pt"}


def test_what_is_written_is_read_again(tmp_path):
    write_tensors(tmp_path / "x", TENSORS, HEADER)
    again = read_tensors(tmp_path / "x")
    assert read_header(tmp_path / "x") == HEADER and again.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in again.items())
    assert read_tensors(tmp_path / "x", ["b"]).keys() == {"b"} and os.listdir(tmp_path) == ["x"]


def test_equal_contents_are_equal_bytes(tmp_path):
    """The safetensors library orders a header's metadata by chance, differently in each call."""
    files = set()
    for _ in range(5):
        write_tensors(tmp_path / "x", TENSORS, dict(reversed(HEADER.items())))
        files.add((tmp_path / "x").read_bytes())
    assert len(files) == 1


def raw(header: dict | bytes, data: bytes = b"") -> bytes:
    """A safetensors file of this header and these bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


HOSTILE = {
    "empty": (b"", "not a readable"),
    "a header without an end": ((10**8).to_bytes(8, "little") + b"{" * 100, "not a readable"),
    "a header longer than any file": (b"\xff" * 8 + b"{}", "not a readable"),
    "data that is missing": (raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"), "not a readable"),
    "a shape that overflows": (
        raw({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, b"12345678"),
        "overflow",
    ),
    "a dtype that torch lacks": (raw({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, b"123"), "F6_E2M3"),
    "a pickle": (b"\x80\x04\x95", "is a pickle"),
    "an archive of torch.save": (b"PK\x03\x04", "is a pickle"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_safetensors_file_is_refused(tmp_path, case):
    data, message = HOSTILE[case]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="x.safetensors: ") as error:
        read_tensors(tmp_path / "x.safetensors")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match="not a regular file"):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_what_is_not_finite_is_found(dtype):
    largest = torch.full((1000,), torch.finfo(dtype).max if dtype.itemsize > 1 else 1.0, dtype=dtype)  # whose sum overflows
    assert is_finite(largest) and is_finite(largest[:0])
    for value in (float("nan"), float("inf"), -float("inf")):
        other = largest.float()
        other[500] = value
        assert not is_finite(other.to(dtype))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]).to(dtype))


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with folder_written_whole(tmp_path / "new" / "x") as part:
        (part / "a").write_text("a")
        assert not (tmp_path / "new" / "x").exists()
    assert os.listdir(tmp_path / "new") == ["x"] and os.listdir(tmp_path / "new" / "x") == ["a"]
    with pytest.raises(KeyboardInterrupt), folder_written_whole(tmp_path / "new" / "y") as part:
        (part / "a").write_text("a")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "new") == ["x"]
    (tmp_path / "empty").mkdir()
    with folder_written_whole(tmp_path / "empty"):
        pass
    for path, message in ((tmp_path / "new" / "x", "is not empty"), (tmp_path / "new" / "x" / "a", "is not a folder")):
        with pytest.raises(InputError, match=message), folder_written_whole(path):
            pass


def test_a_device_on_which_nothing_can_be_computed_is_refused():
    check_device("cpu")
    check_device(torch.device("cpu"))
    for name in ("meta", "abacus", ""):
        with pytest.raises(InputError, match=f"device {name}: .*cpu always works"):
            check_device(name)
