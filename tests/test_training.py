"""Training state: going on from the disk is going on."""

import torch
from torch import nn

from lida.training.state import EMA, load_state, save_state


def test_resumed_training_equals_uninterrupted_training(tmp_path):
    def start() -> dict:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        return {"model": model, "optimizer": optimizer, "schedule": schedule, "ema": EMA(model)}

    def train(parts: dict, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            parts["model"](x).square().mean().backward()
            parts["optimizer"].step()
            parts["optimizer"].zero_grad()
            parts["schedule"].step()
            parts["ema"].update(parts["model"])

    whole, before, after = start(), start(), start()
    train(whole, 0, 6)
    assert load_state(tmp_path / "run" / "state.pt", before) == 0  # no file: the beginning
    train(before, 0, 3)
    save_state(tmp_path / "run" / "state.pt", 3, before)
    step = load_state(tmp_path / "run" / "state.pt", after)
    train(after, step, 6)
    assert step == 3 and [path.name for path in (tmp_path / "run").iterdir()] == ["state.pt"]
    for name, weight in whole["model"].named_parameters():
        assert torch.equal(weight, dict(after["model"].named_parameters())[name])
        assert torch.equal(whole["ema"].shadow[name], after["ema"].shadow[name])
