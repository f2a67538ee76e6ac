"""The networks equal diffusers' and transformers' on the same weights. 1e-5 is some rounding steps of float32."""

import json
import shutil

import pytest
import torch
from conftest import relative

import lida
from lida.checkpoint import load_text_encoder, load_unet, load_vae, save_model, save_text_encoder


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_unet_equals_diffusers(sd, pipe, size):
    latents, timesteps, context = torch.randn(2, 4, *size), torch.tensor([3, 981]), torch.randn(2, 77, 48)
    with torch.no_grad():
        ours, theirs = sd.unet(latents, timesteps, context), pipe.unet(latents, timesteps, context).sample
    assert relative(ours, theirs) <= 1e-5


def test_vae_equals_diffusers(sd, pipe):
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        posterior, factor = pipe.vae.encode(x).latent_dist, pipe.vae.config.scaling_factor
        assert relative(sd.vae.encode(x, sample=False), posterior.mean * factor) <= 1e-5
        ours = sd.vae.encode(x, torch.Generator().manual_seed(1))
        assert relative(ours, posterior.sample(torch.Generator().manual_seed(1)) * factor) <= 1e-5
        assert relative(sd.vae.decode(ours), pipe.vae.decode(ours / factor).sample) <= 1e-5


def test_vae_refuses_sizes_it_would_crop(sd):
    with pytest.raises(ValueError, match="multiples of 8, not 60x64"):
        sd.vae.encode(torch.zeros(1, 3, 64, 60))


@pytest.mark.parametrize("prompt", ["", "a portrait photo of a man, age 60s", "word " * 200])
def test_text_encoder_equals_transformers(sd, pipe, prompt):
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs = sd.text_encoder(prompt), pipe.text_encoder(ids).last_hidden_state
        skipped = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
        assert relative(ours, theirs) <= 1e-5
        assert relative(sd.text_encoder(prompt, clip_skip=1), norm(skipped)) <= 1e-5


def test_what_is_saved_loads_in_diffusers(sd, pipe, folder, tmp_path):
    for name in ("unet", "vae"):
        part = getattr(sd, name)
        save_model(part, tmp_path / name, torch.float32)
        reloaded = type(getattr(pipe, name)).from_pretrained(tmp_path / name)
        assert all(torch.equal(reloaded.state_dict()[key], tensor) for key, tensor in part.state_dict().items())
    save_text_encoder(sd.text_encoder, tmp_path, torch.float32)
    again = load_text_encoder(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(["an old man"]), sd.text_encoder(["an old man"]))


def test_old_clip_keys_load(sd, folder, tmp_path):
    """Files from before transformers 5.6 spell `text_model.` and carry position_ids."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "model.safetensors"
    old = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, path)
    with torch.no_grad():
        assert torch.equal(load_text_encoder(tmp_path)("a boy"), sd.text_encoder("a boy"))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection is True"),
        ("unet", {"attention_head_dim": [4, 8, 8]}, "one number for all blocks"),
        ("unet", {"class_labels": 3}, "class_labels .* is not a field"),
        ("unet", {"block_out_channels": [32, 64]}, "down_block_types"),
        ("unet", {"cross_attention_dim": 40}, "of another shape"),
        ("unet", {"layers_per_block": 3}, "misses .* tensors"),
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


def test_half_precision_is_chosen_at_load(folder):
    for load in (load_unet, load_vae, load_text_encoder):
        assert {p.dtype for p in load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
