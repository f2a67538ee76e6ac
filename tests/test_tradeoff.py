"""The numbers of the trade-off, against their definitions and published tables."""

import itertools

import numpy as np
import pytest

from lida.doors.errors import InputError
from lida.study.settings import settings_of
from lida.study.tradeoff import area, harmonic_score, interval, ranks, rising, spearman

# Cradle2Cane's table on CelebA-HQ: age difference, identity, harmonic score
PUBLISHED = (
    (22.07, 79.80, 57.40), (15.12, 94.32, 74.95), (8.42, 81.96, 80.42), (9.59, 85.92, 80.67), (14.47, 86.70, 73.52),
    (11.95, 75.14, 72.54), (7.47, 81.34, 81.33),
)  # fmt: skip


@pytest.mark.parametrize("error, identity, score", PUBLISHED)
def test_the_harmonic_score_is_the_published_one(error, identity, score):
    assert harmonic_score(error, identity / 100) == pytest.approx(score, abs=0.015)  # the error has two places


def test_ranks_are_counts_of_what_is_smaller():
    """Equal values share the mean of their places: those below, and half of the others alike."""
    values = np.random.default_rng(0).integers(0, 6, 40)
    by_definition = [(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values]
    assert np.array_equal(ranks(values), by_definition)


def test_spearman_is_the_correlation_of_ranks():
    x, y = np.random.default_rng(1).integers(0, 9, (2, 30))
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1) and spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert np.isnan(spearman([1, 2, 3], [5, 5, 5]))


def test_the_area_is_the_share_of_the_square_that_is_dominated():
    points = np.random.default_rng(2).random((7, 2))
    fine = (np.arange(2000) + 0.5) / 2000
    x, y = np.meshgrid(fine, fine)
    dominated = np.zeros_like(x, dtype=bool)
    for px, py in points:
        dominated |= (x < px) & (y < py)
    assert area(points.tolist()) == pytest.approx(dominated.mean(), abs=1e-3)  # the grid's own fineness
    assert area([(0.5, 0.5), (0.4, 0.4)]) == 0.25 and area([(-0.2, 0.9)]) == 0


def test_rising_is_the_isotonic_regression():
    """Its closed form: max over starts of min over ends of the means between (Robertson et al. 1988, theorem 1.4.4)."""
    values = np.random.default_rng(3).normal(size=15) + np.linspace(0, 1, 15)
    n = len(values)
    by_definition = [max(min(values[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1)) for i in range(n)]
    assert np.allclose(rising(values), by_definition)


def test_the_interval_of_few_people_is_that_of_all_their_draws():
    """Of three people there are 27 draws: the bootstrap's quantiles are theirs, up to how many are drawn."""
    people = [1.0, 4.0, 10.0]
    means = [np.mean(draw) for draw in itertools.product(people, repeat=3)]
    low, high = interval(people, lambda chosen: float(np.mean(chosen)), draws=20000, share=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9], method="inverted_cdf")))


GRID = {"rules": ["sum"], "adapters": ["plain"], "guidance_scale": 3.0}


def test_settings_are_a_grid_and_more_and_the_controls():
    settings = settings_of(["0", "1.0"], ["0.2", "1.0@600-0"], more=["held one: age=0.5 family=held within=0.6"], **GRID)
    assert [s.name for s in settings[:5]] == ["sum 0 0.2", "sum 0 1.0@600-0", "sum 1.0 0.2", "sum 1.0 1.0@600-0", "held one"]
    held = settings[4]
    assert (held.identity, held.age, held.family, held.within, held.adapter) == ("1.0", "0.5", "held", 0.6, "plain")
    assert [s.name for s in settings[5:7]] == ["default", "do nothing"] and all(s.control for s in settings[6:])
    same = "mine: age=1.0 guidance_scale=4 against=neutral detail=years"  # the default by another name does not come twice
    assert [s.name for s in settings_of([], [], more=[same], **GRID)][:2] == ["mine", "do nothing"]


@pytest.mark.parametrize(
    "more, said",
    [
        (["a: ages=1"], "unexpected keyword"), (["a: age=much"], "'much' is not a number"), (["a: rule=max"], "rule 'max'"),
        (["a: adapter=held"], "no adapter 'held'"), (["a: within=2"], "within is a share"), ([": age=1"], "no name"),
        (["a: against=old"], "against 'old'"), (["a: age=1", "a: age=2"], "two settings"), (["a/b: age=1"], "folder's name"),
        (["a: identity=1@500-0 within=0.5"], "within is a share"), (["a: guidance_scale=x"], "could not convert"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(more, said):
    with pytest.raises(InputError, match=said):
        settings_of(["1.0"], ["0.2"], more=more, **GRID)


def test_an_identity_without_an_adapter_is_refused():
    with pytest.raises(InputError, match="no identity adapter"):
        settings_of(["1.0"], ["0.2"], ["sum"], [], [], 3.0)
