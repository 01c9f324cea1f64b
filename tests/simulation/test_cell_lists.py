"""Lists from bins are the lists from all pairs."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from conftest import DT, FLUID, Growth, fcc, run_fluid
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, lennard_jones
from test_device_lists import _as_sets

from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.systems import capacity, cell_lists
from jaxmlip.systems.cell_lists import Bins, binned_neighbors, bins_for, fullest_bin
from jaxmlip.systems.device_lists import cell_heights, pseudo_inverse
from jaxmlip.systems.neighbors import dense_neighbors
from jaxmlip.units import GPA

CUTOFF = 2.0
CELLS = {
    "right-angled": np.diag([6.1, 7.0, 9.5]),
    "sheared": np.array([[7.0, 0.0, 0.0], [2.5, 8.0, 0.0], [-2.0, 3.0, 9.0]]),
    "left-handed": np.array([[0.0, 8.0, 0.0], [7.0, 1.0, 0.0], [1.0, 1.0, 8.0]]),
}


@pytest.mark.parametrize("name", CELLS)
def test_equals_host_list(name: str) -> None:
    cell = CELLS[name]
    number = bins_for(10**6, cell_heights(cell), CUTOFF)
    assert number is not None
    rng = np.random.default_rng(0)
    positions = rng.uniform(size=(200, 3)) @ cell + rng.integers(-4, 5, (200, 3)) @ cell
    positions = positions.astype(np.float32)
    most = fullest_bin(positions.astype(float), cell, number)
    inverse, cell32 = pseudo_inverse(cell).astype(np.float32), cell.astype(np.float32)
    padded, real = np.concatenate([positions, positions[:9] + 0.1]), np.arange(209) < 200
    make = functools.partial(binned_neighbors, slots=40)
    lists, fullest = jax.jit(functools.partial(make, bins=Bins(number, most)))(real, padded, cell32, inverse, CUTOFF)
    assert (np.asarray(lists.neighbors)[200:] == -1).all(), "padding"
    lists = lists.replace(neighbors=lists.neighbors[:200], shifts=lists.shifts[:200])
    neighbors, shifts, _ = dense_neighbors(positions.astype(np.float64), cell, CUTOFF)
    assert _as_sets(lists.neighbors, lists.shifts) == _as_sets(neighbors, shifts)
    assert (int(lists.needed), int(fullest)) == (neighbors.shape[1], most)
    lists, fullest = jax.jit(functools.partial(make, bins=Bins(number, 2)))(real, padded, cell32, inverse, CUTOFF)
    assert int(fullest) == most, "what is needed is known although there is no room for it"


def huge_cell(edge: float) -> tuple[np.ndarray, np.ndarray]:
    """A sheared cell of which atoms fill a corner, all of its images, and little else."""
    cell = edge * np.array([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 0.1, 1.0]])
    rng = np.random.default_rng(0)
    cluster = rng.uniform(-4.0, 4.0, (150, 3)) + rng.integers(-1, 2, (150, 3)) @ cell
    return cell, np.concatenate([cluster, rng.uniform(size=(50, 3)) @ cell]).astype(np.float32)


def test_huge_cells_have_the_right_lists() -> None:
    """3000 Å: a place in memory for each of 3 · 10⁸ bins would be 30 GB."""
    cell, positions = huge_cell(3000.0)
    number = bins_for(10**6, cell_heights(cell), CUTOFF)
    assert number is not None
    assert np.prod(number) > 10**8
    most = fullest_bin(positions.astype(float), cell, number)
    padded, real = np.concatenate([positions, positions[:9] + 0.1]), np.arange(209) < 200
    inverse, cell32 = pseudo_inverse(cell).astype(np.float32), cell.astype(np.float32)
    make: Any = jax.jit(functools.partial(binned_neighbors, slots=40, bins=Bins(number, most)))
    lists, fullest = make(real, padded, cell32, inverse, CUTOFF)
    neighbors, shifts, _ = dense_neighbors(positions.astype(np.float64), cell, CUTOFF)
    assert (neighbors >= 0).sum() > 300
    assert _as_sets(lists.neighbors[:200], lists.shifts[:200]) == _as_sets(neighbors, shifts)
    assert (np.asarray(lists.neighbors)[200:] == -1).all(), "padding"
    assert (int(lists.needed), int(fullest)) == (neighbors.shape[1], most)
    memory = make.lower(real, padded, cell32, inverse, CUTOFF).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2e7
    lists, fullest = jax.jit(functools.partial(binned_neighbors, slots=40, bins=Bins(number, 2)))(
        real, padded, cell32, inverse, CUTOFF
    )
    assert int(fullest) == most, "what is needed is known although there is no room for it"
    assert np.prod(np.array(bins_for(10**6, np.full(3, 1e9), CUTOFF), float)) < 2**31


def test_small_and_open_cells_have_no_bins() -> None:
    assert bins_for(10**6, np.array([6.1, 7.0, 5.9]), CUTOFF) is None
    assert bins_for(10**6, np.array([6.1, 7.0, np.inf]), CUTOFF) is None
    assert bins_for(100, np.array([60.0, 60.0, 60.0]), CUTOFF) is None
    assert bins_for(10**6, np.array([6.1, 8.1, 60.0]), CUTOFF) == (3, 4, 29)


@pytest.fixture
def large_fluid(monkeypatch: pytest.MonkeyPatch) -> Atoms:
    """864 atoms in a cell of 10.5 σ, as if they were many."""
    monkeypatch.setattr(cell_lists, "BINNED_FROM", 400)
    return fcc(6)


FLEXIBLE = NPT(REDUCED_K, 0.5 / GPA, "flexible", friction_per_ps=1000.0 / REDUCED_TIME_FS)


@pytest.mark.parametrize(
    "ensemble", [pytest.param(FLUID, id="NVT"), pytest.param(FLEXIBLE, id="NPT", marks=pytest.mark.slow)]
)
def test_the_same_trajectory(
    large_fluid: Atoms, ensemble: Ensemble, grown: list[Growth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bins, with bins that are too small at first, and without."""
    options = {"ensemble": ensemble, "steps": 10, "sample_every_fs": 5 * DT}
    with monkeypatch.context() as patch:
        patch.setattr(capacity, "fullest_bin", lambda *_: 2)
        cramped = run_fluid(large_fluid, lennard_jones(), **options)
    assert grown
    assert grown[0].capacity.bins is not None
    assert grown[0].capacity.bins.room > 3
    binned = run_fluid(large_fluid, lennard_jones(), **options)
    monkeypatch.setattr(cell_lists, "BINNED_FROM", 10**6)
    pairs = run_fluid(large_fluid, lennard_jones(), **options)
    for other in (cramped, binned):
        np.testing.assert_allclose(other.positions, pairs.positions, atol=3e-5)
        np.testing.assert_allclose(other.potential_energy, pairs.potential_energy, rtol=1e-5)
