"""Derivatives through trajectories: exact where the start is forgotten, too small before, and how noise grows."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from simple_potentials import REDUCED_K, SquaredDisplacement, Wells

from jaxmlip.simulation.ensembles import NVT
from jaxmlip.validation.pathwise import pathwise_gradient

STIFFNESS, KT = 2.0, 0.05
ENSEMBLE = NVT(KT * REDUCED_K, friction_per_ps=80.0)


def wells() -> tuple[Wells, Atoms]:
    centres = np.full((32, 3), 5.0)
    atoms = Atoms("Ar32", centres, cell=[10.0] * 3, pbc=False, info={"allow_close": True})
    return Wells({"k": np.float32(STIFFNESS), "centres": centres.astype(np.float32)}), atoms


OPTIONS: dict[str, Any] = {"timestep_fs": 5.0, "skin": 6.0, "steps_per_list": 1000, "every": 10, "seed": 1}


@pytest.mark.physics
def test_wells(agrees) -> None:
    """d⟨x²⟩/dk = −kT/k² at the longest horizon, less at the shortest; of a loss of a vector."""
    potential, atoms = wells()
    vector = SquaredDisplacement(directions=True)
    found = pathwise_gradient(
        potential, atoms, ENSEMBLE, vector, steps=1280, replicas=8, horizons=5, loss=jnp.mean, **OPTIONS
    )
    slope, error = (each["k"] for each in (found.longest.value, found.longest.error))
    agrees("wells: d<x2>/dk, pathwise", slope, error, -KT / STIFFNESS**2)
    assert found.horizons_fs == (400.0, 800.0, 1600.0, 3200.0, 6400.0)
    assert abs(found.gradients[0].value["k"]) < abs(slope)
    # Wells are not chaotic.
    assert found.growth_per_ps < 1.0


@pytest.mark.slow
def test_a_number_needs_no_loss() -> None:
    """It is its own."""
    potential, atoms = wells()
    how: dict[str, Any] = {"steps": 1280, "replicas": 8, "horizons": 5} | OPTIONS
    found = pathwise_gradient(potential, atoms, ENSEMBLE, SquaredDisplacement(), **how)
    losses = pathwise_gradient(potential, atoms, ENSEMBLE, SquaredDisplacement(directions=True), loss=jnp.mean, **how)
    np.testing.assert_allclose(losses.longest.value["k"], found.longest.value["k"], rtol=1e-4)


def test_refuses() -> None:
    potential, atoms = wells()
    with pytest.raises(ValueError, match="a multiple of 80 steps"):
        pathwise_gradient(potential, atoms, ENSEMBLE, SquaredDisplacement(), steps=100, replicas=2, **OPTIONS)
    with pytest.raises(ValueError, match="two or more"):
        pathwise_gradient(potential, atoms, ENSEMBLE, SquaredDisplacement(), steps=80, **OPTIONS)
    with pytest.raises(ValueError, match="say by loss="):
        pathwise_gradient(
            potential, atoms, ENSEMBLE, SquaredDisplacement(directions=True), steps=80, replicas=2, **OPTIONS
        )
    tight: dict[str, Any] = OPTIONS | {"skin": 1e-3}
    with pytest.raises(ValueError, match="did not hold on the way"):
        pathwise_gradient(potential, atoms, ENSEMBLE, SquaredDisplacement(), steps=80, replicas=2, **tight)
