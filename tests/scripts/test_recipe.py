"""The recipe's training stages run, from photographs to a model that loads, and stop and go on."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, relative
from PIL import Image

import lida
from lida.nn.vae import VAE, VAEConfig

RECIPE, WEIGHTS = ROOT / "weights" / "recipe", ROOT / "weights"


@pytest.fixture
def stage(monkeypatch, capsys):
    """Run a stage in this process; returns what it prints."""
    monkeypatch.syspath_prepend(RECIPE)  # as for a script of its own

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(RECIPE / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def prepare(*arguments) -> str:
    """Run the first stage in a process of its own: its workers are forked, which one that has threads must not be."""
    command = [sys.executable, RECIPE / "prepare.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture
def utkface(tmp_path):
    """A folder in UTKFace's layout: twenty pictures of the invented persons, a tenth of them held out."""
    folder = tmp_path / "UTKFace"
    folder.mkdir()
    for number, path in enumerate(sorted(WEIGHTS.glob("person-?/*.png"))[::5]):
        with Image.open(path) as picture:
            picture.resize((200, 200)).save(folder / f"{4 * number + 1}_{number % 2}_{number % 5}_201701{number:02d}.png")
    return folder


def test_a_grown_model_makes_what_the_old_one_makes(monkeypatch):
    monkeypatch.syspath_prepend(RECIPE)
    from grow import growth_loss, more_channels, whiten, widened

    torch.manual_seed(0)
    old, x = VAE(VAEConfig((8, 16), norm_num_groups=4, scaling_factor=0.7)).eval(), torch.rand(8, 3, 16, 16) * 2 - 1
    grown = more_channels(old, 6).eval()
    with torch.no_grad():
        first, latents = old.encode(x, sample=False), grown.encode(x, sample=False)
        assert relative(latents[:, :4], first) <= 1e-5 and latents[:, 4:].std() > 0.01
        assert relative(grown.decode(latents), old.decode(first)) <= 1e-5
        assert growth_loss(torch.cat([first, torch.randn_like(first)], 1), first) < growth_loss(latents, first)

        torch.nn.init.normal_(grown.decoder.conv_in.weight)  # as trained: it looks at the new channels
        picture = grown.decode(latents)
        whiten(grown, latents, 4)
        latents = grown.encode(x, sample=False)
        assert relative(grown.decode(latents), picture) <= 1e-4 and relative(latents[:, :4], first) <= 1e-5
        flat = latents[:, 4:].transpose(0, 1).flatten(1)
        assert flat.mean(1).abs().max() <= 1e-3 and relative(torch.cov(flat, correction=0), torch.eye(2)) <= 1e-3

        unet, text = lida.checkpoints.load_unet(WEIGHTS / "lida-tiny"), torch.randn(1, 77, 128)
        channels, t = unet.config.in_channels, torch.tensor([500])
        noisy = torch.randn(1, channels + 2, 8, 8)
        predicted = widened(unet, channels + 2)(noisy, t, text)
        assert relative(predicted[:, :channels], unet(noisy[:, :channels], t, text)) <= 1e-5
        assert not predicted[:, channels:].any()


def test_the_stages_follow_each_other_and_stop_and_go_on(utkface, stage, tmp_path):
    pytest.importorskip("onnx")
    squares, held_out, tiny = tmp_path / "squares", tmp_path / "held-out", WEIGHTS / "lida-tiny"
    all_faces = ("--least_score", 0.5, "--least_sharpness", 0)
    assert "faces kept" in prepare(utkface, "--output_dir", squares, "--crops", 2, *all_faces)
    prepare(utkface, "--output_dir", held_out, "--crops", 2, "--split", "held_out", *all_faces)
    pixels, names = np.load(squares / "pixels.npy"), np.load(squares / "faces.npz")["names"]
    assert pixels.shape == (len(names), 2, 128, 128, 3) and len(names) >= 15
    assert all(not name.split("_")[3].startswith("20170109") for name in names)  # the time ends in 9: held out

    data, few = ("--data", squares, "--held_out", held_out), ("--max_train_steps", 2, "--train_batch_size", 2)
    report = json.loads(stage("estimator", *data, "--output_dir", tmp_path / "estimator", *few).splitlines()[-1])
    assert report["all"]["faces"] == len(np.load(held_out / "pixels.npy")) and report["utkface"].keys() >= {"mean_error", "bias"}
    stage("words", "--tokenizer", tiny, "--output_dir", tmp_path / "words", *few)
    stage("vae", *data, "--output_dir", tmp_path / "small", *few)
    options = ("--init", tmp_path / "small", "--latent_channels", 10, "--half_weight", 0.25, "--output_dir", tmp_path / "vae")
    report = json.loads(stage("vae", *data, *options, *few).splitlines()[-1])
    assert report["step"] == 2 and 0 < report["utkface"]["psnr"] < 40
    options = ("--init", tmp_path / "vae", "--train_part", "decoder", "--gan_start", 0, "--gan_warmup", 1)
    stage("vae", *data, *options, "--output_dir", tmp_path / "decoder", *few)
    before, after = (lida.checkpoints.load_vae(tmp_path / name) for name in ("vae", "decoder"))
    assert not before.decoder.conv_out.weight.equal(after.decoder.conv_out.weight)
    assert before.encoder.conv_in.weight.equal(after.encoder.conv_in.weight)  # latents stay as they are

    slider = ("--data", squares, "--output_dir", tmp_path / "slider", "--train_batch_size", 2)
    stage("age_slider", *slider, "--max_train_steps", 1)
    stage("age_slider", *slider, "--max_train_steps", 2)  # goes on
    adapter = lida.load_adapter(tmp_path / "slider" / "age-slider.safetensors", lida.StableDiffusion.load(tiny))
    assert adapter.metadata["role"] == "slider" and all(layer.up.any() for layer in adapter.layers.values())

    base = ("--data", squares, "--vae", tmp_path / "vae", "--scheduler", tiny, "--output_dir", tmp_path / "model")
    stage("base", *base, "--text_encoder", tmp_path / "words", *few)
    again = stage("base", *base, "--text_encoder", tmp_path / "words", "--max_train_steps", 3, "--train_batch_size", 2)
    assert [json.loads(line)["step"] for line in again.splitlines() if line.startswith("{")] == [3]  # went on from the second
    (tmp_path / "model" / "vae").symlink_to(tmp_path / "decoder" / "vae")
    (tmp_path / "model" / "scheduler").symlink_to(tiny / "scheduler")
    sd = lida.StableDiffusion.load(tmp_path / "model")
    assert lida.generate(sd, "a man", lida.Sampling(1))[0].size == (128, 128)
