"""Derivatives of averages of fluids: published values, and all estimators against simulations of other potentials."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, SmoothLennardJones

from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.observables.thermodynamics import PotentialEnergy
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.graph import Graph
from jaxmlip.types import PerAtom
from jaxmlip.validation.averages import frame_states
from jaxmlip.validation.frame_gradients import derivatives_along
from jaxmlip.validation.gradients import gradient
from jaxmlip.validation.pathwise import pathwise_gradient

TAU_PS = 0.001 * REDUCED_TIME_FS
EPSILON = {"epsilon": np.float32(1.0), "sigma": np.float32(0.0)}
SIGMA = {"epsilon": np.float32(0.0), "sigma": np.float32(1.0)}


@flax.struct.dataclass
class ScaledCutoff(LennardJones):
    """Lennard-Jones, cut at 2.5 σ and shifted to zero there; the lists reach somewhat further."""

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Of a fluid of another σ, in its own units."""
        sigma = self.params["sigma"]
        scaled = graph.replace(positions=graph.positions / sigma, cell=graph.cell / sigma)
        one = {"epsilon": self.params["epsilon"], "sigma": jnp.ones(())}
        return LennardJones(one, range_=2.5).atomic_energies(scaled)


def of(kind: type[LennardJones], epsilon: float = 1.0) -> LennardJones:
    return kind({"epsilon": np.float32(epsilon), "sigma": np.float32(1.0)}, range_=2.55)


def fluid(cells: int) -> Atoms:
    atoms = bulk("Ar", "fcc", a=(4.0 / 0.75) ** (1.0 / 3.0), cubic=True).repeat(cells)
    atoms.set_masses(np.ones(len(atoms)))
    atoms.rattle(0.1, seed=1)
    atoms.info["allow_close"] = True  # lengths are in units of σ
    return atoms


def run_of(potential: Potential, cells: int, replicas: int, taus: float) -> Run:
    """Molten, cooled within 2 τ, and then so many τ of equilibrium, a frame every τ/10."""
    cooled = Ramp(3 * REDUCED_K, REDUCED_K, time_ps=2 * TAU_PS)
    ensemble = NVT(temperature_K=cooled, friction_per_ps=1.0 / TAU_PS)
    step = 0.01 * REDUCED_TIME_FS
    return simulate(
        potential,
        fluid(cells),
        ensemble,
        steps=round(100 * taus),
        timestep_fs=step,
        sample_every_fs=10 * step,
        replicas=replicas,
        seed=4,
        skin=0.3,
        progress=False,
    )


@pytest.mark.slow
@pytest.mark.physics
def test_published_values(agrees) -> None:
    """Per atom, in reduced units: from E, P and C_V of the equation of state of Thol et al.

    Of 500 atoms: with 108 the virial is smaller by the size of the cell, ⟨∂U/∂σ⟩/N = 0.77 ± 0.03 with steps of 0.01 and
    0.005 τ alike.
    """
    potential, settling = of(ScaledCutoff), 10 * TAU_PS
    run = run_of(potential, 5, 4, 50.0)
    atoms = len(run.numbers)
    frames = frame_states(run, 100, potential=potential)
    directions = jax.tree.map(lambda *leaves: jnp.stack(leaves), EPSILON, SIGMA)
    slopes = correlated_mean(np.asarray(derivatives_along(PotentialEnergy(), potential, frames, directions)[0]) / atoms)
    for number, (name, known) in enumerate((("ε", -4.4286), ("σ", 0.9588))):
        agrees(f"Lennard-Jones: <∂U/∂{name}>/N", slopes.value[number], slopes.error[number], known)
    assert slopes.value[0] == pytest.approx(-4.4286, rel=0.02)
    for estimator in ("covariance", "reweighting", "forward"):
        options: dict[str, Any] = {"directions": [EPSILON]} if estimator == "forward" else {}
        found = gradient(
            run, potential, PotentialEnergy(), temperature_K=REDUCED_K, equilibration=settling, estimator=estimator,
            **options,
        )  # fmt: skip
        value, error = (each if options else each["epsilon"] for each in (found.value, found.error))
        value, error = float(np.squeeze(value)) / atoms, float(np.squeeze(error)) / atoms
        agrees(f"Lennard-Jones: d<U>/dε/N, {estimator}", value, error, -5.2073)
        assert value == pytest.approx(-5.2073, rel=0.02)


@pytest.mark.slow
@pytest.mark.physics
def test_all_estimators_agree(agrees) -> None:
    """With simulations of ε = 0.97 and 1.03 that share starts and random numbers; forces end smoothly at the cutoff."""
    change, cells, replicas = 0.03, 2, 32
    runs = [run_of(of(SmoothLennardJones, epsilon), cells, replicas, 40.0) for epsilon in (1.0 + change, 1.0 - change)]
    potential = of(SmoothLennardJones)
    run = run_of(potential, cells, replicas, 40.0)
    ends = [each.potential_energy[:, 100:].mean(1) for each in runs]
    slopes = (ends[0] - ends[1]) / (2 * change)
    known, known_error = slopes.mean(), slopes.std(ddof=1) / np.sqrt(replicas)
    for estimator in ("covariance", "reweighting", "forward"):
        options: dict[str, Any] = {"directions": [EPSILON]} if estimator == "forward" else {}
        found = gradient(
            run, potential, PotentialEnergy(), temperature_K=REDUCED_K, equilibration=10 * TAU_PS, estimator=estimator,
            **options,
        )  # fmt: skip
        value, error = (np.squeeze(each if options else each["epsilon"]) for each in (found.value, found.error))
        agrees(f"smooth Lennard-Jones: d<U>/dε, {estimator}", value, error, known, known_error=known_error)
    starts = run.during(slice(run.n_frames - 1, None)).frames()
    ensemble = NVT(REDUCED_K, friction_per_ps=1.0 / TAU_PS)
    found = pathwise_gradient(
        potential, starts, ensemble, PotentialEnergy(), steps=160, timestep_fs=0.01 * REDUCED_TIME_FS, horizons=3,
        skin=0.8, steps_per_list=20,
    )  # fmt: skip
    along = found.longest.along(EPSILON)
    agrees("smooth Lennard-Jones: d<U>/dε, pathwise", along.value, along.error, known, known_error=known_error)
