"""A photograph of an invented person, random adapters in files, judges that need no networks, and findings of a report."""

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


LINE = {"family": "f", "control": False, "identity": "1.0", "age": "0.2", "pictures": 3, "face": 1.0, "largest_change_outside": 0}
NUMBERS = {"similarity_input": 0.6, "similarity_target": None, "similarity_input:dlib": 0.4, "age_error": 12.0, "hcs": 64.6}


def findings(**best) -> dict:
    """Findings of one person: one setting, doing nothing, and neutral values for the rest."""
    nothing = {
        **LINE,
        **NUMBERS,
        "setting": "do nothing",
        "control": True,
        "similarity_input": 1.0,
        "age_error": 22.0,
        "hcs": 62.1,
    }
    table = [
        {**LINE, **NUMBERS, "setting": "<b>x</b>", "years_per_year": 0.4, **best},
        {**nothing, "years_per_year": float("nan")},
    ]
    judge = {"name": "reader", "mean_error": 5.5, "faces": 1, "references": 0, "references_error": None}
    identity = [{"name": "sface", "measure": "cosine", "same": 0.363}, {"name": "dlib", "measure": "d", "same": 0.5}]
    return {
        "what": "1 person.", "base": {}, "judges": [judge], "identity_judges": identity, "table": table,
        "meanings": {"<b>x</b>": "words & more", "do nothing": "nothing"}, "areas": [], "differences": [], "interference": [],
        "rows": [{"person": "a"}],
    }  # fmt: skip
