"""The numbers of the trade-off between an age reached and a person kept: errors, scores, areas and their intervals."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

SCALE = 40.0  # years of error that count as no aging at all (Cradle2Cane, as its tables' numbers give it)


def age_score(error: float) -> float:
    """A = 1 - d / 40 of a mean error of d years, 0 from 40 on."""
    return max(0.0, 1 - error / SCALE)


def harmonic_score(error: float, cosine: float) -> float:
    """HCS = 2 A I / (A + I), from 0 to 100, of an error in years and an identity cosine (Cradle2Cane's harmonic score)."""
    age, identity = 100 * age_score(error), 100 * max(0.0, cosine)
    return 2 * age * identity / (age + identity) if age + identity else 0.0


def ranks(values: Sequence[float]) -> np.ndarray:
    """From 0, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[place]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of the ranks, nan where one of the two is all alike."""
    x, y = (ranks(values) - np.mean(ranks(values)) for values in (a, b))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / norm) if norm else float("nan")


def area(points: Sequence[tuple[float, float]]) -> float:
    """What points (identity cosine, age score) dominate of the unit square: the hypervolume about (0, 0)."""
    total, highest = 0.0, 0.0
    for x, y in sorted(points, reverse=True):  # from the most identity on, each adds what rises above those before
        if y > highest:
            total += max(0.0, x) * (y - highest)
            highest = y
    return total


def interval(
    people: Sequence[Hashable], number: Callable[[Sequence], float], draws: int = 2000, share: float = 0.95
) -> tuple[float, float]:
    """The bootstrap interval of a number over people, drawn with replacement (Efron 1979, percentiles)."""
    rng = np.random.default_rng(0)
    values = [number([people[i] for i in rng.integers(len(people), size=len(people))]) for _ in range(draws)]
    low, high = np.nanquantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def rising(values: Sequence[float]) -> np.ndarray:
    """The nearest sequence that never falls, in squares: pool adjacent violators (Ayer et al. 1955)."""
    blocks: list[list[float]] = []  # mean, count
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    return np.concatenate([np.full(int(count), mean) for mean, count in blocks])


def mean_of(rows: Sequence[Mapping[str, float]], column: str) -> float:
    """Of the rows that have the column; nan where none does."""
    values = [row[column] for row in rows if row.get(column) is not None and np.isfinite(row[column])]
    return float(np.mean(values)) if values else float("nan")
