"""The optimiser and its learning rate."""

import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from transformers import get_scheduler

from ..adapters.dialects import TEXT
from ..doors.errors import InputError
from ..nn.lora import LoRALinear, lora_parameters

LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def new_optimizer(layers: Mapping[str, LoRALinear], args: Namespace, batch: int) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), the text encoder's layers at a learning rate of their own.

    With --use_8bit_adam, it is bitsandbytes' with 8-bit moments (Dettmers et al. 2022); raises InputError where that
    package, or the GPU that it needs, is absent. With --scale_lr, rates are multiplied by the `batch` of a step.
    """
    rates, groups = {False: args.learning_rate, True: args.text_encoder_lr or args.learning_rate}, []
    for is_text, rate in rates.items():
        parameters = lora_parameters(layer for path, layer in layers.items() if path.startswith(TEXT) == is_text)
        groups += [{"params": parameters, "lr": rate * (batch if args.scale_lr else 1)}] if parameters else []
    options = {"betas": (args.adam_beta1, args.adam_beta2), "weight_decay": args.adam_weight_decay, "eps": args.adam_epsilon}
    if not args.use_8bit_adam:
        return torch.optim.AdamW(groups, fused=True, **options)
    if not args.device.startswith("cuda"):
        raise InputError(f"--use_8bit_adam: needs a CUDA GPU, and the device is {args.device}; leave it out")
    if find_spec("bitsandbytes") is None:
        raise InputError("--use_8bit_adam: bitsandbytes is not installed; pip install lida-aging[bitsandbytes]")
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **options)


def lr_schedule(optimizer: torch.optim.Optimizer, args: Namespace) -> Callable[[int], float]:
    """Return a function that sets the optimizer's learning rates at a step (from 0) and returns the first of them.

    The formulas are transformers'. They depend on the step alone: there is no state to save.
    """
    name, rates = args.lr_scheduler, [group["lr"] for group in optimizer.param_groups]
    options = {"cosine_with_restarts": {"num_cycles": args.lr_num_cycles}, "polynomial": {"power": args.lr_power}}.get(name)
    if args.lr_warmup_steps >= args.max_train_steps and name != "constant":
        warnings.warn(f"--lr_warmup_steps {args.lr_warmup_steps}: is not over within {args.max_train_steps} steps")
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=rates[0])
    share = get_scheduler(name, stand_in, args.lr_warmup_steps, args.max_train_steps, options).lr_lambdas[0]

    def set_rates(step: int) -> float:
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * share(step)
        return optimizer.param_groups[0]["lr"]

    return set_rates
