"""The measures of the trade-off equal their definitions and published tables."""

import itertools

import numpy as np
import pytest

from lida.study.tradeoff import area, harmonic_score, interval, mean_of, spearman

# Cradle2Cane's table on CelebA-HQ: age difference, identity, harmonic score
PUBLISHED = (
    (22.07, 79.80, 57.40), (15.12, 94.32, 74.95), (8.42, 81.96, 80.42), (9.59, 85.92, 80.67), (14.47, 86.70, 73.52),
    (11.95, 75.14, 72.54), (7.47, 81.34, 81.33),
)  # fmt: skip


@pytest.mark.parametrize("error, identity, score", PUBLISHED)
def test_the_harmonic_score_is_the_published_one(error, identity, score):
    assert harmonic_score(error, identity / 100) == pytest.approx(score, abs=0.015)  # the error has two places


def test_spearman_is_the_correlation_of_ranks_and_nan_without_any():
    x, y = np.random.default_rng(1).integers(0, 9, (2, 30))
    ranks = [[(v < value).sum() + ((v == value).sum() - 1) / 2 for value in v] for v in (x, y)]
    assert spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
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


def test_the_interval_of_few_people_is_that_of_all_their_draws():
    """Of three people there are 27 draws. Their quantiles are the bootstrap's, which draws 20,000 times."""
    people = [1.0, 4.0, 10.0]
    means = [np.mean(draw) for draw in itertools.product(people, repeat=3)]
    low, high = interval(people, lambda chosen: float(np.mean(chosen)), draws=20000, share=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9], method="inverted_cdf")))


def test_the_interval_resamples_whatever_stands_for_a_person():
    """An array for each, such as the points of a trade-off, gives what its mean as a number gives."""
    points = np.random.default_rng(3).random((6, 4, 2))
    assert interval(list(points), lambda chosen: float(np.mean(chosen))) == pytest.approx(
        interval(points.mean((1, 2)), lambda chosen: float(np.mean(chosen)))
    )


def test_one_person_has_no_interval():
    assert interval([3.0], lambda chosen: float(np.mean(chosen))) == (3.0, 3.0)


def test_a_mean_is_over_the_rows_that_have_a_number():
    rows = [{"x": 1.0}, {"x": None}, {"x": float("nan")}, {}, {"x": 3}]
    assert mean_of(rows, "x") == 2 and np.isnan(mean_of(rows, "y"))
