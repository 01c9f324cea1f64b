"""Claimed errors against the spread of many realisations."""

import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxmlip.observables.statistics import (
    Estimate,
    Status,
    correlated_mean,
    equilibration_frames,
    statistical_inefficiency,
    worst,
)


def autoregressive(replicas: int, frames: int, realisations: int, tau: float, seed: int = 0) -> np.ndarray:
    """Stationary series [replicas, frames, realisations] of variance 1 with correlation exp(−t/τ), mean 0."""
    rng = np.random.default_rng(seed)
    phi = np.exp(-1.0 / tau)
    noise = rng.normal(size=(replicas, frames, realisations)) * np.sqrt(1 - phi**2)
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], noise, axis=1))


@pytest.mark.parametrize(("replicas", "frames", "tau"), [(1, 2000, 8.0), (4, 500, 8.0), (16, 200, 8.0), (2, 800, 0.2)])
def test_errors_are_calibrated(replicas: int, frames: int, tau: float) -> None:
    """Elements of one vector are independent realisations: their means spread as their errors claim."""
    series = autoregressive(replicas, frames, 2000, tau)
    estimate = correlated_mean(series)
    spread, claimed = estimate.value.std(), np.sqrt((estimate.error**2).mean())
    # The spread of 2000 realisations is known to 1.6 %; the correlation time, and with it the error, is biased low
    # by some per cent in series of this length.
    assert 0.92 < claimed / spread < 1.08
    z = estimate.value / estimate.error
    assert 0.91 < (np.abs(z) < 2).mean() < 0.97
    assert estimate.status is Status.OK
    exact = (1 + np.exp(-1 / tau)) / (1 - np.exp(-1 / tau))
    assert estimate.effective_samples == pytest.approx(replicas * frames / exact, rel=0.15)
    assert estimate.n_samples == replicas * frames


def test_inefficiency_is_that_of_pymbar() -> None:
    from pymbar import timeseries

    for seed, tau in enumerate([0.3, 3.0, 20.0]):
        series = autoregressive(1, 700, 1, tau, seed)
        ours = statistical_inefficiency(series)[0]
        assert ours == pytest.approx(timeseries.statistical_inefficiency(series[0, :, 0]), rel=1e-6)


def test_replicas_that_stay_apart() -> None:
    """Replicas about means of their own: the error is that of the few means, and the status says so."""
    rng = np.random.default_rng(1)
    offsets = rng.normal(size=(6, 1, 300))
    estimate = correlated_mean(0.2 * autoregressive(6, 400, 300, 2.0) + offsets)
    spread = estimate.value.std()
    assert np.sqrt((estimate.error**2).mean()) == pytest.approx(spread, rel=0.12)
    assert estimate.status is Status.TOO_FEW
    assert correlated_mean(0.2 * autoregressive(6, 400, 300, 0.5) + 0.3 * offsets).status in (
        Status.REPLICAS_DISAGREE,
        Status.TOO_FEW,
    )


def test_too_few_samples() -> None:
    """Runs of two correlation times are flagged, though in so short a series the time itself looks shorter."""
    statuses = [correlated_mean(autoregressive(2, 60, 1, 30.0, seed)).status for seed in range(40)]
    assert statuses.count(Status.TOO_FEW) >= 36
    assert "run longer" in str(correlated_mean(autoregressive(1, 30, 1, 30.0)[:, :, 0]))


def test_constant_series() -> None:
    estimate = correlated_mean(np.full((2, 10), 3.0))
    assert (estimate.value, estimate.error) == (3.0, 0.0)


def test_weighted_mean() -> None:
    """Reweighting of x ~ N(0, 1) by exp(a x): mean a, and errors as wide as the spread."""
    x = np.random.default_rng(0).normal(size=(300, 2, 400))
    shift = 0.5
    estimates = [correlated_mean(one, np.exp(shift * one)) for one in x]
    values = np.array([e.value for e in estimates])
    claimed = np.sqrt(np.mean([e.error**2 for e in estimates]))
    assert values.mean() == pytest.approx(shift, abs=4 * values.std() / np.sqrt(300))
    assert claimed / values.std() == pytest.approx(1.0, abs=0.12)
    flat = correlated_mean(x[0], np.full((2, 400), 7.0))
    plain = correlated_mean(x[0])
    np.testing.assert_allclose([flat.value, flat.error], [plain.value, plain.error])


@pytest.mark.parametrize(
    ("series", "weights", "sentence"),
    [
        (np.zeros((0, 5)), None, "at least one replica and one frame"),
        (np.array([[0.0, np.nan]]), None, "replica 0, frame 1 is not finite"),
        (np.zeros((1, 2)), np.array([[0.0, 0.0]]), "not all zero"),
        (np.zeros((1, 2)), np.array([[1.0, -1.0]]), "not negative"),
    ],
)
def test_bad_series(series: np.ndarray, weights: np.ndarray | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        correlated_mean(series, weights)


def test_blocks_reproduce_the_error() -> None:
    """Block means are nearly independent: their standard error is the estimate's."""
    estimate = correlated_mean(autoregressive(4, 2000, 200, 3.0))
    assert estimate.blocks is not None
    from_blocks = estimate.blocks.std(axis=0, ddof=1) / np.sqrt(len(estimate.blocks))
    assert np.sqrt((from_blocks**2).mean()) == pytest.approx(np.sqrt((estimate.error**2).mean()), rel=0.05)


def test_planted_transient_is_discarded() -> None:
    """A drift of five standard deviations over 200 frames; at least its first two decay times go, and not much more."""
    frames = np.arange(1500)
    for seed in range(5):
        series = autoregressive(4, 1500, 1, 5.0, seed)[:, :, 0]
        drifting = series + 5.0 * np.exp(-frames / 60.0)
        assert 100 <= equilibration_frames(drifting) <= 500
        assert equilibration_frames(series) <= 400
    assert equilibration_frames(np.zeros((2, 3))) == 0


def test_precision_and_silence() -> None:
    """In a fresh interpreter: no banner, no change of JAX's precision, and no import of jax-md."""
    script = (
        "import sys, numpy as np, jax\n"
        "from jaxmlip.observables.statistics import equilibration_frames\n"
        "equilibration_frames(np.random.default_rng(0).normal(size=(2, 50)))\n"
        "assert not jax.config.jax_enable_x64\n"
        "assert 'pymbar' in sys.modules and 'jax_md' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == ""


def test_double_precision_stays_too(x64: None) -> None:
    equilibration_frames(np.random.default_rng(0).normal(size=(2, 50)))
    assert jax.config.jax_enable_x64  # type: ignore[attr-defined]
    assert logging.getLogger("pymbar").level == logging.NOTSET


def test_worst_status() -> None:
    assert worst(Status.OK, Status.TOO_FEW, Status.NOT_EQUILIBRATED) is Status.TOO_FEW
    assert str(Estimate(np.asarray(1.5), np.asarray(0.25), 20.0, 40)) == "1.5 ± 0.25"
