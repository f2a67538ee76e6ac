"""A small Stable Diffusion with random weights, written by diffusers and transformers, and pictures made of noise.

The tests hold on any CPU. Results are equal to the bit only if the same code ran on identically laid-out memory with the same
number of threads. Another library, batch or number of threads sums in another order, and so may weights that are mapped from a
file, which lie at other addresses than copies. Compare such results with relative(). 1e-5 covers float32 rounding through one
network; a test of several sampler or optimiser steps has a larger bound, and says how many.
"""

import json
import os
import random
import runpy
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "SOURCE_DATE_EPOCH", "0"
)  # the date in an adapter's header: equal adapters are equal bytes at midnight, too
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken by as many processes; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import lida
from lida.adapters.adapter import TEXT
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION, LowRank

ROOT = Path(__file__).parent.parent

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 16,
    "cross_attention_dim": 48,
    "attention_head_dim": 4,
}
VAE = {
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 8,
    "sample_size": 64,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.fixture(autouse=True)
def seeded():
    """Seed all generators, so random numbers are the same in every run and in any order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return CLIPTokenizer.from_pretrained(ROOT / "weights" / "lida-tiny" / "tokenizer")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A model folder in diffusers' layout, as its own classes write it."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        diffusers.AutoencoderKL(**VAE), CLIPTextModel(text), tokenizer, diffusers.UNet2DConditionModel(**UNET),
        diffusers.DDIMScheduler(**SCHEDULE), None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def sd(folder) -> lida.StableDiffusion:
    return lida.StableDiffusion.load(folder)


@pytest.fixture
def pipe(folder) -> diffusers.StableDiffusionPipeline:
    """The same folder in diffusers."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """Run a script in an empty folder; return exit code, standard output and standard error."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(name: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)  # a script prints it; elsewhere it fails the test
            try:
                if name.endswith(".py"):
                    runpy.run_path(str(ROOT / name), run_name="__main__")
                else:
                    sys.modules.pop(name, None)  # or runpy warns that the library has imported it
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
            except SystemExit as error:
                code = error.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    run.folder = work
    return run


def draws(seed: int = 0) -> torch.Generator:
    """A generator at its beginning."""
    return torch.Generator().manual_seed(seed)


def random_adapter(sd, seed: int, rank: int = 4, alpha: float | None = None, targets=CROSS_ATTENTION) -> lida.Adapter:
    """Return an adapter with factors as large as trained ones for every target of the UNet."""
    generator, layers = draws(seed), {}
    for path, module in sd.unet.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(tuple(targets)):
            down = torch.randn(rank, module.in_features, generator=generator) / rank
            up = 0.1 * torch.randn(module.out_features, rank, generator=generator)
            layers[path] = LowRank(down, up, rank if alpha is None else alpha)
    return lida.Adapter(layers, {"template": "{subject} {age}", "ages": [2, 80]})


def prediction(unet) -> torch.Tensor:
    """Return what a UNet, ours or diffusers', predicts for two fixed inputs."""
    generator = draws()
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 48, generator=generator)
    with torch.no_grad():
        out = unet(latents, torch.tensor([10, 700]), context)
    return getattr(out, "sample", out)


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """White in the box."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


@pytest.fixture
def dataset(tmp_path) -> Path:
    """An imagefolder of six pictures with three captions."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    lines = []
    for i in range(6):
        noise_image(70, 80, i).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a portrait photo of a man, age {i % 3}0s"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


ATTENTION = CROSS_ATTENTION + SELF_ATTENTION


def modules_of(sd) -> dict[str, nn.Module]:
    """Every module that an adapter can change, by our path."""
    inner = getattr(sd.text_encoder.model, "text_model", sd.text_encoder.model)
    return dict(sd.unet.named_modules()) | {TEXT + path: module for path, module in inner.named_modules()}


def adapter_for(sd, targets, ranks=(4,), alphas=(None,), seed: int = 0) -> lida.Adapter:
    """Return random factors for the modules whose path ends in a target; ranks and alphas repeat in turn."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for path, module in modules_of(sd).items():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path.endswith(tuple(targets)):
            rank, alpha = ranks[len(layers) % len(ranks)], alphas[len(layers) % len(alphas)]
            out, *rest = module.weight.shape
            down = torch.randn(rank, *rest, generator=generator) / rank
            up = 0.1 * torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
            layers[path] = LowRank(down, up, float(rank if alpha is None else alpha))
    return lida.Adapter(layers, {"role": "test"})


def agree(adapter: lida.Adapter, delta_of) -> None:
    """Check that each layer's change is `delta_of(path)`, up to float32's rounding."""
    for path, layer in adapter.layers.items():
        expected = delta_of(path).reshape(layer.delta.shape)
        assert (layer.delta - expected).norm() <= 1e-6 * expected.norm() and expected.norm() > 0, path


def pair(sd) -> tuple:
    """Three adapters of several ranks, alphas and targets, and their weights."""
    return (
        (adapter_for(sd, CROSS_ATTENTION, (4,), seed=1), 0.7),
        (adapter_for(sd, ATTENTION, (2, 8), (1.0, 3.0), seed=2), 0.5),
        (adapter_for(sd, ("attn1.to_q", "resnets.0.conv1"), (3,), (6.0,), seed=3), -1.2),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip what PyTorch itself cannot do: attention in bf16 on a CPU with AMX that is told to use no AVX-512."""
    try:
        return (yield)
    except RuntimeError as error:
        if torch.backends.cpu.get_cpu_capability() == "DEFAULT" and "pack_vnni2 is only supported" in str(error):
            pytest.skip(str(error))
        raise
