"""Elastic constants of a crystal in motion, from its stress and from its strain."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import DT
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, SmoothLennardJones

from jaxmlip.observables.elastic import ElasticFromStrain, ElasticFromStress
from jaxmlip.observables.estimate import Estimate
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.simulate import simulate
from jaxmlip.units import GPA
from jaxmlip.validation.averages import observe

COLD = 0.1 * REDUCED_K
OPTIONS: dict[str, Any] = {"timestep_fs": 2 * DT, "sample_every_fs": 40 * DT, "skin": 0.3, "progress": False}


def cubic(found: Estimate) -> list[tuple[str, float, float]]:
    """C_11, C_12 and C_44 in ε/σ³ with their errors, from blocks: equivalent ones are correlated."""
    places = {"C_11": [(0, 0), (1, 1), (2, 2)], "C_12": [(0, 1), (0, 2), (1, 2)], "C_44": [(3, 3), (4, 4), (5, 5)]}
    assert found.blocks is not None
    blocks, value, listed = found.blocks * GPA, found.value * GPA, []
    for name, where in places.items():
        means = np.mean([blocks[:, i, j] for i, j in where], axis=0)
        error = means.std(ddof=1) / np.sqrt(len(means))
        listed.append((name, float(np.mean([value[i, j] for i, j in where])), float(error)))
    return listed


@pytest.mark.physics
@pytest.mark.slow
def test_stress_and_strain_agree(agrees: Any) -> None:
    """32 atoms of Lennard-Jones (smooth) in fcc at T = 0.1: one at P = 0, the other at the mean volume of the first."""
    potential = SmoothLennardJones({"epsilon": np.float32(1.0), "sigma": np.float32(1.0)})
    atoms = bulk("Ar", "fcc", a=1.6, cubic=True).repeat(2)
    atoms.set_masses(np.ones(len(atoms)))
    friction = 1000.0 / REDUCED_TIME_FS
    barostat = NPT(COLD, 0.0, "flexible", compressibility_per_GPa=0.02 * GPA, pressure_time_ps=2e-4 * REDUCED_TIME_FS,
                   friction_per_ps=friction)  # fmt: skip
    free = simulate(potential, atoms, barostat, steps=16_000, replicas=8, **OPTIONS)
    strain = ElasticFromStrain(COLD)
    by_strain = strain.estimate(observe(free, strain, first=60))
    edge = np.cbrt(free.volume[:, 60:].mean()) / 2.0
    held: Atoms = atoms.copy()
    held.set_cell(2.0 * edge * np.eye(3), scale_atoms=True)
    run = simulate(potential, held, NVT(COLD, friction_per_ps=friction), steps=8_000, replicas=8, **OPTIONS)
    stress = ElasticFromStress(COLD)
    by_stress = stress.estimate(observe(run, stress, first=60, potential=potential))
    for (name, value, error), (_, known, known_error) in zip(cubic(by_stress), cubic(by_strain), strict=True):
        quantity = f"Lennard-Jones crystal, T = 0.1: {name} by stress, against strain"
        agrees(quantity, value, error, known, known_error=known_error)
        assert error < 0.05 * value
        assert known_error < 0.08 * known
