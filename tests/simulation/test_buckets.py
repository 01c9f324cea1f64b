"""Unlike structures, simulated by as few programs as there are kinds."""

import numpy as np
import pytest
from ase import Atoms
from conftest import FLUID, fcc, fluid_options, run_fluid
from simple_potentials import lennard_jones

from jaxmlip.simulation.buckets import simulate_each
from jaxmlip.simulation.engine import advance


def test_runs_are_those_of_simulate(small_fluid: Atoms) -> None:
    """In the order of the structures, each as if its kind had been simulated by itself."""
    stretched, larger = small_fluid.copy(), fcc(3)
    stretched.set_cell(1.05 * stretched.cell.array, scale_atoms=True)
    alike = run_fluid([small_fluid, small_fluid, stretched, stretched], skin=0.4)
    unlike = run_fluid([larger, larger], skin=0.4)
    before = advance._cache_size()  # type: ignore[attr-defined]
    runs = simulate_each(
        lennard_jones(), [small_fluid, larger, stretched], FLUID, replicas=2, **fluid_options(skin=0.4)
    )
    assert advance._cache_size() == before, "one program for each kind"  # type: ignore[attr-defined]
    np.testing.assert_array_equal(runs[0].positions, alike.positions[:2])
    np.testing.assert_array_equal(runs[1].positions, unlike.positions)
    np.testing.assert_array_equal(runs[2].positions, alike.positions[2:])
    np.testing.assert_allclose(runs[2].cells, stretched.cell.array[None].repeat(2, 0), rtol=1e-6)


def test_mistakes(small_fluid: Atoms) -> None:
    with pytest.raises(ValueError, match="No structure was given"):
        simulate_each(lennard_jones(), [], FLUID, steps=1)
    with pytest.raises(ValueError, match="at least one replica, not 0"):
        simulate_each(lennard_jones(), [small_fluid], FLUID, replicas=0, steps=1)
