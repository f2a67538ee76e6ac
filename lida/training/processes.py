"""The processes that train together, and the signals that stop them."""

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from ..doors.errors import InputError, one_line

MEETING = timedelta(minutes=2)  # for the processes to find each other: a launcher starts them together


@dataclass(frozen=True)
class Processes:
    """The processes of one run, as torchrun or accelerate starts them; one process without a launcher."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str, minutes: float = 30) -> "Processes":
        """Join the other processes, by NCCL on GPUs and gloo on CPUs.

        They must meet within MEETING; later operations time out after `minutes`. Raises InputError for
        missing or inconsistent RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR or MASTER_PORT variables, and if the processes do not
        find each other.
        """
        given = {name: os.environ.get(name, n) for name, n in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))}
        told = ", ".join(f"{name} {value!r}" for name, value in given.items() if name in os.environ)
        cure = "start them by torchrun, or unset these"
        alone = given["WORLD_SIZE"] == "1"
        needed = ("WORLD_SIZE",) * ("RANK" in os.environ) if alone else ("RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not os.environ.get(name)]:
            raise InputError(f"the environment has {told}, but no {' and no '.join(missing)}; {cure}")
        if not all(value.isdecimal() for value in given.values()) or not int(given["RANK"]) < int(given["WORLD_SIZE"]):
            raise InputError(f"the environment has {told}, which names no process of a run; {cure}")
        processes = cls(*map(int, given.values()))
        if processes.count > 1:
            place, timeout = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]), timedelta(minutes=minutes)
            try:
                socket.getaddrinfo(*place)  # PyTorch would retry an unknown host until the timeout
                store, rank, count = next(rendezvous("env://", timeout=MEETING))
                store.set_timeout(timeout)
                backend = dist.get_default_backend_for_device(device)
                dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
            except (OSError, ValueError, RuntimeError) as error:  # such as nobody there
                why = f"at {':'.join(place)} ({one_line(error)[:200]})"
                raise InputError(f"the processes of {told} do not meet {why}; {cure}") from None
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
