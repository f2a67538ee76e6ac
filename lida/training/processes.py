"""The processes that train together, and the signals that stop them."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from ..doors.errors import InputError, one_line


@dataclass(frozen=True)
class Processes:
    """The processes of one run, as torchrun or accelerate starts them; one process without a launcher."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str, minutes: float = 30) -> "Processes":
        """Join the other processes, by NCCL on GPUs and gloo on CPUs. None waits longer than `minutes` for the others.

        Raises InputError for an environment that no launcher sets, and if the processes do not find each other.
        """
        given = {name: os.environ.get(name, n) for name, n in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))}
        told, cure = ", ".join(f"{name} {value!r}" for name, value in given.items()), "start them by torchrun, or unset these"
        if not all(value.isdecimal() for value in given.values()) or not int(given["RANK"]) < int(given["WORLD_SIZE"]):
            raise InputError(f"the environment has {told}, which names no process of a run; {cure}")
        processes = cls(*map(int, given.values()))
        if processes.count > 1:
            try:
                dist.init_process_group(dist.get_default_backend_for_device(device), timeout=timedelta(minutes=minutes))
            except (ValueError, RuntimeError) as error:  # such as no MASTER_ADDR, or nobody there
                raise InputError(f"the processes of {told} do not find each other ({one_line(error)[:200]}); {cure}") from None
        return processes

    @property
    def first(self) -> bool:
        """Return whether this process is the one that writes and prints."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return this process's device: one of its own if `name` is a kind of which there may be several."""
        return f"{name}:{self.local_rank}" if self.count > 1 and name in ("cuda", "xpu") else name

    def average(self, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Replace every gradient by its mean over the processes, and return the means of the numbers. Both go in one message."""
        if self.count == 1:
            return list(numbers)
        own = [p.grad for p in parameters if p.grad is not None]
        assert len(own) == len(parameters)  # every term of the loss reaches every parameter
        message = torch.cat([*(gradient.flatten() for gradient in own), own[0].new_tensor(numbers)])
        try:
            dist.all_reduce(message)
        except RuntimeError as error:
            what = str(error).splitlines()[0]
            raise InputError(f"another process of this run has ended ({what}); start it again, resuming from latest") from None
        *gradients, means = (message / self.count).split([*(p.numel() for p in parameters), len(numbers)])
        for gradient, mean in zip(own, gradients):
            gradient.copy_(mean.view_as(gradient))
        return means.tolist()

    def wait(self) -> None:
        """Wait until all processes have come to this point."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Wait for the other processes, and leave the group."""
        self.wait()
        if self.count > 1:
            dist.destroy_process_group()


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list that collects Ctrl-C and SIGTERM, so a step can be finished and saved. A second Ctrl-C ends the program."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT in noted:
            raise KeyboardInterrupt
        noted.append(number)
        print("stopping after this step ...", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
