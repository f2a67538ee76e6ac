"""A single file gives the folder's model. Its names are compared with diffusers' conversion."""

import shutil

import pytest
import torch
from conftest import relative
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

import lida
from lida.checkpoints.single_file import PREFIXES
from tests.checkpoints.conftest import LOADERS

TENSORS = (
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "model.diffusion_model.output_blocks.5.2.conv.bias",
    "first_stage_model.encoder.down.0.block.0.conv1.weight", "first_stage_model.decoder.mid.attn_1.q.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
)  # fmt: skip


def same_weights(a: lida.StableDiffusion, b: lida.StableDiffusion) -> bool:
    pairs = zip((a.unet, a.vae, a.text_encoder), (b.unet, b.vae, b.text_encoder))
    return all(
        x.state_dict().keys() == y.state_dict().keys()
        and all(torch.equal(tensor, y.state_dict()[name]) for name, tensor in x.state_dict().items())
        for x, y in pairs
    )


@pytest.mark.parametrize("small", [4, 9], ids=["4 channels", "9 channels"], indirect=True)
def test_single_file_is_the_folders_model(small):
    again = lida.StableDiffusion.load(small.file)
    assert same_weights(again, small.sd)
    assert again.unet.config == small.sd.unet.config and again.schedule.config == small.sd.schedule.config
    assert again.vae.config == small.sd.vae.config and again.resolution == 512
    latents, t, prompt = torch.randn(1, again.unet.config.in_channels, 8, 8), torch.tensor([500]), "an old man, age 70s"
    with torch.no_grad():  # near and not equal: weights mapped from two files may be summed in two orders
        context = again.text_encoder(prompt)
        assert relative(context, small.sd.text_encoder(prompt)) <= 1e-5
        assert relative(again.unet(latents, t, context), small.sd.unet(latents, t, context)) <= 1e-5


@pytest.mark.parametrize("small", [4, 9], ids=["4 channels", "9 channels"], indirect=True)
def test_single_file_names_are_what_diffusers_converts(small):
    file = {name: tensor.clone() for name, tensor in small.tensors.items()}
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(file), config)
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(file), {"down_block_types": [0] * 4, "up_block_types": [0] * 4})
    for theirs, ours in ((unet, small.sd.unet), (vae, small.sd.vae)):
        assert theirs.keys() == ours.state_dict().keys()
        assert all(torch.equal(tensor.reshape(theirs[name].shape), theirs[name]) for name, tensor in ours.state_dict().items())


def test_keys_of_clip_without_text_model_load(small, tmp_path):
    file = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in small.tensors.items()}
    save_file(file, tmp_path / "model.safetensors")
    shutil.copytree(small.folder / "tokenizer", tmp_path / "tokenizer")
    assert same_weights(lida.StableDiffusion.load(tmp_path / "model.safetensors"), small.sd)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("fault", ["missing", "misshapen", "integer", "NaN", "infinite"])
def test_a_broken_tensor_is_named(small, tmp_path, name, fault):
    file, path = dict(small.tensors), tmp_path / "model.safetensors"
    part = next(part for part, prefix in PREFIXES.items() if name.startswith(prefix))
    if fault == "missing":
        del file[name]
    elif fault == "misshapen":
        file[name] = file[name][..., :-1].contiguous()
    elif fault == "integer":
        file[name] = file[name].int()
    else:
        file[name] = file[name].clone()
        file[name].view(-1)[-1] = float(fault[:3])
    save_file(file, path)
    with pytest.raises(lida.InputError) as error:
        LOADERS[part](path)
    assert str(path) in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.input_blocks.1.0.extra", "first_stage_model.loss.logvar", "control_model.x"]
)
def test_an_extra_tensor_is_named(small, tmp_path, name):
    path = tmp_path / "model.safetensors"
    save_file({**small.tensors, name: torch.ones(1)}, path)
    with pytest.raises(lida.InputError, match=name.replace(".", r"\.")):
        for load in LOADERS.values():
            load(path)


@pytest.mark.parametrize("shape", [(10**9, 0), (0,), (), (2, 0, 3, 3)])
@pytest.mark.parametrize("name", [*TENSORS, "first_stage_model.encoder.down.0.block.0.conv2.bias"])
def test_shapes_of_no_network_are_refused(small, tmp_path, name, shape):
    """A tensor without numbers may claim any other size."""
    path, part = tmp_path / "model.safetensors", next(part for part, prefix in PREFIXES.items() if name.startswith(prefix))
    save_file({**small.tensors, name: torch.zeros(shape)}, path)
    with pytest.raises(lida.InputError) as error:
        LOADERS[part](path)
    assert str(path) in str(error.value)


def test_thousands_of_blocks_are_not_counted(tmp_path):
    path, file = tmp_path / "model.safetensors", {}
    for i in range(9_000):
        file[f"model.diffusion_model.input_blocks.{i}.0.in_layers.2.weight"] = torch.zeros(1)
    save_file(file, path)
    with pytest.raises(lida.InputError, match="model.safetensors: misses .* tensors"):
        LOADERS["unet"](path)
