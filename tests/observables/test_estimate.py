"""Arithmetic of estimates, and how they are shown."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.statistics import correlated_mean


def scalar(value: float, error: float, dof: float = math.inf, unit: str = "eV", **others) -> Estimate:
    return Estimate(np.asarray(value), np.asarray(error), 120.0, 240, dof=dof, unit=unit, **others)


def test_intervals_are_students() -> None:
    low, high = scalar(1.0, 0.5, dof=4.0).interval(0.95)
    assert high - 1.0 == pytest.approx(0.5 * 2.776445)
    assert 1.0 - low == pytest.approx(0.5 * 2.776445)
    with pytest.raises(ValueError, match="between 0 and 1, not 95"):
        scalar(1.0, 0.5).interval(95)


def test_errors_of_independent_estimates() -> None:
    a, b = scalar(3.0, 0.3, 10.0), scalar(-2.0, 0.4, 5.0)
    total, difference, product, quotient = a + b, a - b, a * b, a / b
    assert float(total) == 1.0
    assert float(difference) == 5.0
    for one in (total, difference):
        assert one.error == pytest.approx(0.5)
        assert one.dof == pytest.approx(0.25**2 / (0.09**2 / 10 + 0.16**2 / 5))
        assert one.unit == "eV"
    assert (float(product), product.unit) == (-6.0, "eV·eV")
    assert product.error == pytest.approx(np.hypot(0.3 * 2, 0.4 * 3))
    assert (float(quotient), quotient.unit) == (-1.5, "")
    assert quotient.error == pytest.approx(1.5 * np.hypot(0.1, 0.2))


def test_numbers_are_exact() -> None:
    a = scalar(3.0, 0.3, 10.0)
    for found, value, error, unit in (
        (a + 1, 4.0, 0.3, "eV"),
        (1 - a, -2.0, 0.3, "eV"),
        (2 * a, 6.0, 0.6, "eV"),
        (a / 4, 0.75, 0.075, "eV"),
        (6 / a, 2.0, 0.2, "1/eV"),
        (-a, -3.0, 0.3, "eV"),
        (np.float64(2.0) * a, 6.0, 0.6, "eV"),
    ):
        assert float(found) == pytest.approx(value)
        assert (found.error, found.dof, found.unit) == (pytest.approx(error), 10.0, unit)
        assert found.effective_samples == 120.0
    vector = np.array([1.0, 2.0]) * a
    np.testing.assert_allclose(vector.value, [3.0, 6.0])
    np.testing.assert_allclose(vector.error, [0.3, 0.6])
    assert np.array([a, 2 * a], float).tolist() == [3.0, 6.0]
    with pytest.raises(TypeError):
        _ = a + "eV"


def test_units_must_be_equal_to_be_added() -> None:
    with pytest.raises(ValueError, match="Estimates in eV and in K cannot be added"):
        _ = scalar(1.0, 0.1) + scalar(1.0, 0.1, unit="K")
    with pytest.raises(ValueError, match="in eV and without a unit"):
        _ = scalar(1.0, 0.1) - scalar(1.0, 0.1, unit="")


def test_estimates_of_one_run_are_combined_by_their_blocks() -> None:
    """X and 1 − x + noise are anticorrelated: the error of their sum is that of the noise, not √2 that of x."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(4, 500)), 0.1 * rng.normal(size=(4, 500))
    first, second = (dataclasses.replace(correlated_mean(each), source=("run", 0)) for each in (x, 1 - x + noise))
    known = correlated_mean(1 + noise)
    assert float(first + second) == pytest.approx(float(known))
    assert (first + second).error == pytest.approx(known.error, rel=0.5)
    assert (first - second).error == pytest.approx(2 * first.error, rel=0.1)
    assert (first - first).error == 0.0
    alien = dataclasses.replace(second, source=("run", 5))
    assert (first + alien).error == pytest.approx(np.hypot(first.error, second.error))


def test_deviations_in_sigma() -> None:
    """Of equal probability: 3 errors at 4 degrees of freedom are as rare as 2.05 σ."""
    a = scalar(5.0, 1.0, dof=4.0)
    sigma = a.sigma_from(2.0)
    assert stats.norm.sf(sigma) == pytest.approx(stats.t.sf(3.0, 4))
    assert a.sigma_from(8.0) == pytest.approx(-sigma)
    assert scalar(5.0, 1.0).sigma_from(scalar(2.0, 1.0)) == pytest.approx(3 / np.sqrt(2))
    assert scalar(100.0, 1.0).sigma_from(0.0) == pytest.approx(100.0)
    assert a.sigma_from(a + 0) == 0.0
    assert scalar(5.0, 0.0).sigma_from(5.0) == 0.0
    assert np.isinf(scalar(5.0, 0.0).sigma_from(4.0))
    assert np.isnan(scalar(5.0, np.nan).sigma_from(4.0))


def test_statuses_are_carried() -> None:
    few = scalar(1.0, 0.1, status=Status.TOO_FEW)
    moving = scalar(1.0, np.nan, status=Status.NOT_EQUILIBRATED)
    assert (scalar(1.0, 0.1) + few).status is Status.TOO_FEW
    both = few - moving
    assert both.status is Status.NOT_EQUILIBRATED
    assert np.isnan(both.error)
    assert worst(Status.OK, Status.TOO_FEW, Status.NOT_EQUILIBRATED) is Status.NOT_EQUILIBRATED
    assert [status for status in Status if not status.has_error] == [
        Status.UNRESOLVED, Status.POOR_OVERLAP, Status.NOT_EQUILIBRATED, Status.TOO_SHORT, Status.NO_DATA
    ]  # fmt: skip


def test_how_they_are_shown() -> None:
    assert repr(scalar(-12.3412, 0.0519)) == "-12.341 ± 0.052 eV (n_eff 120)"
    assert repr(scalar(1.5, 0.25, unit="")) == "1.50 ± 0.25 (n_eff 120)"
    assert repr(scalar(301.2, 14.0, unit="K", status=Status.TOO_FEW)) == "301 ± 14 K (n_eff 120; TOO_FEW)"
    unknown = Estimate(np.asarray(3.25), np.asarray(np.nan), math.nan, 5, Status.TOO_SHORT, unit="eV")
    assert str(unknown).startswith("3.25 eV (no error can be given: the run is shorter")
    assert repr(Estimate(np.zeros(120), np.full(120, 0.02), 50.0, 100)) == "array(120,) ± 0.02 (RMS; n_eff 50)"
