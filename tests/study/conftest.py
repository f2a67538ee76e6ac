"""Running a module of the study, and a photograph with small adapters for it."""

import importlib
import sys

import pytest
import torch
from conftest import ROOT

import lida
from lida.doors.errors import run as run_main
from lida.nn.lora import LowRank

GREY = """
import numpy as np

def ages(squares):
    return [np.asarray(square.convert("L")).mean() / 3 for square in squares]

def thumbnail(square):
    return np.asarray(square.resize((4, 4)), dtype=float).ravel() - 128
"""


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a module's main() as the command line does; returns exit code, standard output and standard error."""

    def call(module: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        code = 0
        try:
            run_main(importlib.import_module(module).main)
        except SystemExit as error:
            code = error.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def grey(tmp_path_factory):
    """A folder with the module grey_judges, whose judges need no networks: ages by brightness, identities by colours."""
    folder = tmp_path_factory.mktemp("judges")
    (folder / "grey_judges.py").write_text(GREY)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def adapters(folder, tmp_path_factory):
    """Files of two random adapters for the small random model, of its cross-attention."""
    unet, place = lida.StableDiffusion.load(folder).unet, tmp_path_factory.mktemp("adapters")
    paths = [path for path, module in unet.named_modules() if path.endswith(("attn2.to_q", "attn2.to_v"))]
    for seed, name in enumerate(("age", "person")):
        generator = torch.Generator().manual_seed(seed)
        sizes = {path: unet.get_submodule(path).weight.shape for path in paths}
        layers = {
            path: LowRank(torch.randn(2, inside, generator=generator), torch.randn(out, 2, generator=generator) / 5, 2.0)
            for path, (out, inside) in sizes.items()
        }
        metadata = {"template": "a portrait photo of {subject}, age {decade}"} if name == "age" else {}
        lida.save_adapter(place / f"{name}.safetensors", lida.Adapter(layers, metadata))
    return place


@pytest.fixture(scope="session")
def demo():
    """The photograph of an invented person, and its mask."""
    return ROOT / "weights" / "demo" / "person-a.png", ROOT / "weights" / "demo" / "person-a-mask.png"
