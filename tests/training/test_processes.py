"""Processes that train together."""

import torch

from lida.training.processes import Processes


def test_a_process_alone_averages_nothing_and_waits_for_nobody():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.arange(3.0)
    processes = Processes.join("cpu")
    assert processes == Processes() and processes.first
    assert processes.average([p], 2.0) == 2.0 and torch.equal(p.grad, torch.arange(3.0))
    processes.wait()
    processes.leave()


def test_each_process_has_its_own_gpu():
    assert Processes(3, 4, 1).device("cuda") == "cuda:1" and Processes(3, 4, 1).device("cpu") == "cpu"
    assert Processes(3, 4, 1).device("cuda:0") == "cuda:0" and Processes().device("cuda") == "cuda"
