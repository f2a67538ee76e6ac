"""Combining adapters: exact against the sum in float64, and truncated to the best of its rank."""

import pytest
import torch
from conftest import pair, relative

import lida
from lida.adapters import combine
from lida.adapters.combination import thin_svd
from lida.nn.lora import LowRank


def sum_of_deltas(pairs) -> dict[str, torch.Tensor]:
    """sum_i w_i (alpha_i / r_i) B_i A_i in float64."""
    deltas = {}
    for adapter, weight in pairs:
        for path, layer in adapter.layers.items():
            delta = weight * layer.alpha / layer.down.shape[0] * (layer.up.flatten(1).double() @ layer.down.flatten(1).double())
            deltas[path] = deltas.get(path, 0) + delta
    return deltas


def test_combining_is_exact(sd):
    """The result equals the sum of deltas in float64, and the reported error is the true one."""
    pairs = pair(sd)
    merged, exact = combine(pairs), sum_of_deltas(pairs)
    assert merged.layers.keys() == exact.keys()
    for path, delta in exact.items():
        up, down = merged.layers[path].factors(torch.float64)
        error = float((up @ down - delta).norm() / delta.norm())
        assert error <= 1e-6 and merged.metadata["combination"]["relative_error"][path] == pytest.approx(error)
    sd.load_adapter("merged", merged)
    sd.set_adapters(["merged"], [1.0])
    together = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    for k, (adapter, _) in enumerate(pairs):
        sd.load_adapter(f"{k}", adapter)
    sd.set_adapters(["0", "1", "2"], [weight for _, weight in pairs])
    assert all(torch.allclose(tensor, together[name], rtol=0, atol=1e-6) for name, tensor in sd.unet.state_dict().items())


@pytest.mark.parametrize("rank", [1, 4, 100])
def test_cutting_to_a_rank_is_the_best_that_it_can_be(sd, rank):
    pairs = pair(sd)
    merged = combine(pairs, rank)
    for path, delta in sum_of_deltas(pairs).items():
        singular = torch.linalg.svdvals(delta)
        up, down = merged.layers[path].factors(torch.float64)
        left = float((up @ down - delta).norm())
        assert left == pytest.approx(float(singular[rank:].square().sum().sqrt()), rel=1e-4, abs=1e-5)
        assert merged.layers[path].rank <= rank


def test_a_combination_tells_what_its_parts_agree_on(sd):
    (a, _), (b, _), _ = pair(sd)
    age = lida.Adapter(a.layers, {"base": {"unet": "1"}, "template": "{age}", "ages": [2, 80]})
    person, other = (lida.Adapter(b.layers, {"base": {"unet": unet}}) for unet in "12")
    known = combine([(person, 1.0), (age, 0.2)]).metadata
    assert known["base"] == {"unet": "1"} and known["template"] == "{age}" and known["ages"] == [2, 80]
    assert "base" not in combine([(other, 1.0), (age, 0.2)]).metadata


def test_combining_needs_adapters_that_fit_and_a_rank(sd):
    path, layer = next(iter(pair(sd)[0][0].layers.items()))
    other = lida.Adapter({path: LowRank(torch.ones(2, 7), torch.ones(9, 2), 2.0)})
    large = lida.Adapter({path: LowRank(torch.ones(2, 7), torch.full((9, 2), 3e38), 20.0)})
    bad = (
        (([],), "no adapters"),
        ((pair(sd), 0), "rank must be a whole number of at least 1, not 0"),
        (([*pair(sd), (other, 1.0)],), "their bases differ"),
        (([(large, 1.0), (large, 1.0)],), f"{path}: the sum at the weights 1, 1 is not finite"),
    )
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            combine(*arguments)


def test_the_decomposition_of_a_product_is_that_of_the_matrix():
    up, down = torch.randn(12, 3, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    up = torch.cat([up, up[:, :1]], dim=1)  # of rank 3 still
    down = torch.cat([down, down[1:2]])
    u, s, v = thin_svd(up, down)
    assert s.shape == (3,) and relative(u * s @ v.T, up @ down) <= 1e-12
    assert relative(s, torch.linalg.svdvals(up @ down)[:3]) <= 1e-12
    assert relative(LowRank(down, up, 2.0).delta.double(), up @ down / 2) <= 1e-6
