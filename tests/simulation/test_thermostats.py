"""Thermostats of the whole system and dynamics without one, against exact results and jax-md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import DT, dynamics_of, run_fluid
from scipy import stats
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, lennard_jones

from jaxmlip.observables.statistics import correlated_mean, statistical_inefficiency
from jaxmlip.simulation.ensembles import NVE, NVT, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import FS, KB

pytestmark = pytest.mark.physics

NO_CELL = jnp.zeros((3, 3), jnp.float32)
MASSES = jnp.asarray([1.0, 2.0, 12.0, 16.0, 40.0], jnp.float32)
THERMOSTATS = {
    "Langevin": NVT(REDUCED_K, friction_per_ps=2000.0 / REDUCED_TIME_FS),
    "Nosé–Hoover": NVTNoseHoover(REDUCED_K, temperature_time_ps=0.0005 * REDUCED_TIME_FS),
    "velocity rescaling": NVTVelocityRescaling(REDUCED_K, temperature_time_ps=0.0002 * REDUCED_TIME_FS),
}


def test_is_the_nose_hoover_chain_of_jax_md() -> None:
    """With a chain of 3N − 3 degrees of freedom the trajectory is that of `jax_md.simulate.nvt_nose_hoover`."""
    from jax_md import simulate

    chained, dt = dynamics_of(NVTNoseHoover(300.0, temperature_time_ps=0.02)), 0.5 * FS
    positions = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)

    def energy(r):
        return 2.0 * ((r[1:] - r[:-1]) ** 2).sum()

    @jax.jit
    def step(state):
        state = chained.move(state, dt)
        return chained.finish(state, -jax.grad(energy)(state.position), dt)

    ours = chained.init(jax.random.key(3), positions, MASSES, NO_CELL)
    ours = ours.set(force=-jax.grad(energy)(positions))
    assert ours.chain.degrees_of_freedom == 12
    _, apply = simulate.nvt_nose_hoover(
        energy, lambda r, dr, **_: r + dr, dt, chained.kT, 3, 2, 3, float(chained.period)
    )
    theirs = ours
    for _ in range(50):
        ours, theirs = step(ours), apply(theirs)
    assert float(jnp.abs(ours.position - positions).max()) > 0.05
    np.testing.assert_allclose(ours.position, theirs.position, atol=2e-5)
    np.testing.assert_allclose(ours.chain.momentum, theirs.chain.momentum, atol=2e-4)


def test_velocity_rescaling_of_an_ideal_gas() -> None:
    """Kinetic energies of five free atoms follow the χ² law of 12 degrees of freedom, and what they lose is booked."""
    rescaled = dynamics_of(NVTVelocityRescaling(300.0, temperature_time_ps=0.01))
    dt = 1.0 * FS
    no_force = jnp.zeros((5, 3), jnp.float32)

    def many_steps(state, _):
        def step(state, _):
            state = rescaled.move(state, dt)
            return rescaled.finish(state, no_force, dt), None

        state, _ = jax.lax.scan(step, state, length=50)  # five relaxation times
        return state, (0.5 * (state.momentum**2 / state.mass).sum(), state.given, state.momentum.sum(0))

    @jax.jit
    @jax.vmap
    def run(key):
        state = rescaled.init(key, no_force, MASSES, NO_CELL)
        # Far from equilibrium at first.
        return jax.lax.scan(many_steps, state.set(momentum=0.1 * state.momentum), length=40)[1]

    kinetic, given, total = map(np.asarray, run(jax.random.split(jax.random.key(0), 100)))
    np.testing.assert_allclose(np.diff(kinetic, axis=1), -np.diff(given, axis=1), atol=1e-4)
    assert np.abs(total).max() < 1e-4
    independent = kinetic[:, 2:].ravel()
    assert stats.kstest(2 * independent / (KB * 300.0), stats.chi2(12).cdf).pvalue > 1e-3


class Runs(dict[str, Run]):
    """By thermostat, made when asked for.

    32 atoms at T = 1, ρ = 0.75, four replicas for 6 reduced times, of which 5 are kept; a frame every 0.05.
    """

    def __init__(self, fluid: Atoms) -> None:
        self.fluid = fluid

    def __missing__(self, name: str) -> Run:
        self[name] = run_fluid(self.fluid, ensemble=THERMOSTATS[name], replicas=4, steps=1200, seed=7)
        return self[name]


@pytest.fixture(scope="module")
def runs(small_fluid: Atoms) -> Runs:
    return Runs(small_fluid)


def of_thermostats(*names: str) -> pytest.MarkDecorator:
    """Chains are slow: by default they are held against those of jax-md."""
    marked = [pytest.param(name, marks=[pytest.mark.slow] * (name == "Nosé–Hoover")) for name in names]
    return pytest.mark.parametrize("name", marked)


@of_thermostats(*THERMOSTATS)
def test_kinetic_energy_is_canonical(runs: Runs, name: str, agrees) -> None:
    """χ² law of the thermostatted degrees of freedom: 3N for Langevin dynamics, 3N − 3 where the centre is at rest."""
    ensemble, run = THERMOSTATS[name], runs[name]
    degrees = ensemble.integrator.degrees_of_freedom(32)
    assert degrees == (96 if isinstance(ensemble, NVT) else 93)
    scaled = degrees * run.temperature[:, 20:] / REDUCED_K
    independent = scaled[:, :: int(np.ceil(statistical_inefficiency(scaled)))].ravel()
    assert len(independent) > 30
    assert stats.kstest(independent, stats.chi2(degrees).cdf).pvalue > 1e-3
    mean = correlated_mean(scaled / degrees)
    assert mean.error < 0.04
    agrees(f"kinetic energy per degree of freedom, {name}, in kT/2", mean.value, mean.error, 1.0)


@of_thermostats("Nosé–Hoover", "velocity rescaling")
def test_potential_energy_is_that_of_langevin_dynamics(runs: Runs, name: str, agrees) -> None:
    reference, mean = (correlated_mean(runs[which].potential_energy[:, 20:] / 32) for which in ("Langevin", name))
    assert np.hypot(reference.error, mean.error) < 0.05
    known, known_error = float(reference.value), float(reference.error)
    agrees(f"potential energy, {name}, against Langevin's", mean.value, mean.error, known, known_error=known_error)


@of_thermostats("Nosé–Hoover", "velocity rescaling")
def test_conserved_quantity(runs: Runs, name: str) -> None:
    """The extended energy of 32 atoms varies far less than their total energy, and does not drift."""
    run = runs[name]
    assert run.conserved is not None
    kinetic = 0.5 * 93 * KB * run.temperature
    varied = run.conserved.std(axis=1)
    assert (varied < 0.05 * (run.potential_energy + kinetic).std(axis=1)).all()
    drift = np.polyfit(run.time_fs / REDUCED_TIME_FS, run.conserved.mean(axis=0) / 32, 1)[0]
    assert abs(drift) < 1e-3, "ε per atom and reduced time"


def test_energy_without_thermostat() -> None:
    """Velocity Verlet in a crystal, whose cutoff lies between two shells: errors of second order, and no drift.

    (In the fluid atoms cross the cutoff, where the force jumps.)
    """
    crystal = bulk("Ar", "fcc", a=1.1 * np.sqrt(2.0), cubic=True).repeat(2)
    crystal.set_masses(np.ones(32))
    deviation = []
    for refinement in (1, 2):
        run = run_fluid(
            crystal,
            lennard_jones(range_=1.1 * np.sqrt(5.5)),
            NVE(0.03 * REDUCED_K),
            replicas=4,
            steps=400 * refinement,
            timestep_fs=DT / refinement,
            sample_every_fs=DT,
        )
        assert run.conserved is not None
        kinetic = 0.5 * 93 * KB * run.temperature
        np.testing.assert_allclose(run.conserved, run.potential_energy + kinetic, rtol=1e-6)
        deviation.append(run.conserved.std(axis=1))
        drift = np.polyfit(run.time_fs / REDUCED_TIME_FS, run.conserved.mean(axis=0) / 32, 1)[0]
        assert abs(drift) < 1e-4, "ε per atom and reduced time"
    np.testing.assert_allclose(deviation[0] / deviation[1], 4.0, rtol=0.2)
