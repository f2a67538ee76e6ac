"""The report on two adapters, computed from factors, equals that of the whole matrices."""

import pytest
import torch
from conftest import pair

import lida
from lida.adapters.comparison import compare, inner_product
from lida.nn.lora import LowRank


def test_a_report_on_two_adapters_says_what_whole_matrices_say(sd):
    a, b = pair(sd)[0][0], pair(sd)[1][0]
    report = compare(a, b)
    assert report["layers"].keys() == a.layers.keys() | b.layers.keys() and report["parts"].keys() == {"down", "mid", "up"}
    whole: list[list[torch.Tensor]] = [[], []]
    for path, row in report["layers"].items():
        given = (a.layers.get(path), b.layers.get(path))
        shape = next(layer.delta.numel() for layer in given if layer)
        x, y = (layer.delta.double().flatten() if layer else torch.zeros(shape).double() for layer in given)
        assert row["norm_a"] == pytest.approx(float(x.norm()), rel=1e-5)
        assert row["norm_b"] == pytest.approx(float(y.norm()), rel=1e-5)
        assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)), abs=1e-5)
        whole[0].append(x), whole[1].append(y)
    x, y = map(torch.cat, whole)
    assert report["all"]["norm_a"] == pytest.approx(float(x.norm()), rel=1e-5)
    assert report["all"]["cosine"] == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)), abs=1e-5)


def test_an_adapter_beside_itself_is_alike_in_all(sd):
    a = pair(sd)[0][0]
    doubled = lida.Adapter({path: LowRank(layer.down, -2 * layer.up, layer.alpha) for path, layer in a.layers.items()})
    report = compare(a, doubled)
    for row in (*report["layers"].values(), *report["parts"].values(), report["all"]):
        assert row["cosine"] == pytest.approx(-1) and row["norm_b"] == pytest.approx(2 * row["norm_a"])
    with pytest.raises(ValueError, match="changes a weight"):
        path, layer = next(iter(a.layers.items()))
        compare(a, lida.Adapter({path: LowRank(torch.ones(1, 7), torch.ones(9, 1), 1.0)}))


def test_inner_products_are_those_of_the_matrices(sd):
    (a, _), (b, _), (c, _) = pair(sd)
    shared = a.layers.keys() & b.layers.keys() | b.layers.keys() & c.layers.keys()
    for path in shared:
        one, two = (adapter.layers[path] for adapter in (a, b, c) if path in adapter.layers)
        x, y = one.delta.double(), two.delta.double()
        assert inner_product(one, two) == pytest.approx(float((x * y).sum()), rel=1e-5, abs=1e-5 * float(x.norm() * y.norm()))
