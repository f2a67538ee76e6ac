"""Processes that train together, and signals."""

import os
import signal
from datetime import timedelta

import pytest
import torch

from lida.doors.errors import InputError
from lida.training.processes import Processes, noted_signals


def test_a_process_alone_averages_nothing_and_waits_for_nobody():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.arange(3.0)
    processes = Processes.join("cpu")
    assert processes == Processes() and processes.first
    assert processes.average([p], [2.0, 1.0]) == [2.0, 1.0] and torch.equal(p.grad, torch.arange(3.0))
    processes.wait()
    processes.leave()


@pytest.mark.parametrize("environment, message", [
    ({"RANK": "0"}, "has RANK '0', but no WORLD_SIZE; start them by torchrun"),
    ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK '1', WORLD_SIZE '1', which names no process of a run"),
    ({"RANK": "x"}, "RANK 'x'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE '0'"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE ''"),
    ({"WORLD_SIZE": "2"}, "has WORLD_SIZE '2', but no RANK and no MASTER_ADDR and no MASTER_PORT; start them by torchrun"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"}, "but no MASTER_ADDR;"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "do not meet at 127.0.0.1:x "),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nobody.invalid", "MASTER_PORT": "1"}, "do not meet at nobody.invalid:1 "),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "do not meet at 127.0.0.1:1 "),
])  # fmt: skip
def test_an_environment_that_no_launcher_makes_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lida.training.processes.MEETING", timedelta(seconds=1))
    with pytest.raises(InputError, match=message):
        Processes.join("cpu")


def test_each_process_has_its_own_gpu():
    assert Processes(3, 4, 1).device("cuda") == "cuda:1" and Processes(3, 4, 1).device("cpu") == "cpu"
    assert Processes(3, 4, 1).device("cuda:0") == "cuda:0" and Processes().device("cuda") == "cuda"


def test_signals_are_noted_and_a_second_interrupt_ends_the_program(capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with noted_signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert noted == [signal.SIGTERM, signal.SIGINT] and "stopping after this step" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
