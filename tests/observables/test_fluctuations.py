"""Fluctuation properties against harmonic wells and ideal gases, and their errors against many realisations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_runs import as_run
from test_statistics import autoregressive

from jaxmlip.observables.cells import Volume
from jaxmlip.observables.fluctuations import Compressibility, HeatCapacity, ThermalExpansion
from jaxmlip.observables.jackknife import jackknife_estimate
from jaxmlip.simulation.trajectory import Run
from jaxmlip.testing import check_observable
from jaxmlip.units import GPA, KB
from jaxmlip.validation.averages import average, observe

TEMPERATURE, PRESSURE = 300.0, 0.5


@pytest.fixture(scope="module")
def wells() -> Run:
    """Energies of 8 atoms in harmonic wells, references of a million eV included."""
    energies = 0.5 * KB * TEMPERATURE * np.random.default_rng(0).chisquare(24, size=(8, 500))
    positions = np.zeros((8, 500, 8, 3)) + 2.0 * np.arange(8)[:, None]
    return dataclasses.replace(as_run(positions, np.full(8, 18), 20.0 * np.eye(3)), potential_energy=energies - 1e6)


@pytest.fixture(scope="module")
def gas() -> Run:
    """5 ideal atoms at constant pressure: volumes of weight V^5 exp(−PV/kT), and energies that depend on none of it."""
    rng = np.random.default_rng(1)
    volumes = rng.gamma(6.0, KB * TEMPERATURE / (PRESSURE * GPA), size=(8, 500))
    cells = np.cbrt(volumes)[:, :, None, None] * np.eye(3)
    positions = np.zeros((8, 500, 5, 3)) + np.arange(5)[:, None]
    run = as_run(positions, np.full(5, 18), np.eye(3))
    return dataclasses.replace(run, cells=cells, potential_energy=np.zeros((8, 500)) - 1e5)


@pytest.mark.physics
def test_harmonic_wells_have_three_k_an_atom(wells: Run, agrees: Any) -> None:
    found = average(wells, HeatCapacity(TEMPERATURE), equilibration=0)
    agrees("harmonic wells: C_V/k per atom", found.value, found.error, 3.0)
    assert 0.01 < found.error < 0.06
    assert found.unit == "k/atom"
    bare = average(wells, HeatCapacity(TEMPERATURE, kinetic=0.0), equilibration=0)
    assert float(bare.value) == pytest.approx(float(found.value) - 1.5)


@pytest.mark.physics
def test_ideal_gas_at_constant_pressure(gas: Run, agrees: Any) -> None:
    """κ = 1/P and α = 1/T; C_P has (N + 1)/N k an atom of the volume."""
    for observable, known in (
        (Compressibility(TEMPERATURE), 1.0 / PRESSURE),
        (ThermalExpansion(TEMPERATURE, PRESSURE), 1.0 / TEMPERATURE),
        (HeatCapacity(TEMPERATURE, PRESSURE), 1.5 + 6.0 / 5.0),
    ):
        found = average(gas, observable, equilibration=0)
        agrees(f"ideal gas: {observable.name}", found.value, found.error, known)
        assert 0 < found.error < 0.1 * known


def test_single_precision_suffices(wells: Run, gas: Run) -> None:
    """`mean` in jax is the estimate's plain value, without a million eV in the way."""
    for run, observable in (
        (wells, HeatCapacity(TEMPERATURE)),
        (gas, ThermalExpansion(TEMPERATURE, PRESSURE)),
        (gas, Compressibility(TEMPERATURE)),
    ):
        values = observe(run, observable)
        single = float(jax.jit(observable.mean)(jnp.asarray(values, jnp.float32)))
        double = observable.estimate(values)
        # The bias that the estimate is freed of is of order 1/n.
        assert single == pytest.approx(float(double.value), rel=1e-3)


def test_mean_is_differentiable(x64: None) -> None:
    """By values and log weights, as finite differences say; weights are those of numpy's covariance."""
    rng = np.random.default_rng(2)
    observable = ThermalExpansion(TEMPERATURE)
    values, log_weights = rng.normal(size=(2, 30, 2)) + np.array([3.0, 9.0]), rng.normal(size=(2, 30))
    weights = np.exp(log_weights).ravel()
    covariance = np.cov(values.reshape(-1, 2).T, aweights=weights, ddof=0)
    volume = np.average(values[..., 1], weights=weights.reshape(2, 30))
    wanted = covariance[0, 1] / volume / (KB * TEMPERATURE**2)
    assert float(observable.mean(values, log_weights)) == pytest.approx(wanted, rel=1e-9)
    directions = rng.normal(size=values.shape), rng.normal(size=log_weights.shape)
    slopes = jax.jit(jax.grad(observable.mean, argnums=(0, 1)))(values, log_weights)
    found = sum(float((slope * direction).sum()) for slope, direction in zip(slopes, directions, strict=True))

    def along(step: float) -> float:
        return float(observable.mean(values + step * directions[0], log_weights + step * directions[1]))

    assert found == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-6)


class Variance(Compressibility):
    """Of the first quantity."""

    def of_moments(self, means: Any, covariance: Any) -> Any:
        return covariance[0, 0]


def test_errors_hold_and_the_bias_is_gone() -> None:
    """Variances of correlated series of variance 1: the plain one is low by g/n, as 60 realisations show."""
    variance, tau = Variance(TEMPERATURE), 4.0
    series = autoregressive(4, 400, 60, tau, seed=3)
    estimates = [variance.estimate(series[:, :, k, None]) for k in range(60)]
    values, errors = (np.array([getattr(each, name) for each in estimates]) for name in ("value", "error"))
    plain = series.var(axis=(0, 1))
    exact = (1 + np.exp(-1 / tau)) / (1 - np.exp(-1 / tau)) / 1600
    assert (values - plain).mean() == pytest.approx(exact, rel=0.3)
    assert values.mean() == pytest.approx(1.0, abs=4 * values.std() / np.sqrt(60))
    assert 0.9 < np.sqrt(np.mean(errors**2)) / values.std() < 1.5
    held = [low < 1.0 < high for low, high in (each.interval(0.95) for each in estimates)]
    assert np.mean(held) > 0.86
    first = estimates[0]
    assert first.blocks is not None
    np.testing.assert_allclose(first.blocks.mean(axis=0), first.value)
    assert first.blocks.std(ddof=1) / np.sqrt(len(first.blocks)) == pytest.approx(float(first.error))


def test_of_a_plain_mean_it_is_the_plain_estimate() -> None:
    """With weights as well: value, error and status are those of `Observable.estimate`, and there is no bias."""
    series = 2.0 + autoregressive(3, 200, 1, 2.0, seed=5)[:, :, 0]
    for weights in (None, np.exp(0.3 * series)):
        plain, found = Volume().estimate(series, weights), jackknife_estimate(Volume(), series, weights)
        assert float(found.error) == pytest.approx(float(plain.error))
        assert found.status is plain.status
        # A weighted mean is a ratio, and has a bias.
        tolerance = 1e-12 if weights is None else 0.1 * float(plain.error)
        assert float(found.value) == pytest.approx(float(plain.value), abs=tolerance)


def test_weights_of_the_estimate() -> None:
    """Reweighting N(0, 1) to N(½, 1): the variance stays 1, with wider errors that hold."""
    rng = np.random.default_rng(6)
    variance = Variance(TEMPERATURE)
    x = rng.normal(size=(60, 4, 300, 1))
    estimates = [variance.estimate(one, np.exp(0.5 * one[..., 0])) for one in x]
    values = np.array([float(each.value) for each in estimates])
    assert values.mean() == pytest.approx(1.0, abs=4 * values.std() / np.sqrt(60))
    claimed = np.sqrt(np.mean([each.error**2 for each in estimates]))
    assert 0.9 < claimed / values.std() < 1.5
    unweighted = np.mean([variance.estimate(one).error for one in x[:10]])
    assert claimed > unweighted


def test_they_conform() -> None:
    check_observable(ThermalExpansion(TEMPERATURE, PRESSURE))
    check_observable(HeatCapacity(TEMPERATURE, PRESSURE))


@pytest.mark.parametrize("temperature", [0.0, -3, float("nan")])
def test_senseless_temperatures(temperature: float) -> None:
    for kind in (HeatCapacity, Compressibility, ThermalExpansion):
        with pytest.raises(ValueError, match="needs a positive temperature_K"):
            kind(temperature)


def test_no_pressure_without_a_cell(wells: Run) -> None:
    molecule = dataclasses.replace(wells, pbc=np.array([False, False, False]))
    assert average(molecule, HeatCapacity(TEMPERATURE), equilibration=0).error > 0
    with pytest.raises(ValueError, match="needs a cell that is periodic in all three directions"):
        average(molecule, Compressibility(TEMPERATURE))
