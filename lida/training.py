"""What a training loop needs and its reader can skip: averaged weights, and training state on disk."""

import os
from pathlib import Path

import torch
from torch import nn


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


def save_state(path: str | Path, **parts) -> None:
    """Write training state so that a crash leaves the last whole file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parts, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
