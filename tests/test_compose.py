"""Rules of composition: the weighted sum is the reference, TIES and DARE equal peft's, the rest keeps its promises."""

import numpy as np
import pytest
import torch
from conftest import box_mask, noise_image, relative
from peft.utils import merge_utils
from test_adapters import adapter_for

import lida
from lida.adapters.merging import During, dare, orthogonalised, parse_weight, ties, weight_at, weighted_sum
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION, LowRank


def layer(seed: int, rank: int = 4, alpha: float = 3.0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, 30, generator=generator), torch.randn(20, rank, generator=generator), alpha)


PARTS = [(layer(0), 0.7), (layer(1, rank=6), 0.5), (layer(2), -0.3)]


def test_ties_equals_peft():
    changes, weights = [part.delta for part, _ in PARTS], torch.tensor([weight for _, weight in PARTS])
    expected = merge_utils.ties(changes, weights, 0.3)
    assert torch.allclose(ties(0.3)("x", PARTS), expected, rtol=0, atol=1e-6) and expected.abs().sum() > 0


def test_dare_equals_peft():
    """From the same draws; and another path or seed draws others."""
    from zlib import crc32

    changes, weights = [part.delta for part, _ in PARTS], torch.tensor([weight for _, weight in PARTS])
    torch.manual_seed(crc32(b"x") + 5)
    assert torch.allclose(dare(0.5, 5)("x", PARTS), merge_utils.dare_linear(changes, weights, 0.5), rtol=0, atol=1e-5)
    assert torch.equal(dare(0.5)("x", PARTS), dare(0.5)("x", PARTS))
    assert not torch.equal(dare(0.5)("x", PARTS), dare(0.5)("y", PARTS))
    assert torch.allclose(dare(1.0)("x", PARTS), weighted_sum("x", PARTS), rtol=0, atol=1e-5)


def test_orthogonalising_takes_what_lies_in_both_spaces_and_no_more():
    (first, w), (second, v), _ = PARTS
    assert torch.allclose(orthogonalised(0.0)("x", PARTS), weighted_sum("x", PARTS), rtol=0, atol=1e-5)
    u, _, vh = torch.linalg.svd(first.delta.double(), full_matrices=False)
    u, vh = u[:, :4], vh[:4]
    for strength in (0.5, 1.0):
        left = (orthogonalised(strength)("x", PARTS[:2]).double() - w * first.delta) / v
        inside = u.T @ second.delta.double() @ vh.T
        assert torch.allclose(u.T @ left @ vh.T, (1 - strength) * inside, atol=1e-4) and inside.norm() > 1
        assert torch.allclose(left - second.delta, -strength * u @ inside @ vh, atol=1e-4)
    assert torch.equal(orthogonalised(1.0)("x", PARTS[:1]), w * first.delta)
    one = orthogonalised(1.0, leading=1)("x", PARTS[:2]).double() - w * first.delta
    assert (u[:, :1].T @ one @ vh[:1].T).abs() < 1e-4 < (u.T @ one @ vh.T).norm()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: orthogonalised(1.5), "strength"), (lambda: ties(0.0), "density"), (lambda: dare(2.0), "density"),
])  # fmt: skip
def test_bad_strengths_are_refused(make, message):
    with pytest.raises(ValueError, match=f"{message} must"):
        make()


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


@pytest.mark.parametrize("text", ["", "x", "nan", "1@0-600", "1@5", "1,side=2", "1,up", "1,up=x"])
def test_what_is_no_weight_is_refused(text):
    with pytest.raises(ValueError):
        parse_weight(text)


def state(sd) -> dict:
    return {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}


def test_weights_by_block_change_their_blocks_alone(sd):
    sd.load_adapter("a", adapter_for(sd, CROSS_ATTENTION + SELF_ATTENTION))
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
    sd.load_adapter("a", adapter_for(sd, CROSS_ATTENTION + SELF_ATTENTION))

    def aged(weight):
        sd.set_adapters(["a"] if weight is not None else [], [weight] if weight is not None else [])
        generator = torch.Generator().manual_seed(0)
        return lida.age_face(
            sd, image, mask, "a boy", strength=0.9, num_inference_steps=10, generator=generator, output_type="latent"
        )

    assert torch.equal(aged(None), aged(During(1.0, 5, 3)))  # no step falls there
    assert torch.equal(aged(1.0), aged(lambda t: 1.0))
    early, late = aged(During(1.0, 999, 500)), aged(During(1.0, 499, 0))
    whole, none = aged(1.0), aged(None)
    assert all(relative(a, b) > 1e-3 for a, b in ((early, late), (early, whole), (late, whole), (early, none)))
    assert torch.equal(early, aged(During(1.0, 999, 500)))  # a run leaves nothing behind that the next would see


def test_functions_of_the_timestep_are_called_with_the_samplers_steps(sd):
    seen = []
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q",)))
    sd.set_adapters(["a"], [lambda t: seen.append(t) or 0.5])
    seen.clear()
    lida.generate(sd, "a boy", num_inference_steps=5)
    assert sorted(set(seen), reverse=True) == [t for t, _ in sd.schedule.timesteps(5)]


def test_the_text_encoders_weight_cannot_depend_on_the_timestep(sd):
    sd.load_adapter("a", adapter_for(sd, ("attn2.to_q", "q_proj")))
    with pytest.raises(ValueError, match="prompt is encoded once"):
        sd.set_adapters(["a"], [During(1.0, 600, 0)])
    sd.set_adapters(["a"], [{"text": 0.3, "default": During(1.0, 600, 0)}])
    assert sd.weights["a"]["text"] == 0.3


@pytest.mark.parametrize("rule", [orthogonalised(1.0), ties(0.5), dare(0.5)])
def test_a_model_is_merged_by_another_rule(sd, rule):
    for number, targets in enumerate((CROSS_ATTENTION, CROSS_ATTENTION + SELF_ATTENTION)):
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
