"""Graphs: there and back, batched and padded, strained, and the structures that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from jaxmlip.systems.graph import (
    FAR,
    GHOST,
    atoms_from_graph,
    batch_graphs,
    check_structure,
    edge_vectors,
    graph_from_atoms,
    strained,
)
from jaxmlip.systems.ice import ice_ih
from jaxmlip.types import AnyArray

CUTOFF = 3.5


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    slab = Atoms("H2", [[0, 0, 0], [0.5, 0.2, 0.9]], cell=[[3, 0, 0], [1, 3, 0], [0, 0, 0]], pbc=(True, True, False))
    return [molecule("H2O"), ice_ih(16), bulk("NaCl", "rocksalt", 5.6), slab]


def test_round_trip_of_a_padded_batch(structures: list[Atoms]) -> None:
    graphs = [graph_from_atoms(atoms, CUTOFF) for atoms in structures]
    batch = batch_graphs(graphs, n_atoms=64, n_graphs=6, slots=40)
    assert (batch.n_atoms, batch.n_graphs, batch.n_slots) == (64, 6, 40)
    returned = atoms_from_graph(batch)
    assert len(returned) == len(structures)
    for atoms, back in zip(structures, returned, strict=True):
        np.testing.assert_array_equal(back.numbers, atoms.numbers)
        np.testing.assert_array_equal(back.pbc, atoms.pbc)
        np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-5)
        np.testing.assert_allclose(back.cell.array[back.pbc], atoms.cell.array[atoms.pbc], atol=1e-5)

    np.testing.assert_array_equal(batch.atoms_per_graph(), [*map(len, structures), 0, 0])
    np.testing.assert_allclose(
        batch.volume(), [0, structures[1].cell.volume, structures[2].cell.volume, 0, 0, 0], rtol=1e-5
    )
    assert (np.asarray(batch.owner)[~np.asarray(batch.atom_mask)] == 6).all()
    # A batch of a batch is the batch of all.
    nested = batch_graphs([batch, graphs[0]])
    assert [len(atoms) for atoms in atoms_from_graph(nested)] == [*map(len, structures), 3]
    assert np.asarray(nested.atoms_per_graph()).tolist() == [*map(len, structures), 0, 0, 3]


def test_edges_survive_batching(structures: list[Atoms]) -> None:
    graphs = [graph_from_atoms(atoms, CUTOFF, 2.0) for atoms in structures]
    batch = batch_graphs(graphs, n_atoms=64, n_graphs=5)
    vectors, mask = map(np.asarray, jax.jit(edge_vectors)(batch))
    start = 0
    for graph in graphs:
        here = np.s_[start : start + graph.n_atoms, : graph.n_slots]
        expected = graph.positions[graph.neighbors] + graph.shifts @ graph.cell[0] - graph.positions[:, None]
        np.testing.assert_array_equal(mask[here], graph.neighbors != GHOST)
        np.testing.assert_allclose(vectors[here][mask[here]], expected[mask[here]], atol=1e-5)
        assert not mask[start : start + graph.n_atoms, graph.n_slots :].any()
        start += graph.n_atoms
    assert not mask[start:].any()
    assert (vectors[~mask] == np.array([FAR, 0, 0])).all()
    assert batch.inner == max(graph.inner for graph in graphs)


def test_empty_slots_carry_no_gradient(structures: list[Atoms]) -> None:
    graph = batch_graphs([graph_from_atoms(structures[0], CUTOFF)], n_atoms=5, slots=7)

    def total(positions: jax.Array) -> jax.Array:
        vectors, _ = edge_vectors(graph.replace(positions=positions))
        return (1 / jnp.linalg.norm(vectors, axis=-1)).sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(graph.positions))
    assert np.isfinite(gradient).all()
    assert (gradient[3:] == 0).all()
    assert (np.abs(gradient[:3]).max(axis=1) > 1e-3).all()
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-6)


def test_strain_deforms_every_edge_alike(structures: list[Atoms], x64: None) -> None:
    graphs = [graph_from_atoms(atoms, CUTOFF, dtype=np.float64) for atoms in structures]
    graph = batch_graphs(graphs, n_graphs=5)
    strain = np.random.default_rng(0).normal(scale=0.02, size=(5, 3, 3))

    @jax.jit
    def edges(strain: np.ndarray) -> AnyArray:
        return edge_vectors(strained(graph, graph.positions, strain))[0]

    before, after, mask = np.asarray(edges(0 * strain)), np.asarray(edges(strain)), graph.neighbors != GHOST
    deformation = np.eye(3) + 0.5 * (strain + strain.transpose(0, 2, 1))[graph.owner]
    expected = np.einsum("isx,ixy->isy", before, deformation)
    np.testing.assert_allclose(after[mask], expected[mask], atol=1e-12)


def test_batch_refuses_what_does_not_fit(structures: list[Atoms]) -> None:
    graph = graph_from_atoms(structures[0], CUTOFF)
    with pytest.raises(ValueError, match="6 atoms do not fit into a batch of 5 atoms"):
        batch_graphs([graph, graph], n_atoms=5)
    with pytest.raises(ValueError, match="2 graphs do not fit into a batch of 1 graphs"):
        batch_graphs([graph, graph], n_graphs=1)
    with pytest.raises(ValueError, match="2 slots do not fit into a batch of 1 slots"):
        batch_graphs([graph], slots=1)
    with pytest.raises(ValueError, match="no graphs to batch"):
        batch_graphs([])
    with pytest.raises(ValueError, match=r"2 slots are needed within 3\.0 Å, but inner=1"):
        graph_from_atoms(structures[0], CUTOFF, 3.0, inner=1)


def test_damaged_structures_are_refused() -> None:
    good = molecule("H2O")
    nan, infinite, dummy = good.copy(), good.copy(), good.copy()
    nan.positions[1, 2] = np.nan
    infinite.positions[2, 0] = np.inf
    dummy.numbers[1] = 0
    flat = Atoms("H2O", good.positions, cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]], pbc=True)
    lost = Atoms("H2O", good.positions, cell=[[5, 0, 0], [0, 5, 0], [0, np.nan, 5]], pbc=True)
    for atoms, sentence in [
        (nan, r"position of atom 1 \(H\) of OH2 is not finite"),
        (infinite, r"position of atom 2 \(H\) of OH2 is not finite"),
        (dummy, r"Atom 1 of OXH has no element"),
        (Atoms(), "no atoms"),
        (flat, r"cell of H2O is singular along its periodic directions \[True, True, True\].*pbc=False"),
        (Atoms("H", pbc=True), "cell of H is singular"),
        (
            Atoms("H", cell=[5, 0, 5], pbc=(True, True, False)),
            r"singular along its periodic directions \[True, True, False",
        ),
        (lost, "cell of H2O is not finite"),
        (Atoms("H", cell=[5, 0.01, 5], pbc=True), r"cell of H is only 0.01 Å wide.*give its vectors in Å"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            check_structure(atoms)
        with pytest.raises(ValueError, match=sentence):
            graph_from_atoms(atoms, CUTOFF)
    check_structure(Atoms("H", cell=[5, 0, 5], pbc=(True, False, True)))
    assert graph_from_atoms(Atoms("H"), CUTOFF).neighbors.tolist() == [[GHOST]]
