"""One fluid and one compiled engine for most tests of the dynamics."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, lennard_jones

from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.capacity import Capacity

DT = 0.005 * REDUCED_TIME_FS
FLUID = NVT(temperature_K=REDUCED_K, friction_per_ps=1000.0 / REDUCED_TIME_FS)


def molten(temperature: float = 1.0) -> NVT:
    """Cooled within 2 τ to a reduced temperature from three times as much: there a crystal may last for many τ."""
    cooled = Ramp(3 * temperature * REDUCED_K, temperature * REDUCED_K, time_ps=0.002 * REDUCED_TIME_FS)
    return NVT(temperature_K=cooled, friction_per_ps=1000.0 / REDUCED_TIME_FS)


def fluid_options(**changes: Any) -> dict[str, Any]:
    """A short run in reduced units, one frame every ten steps."""
    short = {"steps": 40, "timestep_fs": DT, "sample_every_fs": 10 * DT, "skin": 0.3, "progress": False}
    return short | changes


def run_fluid(structure: Any, potential: LennardJones | None = None, ensemble: Ensemble = FLUID, **options: Any) -> Run:
    """A simulation with `fluid_options`."""
    return simulate(potential or lennard_jones(), structure, ensemble, **fluid_options(**options))


def dynamics_of(ensemble: Ensemble) -> Any:
    """The dynamics of one replica, with the values that it has at the start."""
    return jax.tree.map(lambda each: each[0], ensemble.dynamics(1).at(0.0))


def fcc(repeats: int, rattle: float = 0.1, density: float = 0.75) -> Atoms:
    """Face-centred cubic lattice of unit masses in reduced Lennard-Jones units, rattled."""
    atoms = bulk("Ar", "fcc", a=(4.0 / density) ** (1.0 / 3.0), cubic=True).repeat(repeats)
    atoms.set_masses(np.ones(len(atoms)))
    atoms.rattle(rattle, seed=1)
    atoms.info["allow_close"] = True  # lengths are in units of σ
    return atoms


@pytest.fixture(scope="session")
def small_fluid() -> Atoms:
    """32 atoms in a cell of 3.5 σ, narrower than two cutoffs."""
    return fcc(2)


@dataclasses.dataclass(frozen=True)
class Growth:
    """A capacity that had to grow, and what for: cells of these heights, lists of this reach."""

    capacity: Capacity
    heights: np.ndarray
    reach: float


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> list[Growth]:
    """How the capacities of the test's simulations grew, as it came."""
    found, grow = [], Capacity.grown

    def noted(self: Capacity, needs: Any, heights: np.ndarray, reach: float, atoms: int) -> Capacity:
        found.append(Growth(grow(self, needs, heights, reach, atoms), heights, reach))
        return found[-1].capacity

    monkeypatch.setattr(Capacity, "grown", noted)
    return found
