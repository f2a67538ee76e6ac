"""What is saved loads in diffusers. A model is written whole, or not at all."""

import os

import pytest
import torch
from conftest import relative

import lida
from lida.checkpoints import load_text_encoder, save_model, save_schedule, save_text_encoder, saving


def test_what_is_saved_loads_in_diffusers(sd, pipe, folder, tmp_path):
    for name in ("unet", "vae"):
        part = getattr(sd, name)
        save_model(part, tmp_path / name, torch.float32)
        reloaded = type(getattr(pipe, name)).from_pretrained(tmp_path / name)
        assert all(torch.equal(reloaded.state_dict()[key], tensor) for key, tensor in part.state_dict().items())
    before = {name: tensor.clone() for name, tensor in sd.text_encoder.state_dict().items()}
    save_text_encoder(sd.text_encoder, tmp_path / "half")
    assert all(torch.equal(tensor, before[name]) for name, tensor in sd.text_encoder.state_dict().items())
    save_text_encoder(sd.text_encoder, tmp_path, torch.float32)
    again = load_text_encoder(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert relative(again(["an old man"]), sd.text_encoder(["an old man"])) <= 1e-5


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_model_is_written_into_a_new_folder(sd, pipe, tmp_path):
    sd.save(tmp_path / "model", torch.float32)
    files = contents(tmp_path / "model")
    assert {"model_index.json", "vae/config.json", "unet/diffusion_pytorch_model.safetensors"} <= files.keys()
    again = type(pipe).from_pretrained(tmp_path / "model", safety_checker=None)
    assert all(torch.equal(again.unet.state_dict()[name], tensor) for name, tensor in sd.unet.state_dict().items())
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for folder in (tmp_path / "model", tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(lida.InputError, match="give the name of a new folder"):
            sd.save(folder)
    assert contents(tmp_path / "model") == files and sorted(os.listdir(tmp_path)) == ["model", "photo.jpg"]


def test_a_part_replaces_the_files_that_it_was_read_from(sd, tmp_path):
    sd.save(tmp_path / "model", torch.float32)
    before = contents(tmp_path / "model")
    again = lida.StableDiffusion.load(tmp_path / "model")
    save_model(again.unet, tmp_path / "model" / "unet", torch.float32)
    save_model(again.vae, tmp_path / "model" / "vae", torch.float32)
    save_text_encoder(again.text_encoder, tmp_path / "model", torch.float32)
    save_schedule(again.schedule, tmp_path / "model")
    after = contents(tmp_path / "model")
    assert after.keys() == before.keys() and all(after[name] == before[name] for name in before if "tokenizer" not in name)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weights_that_do_not_fit_into_float16_are_named_and_nothing_is_written(sd, tmp_path, part, value):
    model = sd.text_encoder.model if part == "text_encoder" else getattr(sd, part)
    name, weight = list(model.named_parameters())[-1]
    weight.data.view(-1)[0] = value
    with pytest.raises(lida.InputError, match=f"{part}: {name} is not finite in torch.float16"):
        sd.save(tmp_path / "model")
    assert not os.listdir(tmp_path)
    if value == 1e6:
        sd.save(tmp_path / "model", torch.float32)


@pytest.mark.parametrize("step", ["save_model", "save_text_encoder", "save_schedule", "write_tensors"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
def test_a_failure_at_any_step_leaves_nothing(sd, tmp_path, monkeypatch, step, error):
    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(saving, step, failing)
    with pytest.raises(lida.InputError if isinstance(error, OSError) else KeyboardInterrupt):
        sd.save(tmp_path / "model")
    assert not os.listdir(tmp_path)
