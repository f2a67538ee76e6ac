"""Models in diffusers' layout load from old and new files, are refused by the name of what is wrong, and load there again."""

import json
import shutil

import diffusers
import pytest
import torch
from conftest import relative
from safetensors.torch import load_file, save_file

import lida
from lida.checkpoints import load_text_encoder, load_unet, load_vae, save_model, save_text_encoder


def test_what_is_saved_loads_in_diffusers(sd, pipe, tmp_path):
    for name in ("unet", "vae"):
        part = getattr(sd, name)
        save_model(part, tmp_path / name, torch.float32)
        reloaded = type(getattr(pipe, name)).from_pretrained(tmp_path / name)
        assert all(torch.equal(reloaded.state_dict()[key], tensor) for key, tensor in part.state_dict().items())
    before = {name: tensor.clone() for name, tensor in sd.text_encoder.state_dict().items()}
    save_text_encoder(sd.text_encoder, tmp_path / "half")
    assert all(torch.equal(tensor, before[name]) for name, tensor in sd.text_encoder.state_dict().items())


def test_a_text_encoder_of_older_transformers_loads(sd, folder, tmp_path):
    """Its keys begin with `text_model.`, and it has its positions among its weights."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "model.safetensors"
    old = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, path)
    again, before = load_text_encoder(tmp_path), sd.text_encoder.state_dict()
    assert again.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert relative(again("a boy"), sd.text_encoder("a boy")) <= 1e-5


def test_a_vae_with_attention_named_as_before_loads(sd, folder, tmp_path):
    """SD1.5's own VAE file is from before diffusers renamed them."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = load_file(path)
    for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): tensor for key, tensor in old.items()}
    save_file(old, path)
    assert sum(".query." in key for key in old) == 4
    again = load_vae(tmp_path)
    assert all(torch.equal(tensor, sd.vae.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection is True"),
        ("unet", {"attention_head_dim": [4, 8, 8]}, "one number for all blocks"),
        ("unet", {"class_labels": 3}, "class_labels .* is not a field"),
        ("unet", {"block_out_channels": [32, 64]}, "down_block_types"),
        ("unet", {"cross_attention_dim": 40}, "of another shape"),
        ("unet", {"layers_per_block": 3}, "misses .* tensors"),
        ("unet", {"norm_num_groups": 5}, "divisible"),
        ("unet", {"attention_head_dim": 5}, "do not divide into 5 heads"),
        ("unet", {"norm_eps": "small"}, "one number for all blocks"),
        ("vae", {"block_out_channels": 64}, "not a list"),
        ("vae", {"act_fn": "relu"}, "act_fn is 'relu'"),
        ("vae", {"layers_per_block": 0}, "unexpected"),
        ("scheduler", {"prediction_type": "v_prediction"}, "prediction_type is 'v_prediction'"),
        ("scheduler", {"beta_schedule": "cosine"}, "beta_schedule 'cosine'"),
    ],
)
def test_configs_are_refused_by_name(folder, tmp_path, part, change, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = next((tmp_path / part).glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(lida.InputError, match=message) as error:
        lida.StableDiffusion.load(tmp_path)
    assert str(tmp_path / part) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind", ["PNDMScheduler", "DEISMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_the_noise_process_is_read_whatever_sampler_a_folder_names(sd, folder, tmp_path, kind):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    theirs = getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")
    theirs.save_pretrained(tmp_path / "scheduler")
    again = lida.StableDiffusion.load(tmp_path).schedule
    assert torch.equal(again.alphas_cumprod, sd.schedule.alphas_cumprod)
    assert again.config == sd.schedule.config and torch.equal(again.final_alpha_cumprod, sd.schedule.alphas_cumprod[0])
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(lida.InputError, match="prediction_type is 'v_prediction'"):
        lida.StableDiffusion.load(tmp_path)


def test_half_precision_is_chosen_at_load(folder):
    for load in (load_unet, load_vae, load_text_encoder):
        assert {p.dtype for p in load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
