"""Merging is the weighted sum of the changes, or another rule, by block and timestep, and no failure loses the base."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import ATTENTION, adapter_for, box_mask, noise_image, pair, prediction, random_adapter, relative
from torch import nn

import lida
from lida.adapters import save_adapter, weighted_sum
from lida.adapters.merging import During, merged_weight
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION, TEXT_ATTENTION
from lida.study.rules import orthogonalised

MIDDLE = "mid_block.attentions.0.transformer_blocks.0"


def weights_of(sd) -> dict[str, torch.Tensor]:
    """Copies of the UNet's tensors."""
    return {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}


def same(sd, weights: dict[str, torch.Tensor]) -> bool:
    """Whether the UNet has these tensors, bit for bit."""
    now = sd.unet.state_dict()
    return now.keys() == weights.keys() and all(torch.equal(now[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("weight", ["1", None, 1e39, float("inf"), torch.ones(2), 1j, [1.0], {"up": "1", "default": None}])
def test_what_is_no_number_is_no_weight(sd, weight):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    with pytest.raises(ValueError, match="is not a finite number in float32"):
        sd.set_adapters(["a"], [weight])
    assert sd.weights == {}


def test_weights_by_block_change_their_blocks_alone(sd):
    sd.load_adapter("a", adapter_for(sd, ATTENTION))
    base = weights_of(sd)
    sd.set_adapters(["a"], [{"up": 0.5, "default": 0.0}])
    for name, tensor in sd.unet.state_dict().items():
        path = name.removesuffix(".weight")
        if path in sd.adapters["a"].layers and name.startswith("up_blocks"):
            assert torch.allclose(tensor - base[name], 0.5 * sd.adapters["a"].layers[path].delta, atol=1e-6)
        else:
            assert torch.equal(tensor, base[name])
    for weight, message in (
        ({"up": 0.5}, "no weight for the block 'down'"),
        ({"side": 1.0, "default": 1.0}, "'side' is not one"),
    ):
        before = weights_of(sd)
        with pytest.raises(ValueError, match=message):
            sd.set_adapters(["a"], [weight])
        assert all(torch.equal(tensor, before[name]) for name, tensor in sd.unet.state_dict().items()) and sd.weights != {}


def test_a_weight_that_is_0_at_all_steps_is_no_adapter_and_one_that_is_1_is_one(sd):
    image, mask = noise_image(64, 64), box_mask(64, 64, (8, 8, 56, 56))
    sd.load_adapter("a", adapter_for(sd, ATTENTION))

    def aged(weight):
        sd.set_adapters(["a"] if weight is not None else [], [weight] if weight is not None else [])
        generator = torch.Generator().manual_seed(0)
        edit, sampling = lida.Edit(strength=0.9), lida.Sampling(num_inference_steps=10)
        return lida.age_face(sd, image, mask, "a boy", edit, sampling, generator=generator, output_type="latent")

    assert torch.equal(aged(None), aged(During(1.0, 5, 3)))  # no step falls there
    assert torch.equal(aged(1.0), aged(lambda t: 1.0))
    early, late = aged(During(1.0, 999, 500)), aged(During(1.0, 499, 0))
    whole, none = aged(1.0), aged(None)
    assert all(relative(a, b) > 1e-3 for a, b in ((early, late), (early, whole), (late, whole), (early, none)))
    assert torch.equal(early, aged(During(1.0, 999, 500)))  # a run leaves no state behind


def test_functions_of_the_timestep_are_called_with_the_samplers_steps(sd):
    seen = []
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    sd.set_adapters(["a"], [lambda t: seen.append(t) or 0.5])
    seen.clear()
    lida.generate(sd, "a boy", lida.Sampling(num_inference_steps=5))
    assert list(dict.fromkeys(seen)) == [*(t for t, _ in sd.schedule.steps(5)), 999]  # last, the merge of set_adapters again


def test_a_prediction_has_the_weights_of_its_timestep(sd):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([500])

    def predicted(weight):
        sd.set_adapters(["a"], [weight])
        with torch.no_grad():
            return sd.predictor(["a boy"])(latents, t)

    assert torch.equal(predicted(During(1.0, 600, 400)), predicted(1.0))
    assert torch.equal(predicted(During(1.0, 400, 0)), predicted(0.0))


def test_a_run_leaves_the_weights_as_they_were_set(sd):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    sd.set_adapters(["a"], [During(1.0, 600, 0)])
    before = {name: weight.clone() for name, weight in sd.unet.state_dict().items()}
    lida.generate(sd, "a boy", lida.Sampling(num_inference_steps=5))
    assert all(torch.equal(weight, before[name]) for name, weight in sd.unet.state_dict().items())


def test_the_text_encoders_weight_cannot_depend_on_the_timestep(sd):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q", "q_proj")))
    with pytest.raises(ValueError, match="prompt is encoded once"):
        sd.set_adapters(["a"], [During(1.0, 600, 0)])
    sd.set_adapters(["a"], [{"text": 0.3, "default": During(1.0, 600, 0)}])
    assert sd.weights["a"]["text"] == 0.3


def difference(path, parts):
    """A custom rule."""
    (first, weight), (second, other) = parts if len(parts) == 2 else (*parts, (parts[0][0], 0.0))
    return (weight * first.delta - other * second.delta).flatten(1)


@pytest.mark.parametrize("rule", [orthogonalised(1.0), difference])
def test_a_model_is_merged_by_another_rule(sd, rule):
    for number, targets in enumerate((CROSS_ATTENTION, ATTENTION)):
        sd.load_adapter(f"{number}", adapter_for(sd, targets, seed=number))
    base = weights_of(sd)
    sd.set_adapters(["0", "1"], [1.0, 0.2], rule)
    path = next(iter(sd.adapters["0"].layers))
    parts = [(sd.adapters["0"].layers[path], 1.0), (sd.adapters["1"].layers[path], 0.2)]
    change = sd.unet.get_submodule(path).weight - base[f"{path}.weight"]
    assert torch.allclose(change, rule(path, parts), atol=1e-6) and not torch.allclose(
        change, weighted_sum(path, parts), atol=1e-3
    )
    sd.set_adapters([], [])
    assert all(np.array_equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())


def test_a_weight_that_cannot_be_applied_changes_nothing(sd):
    for number in range(2):
        sd.load_adapter(f"{number}", adapter_for(sd, CROSS_ATTENTION, seed=number))
    sd.set_adapters(["0"], [0.5])
    before = weights_of(sd)
    for weight in (float("nan"), lambda t: {}[t], {"up": 1.0}):
        with pytest.raises((ValueError, KeyError)):
            sd.set_adapters(["0", "1"], [1.0, weight])
        assert all(torch.equal(tensor, before[name]) for name, tensor in sd.unet.state_dict().items()) and sd.weights == {
            "0": 0.5
        }


def test_the_text_encoder_is_changed_too(sd, pipe, tmp_path):
    """The prompt is then encoded differently, and as in diffusers."""
    adapter = adapter_for(sd, ("attn2.to_k", *TEXT_ATTENTION), (4,), (8.0,))
    path, before = save_adapter(tmp_path / "x.safetensors", adapter, "kohya"), sd.text_encoder("a man")
    sd.load_adapter("x", path)
    sd.set_adapters(["x"], [0.5])
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    pipe.set_adapters(["x"], [0.5])
    with torch.no_grad():
        expected = pipe.encode_prompt("a man", "cpu", 1, False)[0]
    assert (sd.text_encoder("a man") - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-2 * expected.abs().max()
    sd.set_adapters([], [])
    assert torch.equal(sd.text_encoder("a man"), before)


def test_many_changes_leave_the_base_as_it_was(sd):
    base = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    for k, (adapter, _) in enumerate(pair(sd)):
        sd.load_adapter(f"{k}", adapter)
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        names = [f"{k}" for k in range(3) if (number >> k) & 1]
        sd.set_adapters(names, torch.randn(len(names), generator=generator).tolist())
    assert not all(torch.equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())
    sd.set_adapters([], [])
    assert all(torch.equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())


def test_adapters_are_listed_and_removed(sd):
    for k, (adapter, _) in enumerate(pair(sd)):
        sd.load_adapter(f"{k}", adapter)
    sd.set_adapters(["0"], [1.0])
    alone = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    sd.set_adapters(["0", "1"], [1.0, 0.5])
    assert sorted(sd.adapters) == ["0", "1", "2"] and sd.weights == {"0": 1.0, "1": 0.5}
    with pytest.raises(ValueError, match="'1' is merged"):
        sd.load_adapter("1", pair(sd)[0][0])
    sd.remove_adapter("1")
    assert sorted(sd.adapters) == ["0", "2"] and sd.weights == {"0": 1.0}
    assert all(torch.equal(tensor, alone[name]) for name, tensor in sd.unet.state_dict().items())
    with pytest.raises(ValueError, match="'1' is not loaded"):
        sd.remove_adapter("1")


def test_a_merged_weight_that_is_not_finite_is_refused_with_adapter_and_layer(folder):
    """In float16 from 65,504 on, in float32 from 3.4e38 on."""
    for dtype, weight in ((torch.float16, 1e6), (torch.float32, 3e38)):
        sd = lida.StableDiffusion.load(folder, dtype)
        before = weights_of(sd)
        sd.load_adapter("age", adapter_for(sd, ("attn2.to_q",), alphas=(1e3,)))
        with pytest.raises(lida.InputError, match=r"down_blocks.*not finite in torch.float\d\d \(age at") as error:
            sd.set_adapters(["age"], [weight])
        assert "\n" not in str(error.value) and sd.weights == {}
        assert all(torch.equal(tensor, before[name]) for name, tensor in sd.unet.state_dict().items())


def test_a_rule_that_returns_another_shape_is_refused(sd):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    with pytest.raises(ValueError, match=r"merging rule returned \(1, 2\)"):
        sd.set_adapters(["a"], [1.0], lambda path, parts: torch.ones(1, 2))


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


def test_a_flat_change_of_a_1x1_convolution_is_added_to_its_weight():
    weight, change = torch.randn(6, 4, 1, 1), torch.randn(6, 4)
    assert torch.equal(merged_weight(weight, change), weight + change[..., None, None])
