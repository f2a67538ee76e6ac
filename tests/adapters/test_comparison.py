"""The report on two adapters, computed from factors, says what whole matrices say."""

import math

import pytest
import torch
from conftest import pair

import lida
from lida.adapters import compare
from lida.nn.lora import LowRank


def bases(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases of a matrix's column space and row space."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], vh[:rank].T


def test_a_report_on_two_adapters_says_what_whole_matrices_say(sd):
    a, b = pair(sd)[0][0], pair(sd)[1][0]
    report = compare(a, b)
    assert report["layers"].keys() == a.layers.keys() | b.layers.keys()
    total = {"aa": 0.0, "bb": 0.0, "ab": 0.0}
    for path, row in report["layers"].items():
        x, y = (layers[path].delta.double() if path in layers else torch.zeros(1, 1).double() for layers in (a.layers, b.layers))
        assert row["norm_a"] == pytest.approx(float(x.norm()), rel=1e-5) and row["norm_b"] == pytest.approx(
            float(y.norm()), rel=1e-5
        )
        total = {"aa": total["aa"] + float(x.norm()) ** 2, "bb": total["bb"] + float(y.norm()) ** 2, "ab": total["ab"]}
        if path not in a.layers:
            assert row["cosine"] == row["columns"] == row["rows"] == 0.0
            continue
        total["ab"] += float((x * y).sum())
        assert row["cosine"] == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())), abs=1e-5)
        (ua, va), (ub, vb) = (bases(delta, layers[path].rank) for delta, layers in ((x, a.layers), (y, b.layers)))
        smaller = min(ua.shape[1], ub.shape[1])
        assert row["columns"] == pytest.approx(float((ua.T @ ub).square().sum()) / smaller, abs=1e-5)
        assert row["rows"] == pytest.approx(float((va.T @ vb).square().sum()) / smaller, abs=1e-5)
    cosine = total["ab"] / math.sqrt(total["aa"] * total["bb"])
    assert report["all"]["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert report["parts"].keys() == {"down", "mid", "up"}


def test_an_adapter_beside_itself_is_alike_in_all(sd):
    a = pair(sd)[0][0]
    doubled = lida.Adapter({path: LowRank(layer.down, -2 * layer.up, layer.alpha) for path, layer in a.layers.items()})
    report = compare(a, doubled)
    for row in (*report["layers"].values(), *report["parts"].values(), report["all"]):
        assert [round(row[name], 6) for name in ("cosine", "columns", "rows")] == [-1, 1, 1]
    with pytest.raises(ValueError, match="changes a weight"):
        path, layer = next(iter(a.layers.items()))
        compare(a, lida.Adapter({path: LowRank(torch.ones(1, 7), torch.ones(9, 1), 1.0)}))
