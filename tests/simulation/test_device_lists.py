"""The device's lists are the host's lists."""

import functools

import jax
import numpy as np
import pytest

from jaxmlip.systems.device_lists import cell_heights, device_neighbors, image_search, pseudo_inverse, within_cutoff
from jaxmlip.systems.graph import Graph
from jaxmlip.systems.neighbors import dense_neighbors

CUTOFF, INNER, SKIN, SLOTS = 3.0, 1.7, 0.4, 160

CELLS = {
    "many images": (np.array([[1.9, 0.0, 0.0], [0.5, 2.1, 0.0], [-0.4, 0.9, 2.4]]), 2),
    "one atom": (np.array([[1.53, 0.0, 0.0], [0.7, 1.57, 0.0], [0.72, 0.71, 1.61]]), 1),
    "between one and two cutoffs": (np.array([[4.0, 0.0, 0.0], [1.1, 5.2, 0.0], [-1.3, 2.0, 3.4]]), 17),
    "wider than two cutoffs": (np.diag([6.5, 7.0, 9.0]) + np.array([[0, 0, 0], [1.5, 0, 0], [0, -2.0, 0]]), 40),
    "left-handed, sheared": (np.array([[0.0, 5.0, 0.0], [4.0, 3.0, 0.0], [3.0, 3.0, 6.0]]), 20),
    "slab": (np.array([[3.5, 0.3, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), 15),
    "wire": (np.array([[0.0, 0.0, 0.0], [0.0, 2.2, 0.0], [0.0, 0.0, 0.0]]), 6),
    "molecule": (np.zeros((3, 3)), 10),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("cells_away", [0, 5])
def test_equals_host_list(name: str, cells_away: int) -> None:
    """Without padding; made with a skin, and still complete when the atoms have moved by up to half of it."""
    cell, atoms = CELLS[name]
    rng = np.random.default_rng(len(name))
    positions = rng.uniform(size=(atoms, 3)) @ np.where(cell.any(axis=1)[:, None], cell, 4.0 * np.eye(3))
    positions += rng.integers(-cells_away, cells_away + 1, (atoms, 3)) @ cell
    positions = positions.astype(np.float32)

    search = image_search(cell_heights(cell), CUTOFF + SKIN)
    inverse, cell32 = pseudo_inverse(cell).astype(np.float32), cell.astype(np.float32)
    make = jax.jit(functools.partial(device_neighbors, search=search, slots=SLOTS))
    padded = np.concatenate([positions, np.zeros((2, 3), np.float32)])
    made = jax.device_get(make(np.arange(atoms + 2) < atoms, padded, cell32, inverse, CUTOFF + SKIN))
    assert (made.neighbors[atoms:] == -1).all()
    made = made.replace(neighbors=made.neighbors[:atoms], shifts=made.shifts[:atoms])
    neighbors, shifts, _ = dense_neighbors(positions.astype(np.float64), cell, CUTOFF + SKIN)
    assert _as_sets(made.neighbors, made.shifts) == _as_sets(neighbors, shifts)
    assert int(made.needed) == neighbors.shape[1]

    step = rng.normal(size=(atoms, 3))
    moved = (positions + 0.499 * SKIN * step / np.linalg.norm(step, axis=1, keepdims=True)).astype(np.float32)
    neighbors, shifts, inner = dense_neighbors(moved.astype(np.float64), cell, CUTOFF, INNER)
    slots, inner = neighbors.shape[1] + 3, inner + 1
    species, owner = np.ones(atoms, np.int32), np.zeros(atoms, np.int32)
    listed = Graph(moved, species, cell32[None], made.neighbors, made.shifts, owner)
    cut = jax.jit(functools.partial(within_cutoff, cutoff=CUTOFF, inner_cutoff=INNER, slots=slots, inner=inner))
    graph, needed = jax.device_get(cut(listed))
    assert _as_sets(graph.neighbors, graph.shifts) == _as_sets(neighbors, shifts)
    assert needed.max(axis=0).tolist() == [slots - 3, inner - 1]
    assert (graph.neighbors.shape[1], graph.inner) == (slots, inner)

    vectors = moved[graph.neighbors] + graph.shifts @ cell - moved[:, None]
    distances = np.where(graph.neighbors >= 0, np.linalg.norm(vectors, axis=-1), 1e9)
    assert (np.diff(distances, axis=1) > -1e-5).all(), "nearest first"
    assert (distances[:, inner:] >= INNER).all(), "the leading slots hold the inner neighbours"


def test_reports_lack_of_room() -> None:
    cell, atoms = CELLS["between one and two cutoffs"]
    cell = cell.astype(np.float32)
    positions = (np.random.default_rng(0).uniform(size=(atoms, 3)) @ cell).astype(np.float32)
    search = image_search(cell_heights(cell), CUTOFF)
    needed = dense_neighbors(positions.astype(float), cell.astype(float), CUTOFF)[0].shape[1]
    inverse = pseudo_inverse(cell.astype(float)).astype(np.float32)
    make = jax.jit(functools.partial(device_neighbors, search=search, slots=needed // 2))
    assert int(make(np.ones(atoms, bool), positions, cell, inverse, CUTOFF).needed) == needed


def test_image_search_tries_few() -> None:
    """One image where the cell is wider than two cutoffs, two per direction where it is wider than one."""
    assert len(image_search(np.array([6.5, 6.5, 6.5]), 3.0).translations) == 1
    assert len(image_search(np.array([4.0, 4.0, 6.5]), 3.0).translations) == 4
    assert len(image_search(np.array([np.inf, 2.9, np.inf]), 3.0).translations) == 3


def _as_sets(neighbors: np.ndarray, shifts: np.ndarray) -> list[set]:
    return [
        {(int(j), *map(int, s)) for j, s in zip(js, ss, strict=True) if j >= 0}
        for js, ss in zip(neighbors, shifts, strict=True)
    ]
