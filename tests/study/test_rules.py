"""TIES and DARE equal peft's, orthogonalising removes the right part, and rules are found by name."""

from zlib import crc32

import pytest
import torch
from peft.utils import merge_utils

from lida.adapters.merging import weighted_sum
from lida.nn.lora import LowRank
from lida.study.rules import dare, orthogonalised, parse_rule, ties


def layer(seed: int, rank: int = 4, alpha: float = 3.0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, 30, generator=generator), torch.randn(20, rank, generator=generator), alpha)


PARTS = [(layer(0), 0.7), (layer(1, rank=6), 0.5), (layer(2), -0.3)]
CHANGES, WEIGHTS = [part.delta for part, _ in PARTS], torch.tensor([weight for _, weight in PARTS])
NEAR = {"rtol": 0, "atol": 1e-5}  # some rounding steps of float32 at values up to 10


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


@pytest.mark.parametrize("strength", [1.5, -0.1, float("nan")])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(ValueError, match="strength must"):
        orthogonalised(strength)


def test_ties_equals_pefts():
    expected = merge_utils.ties(CHANGES, WEIGHTS, 0.3)
    assert torch.allclose(ties(0.3)("x", PARTS), expected, **NEAR) and expected.abs().sum() > 0


def test_dare_equals_pefts_from_the_same_draws():
    torch.manual_seed(crc32(b"x") + 5)
    assert torch.allclose(dare(0.5, 5)("x", PARTS), merge_utils.dare_linear(CHANGES, WEIGHTS, 0.5), **NEAR)


def test_dare_draws_the_same_for_one_path_and_seed_only():
    assert torch.equal(dare(0.5)("x", PARTS), dare(0.5)("x", PARTS))
    assert not torch.equal(dare(0.5)("x", PARTS), dare(0.5)("y", PARTS))
    assert not torch.equal(dare(0.5)("x", PARTS), dare(0.5, 1)("x", PARTS))
    assert torch.allclose(dare(1.0)("x", PARTS), weighted_sum("x", PARTS), **NEAR)


@pytest.mark.parametrize("text, rule", [
    ("sum", weighted_sum), ("orthogonalised:0.5", orthogonalised(0.5)), ("orthogonalised", orthogonalised()),
    ("ties:0.2", ties(0.2)), ("ties", ties()), ("dare:0.7", dare(0.7)),
])  # fmt: skip
def test_a_spelling_gives_its_rule(text, rule):
    assert torch.equal(parse_rule(text)("x", PARTS), rule("x", PARTS))
    assert parse_rule(text).spelling == text and parse_rule(text) is parse_rule(text)


@pytest.mark.parametrize("text, said", [
    ("max", "not one of sum, orthogonalised, ties, dare"), ("sum:1", "not one of"), ("ties:x", "could not convert"),
    ("ties:0", "density must"), ("dare:1.5", "density must"), ("dare:nan", "density must"), ("orthogonalised:2", "strength must"),
])  # fmt: skip
def test_what_is_no_rule_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_rule(text)
