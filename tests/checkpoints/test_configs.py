"""Configs are checked field by field before anything is built. A scheduler config gives the noise process of any sampler."""

import json
import shutil
import time

import diffusers
import pytest
import torch

import lida
from lida.checkpoints import load_schedule, load_text_encoder, load_unet, load_vae

LOADERS = {"unet": load_unet, "vae": load_vae, "text_encoder": load_text_encoder, "scheduler": load_schedule}
BOUNDED = {  # every integer of the configs
    "unet": ("sample_size", "in_channels", "out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim",
             "attention_head_dim"),
    "vae": ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "sample_size"),
    "text_encoder": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "max_position_embeddings"),
    "scheduler": ("num_train_timesteps", "beta_start", "beta_end"),
}  # fmt: skip


def refused(folder, tmp_path, part: str, text: str) -> str:
    """Return the error for a part with this config. It names its file in each line and comes at once."""
    shutil.copytree(folder / part, tmp_path / part)
    path = next((tmp_path / part).glob("*config.json"))
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(lida.InputError) as error:
        LOADERS[part](tmp_path)
    assert time.monotonic() - start < 20  # some ms; a machine may be busy
    assert all(str(fault).startswith(str(path)) and len(str(fault)) < 1000 for fault in error.value.args)
    return str(error.value)


def config_of(folder, part: str) -> dict:
    return json.loads(next((folder / part).glob("*config.json")).read_text())


@pytest.mark.parametrize("value", [-1, 0, 10**8, 1.5, True, "4", None, [4], {}, -0.5], ids=repr)
@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in BOUNDED.items() for name in names])
def test_numbers_out_of_range_are_refused(folder, tmp_path, part, name, value):
    if (name, value) == ("sample_size", None) and part == "unet":
        pytest.skip("a UNet's may be null")
    message = refused(folder, tmp_path, part, json.dumps(config_of(folder, part) | {name: value}))
    assert name in message or "betas" in message


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{" * 1000, '{"a": 1, "a": 2}', '{"norm_eps": NaN, "a": -Infinity}', "[" * 100_000, "\xff\0"],
    ids=lambda text: repr(text[:12]),
)
def test_broken_json_is_refused(folder, tmp_path, part, text):
    assert "\n" not in refused(folder, tmp_path, part, text)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection is True"),
        ("unet", {"attention_head_dim": [4, 8, 8]}, "attention_head_dim: \\[4, 8, 8\\] is not int"),
        ("unet", {"class_labels": 3}, "class_labels.* is not a field"),
        ("unet", {"fixed": {}}, "fixed.* is not a field"),  # a class variable of the config
        ("unet", {"block_out_channels": [32, 64]}, "down_block_types"),
        ("unet", {"block_out_channels": []}, "block_out_channels has 0 entries"),
        ("unet", {"block_out_channels": [32] * 10**6}, "block_out_channels has 1000000 entries"),
        ("unet", {"block_out_channels": [10**8] * 3}, "is not int from 1 to 8192"),
        ("unet", {"block_out_channels": [8192] * 3, "layers_per_block": 16}, "misses [0-9]+ tensors"),
        ("unet", {"cross_attention_dim": 40}, "misshapen"),
        ("unet", {"layers_per_block": 3}, "misses .* tensors"),
        ("unet", {"norm_num_groups": 5}, "divisible"),
        ("unet", {"attention_head_dim": 5}, "do not divide into 5 heads"),
        ("unet", {"norm_eps": "small"}, "norm_eps: 'small' is not float"),
        ("vae", {"block_out_channels": 64}, "block_out_channels: 64 is not tuple\\[int from 1 to 8192, ...\\]"),
        ("vae", {"act_fn": "relu"}, "act_fn is 'relu'"),
        ("vae", {"act_fn": "relu" * 10**6}, "act_fn is 'relu"),
        ("vae", {"scaling_factor": 0}, "scaling_factor"),
        ("text_encoder", {"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ("text_encoder", {"hidden_act": "tanh"}, "hidden_act"),
        ("text_encoder", {"model_type": "t5"}, "model_type is 't5'"),
        ("text_encoder", {"num_hidden_layers": 2}, "has unexpected"),
        ("scheduler", {"prediction_type": "v_prediction"}, "prediction_type is 'v_prediction'"),
        ("scheduler", {"beta_schedule": "cosine"}, "beta_schedule 'cosine'"),
        ("scheduler", {"beta_start": -0.1}, "beta_start"),
        ("scheduler", {"beta_end": 1}, "betas must"),
        ("scheduler", {"steps_offset": 10**6}, "steps_offset"),
    ],
)
def test_configs_are_refused_by_name(folder, tmp_path, part, change, message):
    shutil.copytree(folder / part, tmp_path / part)
    path = next((tmp_path / part).glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(lida.InputError, match=message) as error:
        LOADERS[part](tmp_path)
    assert all(str(tmp_path / part) in str(fault) and "\n" not in str(fault) for fault in error.value.args)


def test_what_a_text_config_says_of_code_is_not_read(folder, tmp_path):
    """transformers fetches kernels of the hub, and code, that a config may name."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "config.json"
    harm = {"_attn_implementation": "nobody/kernel", "attn_implementation": "nobody/kernel", "auto_map": {"AutoModel": "x.Y"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | harm))
    assert load_text_encoder(tmp_path).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["PNDMScheduler", "DEISMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
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
