"""Measures of the trade-off between age and identity: scores, areas and their intervals."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import bootstrap, spearmanr

SCALE = 40.0  # years of error that count as no aging at all (Cradle2Cane, inferred from its tables)


def age_score(error: float) -> float:
    """Return A = 1 - d / 40 for a mean error of d years; 0 from 40 years on."""
    return max(0.0, 1 - error / SCALE)


def harmonic_score(error: float, similarity: float) -> float:
    """Return HCS = 2 A I / (A + I), from 0 to 100, for an error in years and a similarity (Cradle2Cane's harmonic score)."""
    age, identity = 100 * age_score(error), 100 * max(0.0, similarity)
    return 2 * age * identity / (age + identity) if age + identity else 0.0


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation; nan if all values of one are equal."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def area(points: Sequence[tuple[float, float]]) -> float:
    """Return the share of the unit square that points (similarity, age score) dominate: the hypervolume about (0, 0)."""
    total, highest = 0.0, 0.0
    for x, y in sorted(points, reverse=True):  # from the most similar on, each adds the strip above the points before it
        if y > highest:
            total += max(0.0, x) * (y - highest)
            highest = y
    return total


def interval(
    values: Sequence, statistic: Callable[[Sequence], float], draws: int = 2000, share: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap interval of a statistic over people, drawn with replacement (Efron 1979, percentiles).

    `values` has one entry for each person. For one person both ends are the value itself.
    """
    if len(values) == 1:
        return statistic(values), statistic(values)
    drawn = bootstrap(
        (np.arange(len(values)),), lambda people: statistic([values[i] for i in people]), vectorized=False, n_resamples=draws,
        confidence_level=share, method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def mean_of(rows: Sequence[Mapping], column: str) -> float:
    """Return the mean over the rows that have a number in the column; nan if none has."""
    values = [row[column] for row in rows if row.get(column) is not None and np.isfinite(row[column])]
    return float(np.mean(values)) if values else float("nan")
