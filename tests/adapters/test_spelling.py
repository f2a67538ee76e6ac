"""How the command line spells adapters and weights."""

import os
import shutil

import pytest
import torch

import lida
from lida.adapters import parse_pairs, parse_weight, save_adapter
from lida.adapters.merging import weight_at
from lida.nn.lora import LowRank
from tests.adapters.conftest import STEM


@pytest.mark.parametrize(("text", "expected"), [
    ("0.2", {"down_blocks.0.x": (0.2, 0.2), "up_blocks.1.x": (0.2, 0.2)}),
    ("-1e-1", {"down_blocks.0.x": (-0.1, -0.1)}),
    ("1.0@600-0", {"down_blocks.0.x": (0.0, 1.0), "mid_block.x": (0.0, 1.0)}),
    ("1.0@600-0,up=0.5", {"down_blocks.0.x": (0.0, 1.0), "up_blocks.1.x": (0.5, 0.5)}),
    ("0,mid=2@999-601,up=0.5@300-0", {"down_blocks.0.x": (0.0, 0.0), "mid_block.x": (2.0, 0.0), "up_blocks.0.x": (0.0, 0.5)}),
])  # fmt: skip
def test_weights_as_the_command_line_spells_them(text, expected):
    for path, (early, late) in expected.items():
        assert (weight_at(parse_weight(text), path, 601), weight_at(parse_weight(text), path, 300)) == (early, late)


@pytest.mark.parametrize("text", ["", "x", "nan", "1e39", "1_0", "1@0-600", "1@5", "1,side=2", "1,up", "1,up=x", "1,up=1,up=2"])
def test_what_is_no_weight_is_refused(text):
    with pytest.raises(ValueError):
        parse_weight(text)


def test_an_adapter_given_twice_is_refused_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = lida.Adapter({STEM: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)})
    save_adapter("a.safetensors", adapter)
    save_adapter("folder", adapter)
    os.symlink("a.safetensors", "link.safetensors")
    pairs = parse_pairs(["a.safetensors=0.5", "folder"])
    assert pairs == [("a.safetensors", 0.5), ("folder", 1.0)]
    shutil.copy("a.safetensors", "b=1.safetensors")
    assert parse_pairs(["b=1.safetensors"]) == [("b=1.safetensors", 1.0)]
    assert parse_pairs(["b=1.safetensors=2"]) == [("b=1.safetensors", 2.0)]
    for twice in (
        ["a.safetensors", "./a.safetensors=2"], ["a.safetensors", f"{tmp_path}/a.safetensors"],
        ["a.safetensors", "link.safetensors"], ["folder", "folder/pytorch_lora_weights.safetensors"],
    ):  # fmt: skip
        with pytest.raises(lida.InputError, match="the same adapter"):
            parse_pairs(twice)
    for text, message in (
        ("a.safetensors=1e39", "finite"),
        ("a.safetensors=x", "finite"),
        ("b=1", "no such adapter"),
        ("=1", "names no adapter"),
    ):
        with pytest.raises(lida.InputError, match=message):
            parse_pairs([text])
