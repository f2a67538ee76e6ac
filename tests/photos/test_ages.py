"""The age estimator: what its labels mean, and which folders are refused."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from lida.doors.errors import InputError
from lida.doors.pictures import open_image
from lida.photos.ages import AgeEstimator, years_of

SHIPPED = ROOT / "weights" / "age-estimator"


@pytest.mark.parametrize("label, years", [("34", 34), ("20-29", 25), ("(25, 32)", 29), ("more than 70", 75), ("70+", 75)])
def test_labels_mean_ages(label, years):
    assert years_of(label, "x") == years


@pytest.mark.parametrize("label", ["cat", "1 2 3", "20000", ""])
def test_other_labels_are_refused(label):
    with pytest.raises(InputError, match=f"x: its label {label!r} names no age"):
        years_of(label, "x")


def test_a_face_reads_as_its_mirror_image_does():
    face = open_image(ROOT / "weights" / "demo" / "person-a.png")
    a, b = AgeEstimator(SHIPPED)([face, face.transpose(0)])
    assert a == pytest.approx(b, abs=1e-3) and 0 < a < 90  # the mean of the same two probabilities, in another order


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped estimator."""
    return shutil.copytree(SHIPPED, tmp_path / "estimator")


def refused(folder, message):
    with pytest.raises(InputError, match=message or None) as error:
        AgeEstimator(folder)
    assert str(error.value).startswith(f"{folder}: ") and len(str(error.value).splitlines()) == 1


class Opened:
    """Opens a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_refused_unread(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Opened(tmp_path / "opened")))
    refused(copy, "no age estimator .*no file named model.safetensors")
    assert not (tmp_path / "opened").exists()


def test_code_beside_the_weights_is_not_run(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "model.Model", "AutoConfig": "model.Config"}
    config["model_type"] = "unheard-of"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.py").write_text(f"open({str(tmp_path / 'opened')!r}, 'w')")
    refused(copy, "no age estimator")
    assert not (tmp_path / "opened").exists()


def test_an_estimator_without_its_head_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    head = [name for name in tensors if "classifier" in name]
    assert head
    save_file({name: x for name, x in tensors.items() if name not in head}, copy / "model.safetensors", {"format": "pt"})
    refused(copy, f"has no weights for {len(head)} of its tensors, such as classifier")


def test_broken_folders_are_refused(copy, tmp_path):
    refused(tmp_path / "none", "no age estimator")
    config = json.loads((copy / "config.json").read_text())
    for changes, message in (
        ({"id2label": {"0": "cat", "1": "dog"}}, "no age estimator"),
        ({"id2label": {str(i): "cat" for i in range(len(config["id2label"]))}}, "its label 'cat' names no age"),
        ({"depths": [10**8, 2, 2, 2]}, "depths is .100000000, 2, 2, 2. in its config.json"),
        ({"hidden_sizes": [10**9] * 4}, "no age estimator"),
    ):
        (copy / "config.json").write_text(json.dumps({**config, **changes}))
        refused(copy, message)
    (copy / "config.json").write_text(json.dumps(config))
    whole = (copy / "model.safetensors").read_bytes()
    os.mkfifo(copy / "preprocessor_config.json.bak")
    with pytest.raises(InputError, match="is not a regular file"):
        AgeEstimator(copy)
    (copy / "preprocessor_config.json.bak").unlink()
    for data in (whole[: len(whole) // 2], b"", b"no tensors"):
        (copy / "model.safetensors").write_bytes(data)
        refused(copy, "no age estimator")


def test_ages_that_are_no_numbers_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "classifier" in name)
    tensors[name] = torch.full_like(tensors[name], np.nan)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="estimator: reads no finite age"):
        AgeEstimator(copy)([open_image(ROOT / "weights" / "demo" / "person-a.png")])
