"""Correlations over students: coefficients of scipy, intervals that hold."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from jaxmlip.validation.correlation import FEWEST, correlation


def errors(seed: int, clusters: int, members: int, strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal errors with a correlation, most of which the members of a cluster share; and the clusters."""
    rng = np.random.default_rng(seed)
    shape = [[1.0, strength], [strength, 1.0]]
    shared = np.repeat(rng.multivariate_normal([0, 0], shape, size=clusters), members, axis=0)
    own = rng.multivariate_normal([0, 0], shape, size=clusters * members)
    x, y = (np.sqrt(0.7) * shared + np.sqrt(0.3) * own).T
    return x, y, np.repeat(np.arange(clusters), members)


def test_coefficients_are_those_of_scipy() -> None:
    """Ties included, whatever the clusters."""
    x, y, clusters = errors(0, 12, 3, 0.7)
    x = np.round(x, 1)
    found = correlation(x, np.exp(y), clusters=clusters)
    assert found.pearson == pytest.approx(pearsonr(x, np.exp(y))[0], abs=1e-12)
    assert found.spearman == pytest.approx(spearmanr(x, np.exp(y))[0], abs=1e-12)
    assert found.students == 36
    assert found.clusters == 12
    for value, (low, high) in ((found.pearson, found.pearson_interval), (found.spearman, found.spearman_interval)):
        assert -1 <= low < value < high <= 1
    assert "36 students in 12 groups" in str(found)


def test_intervals_are_those_of_resampled_clusters() -> None:
    """Seeds that agree are no evidence: copies of students leave the interval as it is, and cannot if drawn alone."""
    x, y, _ = errors(1, 15, 1, 0.6)
    once = correlation(x, y)
    copies = [np.repeat(each, 5) for each in (x, y, np.arange(15))]
    together = correlation(copies[0], copies[1], clusters=copies[2])
    np.testing.assert_allclose(together.pearson_interval, once.pearson_interval, atol=1e-12)
    alone = correlation(copies[0], copies[1])
    assert np.ptp(alone.pearson_interval) < 0.6 * np.ptp(once.pearson_interval)
    narrower = correlation(x, y, level=0.68)
    assert np.ptp(narrower.spearman_interval) < 0.7 * np.ptp(once.spearman_interval)


@pytest.mark.parametrize(("clusters", "members", "strength"), [(15, 1, 0.6), (12, 4, 0.8)])
def test_intervals_hold(clusters: int, members: int, strength: float) -> None:
    """95 % intervals of normal errors, in 120 repeats: three standard errors of that are 6 %."""
    rank = 6.0 / np.pi * np.arcsin(strength / 2.0)
    inside = np.zeros(2)
    for seed in range(120):
        x, y, groups = errors(seed, clusters, members, strength)
        found = correlation(x, y, clusters=groups, resamples=300)
        both = (strength, found.pearson_interval), (rank, found.spearman_interval)
        inside += [low <= known <= high for known, (low, high) in both]
    assert (inside / 120 >= 0.89).all()


def test_what_cannot_be_told() -> None:
    """Few clusters have no interval, an error that does not change no coefficient, a perfect line a point."""
    x, y, clusters = errors(2, FEWEST - 1, 4, 0.5)
    few = correlation(x, y, clusters=clusters)
    assert np.isfinite(few.pearson)
    assert np.isnan(few.pearson_interval).all()
    assert "too few for an interval" in str(few)
    still = correlation(x, np.full_like(x, 0.1))
    assert np.isnan([still.pearson, still.spearman, *still.pearson_interval]).all()
    line = correlation(x, 2.0 * x + 1.0)
    np.testing.assert_allclose([line.pearson, *line.pearson_interval, *line.spearman_interval], 1.0)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], {}, "at least 3 students"),
        ([1.0, 2.0, np.nan], [1.0, 2.0, 3.0], {}, "finite"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {"clusters": [0, 1]}, "2 clusters"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {"level": 1.0}, "level"),
    ],
)
def test_nonsense_is_refused(x: list, y: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correlation(np.array(x), np.array(y), **options)
