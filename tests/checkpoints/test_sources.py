"""A model's files are found in folders and their variants and in the hub's cache; what is no model is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, noise_image
from safetensors.torch import load_file, save_file

import lida
from tests.checkpoints.conftest import LOADERS


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_variants_of_a_folder_load(small, tmp_path, variant):
    folder = tmp_path / "variant"
    shutil.copytree(small.folder, folder)
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        path.unlink()
        tensors = {name: tensor.half() if variant == "fp16" else tensor for name, tensor in tensors.items()}
        save_file(tensors, path.with_name(f"{path.stem}.{variant}.safetensors"))
    again = lida.StableDiffusion.load(folder)
    for a, b in zip(again.unet.parameters(), small.sd.unet.parameters()):
        assert torch.equal(a, b.half().float() if variant == "fp16" else b)


def test_pickled_weights_of_a_folder_are_refused_with_the_cure(small, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(small.folder, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(lida.InputError, match=r"unet: has no .* diffusion_pytorch_model.bin is a pickle.*use its .safetensors"):
        lida.StableDiffusion.load(folder)


def test_the_removed_hub_id_comes_from_the_cache_of_its_successor(small, tmp_path):
    """Offline, from files laid out as huggingface_hub's cache has them."""
    snapshot = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5" / "snapshots" / ("0" * 40)
    shutil.copytree(small.folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    noise_image(64, 64).save(tmp_path / "photo.png")
    command = [sys.executable, ROOT / "infer.py", tmp_path / "photo.png", "--ages", "70", "--num_inference_steps", "2"]
    command += ["--mask", "0,0,64,64"]
    command += ["--strength", "0.6", "--output_dir", tmp_path / "out", "--pretrained_model_name_or_path"]
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "runwayml/stable-diffusion-v1-5"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "is gone from the hub; using stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stderr
    assert json.loads((tmp_path / "out" / "photo-age70.json").read_text())["arguments"]["ages"] == [70]
    with pytest.raises(lida.InputError, match="nobody/nothing: no such folder, and the hub does not provide it") as error:
        lida.StableDiffusion.load("nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["", "no such thing", "a/b/c", "a\0b", "x" * 5000, "https://example.org/model"])
def test_sources_that_are_no_model_are_refused(source):
    for load in LOADERS.values():
        with pytest.raises(lida.InputError):
            load(source)
