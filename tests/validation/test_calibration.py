"""Predicted errors of known quality: right ones are found to be right, too small ones to be so by their factor."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxmlip.observables.estimate import Estimate, Status
from jaxmlip.study.plots import calibration_curve, predicted_against_found
from jaxmlip.validation.calibration import calibration


def made(number: int, scale: float, *, dof: float = np.inf, seed: int = 0) -> tuple[list[Estimate], list[float]]:
    """Estimates whose true errors are `scale` times as large as they say, of sizes over two decades."""
    rng = np.random.default_rng(seed)
    errors = 10.0 ** rng.uniform(-2, 0, number)
    noise = rng.normal(size=number) if np.isinf(dof) else rng.standard_t(dof, number)
    truths = rng.normal(size=number)
    values = truths + scale * errors * noise
    made = [Estimate(np.array(v), np.array(e), 100.0, 100, dof=dof) for v, e in zip(values, errors, strict=True)]
    return made, truths.tolist()


def test_right_errors() -> None:
    found = calibration(*made(800, 1.0))
    np.testing.assert_allclose(found.coverage, found.levels, atol=0.05)
    np.testing.assert_allclose(found.found / found.predicted, 1.0, atol=0.25)
    assert (np.abs(found.found - found.predicted) < 4 * found.found_error).all()
    np.testing.assert_allclose(found.ratio, 1.0, atol=0.1)
    assert found.number == 800


def test_errors_that_are_too_small() -> None:
    found = calibration(*made(800, 2.0))
    np.testing.assert_allclose(found.found / found.predicted, 2.0, atol=0.5)
    np.testing.assert_allclose(found.ratio, 2.0, atol=0.2)
    assert found.coverage[list(found.levels).index(0.68)] == pytest.approx(0.38, abs=0.06)  # P(|z| < 0.5)


def test_few_degrees_of_freedom_are_reckoned_with() -> None:
    """Intervals of 4 degrees of freedom hold what they say; Gaussian ones of the same errors would not."""
    found = calibration(*made(800, 1.0, dof=4.0))
    np.testing.assert_allclose(found.coverage, found.levels, atol=0.05)


def test_functions_count_once_and_truths_have_errors() -> None:
    rng = np.random.default_rng(0)
    truth = [Estimate(rng.normal(size=6), np.full(6, 0.3), 10.0, 10) for _ in range(300)]
    exact = [one.value + rng.normal(size=6) * one.error for one in truth]
    mine = [Estimate(each + rng.normal(size=6), np.ones(6), 10.0, 10) for each in exact]
    found = calibration(mine, truth)
    assert found.number == 300
    np.testing.assert_allclose(found.ratio, 1.0, atol=0.06)
    np.testing.assert_allclose(found.predicted, np.hypot(1.0, 0.3))


def test_estimates_without_errors_are_left_out() -> None:
    predicted, truths = made(50, 1.0)
    lost = Estimate(np.array(0.0), np.array(np.nan), np.nan, 10, Status.TOO_SHORT)
    assert calibration([*predicted, lost], [*truths, 0.0]).number == 50


def test_nonsense_is_refused() -> None:
    predicted, truths = made(4, 1.0)
    with pytest.raises(ValueError, match="4 estimates and 3 truths"):
        calibration(predicted, truths[:3])
    with pytest.raises(ValueError, match="two or more"):
        calibration(predicted[:1], truths[:1])
    other = Estimate(np.array(1.0), np.array(0.1), 10.0, 10, unit="eV")
    with pytest.raises(ValueError, match=r"different units \(eV, none\)"):
        calibration([*predicted, other], [*truths, Estimate(np.array(1.0), np.array(0.0), 10.0, 10, unit="eV")])


def test_curves_show_the_numbers() -> None:
    found = calibration(*made(200, 1.0))
    figure, (left, right) = plt.subplots(1, 2)
    calibration_curve(left, found)
    predicted_against_found(right, found, "eV")
    np.testing.assert_array_equal(left.lines[1].get_ydata(), found.coverage)
    np.testing.assert_array_equal(right.containers[0].lines[0].get_xdata(), found.predicted)
    assert right.get_xscale() == "log"
    plt.close(figure)
