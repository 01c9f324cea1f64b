"""Neighbour lists against ASE's, on cells of every kind."""

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.systems.neighbors import dense_neighbors, neighbor_pairs

CUTOFF = 4.0

CELLS = {
    "triclinic": ([[7, 0, 0], [2.5, 6, 0], [-1.5, 2, 8]], True),
    "smaller than the cutoff": ([[2.6, 0, 0], [0.9, 2.3, 0], [0.4, -0.7, 3.0]], True),
    "left-handed": ([[0, 5, 0], [5, 0, 0], [0, 0, 5]], True),
    "needle": ([[1.9, 0.3, 0], [0, 14, 0], [0, 3, 11]], True),
    "slab": ([[5, 1, 0], [0, 4, 0], [0, 0, 0]], (True, True, False)),
    "slab with a cell": ([[5, 1, 0], [0, 4, 0], [1, 2, 20]], (True, True, False)),
    "wire along z": ([[0, 0, 0], [0, 0, 0], [1, 0.5, 3]], (False, False, True)),
    "molecule": ([[0, 0, 0]] * 3, False),
    "molecule in a box": ([[9, 0, 0], [0, 9, 0], [0, 0, 9]], False),
}


def structure(kind: str, seed: int) -> Atoms:
    """Random atoms, some several cells outside of theirs."""
    rng = np.random.default_rng(seed)
    cell, pbc = CELLS[kind]
    number = 2 if kind == "smaller than the cutoff" else 20
    positions = rng.uniform(-4, 10, size=(number, 3))
    return Atoms(rng.choice([1, 8], size=number), positions, cell=cell, pbc=pbc)


def edges(i: np.ndarray, j: np.ndarray, shifts: np.ndarray) -> list[tuple[int, ...]]:
    return sorted(map(tuple, np.column_stack([i, j, shifts]).astype(int).tolist()))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_edges_as_ase(kind: str, seed: int) -> None:
    atoms = structure(kind, seed)
    graph = graph_from_atoms(atoms, CUTOFF, 2.5, dtype=np.float64)
    i, j, shifts, distance = neighbor_list("ijSd", atoms, CUTOFF)
    assert len(i) > 0
    owners, slots = np.nonzero(graph.neighbors != -1)
    ours = edges(owners, graph.neighbors[owners, slots], graph.shifts[owners, slots])
    assert ours == edges(i, j, shifts)
    assert graph.n_slots == np.bincount(i).max(), "as few slots as will do"
    assert (graph.shifts[graph.neighbors == -1] == 0).all()

    vectors = graph.positions[graph.neighbors] + graph.shifts @ graph.cell[0] - graph.positions[:, None]
    lengths = np.where(graph.neighbors == -1, 1e9, np.linalg.norm(vectors, axis=-1))
    assert np.diff(lengths, axis=1).min() > -1e-9, "nearest first, empty slots last"
    assert (lengths[:, graph.inner :] > 2.5 - 1e-9).all()
    assert graph.inner == np.bincount(i[distance < 2.5], minlength=1).max()


def test_isolated_atom_has_one_empty_slot() -> None:
    neighbors, shifts, inner = dense_neighbors(np.zeros((1, 3)), np.zeros((3, 3)), CUTOFF, 2.0)
    assert neighbors.tolist() == [[-1]]
    assert shifts.tolist() == [[[0, 0, 0]]]
    assert inner == 0
    assert all(len(x) == 0 for x in neighbor_pairs(np.zeros((1, 3)), np.zeros((3, 3)), CUTOFF))


def test_refusals() -> None:
    positions = np.array([[0.0, 0, 0], [0, 0, 1], [0, 0, 2]])
    with pytest.raises(ValueError, match=r"2 neighbours within 4\.0 Å, but there are 1 slots"):
        dense_neighbors(positions, np.zeros((3, 3)), CUTOFF, slots=1)
    with pytest.raises(ValueError, match=r"Atoms 0 and 2 coincide"):
        dense_neighbors(positions * [1, 1, 0] + [[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.zeros((3, 3)), CUTOFF)
    with pytest.raises(ValueError, match=r"Atoms 0 and 1 coincide"):
        dense_neighbors(np.array([[0.0, 0, 0], [5, 0, 0]]), np.eye(3) * 5.0, CUTOFF)
    with pytest.raises(ValueError, match="more than 127 cells apart: wrap"):
        dense_neighbors(np.array([[0.0, 0, 0], [1001, 0, 0]]), np.eye(3) * 5.0, CUTOFF)
