"""Files of adapters: which of a folder's are read, what is written, and which metadata and places are refused."""

import json
import math
import os

import pytest
import torch
from conftest import ATTENTION, adapter_for, agree
from safetensors.torch import save_file

import lida
from lida.adapters import load_adapter, save_adapter
from lida.nn.lora import CROSS_ATTENTION, LowRank
from tests.adapters.conftest import ONE, STEM


def test_a_trainers_checkpoints_are_not_mixed_into_its_result(sd, tmp_path):
    adapter, early = adapter_for(sd, ("attn2.to_k",), seed=1), adapter_for(sd, ATTENTION, seed=2)
    save_adapter(tmp_path, adapter, "peft")
    save_adapter(tmp_path / "checkpoint-500", early, "peft")
    again = load_adapter(tmp_path, sd)
    assert again.layers.keys() == adapter.layers.keys()
    agree(again, lambda name: adapter.layers[name].delta)
    save_adapter(tmp_path / "unet", early, "peft")
    with pytest.raises(lida.InputError, match="in two files"):
        load_adapter(tmp_path, sd)


def test_formats_and_places_are_checked(sd, tmp_path):
    adapter = adapter_for(sd, CROSS_ATTENTION)
    for arguments, message in (
        ((tmp_path, adapter, "ckpt"), "not one of"),
        ((tmp_path / "x.safetensors", adapter, "peft"), "folder"),
    ):
        with pytest.raises(lida.InputError, match=message):
            save_adapter(*arguments)
    with pytest.raises(lida.InputError, match="no layers"):
        save_adapter(tmp_path, lida.Adapter({}))


@pytest.mark.parametrize("metadata", [
    {"base": "x"}, {"data": None}, {"training": [1]}, {"parts": 5}, {"parts": [5]}, {"parts": [{"base": 5}]}, {"role": ["age"]},
])  # fmt: skip
def test_metadata_of_wrong_types_is_refused_when_read_and_when_written(tmp_path, metadata):
    save_file(ONE, tmp_path / "x.safetensors", metadata={"lida": json.dumps(metadata)})
    with pytest.raises(lida.InputError, match="is .*, not a (str|dict|list); fetch it again|is not an object"):
        load_adapter(tmp_path / "x.safetensors")
    save_file(ONE, tmp_path / "x.safetensors")
    layers = load_adapter(tmp_path / "x.safetensors").layers
    for wrong in (metadata, {"a": object()}, {"a": {1}}, [1]):
        with pytest.raises(lida.InputError, match="metadata"):
            lida.save_adapter(tmp_path / "y.safetensors", lida.Adapter(layers, wrong))
    assert not (tmp_path / "y.safetensors").exists()


def test_a_header_of_another_model_is_refused(tmp_path):
    save_file(ONE, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": '{"transformer.r": 2}'})
    with pytest.raises(lida.InputError, match="transformer.r' belongs to no model that lida changes"):
        load_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_what_is_not_finite_is_not_saved(tmp_path, format):
    """An alpha that goes into `up` may overflow there. The layer is named, and nothing is written."""
    one, huge = (LowRank(torch.ones(2, 32), torch.full((32, 2), value), alpha) for value, alpha in ((1.0, 2.0), (3e38, 1e9)))
    if format == "peft":
        huge = LowRank(huge.down, huge.up * math.inf, 1.0)
    with pytest.raises(lida.InputError, match="up_blocks.*is not finite in torch.float32"):
        save_adapter(tmp_path / "x", lida.Adapter({STEM: one, STEM.replace("down_blocks", "up_blocks"): huge}), format)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_metadata_that_could_not_be_read_again_is_not_saved(tmp_path):
    deep: dict = {}
    for _ in range(100):
        deep = {"parts": [deep]}
    adapter = {STEM: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)}
    for metadata, message in ((deep, "nested deeper"), ({"loss": math.nan}, "NaN")):
        with pytest.raises(lida.InputError, match=message):
            save_adapter(tmp_path / "x.safetensors", lida.Adapter(adapter, metadata))


def test_pefts_folder_is_written_whole_into_a_new_one(tmp_path):
    adapter = lida.Adapter({STEM: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)})
    save_adapter(tmp_path / "x", adapter, "peft")
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(lida.InputError, match="is not empty"):
        save_adapter(tmp_path / "x", adapter, "peft")
