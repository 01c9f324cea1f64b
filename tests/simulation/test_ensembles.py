"""The thermostat against jax-md's own and against exact results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import dynamics_of
from simple_potentials import Wells

from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.simulation.simulate import simulate
from jaxmlip.units import FS, KB

NO_CELL = jnp.zeros((3, 3), jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"temperature_K": 0.0}, "0 < temperature_K ≤ 100000, not 0.0"),
        ({"temperature_K": float("nan")}, "temperature_K"),
        ({"temperature_K": 300.0, "friction_per_ps": -1.0}, "0 < friction_per_ps"),
    ],
)
def test_refuses_senseless_values(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NVT(**arguments)


def test_is_the_langevin_integrator_of_jax_md() -> None:
    """Same momenta, same random numbers, same trajectory as `jax_md.simulate.nvt_langevin`."""
    from jax_md import simulate as jax_md_simulate

    ensemble = NVT(temperature_K=300.0, friction_per_ps=20.0)
    langevin = dynamics_of(ensemble)
    positions = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    masses = jnp.asarray([1.0, 2.0, 12.0, 16.0, 40.0], jnp.float32)
    dt = 0.5 * FS

    def energy(r):
        return 2.0 * (r**2).sum() + (r[1:] * r[:-1]).sum()

    def step(state, length):
        state = langevin.move(state, length)
        return langevin.finish(state, -jax.grad(energy)(state.position), length)

    of_jax_md = {"kT": langevin.kT, "gamma": langevin.friction}
    init, apply = jax_md_simulate.nvt_langevin(energy, lambda r, dr, **_: r + dr, dt, **of_jax_md)
    ours = langevin.init(jax.random.key(3), positions, masses, NO_CELL)
    theirs = init(ours.rng, positions, masses, momenta=ours.momentum).set(rng=ours.rng)
    before, ours = ours, step(ours, 0.0)
    np.testing.assert_array_equal(ours.position, before.position)
    np.testing.assert_array_equal(ours.momentum, before.momentum)
    theirs = theirs.set(rng=ours.rng)
    step = jax.jit(step)
    for _ in range(50):
        ours, theirs = step(ours, dt), apply(theirs)
    np.testing.assert_allclose(ours.position, theirs.position, atol=2e-5)
    np.testing.assert_allclose(ours.momentum, theirs.momentum, atol=2e-4)


def test_initial_momenta() -> None:
    """Maxwell–Boltzmann for every mass, and the centre of mass at rest."""
    langevin = dynamics_of(NVT(temperature_K=300.0))
    masses = jnp.tile(jnp.asarray([1.008, 15.999], jnp.float32), 100)
    keys = jax.random.split(jax.random.key(0), 50)
    make = jax.vmap(lambda key: langevin.init(key, jnp.zeros((200, 3), jnp.float32), masses, NO_CELL).momentum)
    momenta = np.asarray(make(keys), np.float64)
    assert np.abs(momenta.sum(axis=1)).max() < 1e-3
    for which in (0, 1):
        mass = float(masses[which])
        values = momenta[:, which::2]
        # With the centre of mass at rest an atom of mass m in a total of M has m (1 − m/M) kT.
        expected = mass * (1 - mass / float(masses.sum())) * KB * 300.0
        assert (values**2).mean() == pytest.approx(expected, rel=4 * np.sqrt(2 / values.size))


@pytest.fixture(scope="module")
def wells_run():
    """Oxygen atoms in wells of ωh = 0.8, far beyond a cautious timestep."""
    mass, h, temperature = 15.999, 2.0 * FS, 300.0
    k = mass * (0.8 / h) ** 2
    atoms = Atoms("O64", positions=4.0 * np.indices((4, 4, 4)).reshape(3, -1).T)
    wells = Wells({"k": np.float32(k), "centres": atoms.positions.astype(np.float32)})
    ensemble = NVT(temperature_K=temperature, friction_per_ps=100.0)
    run = simulate(
        wells, atoms, ensemble, steps=3000, timestep_fs=2.0, replicas=4, sample_every_fs=20.0, progress=False, seed=5
    )
    return run, atoms, k, temperature


@pytest.mark.physics
def test_harmonic_wells_are_sampled_exactly(wells_run, agrees) -> None:
    """⟨x²⟩ = kT/k: BAOAB has no timestep error for a harmonic oscillator."""
    run, atoms, k, temperature = wells_run
    squared = ((run.positions[:, 30:] - atoms.positions) ** 2).mean(axis=1)
    mean, error = squared.mean(), squared.std(ddof=1) / np.sqrt(squared.size)
    expected = KB * temperature / k
    assert error < 0.02 * expected
    agrees("harmonic wells, BAOAB at ωh = 0.8: ⟨x²⟩ k/kT", mean / expected, error / expected, 1.0)
    energies = run.potential_energy[:, 30:]
    assert energies.mean() == pytest.approx(1.5 * 64 * KB * temperature, rel=0.03)


@pytest.mark.physics
def test_kinetic_temperature_has_the_error_of_baoab(wells_run, agrees) -> None:
    """At the end of a BAOAB step ⟨p²⟩ = m kT (1 − (ωh)²/4) in a harmonic well, here 0.84."""
    run, _, _, temperature = wells_run
    mean = correlated_mean(run.temperature[:, 30:] / temperature)
    assert mean.error < 0.004
    agrees("harmonic wells, BAOAB at ωh = 0.8: ⟨p²⟩/mkT", mean.value, mean.error, 1 - 0.8**2 / 4)


def test_descriptions_are_pytrees() -> None:
    """Of their numbers, ramps and lists of them included, with words apart; jax may put anything in their place."""
    described = NPT([250.0, Ramp(250.0, 300.0, time_ps=1.0)], 0.0, "flexible")
    assert jax.tree.leaves(described) == [250.0, 250.0, 300.0, 1.0, 0.0, 1.0, 0.12, 2.0]
    assert jax.tree.map(lambda number: number, described) == described
    assert jax.tree.map(lambda _: None, described).cell == "flexible"

    def kT(ensemble: NVT) -> jax.Array:
        return ensemble.dynamics(1).at(0.0).kT[0]

    assert float(jax.grad(kT)(NVT(300.0)).temperature_K) == pytest.approx(KB)
    several = jax.jit(jax.vmap(kT))(jax.tree.map(lambda *each: jnp.asarray(each), NVT(300.0), NVT(400.0)))
    np.testing.assert_allclose(several, [300.0 * KB, 400.0 * KB], rtol=1e-6)
