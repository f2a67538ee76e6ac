"""What is saved loads in diffusers. A folder is written whole, or stays as it was."""

import os
import shutil

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


def test_a_whole_model_is_written_and_written_over(sd, pipe, tmp_path):
    sd.save(tmp_path / "model", torch.float32)
    files, weights = contents(tmp_path / "model"), "unet/diffusion_pytorch_model.safetensors"
    assert {"model_index.json", "vae/config.json", weights} <= files.keys()
    again = type(pipe).from_pretrained(tmp_path / "model", safety_checker=None)
    assert all(torch.equal(again.unet.state_dict()[name], tensor) for name, tensor in sd.unet.state_dict().items())
    lida.StableDiffusion.load(tmp_path / "model").save(tmp_path / "model", torch.float32)  # over the file that is mapped
    assert contents(tmp_path / "model").keys() == files.keys() and list(tmp_path.iterdir()) == [tmp_path / "model"]
    assert contents(tmp_path / "model")[weights] == files[weights]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weights_that_do_not_fit_into_float16_are_named_and_nothing_is_written(sd, tmp_path, part, value):
    sd.save(tmp_path / "model")
    before = contents(tmp_path / "model")
    model = sd.text_encoder.model if part == "text_encoder" else getattr(sd, part)
    name, weight = list(model.named_parameters())[-1]
    weight.data.view(-1)[0] = value
    for folder in (tmp_path / "model", tmp_path / "new"):
        with pytest.raises(lida.InputError, match=f"{part}: {name} (does not fit into torch.float16|holds NaN)"):
            sd.save(folder)
    assert contents(tmp_path / "model") == before and os.listdir(tmp_path) == ["model"]
    if value == 1e6:
        sd.save(tmp_path / "model", torch.float32)


@pytest.mark.parametrize("step", ["save_model", "save_text_encoder", "save_schedule", "write_tensors"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
def test_a_failure_at_any_step_leaves_the_old_model(sd, tmp_path, monkeypatch, step, error):
    sd.save(tmp_path / "model")
    before = contents(tmp_path / "model")
    torch.nn.init.ones_(sd.unet.conv_in.weight)

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(saving, step, failing)
    for folder in (tmp_path / "model", tmp_path / "new"):
        with pytest.raises(lida.InputError if isinstance(error, OSError) else KeyboardInterrupt):
            sd.save(folder)
    assert contents(tmp_path / "model") == before and os.listdir(tmp_path) == ["model"]


def test_a_folder_of_other_things_is_not_written_to(sd, folder, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    (tmp_path / "config.json").write_text('{"name": "a web page"}')
    shutil.copytree(folder, tmp_path / "xl")
    (tmp_path / "xl" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    shutil.copytree(tmp_path / "xl" / "vae", tmp_path / "encoder" / "text_encoder")
    before = contents(tmp_path)
    for save in (
        lambda: sd.save(tmp_path),
        lambda: sd.save(tmp_path / "xl"),
        lambda: save_model(sd.unet, tmp_path),
        lambda: save_model(sd.unet, tmp_path / "xl" / "vae"),
        lambda: save_text_encoder(sd.text_encoder, tmp_path / "encoder"),
        lambda: save_schedule(sd.schedule, tmp_path / "xl"),
        lambda: sd.save(tmp_path / "photo.jpg"),
    ):
        with pytest.raises(lida.InputError):
            save()
    assert contents(tmp_path) == before
