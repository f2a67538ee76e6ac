"""What a training loop needs and its reader can skip: averaged weights, and training state on disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn


class Stateful(Protocol):
    """What PyTorch's modules, optimisers and schedules are."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


class EMA:
    """An exponential moving average of a model's parameters, warmed up: decay_n = min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay, self.steps = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average in the model's place."""
        for name, p in model.named_parameters():
            p.copy_(self.shadow[name])

    def state_dict(self) -> dict:
        """What load_state_dict takes."""
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        """Go on where state_dict was taken."""
        self.steps, self.shadow = state["steps"], state["shadow"]


def save_state(path: str | Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write the state of models, optimisers and averages after `step` steps; a crash leaves the last whole file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def load_state(path: str | Path, parts: Mapping[str, Stateful]) -> int:
    """Put every part where save_state left it; returns the steps taken, 0 where there is no file."""
    if not Path(path).exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]
