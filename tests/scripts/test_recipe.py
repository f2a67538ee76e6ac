"""The recipe's training stages run, from faces of noise to a model that loads, and stop and go on."""

import json
import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT

import lida

RECIPE = ROOT / "weights" / "recipe"


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """An .npz as prepare.py writes it."""
    path, rng = tmp_path_factory.mktemp("recipe") / "faces.npz", np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 4, 96, 96, 3), dtype=np.uint8)
    np.savez(path, pixels=pixels, ages=np.arange(40) * 2, men=np.arange(40) % 2 == 0, serials=np.arange(40))
    return path


@pytest.fixture
def stage(monkeypatch, capsys):
    """Run a stage in this process; returns what it prints."""
    monkeypatch.syspath_prepend(RECIPE)  # as for a script of its own

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(RECIPE / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_stages_follow_each_other_and_stop_and_go_on(faces, stage, tmp_path):
    data, few = ("--data", faces), ("--max_train_steps", 2, "--train_batch_size", 4)
    report = json.loads(
        stage("estimator", *data, "--held_out", faces, "--output_dir", tmp_path / "estimator", *few).splitlines()[-1]
    )
    assert report["all"]["faces"] == 40 and report["70s"].keys() == {"faces", "mean_error", "bias"}
    stage("words", "--tokenizer", ROOT / "weights" / "lida-tiny", "--output_dir", tmp_path / "words", *few)
    options = ("--features", tmp_path / "estimator", "--half_weight", 0.25, "--output_dir", tmp_path / "vae")
    report = json.loads(stage("vae", *data, "--held_out", faces, *options, *few).splitlines()[-1])
    assert report["steps"] == 2 and 0 < report["held_out_psnr"] < 30
    base = (*data, "--vae", tmp_path / "vae", "--scheduler", ROOT / "weights" / "lida-tiny", "--output_dir", tmp_path / "model")
    stage("base", *base, "--text_encoder", tmp_path / "words", *few)
    again = stage("base", *base, "--text_encoder", tmp_path / "words", "--max_train_steps", 3, "--train_batch_size", 4)
    assert json.loads(again.splitlines()[-1])["steps"] == 3  # went on from the second step
    (tmp_path / "model" / "vae").symlink_to(tmp_path / "vae" / "vae")
    (tmp_path / "model" / "scheduler").symlink_to(ROOT / "weights" / "lida-tiny" / "scheduler")
    sd = lida.StableDiffusion.load(tmp_path / "model")
    assert lida.generate(sd, "a man", lida.Sampling(1))[0].size == (96, 96)
