"""Merging is the weighted sum of the changes, and no failure loses the base."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import prediction, random_adapter, relative
from torch import nn

import lida
from lida.adapters.merging import weighted_sum
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION

MIDDLE = "mid_block.attentions.0.transformer_blocks.0"


def weights_of(sd) -> dict[str, torch.Tensor]:
    """Copies of the UNet's tensors."""
    return {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}


def same(sd, weights: dict[str, torch.Tensor]) -> bool:
    """Whether the UNet has these tensors, bit for bit."""
    now = sd.unet.state_dict()
    return now.keys() == weights.keys() and all(torch.equal(now[name], tensor) for name, tensor in weights.items())


@pytest.fixture
def small(sd):
    """A model with two small adapters, "a" of three layers and "b" of two, one of them shared."""
    sd.load_adapter("a", random_adapter(sd, 1, targets=[f"{MIDDLE}.attn2.to_{x}" for x in ("q", "k", "v")]))
    sd.load_adapter("b", random_adapter(sd, 2, targets=[f"{MIDDLE}.attn2.to_q", f"{MIDDLE}.attn1.to_q"]))
    return sd


def test_merging_is_the_weighted_sum_of_deltas(sd):
    """Adapters of different rank, alpha and targets, the base restored exactly in between."""
    base = weights_of(sd)
    identity = sd.load_adapter("id", random_adapter(sd, 1, rank=6, alpha=3.0, targets=CROSS_ATTENTION + SELF_ATTENTION))
    age = sd.load_adapter("age", random_adapter(sd, 2))
    sd.set_adapters(["id"], [0.7])
    sd.set_adapters(["id", "age"], [1.0, 0.2])
    merged = sd.unet.state_dict()
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        expected, path = weight.clone(), name.removesuffix(".weight")
        for adapter, w in ((identity, 1.0), (age, 0.2)):
            if path in adapter.layers and name.endswith(".weight"):
                layer = adapter.layers[path]
                expected += w * layer.alpha / layer.down.shape[0] * (layer.up @ layer.down)
        assert torch.allclose(merged[name], expected, rtol=0, atol=1e-6)
    for _ in range(3):
        sd.set_adapters(["age"], [-1.3])
        sd.set_adapters([], [])
        assert same(sd, base)


def test_the_order_of_merges_does_not_matter(small):
    """Earlier merges, at the same weights or by another rule, leave no trace."""
    ways, found = [(["a"], [1.0]), (["b"], [1.0]), (["b", "a"], [1.0, 1.0]), (["b"], [0.5])], {}
    for names, weights in ways:
        small.set_adapters([], [])
        small.set_adapters(names, weights)
        found[str((names, weights))] = weights_of(small)
    for names, weights in ways + ways[::-1]:
        small.set_adapters(names, weights, lambda path, parts: 2 * weighted_sum(path, parts))
        small.set_adapters(names, weights)
        assert same(small, found[str((names, weights))])
    assert len({prediction(small.unet).sum().item() for way in ways if small.set_adapters(*way) is None}) == 4


def test_merged_equals_unmerged(sd):
    layers = lida.inject_lora(sd.unet, 4, 8.0)
    for layer in layers.values():
        nn.init.normal_(layer.lora_up, std=0.1)
    unmerged, adapter = prediction(sd.unet), lida.Adapter.of(layers)
    lida.eject_lora(sd.unet)
    sd.load_adapter("age", adapter)
    sd.set_adapters(["age"], [1.0])
    assert relative(prediction(sd.unet), unmerged) <= 1e-5


def test_the_base_is_what_the_unet_holds_now(sd):
    """Weights that change while no adapter is set are the base from then on."""
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [1.0])
    sd.set_adapters([], [])
    changed = {name: tensor + 1 for name, tensor in sd.unet.state_dict().items()}
    sd.unet.load_state_dict(changed)
    sd.set_adapters(["age"], [1.0])
    sd.set_adapters([], [])
    assert same(sd, changed)


def test_only_what_changes_is_merged_again(small, monkeypatch):
    written, write = [], type(small.merger).write

    def counted(self, path, weight, has_adapters):
        written.append(path)
        write(self, path, weight, has_adapters)

    monkeypatch.setattr(type(small.merger), "write", counted)
    for names, weights, count in (
        (["a"], [1.0], 3), (["a"], [1.0], 0), (["a", "b"], [1.0, 0.0], 2), (["a"], [1.0], 2), (["a"], [0.5], 3), ([], [], 3)
    ):  # fmt: skip
        written.clear()
        small.set_adapters(names, weights)
        assert len(written) == count, (names, weights)


def test_threads_that_merge_at_once_leave_the_base_as_it_was(small):
    base = weights_of(small)

    def merge(k: int) -> None:
        for weight in (0.1, 0.2, 0.3):
            small.set_adapters(["a", "b"], [k * weight, weight])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(merge, range(4)))
    small.set_adapters([], [])
    assert same(small, base)


class Interrupt:
    """A function that is interrupted at its n-th call and at the `more` calls after it."""

    def __init__(self, done, at: int, more: int = 0):
        self.done, self.at, self.more, self.calls = done, at, more, 0

    def __call__(self, *args):
        self.calls += 1
        if self.at <= self.calls <= self.at + self.more:
            raise KeyboardInterrupt
        return self.done(*args)


@pytest.mark.parametrize("more", [0, 1, 9], ids=["once", "twice", "while it is undone too"])
@pytest.mark.parametrize("where", ["rule", "copy_"])
def test_an_interrupt_at_any_point_loses_nothing(small, monkeypatch, where, more):
    """An interrupted copy leaves half of the weight. If the way back is interrupted too, the next call starts from the base."""
    base = weights_of(small)
    small.set_adapters(["a"], [1.0])
    before, copy_ = weights_of(small), torch.Tensor.copy_
    half = lambda weight, other: copy_(weight[: len(weight) // 2], other[: len(other) // 2])  # noqa: E731
    for at in range(1, 20):
        with monkeypatch.context() as patch:
            interrupt = Interrupt(weighted_sum if where == "rule" else copy_, at, more)
            rule = interrupt if where == "rule" else weighted_sum
            if where == "copy_":

                def interrupted(weight, other):
                    half(weight, other)
                    return interrupt(weight, other)

                patch.setattr(torch.Tensor, "copy_", interrupted)
            try:
                small.set_adapters(["b"], [0.5], rule)
                break
            except KeyboardInterrupt:
                pass
        assert small.weights == {"a": 1.0}
        if more == 0:
            assert same(small, before)
        small.set_adapters(["a"], [1.0])
        assert same(small, before)
        small.set_adapters([], [])
        assert same(small, base)
        small.set_adapters(["a"], [1.0])
    assert at == {"rule": 3, "copy_": 5}[where] and small.weights == {"b": 0.5}  # two are merged, two restored before
    small.set_adapters([], [])
    assert same(small, base)


@pytest.mark.parametrize(("dtype", "weight"), [(torch.float32, 1e38), (torch.float16, 1e6)])
def test_merging_to_numbers_that_are_not_finite_is_refused_by_name_and_changes_nothing(small, dtype, weight):
    small.unet.to(dtype)
    layers = {path: replace(layer, up=1e4 * layer.up) for path, layer in small.adapters["a"].layers.items()}
    small.load_adapter("a", lida.Adapter(layers))
    small.set_adapters(["b"], [0.5])
    before = weights_of(small)
    with pytest.raises(ValueError, match=rf"{MIDDLE}.attn2.to_[qkv]: the merged weight is not finite in {dtype} \(.*a at 1e\+"):
        small.set_adapters(["b", "a"], [0.5, weight])
    assert same(small, before) and small.weights == {"b": 0.5}


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("1.0", "'1.0' is not a finite number"),
        (None, "None is not a finite number"),
        ([1.0], r"\[1.0\] is not a finite number"),
        (1j, "1j is not a finite number"),
        (float("nan"), "nan is not a finite number"),
        (float("-inf"), "-inf is not a finite number"),
        (1e39, r"1e\+39 is not a finite number in float32"),
        (lambda t: None, "None is not a finite number"),
        ({"mid": "x"}, "'x' is not a finite number"),
        ({"sideways": 1.0}, "'sideways' is not one of down, mid, up"),
        ({1: 1.0, "x": 1.0}, "is not one of down, mid, up"),
        ({"up": 1.0}, "no weight for the block 'mid'"),
    ],
)
def test_weights_of_wrong_types_and_values_are_value_errors_and_change_nothing(small, weight, message):
    small.set_adapters(["b"], [0.5])
    before = weights_of(small)
    with pytest.raises(ValueError, match=message):
        small.set_adapters(["a"], [weight])
    assert same(small, before) and small.weights == {"b": 0.5}


def test_numbers_of_every_kind_are_weights(small):
    small.set_adapters(["a"], [0.5])
    expected = weights_of(small)
    for half in (np.float32(0.5), np.float64(0.5), Fraction(1, 2), {"mid": 0.5}, lambda t: 0.5):
        small.set_adapters(["a"], [half])
        assert same(small, expected)


def test_adapters_are_not_merged_into_layers_that_are_being_trained(small):
    """The trained and the merged change would add up. The refused merge leaves no trace."""
    layers, before = lida.inject_lora(small.unet, 2, targets=[f"{MIDDLE}.attn2.to_v"]), weights_of(small)
    with pytest.raises(ValueError, match=rf"{MIDDLE}.attn2.to_v: is being trained .* eject_lora"):
        small.set_adapters(["a"], [1.0])
    assert same(small, before) and small.weights == {} and len(layers) == 1
    lida.eject_lora(small.unet)
    small.set_adapters(["a"], [1.0])
