"""Adapters as data: norms from factors, fingerprints, copies of trained layers, and whether an adapter fits a model."""

from dataclasses import replace

import pytest
import torch
from conftest import pair, random_adapter

import lida
from lida.adapters import check_fits
from lida.adapters.adapter import TEXT
from lida.nn.lora import LowRank


def test_adapters_fit_or_are_refused_before_anything_changes(sd):
    layer = LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    for path in ("down_blocks.9.attn2.to_q", TEXT + "encoder.layers.9.self_attn.q_proj"):
        with pytest.raises(lida.InputError, match="no such layer"):
            check_fits(lida.Adapter({path: layer}), sd.module, "x")


def test_an_adapter_that_does_not_fit_is_told_the_weights_that_are_there(sd):
    path, layer = next(iter(random_adapter(sd, 0).layers.items()))
    wider = lida.Adapter({path: LowRank(torch.zeros(4, 99), layer.up, 1.0)})
    with pytest.raises(lida.InputError) as error:
        check_fits(wider, sd.module, "x")
    change = f"changes {path} by {wider.layers[path].shape}, where this model has a weight {layer.shape}"
    assert str(error.value) == f"x: {change}; it was trained on another model"


def test_the_norm_of_all_is_that_of_the_matrices(sd):
    """Of linear layers and convolutions, whose factors have other ranks and alphas."""
    for adapter, _ in pair(sd):
        told, deltas = adapter.describe(), [layer.delta.flatten().double() for layer in adapter.layers.values()]
        assert told["norm"] == pytest.approx(float(torch.cat(deltas).norm()), rel=1e-5)  # the deltas are in float32
        assert told["layers"] == {"unet": len(deltas), "text_encoder": 0} and told["metadata"] == {"role": "test"}


def test_a_fingerprint_is_of_paths_alphas_and_factors_alone():
    layer = LowRank(torch.ones(2, 3), torch.ones(4, 2), 2.0)
    plain = lida.Adapter({"a": layer, "b": layer}).fingerprint
    assert lida.Adapter({"b": layer, "a": layer}, {"role": "age"}).fingerprint == plain
    for other in (replace(layer, alpha=1.0), replace(layer, down=2 * layer.down), replace(layer, up=2 * layer.up)):
        assert lida.Adapter({"a": layer, "b": other}).fingerprint != plain
    assert lida.Adapter({"a": layer, "c": layer}).fingerprint != plain


def test_an_adapter_of_trained_layers_does_not_follow_their_training(sd):
    layers = lida.inject_lora(sd.unet, 2, 3.0)
    before = lida.Adapter.of(layers, {"role": "age"})
    fingerprint = before.fingerprint
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_up += 1
    after = lida.Adapter.of(layers)
    assert before.fingerprint == fingerprint != after.fingerprint and before.metadata == {"role": "age"}
    for path, layer in layers.items():
        assert torch.equal(after.layers[path].down, layer.lora_down) and torch.equal(after.layers[path].up, layer.lora_up)
        assert after.layers[path].alpha == 3.0
