"""Run train_lora.py in separate processes, each forked from a server that has done the slow imports."""

import contextlib
import multiprocessing
import os
import resource
import runpy
import socket
import sys
from pathlib import Path

import pytest
import torch
import transformers  # noqa: F401

import lida.aging
import lida.training.run  # noqa: F401

ROOT = Path(__file__).parent.parent
SERVER = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


class Launched(multiprocessing.get_context("forkserver").Process):
    """train_lora.py with these arguments and environment; its standard error goes to a file."""

    def __init__(self, *arguments: object, log: Path, env: dict | None = None, largest_file: int | None = None):
        multiprocessing.set_forkserver_preload(["launching"])
        super().__init__(target=main, args=([*map(str, arguments)], str(log), env or {}, largest_file))
        self.log = log
        with pytest.MonkeyPatch.context() as patch:  # the server, which the first one starts, finds this module
            for name, value in SERVER.items():
                patch.setenv(name, value)
            self.start()

    def wait(self) -> int:
        """Return the exit code, negative for a signal's."""
        self.join()
        return self.exitcode


def main(arguments: list[str], log: str, env: dict, largest_file: int | None) -> None:
    """Run the script as `python train_lora.py` does, on one thread."""
    os.environ.update(env)
    torch.set_num_threads(1)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["train_lora.py", *arguments]
    with open(log, "a", buffering=1) as file, contextlib.redirect_stderr(file):
        runpy.run_path(str(ROOT / "train_lora.py"), run_name="__main__")


def ranks(count: int) -> list[dict]:
    """Return the environments that torchrun gives to this number of processes on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
