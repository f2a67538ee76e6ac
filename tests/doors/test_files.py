"""Files written whole: in parallel, on a full disk, interrupted and killed; locks; paths that are no regular files."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

from lida.doors import files
from lida.doors.errors import InputError
from lida.doors.files import (
    append_text,
    claimed_folder,
    folder_written_whole,
    locked,
    output_folder,
    regular_file,
    write_bytes,
    write_json,
    write_text,
    written_whole,
)
from lida.doors.pictures import save_image


def start(code: str, *arguments: object) -> subprocess.Popen:
    """Start Python on some lines of code, with the library on its path."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def test_a_file_is_replaced_and_stays_what_it_was(tmp_path):
    """Its permissions stay, a link stays a link, and of two names of one file only the one that is written changes."""
    old, link, other = tmp_path / "old", tmp_path / "link", tmp_path / "other"
    write_text(old, "one\r\nzwei ä\n")
    assert old.read_bytes() == "one\r\nzwei ä\n".encode() and stat.S_IMODE(old.stat().st_mode) == 0o666 & ~umask()
    old.chmod(0o640)
    link.symlink_to("old")
    os.link(old, other)
    write_json(link, {"a": 1.5})
    assert link.is_symlink() and old.read_text() == '{\n  "a": 1.5\n}\n' and stat.S_IMODE(old.stat().st_mode) == 0o640
    assert other.read_bytes().startswith(b"one")
    with written_whole(old) as part:  # what a dataset links to is not touched
        os.link(other, part)
        other.chmod(0o600)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    dangling = tmp_path / "dangling"
    dangling.symlink_to("new")
    write_bytes(dangling, b"new")
    assert (tmp_path / "new").read_bytes() == b"new"
    with pytest.raises(ValueError, match="nan"):
        write_json(old, float("nan"))
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "new", "old", "other"]


def umask() -> int:
    value = os.umask(0o22)
    os.umask(value)
    return value


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "x", tmp_path / "file" / "x", "/dev/null"):
        with pytest.raises(InputError, match=f"{path}: cannot be written"), written_whole(path):
            pytest.fail("the block was entered")
    with pytest.raises(OSError, match="File name too long"):
        write_text(tmp_path / ("x" * 300), "")


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from lida.doors.files import output_folder, write_bytes
def write(i):
    output_folder(sys.argv[1])
    write_bytes(sys.argv[1] + "/file", bytes([i]) * 100_000)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(write, range(int(sys.argv[2]), int(sys.argv[2]) + 25)))
"""


def test_many_write_one_path_at_once(tmp_path):
    """100 writes by four threads in each of four processes: none fails, and every reading in between finds one of them."""
    write_bytes(tmp_path / "file", bytes(100_000))
    writers = [start(WRITER, tmp_path, 50 * i) for i in range(4)]
    while any(writer.poll() is None for writer in writers):
        data = (tmp_path / "file").read_bytes()
        assert data == data[:1] * 100_000
    assert [writer.returncode for writer in writers] == [0] * 4 and os.listdir(tmp_path) == ["file"]


def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    path, found = tmp_path / "file", []
    for step in range(1000):
        path.write_text("old")
        with interrupted_at(step):
            write_text(path, "new")
            found.append(path.read_text())
            break
        found.append(path.read_text())
        assert os.listdir(tmp_path) == ["file"], step
    assert len(found) > 20 and set(found) == {"old", "new"} and found == sorted(found, reverse=True)


@contextmanager
def interrupted_at(step: int):
    """Raise KeyboardInterrupt when the step-th line of files.py is reached, and catch it."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != files.__file__:
            return None
        count += event == "line"
        if count > step:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


def test_a_kill_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file", "old")
    code = """
import os, signal, sys
from lida.doors.files import written_whole
with written_whole(sys.argv[1]) as part:
    part.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert start(code, tmp_path / "file").wait() == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod", "open"])
def test_a_full_disk_at_any_step_is_one_line(tmp_path, monkeypatch, step):
    write_text(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, fail)
        with pytest.raises(InputError, match="file: cannot be written .No space left on device"):
            write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NOISE = np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)


def save_tensors(path: Path) -> None:
    with written_whole(path) as part:
        save_file({"x": torch.from_numpy(NOISE)}, part)


def save_pickle(path: Path, by_name: bool) -> None:
    with written_whole(path) as part, open(part, "wb") as file:
        torch.save({"x": torch.from_numpy(NOISE)}, part if by_name else file)


@pytest.mark.parametrize("save", [
    lambda path: write_bytes(path, NOISE.tobytes()),
    lambda path: save_image(PICTURE, path.with_suffix(".png")),
    lambda path: save_image(PICTURE, path.with_suffix(".webp"), lossless=True, method=0),
    lambda path: save_image(PICTURE, path.with_suffix(".jpg"), quality=100),
    lambda path: save_image(PICTURE, path.with_suffix(".bmp")),
    save_tensors,
    lambda path: save_pickle(path, by_name=True),
    lambda path: save_pickle(path, by_name=False),
])  # fmt: skip
def test_every_library_that_finds_no_room_ends_in_one_line(tmp_path, save):
    """A file may have a megabyte here, which fails as a full disk does, in the libraries too that write in C and Rust."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(InputError, match=r"file.*: cannot be written \((File too large|os error 27|iostream error)"):
            save(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_errors_with_another_cause_come_through(tmp_path):
    for error in (RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "no such file", "elsewhere")):
        with pytest.raises(type(error)) as caught, written_whole(tmp_path / "file") as part:
            part.write_text("half")
            raise error
        assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_a_line_that_finds_no_room_names_its_file(tmp_path):
    append_text(tmp_path / "lines", "é\n")
    append_text(tmp_path / "lines", "b\n")
    assert (tmp_path / "lines").read_bytes() == "é\nb\n".encode()
    with pytest.raises(InputError, match=r"/dev/full: cannot be written \(No space left on device\); make room"):
        append_text("/dev/full", "a\n")


def test_output_folder_makes_folders_and_refuses_unusable_paths(tmp_path):
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b" and os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), "/proc/x"):
        with pytest.raises(InputError, match=f"--out {path}: .*give a folder that can be written to"):
            output_folder(path, "--out")
    (tmp_path / "link").symlink_to("elsewhere")
    for writing in (output_folder, lambda path: folder_written_whole(path).__enter__()):
        with pytest.raises(InputError, match="link: is a link to a folder that does not exist"):
            writing(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_locked_folder_is_for_one_process(tmp_path):
    code = """
import sys, time
from lida.doors.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""
    holder = start(code, tmp_path)
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=f"{tmp_path}: in use by another process; wait"), locked(tmp_path):
        pytest.fail("the block was entered")
    holder.kill()  # a lock ends with its process
    holder.wait()
    with locked(tmp_path), pytest.raises(InputError, match="in use by another process"), locked(tmp_path):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == []


LOCKER = """
import sys
from lida.doors.errors import InputError
from lida.doors.files import locked
done = 0
while done < 50:
    try:
        with locked(sys.argv[1]):
            with open(sys.argv[2], "x"): pass
            __import__("os").unlink(sys.argv[2])
            done += 1
    except InputError:
        pass
"""


CLAIMER = """
import sys
from pathlib import Path
from lida.doors.files import claimed_folder
for _ in range(10):
    with claimed_folder(Path(sys.argv[1]), ["a", "b"]) as folder:
        for name in ("a.png", "b.json"):
            (folder / name).open("x").write(sys.argv[2])
"""


def test_processes_that_write_the_same_names_at_once_lose_nothing(tmp_path):
    """Three processes write two files ten times each. Each pair is in a folder of its own: "x" refuses what exists."""
    assert [claimer.wait() for claimer in [start(CLAIMER, tmp_path / "out", who) for who in "pqr"]] == [0] * 3
    pairs = [(path.read_text(), path.with_name("b.json").read_text()) for path in tmp_path.rglob("a.png")]
    assert sorted(pairs) == [(who, who) for who in "pqr" for _ in range(10)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.json", *map(str, range(2, 31))}


def test_a_folder_that_stays_locked_is_claimed_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("lida.doors.files.PATIENCE", 0.1)
    with locked(tmp_path), pytest.warns(UserWarning, match="in use by another process"):
        with claimed_folder(tmp_path, ["a"]) as folder:
            assert folder == tmp_path


def test_a_lock_has_one_holder(tmp_path):
    """Three processes lock the folder 50 times each; a second one inside would find the file that it wants to make."""
    (tmp_path / "folder").mkdir()
    assert [locker.wait() for locker in [start(LOCKER, tmp_path / "folder", tmp_path / "file") for _ in range(3)]] == [0] * 3


def test_regular_file_refuses_every_other_kind_of_path(tmp_path):
    write_text(tmp_path / "file", "")
    assert regular_file(str(tmp_path / "file")) == tmp_path / "file"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nothing")
    for path, message in (
        (tmp_path / "none", "none: no such file; give a photograph"),
        (tmp_path / "link", "link: is a link to a file that does not exist"),
        (tmp_path / "pipe", "pipe: is not a regular file"),
        (tmp_path, ": is a folder"),
        (tmp_path / "file" / "x", "x: Not a directory"),
        (tmp_path / ("x" * 300), "x: File name too long"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(InputError, match=message):
            regular_file(path, "photograph")
