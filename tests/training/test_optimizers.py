"""The optimiser's groups and learning rates."""

from argparse import Namespace

import pytest
import torch
from diffusers.optimization import get_scheduler

import lida
from lida.training.optimizers import LR_SCHEDULERS, lr_schedule, new_optimizer

FLAGS = {
    "learning_rate": 3e-4, "text_encoder_lr": None, "scale_lr": False, "adam_beta1": 0.9, "adam_beta2": 0.99,
    "adam_weight_decay": 0.1, "adam_epsilon": 1e-7, "use_8bit_adam": False, "device": "cpu", "lr_scheduler": "constant",
    "lr_warmup_steps": 5, "max_train_steps": 40, "lr_num_cycles": 3, "lr_power": 2.0,
}  # fmt: skip


def layers() -> dict:
    return {path: lida.LoRALinear(torch.nn.Linear(4, 4), 2) for path in ("mid_block.to_q", "text_encoder.layers.0.q_proj")}


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_learning_rates_are_diffusers_in_any_order_of_steps(name):
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = get_scheduler(name, reference, num_warmup_steps=5, num_training_steps=40, num_cycles=3, power=2.0)
    theirs = []
    for _ in range(41):
        theirs.append(schedule.get_last_lr()[0])
        reference.step()
        schedule.step()
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (3e-4, 1e-3)])
    set_learning_rate = lr_schedule(optimizer, Namespace(**{**FLAGS, "lr_scheduler": name}))
    for step in (40, 7, *range(41)):
        assert set_learning_rate(step) == pytest.approx(theirs[step], rel=1e-6, abs=1e-12), step
        ours = [group["lr"] for group in optimizer.param_groups]
        assert ours == [pytest.approx(lr / 3e-4 * theirs[step], rel=1e-6, abs=1e-12) for lr in (3e-4, 1e-3)]


def test_a_warmup_that_never_ends_is_reported():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-4)
    with pytest.warns(UserWarning, match="--lr_warmup_steps 40: is not over within 40 steps"):
        lr_schedule(optimizer, Namespace(**{**FLAGS, "lr_scheduler": "linear", "lr_warmup_steps": 40}))


def test_the_text_encoder_has_a_learning_rate_of_its_own():
    for more, rates in (({}, [3e-4, 3e-4]), ({"text_encoder_lr": 1e-5}, [3e-4, 1e-5]), ({"scale_lr": True}, [24e-4, 24e-4])):
        optimizer = new_optimizer(layers(), Namespace(**{**FLAGS, **more}), batch=8)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)
        assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
        assert optimizer.defaults["betas"] == (0.9, 0.99) and optimizer.defaults["weight_decay"] == 0.1
    unet = {path: layer for path, layer in layers().items() if not path.startswith("text")}
    assert len(new_optimizer(unet, Namespace(**FLAGS), batch=8).param_groups) == 1


def test_8bit_moments_need_a_gpu():
    with pytest.raises(lida.InputError, match="--use_8bit_adam: needs a CUDA GPU, and the device is cpu; leave it out"):
        new_optimizer(layers(), Namespace(**{**FLAGS, "use_8bit_adam": True}), batch=8)
