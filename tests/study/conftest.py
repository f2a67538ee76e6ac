"""A photograph of an invented person, random adapters in files, and judges that need no networks."""

import sys

import pytest
from conftest import ROOT, random_adapter

import lida

GREY = """
import numpy as np

def ages(squares):
    return [np.asarray(square.convert("L")).mean() / 3 for square in squares]

def thumbnail(square):
    return np.asarray(square.resize((4, 4)), dtype=float).ravel() - 128
"""


@pytest.fixture(scope="session")
def grey(tmp_path_factory):
    """A folder with the module grey_judges: ages by brightness, identities by colours."""
    folder = tmp_path_factory.mktemp("judges")
    (folder / "grey_judges.py").write_text(GREY)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def adapters(folder, tmp_path_factory):
    """Files of two random adapters for the small random model."""
    sd, place = lida.StableDiffusion.load(folder), tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("age", "person")):
        lida.save_adapter(place / f"{name}.safetensors", random_adapter(sd, seed))
    return place


@pytest.fixture(scope="session")
def demo():
    """The photograph, and its mask."""
    return ROOT / "weights" / "demo" / "person-a.png", ROOT / "weights" / "demo" / "person-a-mask.png"
