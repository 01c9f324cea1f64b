"""Whether errors that are cheap to measure tell those that matter: correlations over many students, with intervals.

Students that differ in their seed alone are no independent evidence, so whole clusters of students are drawn with
replacement (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, sec. 3.8). Intervals
are corrected for bias and skewness (BCa: Efron, J. Am. Stat. Assoc. 82, 171 (1987)), with the acceleration from leaving
out one cluster at a time, and their tails are widened for the number of clusters, as Student's t is (Hesterberg, Am.
Stat. 69, 371 (2015)). Of normal errors in 12 to 40 clusters, 95 % intervals hold in 92 to 99 % of cases; with every
student on its own, 77 to 86 % where students of a cluster are alike.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata, t

FEWEST = 6
"""Clusters below which resampling says nothing of an interval."""

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Correlation:
    """How two errors go together.

    Attributes:
        pearson: linear correlation coefficient; NaN if one of the errors is the same for all students.
        pearson_interval: its interval; NaN where there are fewer than `FEWEST` clusters.
        pearson_error: its standard error, of the resampled values; NaN where there is no interval.
        spearman: rank correlation coefficient.
        spearman_interval: its interval.
        spearman_error: its standard error.
        students: number of them.
        clusters: number of independent ones, drawn together.
        level: of the intervals.
    """

    pearson: float
    pearson_interval: Interval
    pearson_error: float
    spearman: float
    spearman_interval: Interval
    spearman_error: float
    students: int
    clusters: int
    level: float

    def __str__(self) -> str:
        """Both coefficients with their intervals."""
        both = (("r", self.pearson, self.pearson_interval), ("ρ", self.spearman, self.spearman_interval))
        told = ", ".join(
            f"{name} = {value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else " (too few for an interval)")
            for name, value, (low, high) in both
        )
        return f"{told}, {self.students} students in {self.clusters} groups"


def correlation(
    x: Float[np.ndarray, " students"],
    y: Float[np.ndarray, " students"],
    *,
    clusters: Sequence[Any] | np.ndarray | None = None,
    level: float | int = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Pearson's and Spearman's coefficients of two errors of the same students, with bootstrap intervals.

    Args:
        x: one error of each student.
        y: the other.
        clusters: of each student, what it shares with those that are drawn together with it, such as all but its seed;
            each on its own by default.
        level: of the intervals.
        resamples: how many times clusters are drawn.
        seed: of the draws.

    Raises:
        ValueError: for fewer than three students, values that are not finite, lengths that differ, or a level that is
            not between 0 and 1.
    """
    x, y = (np.asarray(each, np.float64) for each in (x, y))
    labels = list(range(len(x)) if clusters is None else clusters)
    _check(x, y, labels)
    if not 0 < level < 1 or resamples < 100:
        raise ValueError(f"An interval needs a level between 0 and 1 and 100 resamples, not {level!r}, {resamples!r}.")
    members = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    groups = [np.array(each) for each in members.values()]
    found = _coefficients(x[None], y[None])[0]
    intervals: list[Interval] = [(np.nan, np.nan)] * 2
    errors = [np.nan, np.nan]
    if len(groups) >= FEWEST:
        draws = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
        drawn = _resampled(x, y, groups, draws)
        others = np.array([np.delete(np.arange(len(groups)), left) for left in range(len(groups))])
        without = _resampled(x, y, groups, others)
        # Resampling sees a variance that is too small by (n − 1)/n, and not how uncertain that is.
        quantile = float(np.sqrt(len(groups) / (len(groups) - 1)) * t.ppf(0.5 + 0.5 * level, len(groups) - 1))
        kept = [each[np.isfinite(each)] for each in drawn.T]
        errors = [np.sqrt(len(groups) / (len(groups) - 1)) * each.std() if len(each) else np.nan for each in kept]
        intervals = [_bca(found[k], drawn[:, k], without[:, k], quantile) for k in (0, 1)]
    return Correlation(
        pearson=float(found[0]),
        pearson_interval=intervals[0],
        pearson_error=float(errors[0]),
        spearman=float(found[1]),
        spearman_interval=intervals[1],
        spearman_error=float(errors[1]),
        students=len(x),
        clusters=len(groups),
        level=float(level),
    )


def _check(x: np.ndarray, y: np.ndarray, labels: Sequence[Any]) -> None:
    """Raise ValueError unless these are errors of the same students, and enough of them."""
    if not len(x) == len(y) == len(labels):
        raise ValueError(f"{len(x)} and {len(y)} errors and {len(labels)} clusters cannot be of the same students.")
    if len(x) < 3:
        raise ValueError(f"A correlation needs at least 3 students, not {len(x)}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Errors must be finite; leave out the students that have none.")


def _resampled(x: np.ndarray, y: np.ndarray, groups: list[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Coefficients [draws, 2] of the students in the clusters that were drawn; those of equal number at once."""
    by_length = defaultdict(list)
    for row, draw in enumerate(draws):
        chosen = np.concatenate([groups[index] for index in draw])
        by_length[len(chosen)].append((row, chosen))
    found = np.empty((len(draws), 2))
    for rows in by_length.values():
        places, chosen = (np.array(each) for each in zip(*rows, strict=True))
        found[places] = _coefficients(x[chosen], y[chosen])
    return found


def _coefficients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's and Spearman's coefficients [samples, 2] of [samples, students]; NaN where one does not change."""
    ranks = rankdata(x, axis=1), rankdata(y, axis=1)
    return np.stack([_pearson(x, y), _pearson(*ranks)], axis=1)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # What is the same but for rounding does not change.
    still = [np.ptp(each, axis=1) <= 1e-12 * np.abs(each).max(axis=1) for each in (x, y)]
    x, y = (each - each.mean(axis=1, keepdims=True) for each in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.where(still[0] | still[1], np.nan, np.clip(r, -1.0, 1.0))


def _bca(value: float, drawn: np.ndarray, without: np.ndarray, quantile: float) -> Interval:
    """The interval of ± so many σ, from resampled values and from those without one cluster."""
    drawn, without = drawn[np.isfinite(drawn)], without[np.isfinite(without)]
    if not np.isfinite(value) or len(drawn) < 100:
        return np.nan, np.nan
    if np.ptp(drawn) < 1e-12:
        return float(value), float(value)
    # A value at the end of what was drawn has no normal quantile.
    share = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / len(drawn)
    bias = float(ndtri(np.clip(share, 0.5 / len(drawn), 1.0 - 0.5 / len(drawn))))
    left = without.mean() - without
    spread = float(np.sum(left**2))
    skew = float(np.sum(left**3)) / (6.0 * spread**1.5) if spread > 0 else 0.0
    ends = []
    for tail in (-quantile, quantile):
        z = bias + tail
        corrected = bias + z / max(1.0 - skew * z, 1e-3)
        ends.append(float(np.quantile(drawn, ndtr(corrected))))
    return ends[0], ends[1]
