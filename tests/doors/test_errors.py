"""How a script ends: one line a fault, the exit code, the traceback only where it is asked for."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import ROOT
from tqdm import tqdm

from lida.doors.errors import InputError, run


def ended(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize("error, lines", [
    (InputError("a: b\n  c"), "error: a: b c\n"),
    (InputError("a", "b"), "error: a\nerror: b\n"),
    (InputError(*map(str, range(300))), "".join(f"error: {i}\n" for i in range(200)) + "error: ... and 100 more\n"),
    (InputError("a" * 5000 + "; mend it"), f"error: {'a' * 500} ... {'a' * 491}; mend it\n"),
    (PermissionError(13, "Permission denied", "x.png"), "error: x.png: Permission denied\n"),
    (OSError("cannot write\nmode F"), "error: cannot write mode F\n"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error: a text is not valid Unicode: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte\n"),
    (MemoryError(), "error: out of memory; use a smaller batch, picture or model\n"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory; use a smaller batch, picture or model (CUDA out of memory. Tried)\n"),
])  # fmt: skip
def test_errors_of_the_input_and_the_system_are_lines(capsys, monkeypatch, error, lines):
    monkeypatch.delenv("LIDA_DEBUG", raising=False)
    assert ended(raising(error), capsys) == (2, lines)
    monkeypatch.setenv("LIDA_DEBUG", "1")
    code, shown = ended(raising(error), capsys)
    assert code == 2 and shown.startswith("Traceback") and shown.endswith(lines)


def test_running_out_of_memory_is_reported_in_one_line(capsys):
    code, shown = ended(lambda: torch.empty(2**60), capsys)
    assert code == 2 and shown.startswith("error: out of memory;") and shown.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("x")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error))


@pytest.mark.filterwarnings("default")
def test_an_interrupt_is_silent_and_a_warning_is_one_line(capsys):
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "")
    run(lambda: warnings.warn("a\nb"))
    assert capsys.readouterr().err == "warning: a b\n"


@pytest.mark.filterwarnings("default")
def test_errors_and_warnings_have_lines_of_their_own_beside_a_progress_bar(capsys):
    def main():
        for k in tqdm([0, 1], file=sys.stderr):
            warnings.warn(f"a {k}")
            if k:
                raise InputError("b")

    shown = [line.rpartition("\r")[2] for line in ended(main, capsys)[1].splitlines()]
    assert [line for line in shown if line.startswith(("warning", "error"))] == ["warning: a 0", "warning: a 1", "error: b"]


def test_a_closed_pipe_is_quiet():
    code = "from lida.doors.errors import run; run(lambda: [print(i) for i in range(100_000)])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as script:
        assert script.stdout.readline() == b"0\n"
        script.stdout.close()
        assert script.stderr.read() == b"" and script.wait() == 141
