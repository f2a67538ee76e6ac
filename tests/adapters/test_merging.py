"""Merging rules, weights by block and timestep, and adapters merged into a model and taken out again."""

import numpy as np
import pytest
import torch
from conftest import ATTENTION, adapter_for, box_mask, noise_image, pair, relative

import lida
from lida.adapters import check_fits, parse_weight, save_adapter, weighted_sum
from lida.adapters.dialects import TEXT
from lida.adapters.merging import During, weight_at
from lida.nn.lora import CROSS_ATTENTION, TEXT_ATTENTION, LowRank
from lida.study.rules import orthogonalised


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


@pytest.mark.parametrize("weight", ["1", None, 1e39, float("inf"), torch.ones(2), 1j, [1.0], {"up": "1", "default": None}])
def test_what_is_no_number_is_no_weight(sd, weight):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    with pytest.raises(ValueError, match="is not a finite number in float32"):
        sd.set_adapters(["a"], [weight])
    assert sd.weights == {}


def state(sd) -> dict:
    return {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}


def test_weights_by_block_change_their_blocks_alone(sd):
    sd.load_adapter("a", adapter_for(sd, ATTENTION))
    base = state(sd)
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
        before = state(sd)
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
    assert sorted(set(seen), reverse=True) == [t for t, _ in sd.schedule.timesteps(5)]


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
    base = state(sd)
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
    before = state(sd)
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


def test_adapters_fit_or_are_refused_before_anything_changes(sd):
    layer = LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    for path in ("down_blocks.9.attn2.to_q", TEXT + "encoder.layers.9.self_attn.q_proj"):
        with pytest.raises(lida.InputError, match="no such layer"):
            check_fits(lida.Adapter({path: layer}), sd.module, "x")


def test_a_merged_weight_that_is_not_finite_is_refused_with_adapter_and_layer(folder):
    """In float16 from 65,504 on, in float32 from 3.4e38 on."""
    for dtype, weight in ((torch.float16, 1e6), (torch.float32, 3e38)):
        sd = lida.StableDiffusion.load(folder, dtype)
        before = state(sd)
        sd.load_adapter("age", adapter_for(sd, ("attn2.to_q",), alphas=(1e3,)))
        with pytest.raises(lida.InputError, match=r"down_blocks.*not finite in torch.float\d\d \(age at") as error:
            sd.set_adapters(["age"], [weight])
        assert "\n" not in str(error.value) and sd.weights == {}
        assert all(torch.equal(tensor, before[name]) for name, tensor in sd.unet.state_dict().items())


def test_a_rule_that_returns_another_shape_is_refused(sd):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    with pytest.raises(ValueError, match=r"merging rule returned \(1, 2\)"):
        sd.set_adapters(["a"], [1.0], lambda path, parts: torch.ones(1, 2))
