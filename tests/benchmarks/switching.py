"""Time to change an adapter's weight in SD1.5's UNet at full size (random weights), beside diffusers + peft.

    python tests/benchmarks/switching.py

128 attention layers, rank 8. lida merges anew from the base that it keeps; diffusers unfuses, sets the weight and fuses, and
its base is then no longer bit for bit what it was: the largest change is shown.
"""

import statistics
from argparse import Namespace
from time import perf_counter

import diffusers
import torch
from comparison import Row, command
from peft import LoraConfig

import lida
from lida.checkpoints.single_file import SCHEDULE
from lida.diffusion.schedule import NoiseSchedule
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION, LowRank
from lida.nn.unet import UNet, UNetConfig

TARGETS = CROSS_ATTENTION + SELF_ATTENTION


@torch.no_grad()
def measure(args: Namespace) -> list[Row]:
    theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    with torch.device("meta"):
        unet = UNet(UNetConfig(sample_size=64, cross_attention_dim=768))
    unet.load_state_dict({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, assign=True)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    theirs.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=list(TARGETS), init_lora_weights=False), "a")
    layers = {}
    for path, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            layers[path] = LowRank(module.lora_A["a"].weight.detach(), module.lora_B["a"].weight.detach(), 8.0)
    sd = lida.StableDiffusion(unet, None, None, NoiseSchedule.from_config(SCHEDULE))
    sd.load_adapter("a", lida.Adapter(layers))
    times: dict[str, list[float]] = {"lida": [], "diffusers + peft": []}
    for number in range(args.pairs + 1):
        start = perf_counter()
        sd.set_adapters(["a"], [0.1 * number])
        times["lida"].append(perf_counter() - start)
        start = perf_counter()
        if number:
            theirs.unfuse_lora()
        theirs.set_adapters(["a"], [0.1 * number])
        theirs.fuse_lora()
        times["diffusers + peft"].append(perf_counter() - start)
    sd.set_adapters([], [])
    theirs.unfuse_lora()
    changed = {"lida": max(float((t - before[name]).abs().max()) for name, t in unet.state_dict().items())}
    base = {name.replace(".base_layer", ""): t for name, t in theirs.state_dict().items() if "lora_" not in name}
    changed["diffusers + peft"] = max(float((t - before[name]).abs().max()) for name, t in base.items())
    for name, kept in times.items():
        print(f"{name:18} first {kept[0]:.2f} s, then {statistics.median(kept[1:]):.2f} s; base changed by {changed[name]:.1e}")
    ours, other = (statistics.median(kept[1:]) for kept in times.values())
    return [Row(f"switching the weight of an adapter of {len(layers)} layers", ours, other)]


if __name__ == "__main__":
    command(__doc__, measure)
