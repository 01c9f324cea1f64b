"""Claimed errors against the spread of many realisations."""

import logging
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxmlip.observables.estimate import Estimate, Status
from jaxmlip.observables.spectrum import seen_lengths
from jaxmlip.observables.statistics import correlated_mean, drifts, equilibration_frames, statistical_inefficiency


def autoregressive(replicas: int, frames: int, realisations: int, tau: float, seed: int = 0) -> np.ndarray:
    """Stationary series [replicas, frames, realisations] of variance 1 with correlation exp(−t/τ), mean 0."""
    rng = np.random.default_rng(seed)
    phi = np.exp(-1.0 / tau)
    noise = rng.normal(size=(replicas, frames, realisations)) * np.sqrt(1 - phi**2)
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], noise, axis=1))


def two_times(replicas: int, frames: int, realisations: int, tau: float, share: float) -> np.ndarray:
    """A fast vibration and a slow volume, so to say: a share of the variance is fifty times slower than the rest."""
    slow = autoregressive(replicas, frames, realisations, tau, seed=1)
    fast = autoregressive(replicas, frames, realisations, tau / 50, seed=2)
    return np.sqrt(share) * slow + np.sqrt(1 - share) * fast


def covered(estimate: Estimate, level: float) -> float:
    """How many of the intervals of a vector of realisations hold the true mean, 0."""
    low, high = estimate.interval(level)
    return float(np.mean((low < 0) & (high > 0)))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("length", [2, 20, *(pytest.param(length, marks=SLOW) for length in (5, 100))])
@pytest.mark.parametrize("replicas", [1, 4, *(pytest.param(number, marks=SLOW) for number in (2, 8))])
def test_intervals_hold_at_every_length(replicas: int, length: int) -> None:
    """Elements of one vector are independent realisations, of one correlation time and of two; never below 90 %."""
    frames, number = 10 * length, 3000 // replicas if length < 100 else 300
    for series in (
        autoregressive(replicas, frames, number, 10.0),
        two_times(replicas, 2 * frames, number, 20.0, 0.5),
        two_times(replicas, 2 * frames, number, 20.0, 0.1),
    ):
        estimate = correlated_mean(series)
        if estimate.status is Status.UNRESOLVED:
            assert (replicas, length) == (1, 2)
            assert np.isnan(estimate.error).all()
            continue
        # The standard error of the coverage is 1 to 1.3 %.
        assert covered(estimate, 0.95) > 0.89
        # Not so wide as to be of no use.
        assert covered(estimate, 0.6827) < (0.94 if replicas == 1 else 0.87)


@pytest.mark.parametrize(
    ("replicas", "frames", "tau"), [(4, 2000, 8.0), pytest.param(16, 2000, 8.0, marks=SLOW), (4, 800, 0.2)]
)
def test_errors_of_long_runs_are_calibrated(replicas: int, frames: int, tau: float) -> None:
    """They are a little too large rather than too small, and their dispersion is what the degrees of freedom say."""
    estimate = correlated_mean(autoregressive(replicas, frames, 500, tau))
    spread = estimate.value.std()
    assert 0.98 < np.median(estimate.error) / spread < 1.2
    assert 0.94 < covered(estimate, 0.95) < 0.99
    assert 0.64 < covered(estimate, 0.6827) < 0.80
    exact = (1 + np.exp(-1 / tau)) / (1 - np.exp(-1 / tau))
    assert estimate.effective_samples == pytest.approx(replicas * frames / exact, rel=0.3)
    assert estimate.n_samples == replicas * frames
    assert estimate.status is Status.OK


@pytest.mark.parametrize(("replicas", "length"), [pytest.param(2, 500, marks=SLOW), (8, 100)])
def test_coverage_given_that_a_run_is_called_ok(replicas: int, length: int) -> None:
    """Runs of their own, each with its own status: long ones are OK, and hold as often as they say."""
    series = autoregressive(replicas, 10 * length, 400, 10.0, seed=5)
    made = [correlated_mean(series[:, :, n]) for n in range(400)]
    good = [estimate for estimate in made if estimate.status is Status.OK]
    assert len(good) > 350
    held = {level: np.mean([covered(each, level) for each in good]) for level in (0.6827, 0.95)}
    # Standard errors of 2.4 and 1.1 %.
    assert 0.62 < held[0.6827] < 0.79
    assert held[0.95] > 0.92


def test_short_runs_and_single_ones_are_not_ok() -> None:
    for replicas, frames in ((8, 300), (2, 1500), (1, 5000)):
        series = autoregressive(replicas, frames, 100, 10.0, seed=6)
        assert all(correlated_mean(series[:, :, n]).status is not Status.OK for n in range(100))


def test_lengths_that_are_seen() -> None:
    """Effective samples of a replica, where there is one correlation time; of two the fast one, where it has most."""
    series = autoregressive(4, 4000, 100, 10.0)
    assert seen_lengths(series - series.mean(axis=(0, 1))) == pytest.approx(4000 / 20, rel=0.03)
    # Units do not matter.
    scaled = series * np.geomspace(1e-3, 1e3, 100)
    assert seen_lengths(scaled - scaled.mean(axis=(0, 1))) == pytest.approx(seen_lengths(series), rel=0.01)
    both = two_times(4, 4000, 100, 200.0, 0.1)
    assert seen_lengths(both - both.mean(axis=(0, 1))) == pytest.approx(4000 / 8, rel=0.3)
    noise = np.random.default_rng(0).normal(size=(2, 100, 3))
    assert seen_lengths(noise - noise.mean(axis=(0, 1))) == pytest.approx(79, rel=0.1)
    assert seen_lengths(np.linspace(-1.0, 1.0, 60)[None, :, None]) < 4


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("length", [5, 10, 20, 50, 100, 300])
@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
def test_coverage_of_each_status(replicas: int, length: int, share: float) -> None:
    """As `experiments/benchmarks/coverage.py`: each series by itself, 600 times."""
    series = two_times(replicas, 20 * length, 600, 20.0, share)
    by_status: dict[Status, list[Estimate]] = {}
    for n in range(600):
        estimate = correlated_mean(series[:, :, n])
        by_status.setdefault(estimate.status, []).append(estimate)
    shown = [each for status, those in by_status.items() if status.has_error for each in those]
    assert np.mean([covered(each, 0.95) for each in shown]) > 0.88
    good = by_status.get(Status.OK, [])
    assert share < 1.0 or length > 20 or not good
    if len(good) > 100:
        error = np.sqrt(0.05 * 0.95 / len(good))
        assert 0.92 - 2 * error < np.mean([covered(each, 0.95) for each in good]) < 0.98 + 2 * error


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
    assert estimate.status is Status.REPLICAS_DISAGREE
    assert np.median(estimate.dof) == 5
    assert np.sqrt((estimate.error**2).mean()) == pytest.approx(estimate.value.std(), rel=0.12)
    assert covered(estimate, 0.95) > 0.92


def test_too_few_samples() -> None:
    """Runs of two correlation times are never OK, though in so short a series the time itself looks shorter."""
    statuses = [correlated_mean(autoregressive(2, 60, 1, 30.0, seed)).status for seed in range(40)]
    assert not {Status.OK, Status.SLOW_MOTION} & set(statuses)
    assert "run longer" in str(correlated_mean(autoregressive(2, 30, 1, 30.0)[:, :, 0]))
    alone = correlated_mean(np.array([[1.0]]))
    assert alone.status is Status.UNRESOLVED
    assert np.isnan(alone.error)
    assert float(alone) == 1.0


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
    assert 0.95 < claimed / values.std() < 1.5
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
    """The standard error of block means, and their mean, are the estimate's; they are 32 or one a replica."""
    for replicas, blocks in ((4, 32), (50, 50)):
        estimate = correlated_mean(autoregressive(replicas, 200, 20, 3.0))
        assert estimate.blocks is not None
        assert len(estimate.blocks) == blocks
        from_blocks = estimate.blocks.std(axis=0, ddof=1) / np.sqrt(blocks)
        np.testing.assert_allclose(from_blocks, estimate.error)
        np.testing.assert_allclose(estimate.blocks.mean(axis=0), estimate.value, atol=1e-12)


def test_planted_transient_is_discarded() -> None:
    """A drift of five standard deviations over 200 frames; at least its first two decay times go, and not much more."""
    frames = np.arange(1500)
    for seed in range(5):
        series = autoregressive(4, 1500, 1, 5.0, seed)[:, :, 0]
        drifting = series + 5.0 * np.exp(-frames / 60.0)
        assert 100 <= equilibration_frames(drifting) <= 500
        assert equilibration_frames(series) <= 400
    assert equilibration_frames(np.zeros((2, 3))) == 0


def test_drifts_are_seen() -> None:
    """Transients are; stationary series, however slow, are taken for one about one time in a hundred."""
    stationary = [autoregressive(2, 300, 1, tau, seed)[:, :, 0] for tau in (1.0, 30.0) for seed in range(100)]
    assert sum(drifts([series]) for series in stationary) < 8
    frames = np.arange(300)
    moving = [autoregressive(4, 300, 1, 3.0, seed)[:, :, 0] + 3.0 * np.exp(-frames / 40.0) for seed in range(20)]
    assert sum(drifts([series]) for series in moving) > 16
    assert not drifts([np.ones((2, 100)), np.zeros((2, 3))])


def test_a_long_function_takes_no_time() -> None:
    """The RDF of 8 replicas and 2000 frames, a fifth of a second on an idle core."""
    series = np.random.default_rng(0).normal(size=(8, 2000, 120))
    correlated_mean(series)
    began = time.process_time()
    correlated_mean(series)
    assert time.process_time() - began < 2.0


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
