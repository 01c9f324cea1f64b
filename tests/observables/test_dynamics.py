"""Dynamical observables against MDAnalysis, random walks, harmonic vibrations and direct sums."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from made_runs import as_run
from MDAnalysis import Universe
from MDAnalysis.analysis.msd import EinsteinMSD

from jaxmlip.observables.dynamics import (
    DebyeWallerFactor,
    DiffusionConstant,
    MeanSquaredDisplacement,
    VelocityAutocorrelation,
    VibrationalDensityOfStates,
)
from jaxmlip.observables.estimate import Status
from jaxmlip.observables.names import observable_from_text
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import FS, KB
from jaxmlip.validation.averages import average, trajectory_states

CELL = 6.0 * np.eye(3)
NUMBERS = np.array([8] * 10 + [1] * 5)


@pytest.fixture(scope="module")
def walk() -> Run:
    """Random walks of D = 0.5 Å²/ps for O and none for H, frames every 10 fs, far beyond the cell."""
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=np.sqrt(2 * 0.5 * 0.01), size=(6, 500, 15, 3))
    steps[:, :, 10:] = 0.0
    return as_run(np.cumsum(steps, axis=1), NUMBERS, CELL)


def test_displacements_equal_mdanalysis(walk: Run) -> None:
    """At every lag, of one trajectory."""
    msd = MeanSquaredDisplacement("O", points=10_000)
    one = jax.tree.map(lambda leaf: leaf[0], trajectory_states(walk))
    found = np.asarray(jax.jit(msd.of_trajectory, static_argnums=1)(one, 10.0))
    universe = Universe.empty(10, trajectory=True)
    universe.load_new(walk.positions[0, :, :10])
    theirs = EinsteinMSD(universe, fft=False).run().results.timeseries
    np.testing.assert_allclose(found, theirs[1 : len(found) + 1], rtol=1e-4)
    np.testing.assert_allclose(msd.axis(500, 10.0), 0.01 * np.arange(1, len(found) + 1))


@pytest.mark.physics
def test_random_walks_diffuse(walk: Run, agrees: Any) -> None:
    """As they were made; the error is over replicas, or over parts of one trajectory."""
    found = average(walk, DiffusionConstant("O"), equilibration=0)
    agrees("random walk: D, Å²/ps", found.value, found.error, 0.5)
    assert (found.unit, found.status, float(found.dof)) == ("Å2/ps", Status.OK, 5.0)
    assert float(found.error) < 0.1
    msd = average(walk, observable_from_text("msd:O"), equilibration=0)
    assert msd.axis is not None
    np.testing.assert_allclose(msd.value, 3.0 * msd.axis, rtol=0.2)
    still = average(walk, DiffusionConstant("H"), equilibration=0)
    assert abs(float(still.value)) < 1e-6
    alone = average(walk.part(slice(0, 1)), DiffusionConstant("O"), equilibration=0)
    assert alone.status is Status.SLOW_MOTION
    agrees("random walk, parts of one trajectory: D, Å²/ps", alone.value, alone.error, 0.5)


def test_far_from_the_origin(walk: Run) -> None:
    """Runs in double precision are moved near the origin once, not in every frame."""
    far = dataclasses.replace(walk, positions=walk.positions.astype(np.float64) + 1e6)
    near, moved = (average(each, DiffusionConstant("O"), equilibration=0) for each in (walk, far))
    assert float(moved.value) == pytest.approx(float(near.value), rel=1e-4)


def test_finite_size(walk: Run) -> None:
    """Yeh and Hummer's water: at 298 K, η = 0.9 mPa s and 15 Å the correction is 0.0458 Å²/ps."""
    plain = average(walk, DiffusionConstant("O"), equilibration=0)
    wanted = 2.837297 * 1.380649e-23 * 298 / (6 * np.pi * 0.9e-3 * 6e-10) * 1e8
    right = average(walk, DiffusionConstant("O", viscosity_mPa_s=0.9, temperature_K=298), equilibration=0)
    assert float(right.value) - float(plain.value) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match=r"positive viscosity_mPa_s and temperature_K, not 0.9 and None"):
        DiffusionConstant("O", viscosity_mPa_s=0.9)


def test_drift_is_taken_off(walk: Run) -> None:
    """A wind of 1 Å/ps moves all by 1 Å in a ps, and nothing where the centre of mass is at rest."""
    wind = 1.0 * walk.time_fs[:, None, None] / 1000.0 * np.array([1.0, 0.0, 0.0])
    blown = dataclasses.replace(walk, positions=np.broadcast_to(wind, walk.positions.shape).astype(np.float32))
    plain, without = (
        average(blown, MeanSquaredDisplacement("O", without_drift=which), equilibration=0) for which in (False, True)
    )
    assert plain.axis is not None
    np.testing.assert_allclose(plain.value, plain.axis**2, rtol=1e-3)
    np.testing.assert_allclose(without.value, 0.0, atol=1e-6)


@pytest.fixture(scope="module")
def vibrating() -> Run:
    """Independent oscillators: O at 20 THz and H at 90 THz, phases and amplitudes at random, 2 fs between frames."""
    rng = np.random.default_rng(1)
    times = 2.0 * np.arange(1, 1201)
    rates = 2 * np.pi * np.where(NUMBERS == 8, 0.020, 0.090)  # 1/fs
    masses = Atoms(numbers=NUMBERS).get_masses()
    thermal = np.sqrt(KB * 300.0 / masses) * FS  # Å/fs
    waves = rng.normal(size=(2, 4, 1, 15, 3))
    phase = rates[:, None] * times[:, None, None]
    velocities = thermal[:, None] * (waves[0] * np.cos(phase) + waves[1] * np.sin(phase))
    places = (thermal / rates)[:, None] * (waves[0] * np.sin(phase) - waves[1] * np.cos(phase))
    run = as_run(places + 2.0 * np.arange(15)[:, None], NUMBERS, 40.0 * np.eye(3), velocities=velocities)
    return dataclasses.replace(run, time_fs=times)


def test_velocities_correlate_as_a_direct_sum_says(vibrating: Run) -> None:
    vacf = VelocityAutocorrelation("O", longest=0.05)
    found = average(vibrating, vacf, equilibration=0)
    assert vibrating.velocities is not None
    v = 1000.0 * vibrating.velocities[:, :, :10]
    direct = [(v[:, : 1200 - lag] * v[:, lag:]).sum(-1).mean() for lag in range(60)]
    np.testing.assert_allclose(found.value, direct, rtol=1e-3, atol=1e-3 * direct[0])
    assert found.axis is not None
    np.testing.assert_allclose(found.axis, 0.002 * np.arange(60))


def test_densities_of_states_show_the_vibrations(vibrating: Run) -> None:
    """Gaussian peaks of the resolution at their frequencies, three states an atom."""
    for element, frequency in (("O", 20.0), ("H", 90.0)):
        vdos = VibrationalDensityOfStates(element, resolution_THz=1.5)
        found = average(vibrating, vdos, equilibration=0)
        assert found.axis is not None
        assert found.value.sum() * 0.5 == pytest.approx(3.0, rel=0.02)
        shape = 3.0 * np.exp(-0.5 * ((found.axis - frequency) / 1.5) ** 2) / (1.5 * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(found.value, shape, atol=0.04 * shape.max())


def test_debye_waller_factors(vibrating: Run) -> None:
    """8π² kT / (m ω²) for harmonic wells, of the amplitudes that the run has; the same in a cell that breathes."""
    held = DebyeWallerFactor("O", without_drift=False)
    found = average(vibrating, held, equilibration=0)
    places = vibrating.positions[:, :, :10]
    squared = ((places - places.mean(1, keepdims=True)) ** 2).sum(-1).mean()
    assert float(found.value) == pytest.approx(8 * np.pi**2 / 3 * squared, rel=1e-3)
    mass = Atoms("O").get_masses()[0] / FS**2
    harmonic = 8 * np.pi**2 * KB * 300.0 / (mass * (2 * np.pi * 0.020) ** 2)
    assert float(found.value) == pytest.approx(harmonic, rel=0.3)
    breath = 1.0 + 0.02 * np.sin(0.05 * vibrating.time_fs)[:, None, None]
    breathing = dataclasses.replace(
        vibrating,
        positions=(vibrating.positions * breath).astype(np.float32),
        cells=np.broadcast_to(40.0 * np.eye(3) * breath, (4, 1200, 3, 3)),
    )
    scaled = average(breathing, held, equilibration=0)
    assert float(scaled.value) == pytest.approx(float(found.value), rel=0.01)
    wind = 0.001 * vibrating.time_fs[:, None, None] * np.ones(3)
    blown = dataclasses.replace(vibrating, positions=(vibrating.positions + wind).astype(np.float32))
    still, moved = (average(each, DebyeWallerFactor("O"), equilibration=0) for each in (vibrating, blown))
    assert float(moved.value) == pytest.approx(float(still.value), rel=1e-3)
    assert float(average(blown, held, equilibration=0).value) > 5.0 * float(found.value)


def test_trajectories_can_be_differentiated(walk: Run) -> None:
    """As finite differences say, through the whole of a diffusion constant."""
    diffusion = DiffusionConstant("O", from_ps=0.02, to_ps=0.08)
    with jax.enable_x64(True):
        short = jax.tree.map(lambda leaf: np.asarray(leaf[0, :12], np.float64), trajectory_states(walk))
        direction = np.random.default_rng(2).normal(size=short.positions.shape)

        def along(step: Any) -> Any:
            return diffusion.of_trajectory(short.replace(positions=short.positions + step * direction), 10.0)

        slope = float(jax.jit(jax.grad(along))(0.0))
        assert slope == pytest.approx(float(along(1e-4) - along(-1e-4)) / 2e-4, rel=1e-6)


def test_what_cannot_be_said(walk: Run, vibrating: Run) -> None:
    with pytest.raises(ValueError, match="no momenta: simulate with keep_velocities=True"):
        average(walk, VelocityAutocorrelation("O"), equilibration=0)
    with pytest.raises(ValueError, match=r"Frames every 2 fs show no vibrations above 250 THz"):
        average(vibrating, VibrationalDensityOfStates("O", max_THz=300), equilibration=0)
    with pytest.raises(ValueError, match=r"resolution of 0.1 THz needs trajectories of 12.7"):
        average(vibrating, VibrationalDensityOfStates("O", resolution_THz=0.1), equilibration=0)
    with pytest.raises(ValueError, match=r"no two lags between 4 and 4.001 ps"):
        average(walk, DiffusionConstant("O", from_ps=4, to_ps=4.001), equilibration=0)
    with pytest.raises(ValueError, match="frames hold no N"):
        average(walk, MeanSquaredDisplacement("N"), equilibration=0)
    uneven = dataclasses.replace(walk, time_fs=walk.time_fs**1.1)
    with pytest.raises(ValueError, match="equally spaced in time"):
        average(uneven, MeanSquaredDisplacement("O"), equilibration=0)
    with pytest.raises(ValueError, match="trajectories of 3 frames each"):
        average(walk, MeanSquaredDisplacement("O"), equilibration=4.97)
    with pytest.raises(ValueError, match="a longest lag between 0 and 1"):
        MeanSquaredDisplacement("O", longest=1.5)
