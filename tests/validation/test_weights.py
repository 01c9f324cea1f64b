"""Reweighting and free energies against harmonic wells, ideal gases and pymbar."""

import logging

import jax
import numpy as np
import pytest

from jaxmlip.observables.estimate import Status
from jaxmlip.units import GPA, KB
from jaxmlip.validation.weights import (
    Mixture,
    free_energy_difference,
    kish,
    perplexity,
    reduced_energies,
    reweighted,
)

DEGREES = 4


def wells(seed: int, stiffness: float, shape: tuple[int, ...] = (8, 200)) -> np.ndarray:
    """Displacements [replicas, frames, degrees] at kT = 1."""
    return np.random.default_rng(seed).normal(size=(*shape, DEGREES)) / np.sqrt(stiffness)


def energy(x: np.ndarray, stiffness: float) -> np.ndarray:
    return 0.5 * stiffness * (x**2).sum(-1)


def squares(x: np.ndarray) -> np.ndarray:
    return (x**2).mean(-1)


@pytest.mark.physics
def test_fractions_of_wells(agrees) -> None:
    """Kish's and perplexity's fraction for k = 1 -> 1.3, exactly known (tests/README.md names the source)."""
    x = wells(0, 1.0, (64, 500))
    log = energy(x, 1.0) - energy(x, 1.3)
    fractions = np.array([[kish(one), perplexity(one)] for one in log])
    for name, found, known in zip(("Kish", "perplexity"), fractions.T, (0.9730, 0.9843), strict=True):
        error = found.std(ddof=1) / np.sqrt(len(found))
        # Of finite samples the fraction is a little high; 500 frames suffice.
        agrees(f"wells, k = 1 to 1.3, fraction of {name}, {DEGREES} degrees", found.mean(), error, known**DEGREES)


@pytest.mark.physics
def test_average_and_free_energy_of_wells(agrees) -> None:
    x = wells(1, 1.0)
    mean, target = reweighted(squares(x), energy(x, 1.0), energy(x, 1.3))
    assert mean.status is not Status.POOR_OVERLAP
    assert target.allowed
    agrees("wells, k = 1 to 1.3: <x^2> by reweighting", float(mean), float(mean.error), 1 / 1.3)
    free = free_energy_difference(energy(x, 1.0), energy(x, 1.3))
    known = 0.5 * DEGREES * np.log(1.3)
    agrees("wells, k = 1 to 1.3: free energy by weights / kT", float(free.mbar), float(free.mbar.error), known)
    assert free.agree
    # Of a large change the second cumulant is not enough, and that is seen.
    x = wells(1, 1.0, (8, 2000))
    assert not free_energy_difference(energy(x, 1.0), energy(x, 1.8)).agree


def test_errors_hold_for_correlated_frames() -> None:
    """Of series with memory: 400 repeats of 8 replicas, each 100 correlation times long; nominal 95 %."""
    rng, memory, inside = np.random.default_rng(2), 0.8, 0
    x = np.empty((400, 8, 900, 1))
    x[:, :, 0] = rng.normal(size=(400, 8, 1))
    for t in range(1, 900):
        x[:, :, t] = memory * x[:, :, t - 1] + np.sqrt(1 - memory**2) * rng.normal(size=(400, 8, 1))
    for one in x:
        mean, _ = reweighted(squares(one), energy(one, 1.0), energy(one, 1.3))
        low, high = mean.interval(0.95)
        inside += bool(low <= 1 / 1.3 <= high)
    assert 0.92 <= inside / 400 <= 0.98


def test_jackknife_removes_the_bias() -> None:
    """Of few frames: the mean over many repeats is nearer to the truth than that of the plain ratio."""
    x = wells(3, 1.0, (1000, 8, 3))
    plain, corrected = [], []
    for one in x:
        own, other = energy(one, 1.0), energy(one, 2.0)
        weights = np.exp(own - other)
        plain.append((weights * squares(one)).sum() / weights.sum())
        corrected.append(float(reweighted(squares(one), own, other)[0]))
    off, off_plain = (abs(np.mean(each) - 1 / 2.0) for each in (corrected, plain))
    error = np.std(corrected) / np.sqrt(len(x))
    assert off < 3 * error
    assert off_plain > 5 * error


def test_one_state_reweighted_to_itself_is_the_plain_mean() -> None:
    x = wells(4, 1.0)
    mean, target = reweighted(squares(x), energy(x, 1.0), energy(x, 1.0) + 1234.5)
    assert float(mean) == pytest.approx(squares(x).mean(), rel=1e-10)
    assert target.kish == pytest.approx(1.0)
    assert target.free_energy == pytest.approx(1234.5)
    same = free_energy_difference(energy(x, 1.0), energy(x, 1.0) + 7.0)
    assert float(same.mbar) == pytest.approx(7.0)
    assert float(same.mbar.error) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("stiffness", [3.0, 40.0])
def test_states_that_do_not_overlap_have_no_number(stiffness: float) -> None:
    """Also where all weights look alike, since not one frame is typical of the other state."""
    x = wells(5, 1.0, (4, 100))
    mean, target = reweighted(squares(x), energy(x, 1.0), energy(x, stiffness))
    assert mean.status is Status.POOR_OVERLAP
    assert np.isnan(mean.error)
    assert not target.allowed
    # A spread of 5 kT with one replica that seems to fit.
    own = np.random.default_rng(0).normal(scale=5.0, size=(4, 100))
    assert reweighted(squares(x), np.zeros((4, 100)), own)[0].status is Status.POOR_OVERLAP


def test_bridge_of_states() -> None:
    """Stiffness 1 to 12, hopeless at once, by way of three more states; and what pymbar says of the same frames."""
    stiffness = [1.0, 1.9, 3.5, 6.5, 12.0]
    frames = [wells(10 + n, each) for n, each in enumerate(stiffness)]
    mixture = Mixture([np.stack([energy(x, each) for each in stiffness]) for x in frames])
    exact = 0.5 * DEGREES * np.log(stiffness)
    target = mixture.target([energy(x, 12.0) for x in frames])
    here = mixture.target([energy(x, 1.0) for x in frames])
    assert target.allowed
    values = [squares(x) for x in frames]
    mean, free = mixture.average(target, values), mixture.free_energy(target)
    assert abs(float(mean.sigma_from(1 / 12.0))) < 3
    assert abs(float(free.sigma_from(exact[-1]))) < 3
    change = mixture.difference(target, values, here, values)
    assert abs(float(change.sigma_from(1 / 12.0 - 1.0))) < 3
    np.testing.assert_allclose(mixture.overlap.sum(axis=1), 1.0)

    oracle = _pymbar(mixture)
    np.testing.assert_allclose(mixture.free_energies, oracle["free"], atol=1e-6)
    assert float(mean) == pytest.approx(oracle["mean"], abs=0.05 * float(mean.error))  # but for the bias
    # Frames are independent here, so that its errors hold.
    assert float(mean.error) == pytest.approx(oracle["mean_error"], rel=0.15)
    assert float(free.error) == pytest.approx(oracle["free_error"], rel=0.15)

    broken = Mixture([np.stack([energy(x, each) for each in (1.0, 40.0)]) for x in (wells(1, 1.0), wells(2, 40.0))])
    assert not broken.target([energy(wells(1, 1.0), 40.0), energy(wells(2, 40.0), 40.0)]).allowed


def _pymbar(mixture: Mixture) -> dict:
    """Free energies and ⟨x²⟩ of the last state, which would leave JAX in double precision."""
    from jaxmlip.observables.statistics import _timeseries

    _timeseries()
    double, level = jax.config.jax_enable_x64, logging.root.manager.disable  # type: ignore[attr-defined]
    logging.disable(logging.WARNING)
    try:
        from pymbar import MBAR

        solved = MBAR(mixture.reduced, mixture.counts)
        free = solved.compute_free_energy_differences()
        mean = solved.compute_expectations(
            2 / DEGREES * (mixture.reduced[1] - mixture.reduced[0]) / 0.9, state_dependent=False
        )
    finally:
        logging.disable(level)
        jax.config.update("jax_enable_x64", double)
    return {
        "free": np.asarray(free["Delta_f"])[0],
        "free_error": np.asarray(free["dDelta_f"])[0, -1],
        "mean": np.asarray(mean["mu"])[-1],
        "mean_error": np.asarray(mean["sigma"])[-1],
    }


@pytest.mark.physics
def test_another_pressure_and_temperature(agrees) -> None:
    """Volumes of an ideal gas of 20 atoms at P, T: Gamma distributions; weights have −(β′P′ − βP) V."""
    atoms, kT = 20, KB * 300.0
    volumes = np.random.default_rng(6).gamma(atoms + 1, kT / (0.1 * GPA), size=(16, 400))
    own = reduced_energies(np.zeros_like(volumes), 300.0, volumes, 0.1)
    other = reduced_energies(np.zeros_like(volumes), 320.0, volumes, 0.11)
    mean, _ = reweighted(volumes, own, other, unit="Å3")
    known = (atoms + 1) * KB * 320.0 / (0.11 * GPA)
    agrees("ideal gas, 0.10 to 0.11 GPa and 300 to 320 K: V / Å3", float(mean), float(mean.error), known)
    # At one pressure the PV term cancels between potentials.
    energies = np.random.default_rng(7).normal(size=volumes.shape)
    change = reduced_energies(energies, 300.0, volumes, 0.1) - own
    np.testing.assert_allclose(change, energies / kT, rtol=1e-9)


def test_refuses_what_does_not_belong_together() -> None:
    x = wells(0, 1.0)
    with pytest.raises(ValueError, match="one for each run's state"):
        Mixture([energy(x, 1.0)[None], energy(x, 1.0)[None]])
    with pytest.raises(ValueError, match="not finite"):
        Mixture([np.full((1, 2, 3), np.nan)])
    with pytest.raises(ValueError, match="the values"):
        Mixture([energy(x, 1.0)[None]]).target([energy(x, 1.0)[:, 1:]])
