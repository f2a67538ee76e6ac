"""Adapters are the same after the way to diffusers, to peft or to disk and back."""

import diffusers
import peft
import pytest
import torch
from conftest import prediction, random_adapter, relative
from torch import nn

import lida
from lida.adapters.files import load_adapter
from lida.nn.lora import LoRALinear
from tests.adapters.conftest import RANK

ALPHA = 8.0


@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_adapters_load_in_diffusers(sd, pipe, tmp_path, alpha):
    adapter = random_adapter(sd, 0, alpha=alpha)
    path = lida.save_adapter(tmp_path, adapter)
    assert path.name == "pytorch_lora_weights.safetensors"
    sd.load_adapter("age", path)
    sd.set_adapters(["age"], [1.0])
    base = prediction(pipe.unet)
    pipe.load_lora_weights(tmp_path)
    assert relative(prediction(sd.unet), prediction(pipe.unet)) <= 1e-5
    assert relative(prediction(sd.unet), base) > 1e-3  # the adapter does something


def test_adapters_of_diffusers_load(sd, pipe, tmp_path):
    layers = {path: LoRALinear(sd.unet.get_submodule(path), RANK) for path in random_adapter(sd, 0).layers}
    pipe.unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(layers)))
    modules = dict(pipe.unet.named_modules())
    with torch.no_grad():
        for path in layers:
            nn.init.normal_(modules[path].lora_B["default"].weight, std=0.1)
    state = diffusers.utils.convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(pipe.unet))
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, state)
    sd.load_adapter("age", tmp_path)
    sd.set_adapters(["age"], [1.0])
    assert relative(prediction(sd.unet), prediction(pipe.unet)) <= 1e-5


def test_a_saved_adapter_equals_the_loaded_one(sd, tmp_path):
    adapter = random_adapter(sd, 0, alpha=3.0)
    again = load_adapter(lida.save_adapter(tmp_path / "age.safetensors", adapter))
    assert again.metadata == adapter.metadata and again.layers.keys() == adapter.layers.keys()
    for path, layer in adapter.layers.items():
        assert again.layers[path].scale == 1.0  # the rest of it is in the factors, for readers that know of no alpha
        assert torch.equal(again.layers[path].down, layer.down) and torch.equal(again.layers[path].up, layer.up * (3.0 / RANK))
