"""A structure, or a batch of structures, as the pytree every potential reads.

Neighbours are *dense*: every atom owns the same number of slots, so that messages are sums over an axis instead of
scatters. Slots that are not needed hold the ghost −1.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Bool, Int

from jaxmlip.describing import short
from jaxmlip.systems.neighbors import dense_neighbors
from jaxmlip.systems.origin import offset_from_origin
from jaxmlip.types import AnyArray, EdgeMask, EdgeVectors, HostMatrix, Leaf, Matrices, PerAtom, PerGraph, Size, Vectors

GHOST = -1
"""Content of an empty neighbour slot."""

FAR = 1.0e3
"""Length in Å given to the edge vector of an empty slot: beyond every cutoff, and safe to divide by."""

THINNEST_CELL = 0.1
"""Å; a thinner one was given in another unit, or is damaged."""


class Graph(flax.struct.PyTreeNode):
    """Structures with their neighbour lists, padded to fixed shapes.

    Leaves are numpy arrays when made on the host and jax arrays after. A stack of graphs (`jax.vmap` over replicas) is
    a Graph whose leaves have one more axis in front.

    Attributes:
        positions: [atoms, 3], Å; not necessarily inside the cell.
        species: [atoms], atomic numbers; 0 marks a padding atom.
        cell: [graphs, 3, 3], lattice vectors as rows, Å; the row of a direction that is not periodic is zero.
        neighbors: [atoms, slots], indices of an atom's neighbours, nearest first; `GHOST` in empty slots.
        shifts: [atoms, slots, 3], lattice translations: the edge vector is `R[j] + shift @ cell − R[i]`.
        owner: [atoms], index of the graph an atom belongs to; the number of graphs for a padding atom.
        inner: how many leading slots suffice for the `inner_cutoff` the lists were made with (static).
        tiers: numbers of consecutive atoms and of the leading slots that suffice for them (static), for potentials that
            save the work on slots that are empty; by default any atom may need all slots.
        elements: how many different elements there are, at most, in all graphs together and in any one of them
            (static), for potentials that save the work on elements that are not there; 0 where that is not said. What a
            potential says of graphs with more elements than this is NaN.
    """

    positions: Leaf
    species: Leaf
    cell: Leaf
    neighbors: Leaf
    shifts: Leaf
    owner: Leaf
    inner: Size = flax.struct.field(pytree_node=False, default=0)
    tiers: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False, default=())
    elements: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))

    def __repr__(self) -> str:
        """Shapes alone."""
        shapes = {name: np.shape(getattr(self, name)) for name in ("positions", "cell", "neighbors")}
        return short("Graph", *(f"{name} {shape}" for name, shape in shapes.items()), f"inner {self.inner}")

    @property
    def n_atoms(self) -> int:
        """Number of atoms, padding included."""
        return self.positions.shape[0]

    @property
    def n_graphs(self) -> int:
        """Number of graphs, padding included."""
        return self.cell.shape[0]

    @property
    def n_slots(self) -> int:
        """Neighbour slots of each atom."""
        return self.neighbors.shape[1]

    @property
    def atom_mask(self) -> Bool[AnyArray, " atoms"]:
        """True for real atoms."""
        return self.species > 0

    def sum_over_atoms(self, values: PerAtom) -> PerGraph:
        """Sum a per-atom quantity over the atoms of each graph; padding atoms are dropped."""
        return jax.ops.segment_sum(values, self.owner, num_segments=self.n_graphs)

    def atoms_per_graph(self) -> PerGraph:
        """Number of real atoms in each graph; 0 for a padding graph."""
        return self.sum_over_atoms(self.atom_mask.astype(self.positions.dtype))

    def volume(self) -> PerGraph:
        """|det cell| in Å³; 0 unless periodic in all three directions."""
        return jnp.abs(jnp.linalg.det(self.cell))


def in_tiers(graph: Graph, tiers: tuple[tuple[int, int], ...]) -> tuple[Graph, Int[np.ndarray, " atoms"]]:
    """A graph on the host with its atoms in descending order of their number of neighbours, as `Graph.tiers` wants it.

    Returns:
        The graph, and for each of its atoms the place where it was before.

    Raises:
        ValueError: if the tiers do not hold its atoms, or their neighbours.
    """
    degree = np.sum(np.asarray(graph.neighbors) != GHOST, axis=1)
    order = np.argsort(-degree, kind="stable")
    room = np.repeat([slots for _, slots in tiers], [atoms for atoms, _ in tiers])
    if len(room) != graph.n_atoms or (degree[order] > room).any():
        raise ValueError(f"The tiers {tiers} do not hold {graph.n_atoms} atoms with up to {degree.max()} neighbours.")
    place = np.empty(graph.n_atoms, np.int32)
    place[order] = np.arange(graph.n_atoms, dtype=np.int32)
    neighbors = np.asarray(graph.neighbors)[order]
    sorted_graph = graph.replace(
        positions=graph.positions[order],
        species=graph.species[order],
        neighbors=np.where(neighbors == GHOST, GHOST, place[neighbors]),
        shifts=graph.shifts[order],
        owner=graph.owner[order],
        tiers=tiers,
    )
    return sorted_graph, order


def edge_vectors(graph: Graph) -> tuple[EdgeVectors, EdgeMask]:
    """Vectors from each atom to its neighbours, and which slots are real.

    An empty slot has the constant vector (`FAR`, 0, 0): every envelope maps it to zero, and no division by it fails.
    Lists may reach beyond a potential's cutoff (skin, or another potential's larger cutoff): callers cut by length.
    """
    mask = graph.neighbors != GHOST
    # A numpy leaf cannot be indexed by a traced one, as where a function closes over a graph made on the host.
    positions, cell = jnp.asarray(graph.positions), jnp.asarray(graph.cell)
    cell = cell[jnp.minimum(graph.owner, graph.n_graphs - 1)]
    shifts = graph.shifts.astype(positions.dtype)
    vectors = positions[graph.neighbors] + jnp.einsum("isk,ikx->isx", shifts, cell) - positions[:, None, :]
    ghost = jnp.array([FAR, 0.0, 0.0], dtype=vectors.dtype)
    return jnp.where(mask[..., None], vectors, ghost), mask


def strained(graph: Graph, positions: Vectors, strain: Matrices) -> Graph:
    """The graph with positions and cells multiplied by 1 + ε; only the symmetric part of ε acts."""
    strain = jnp.asarray(0.5 * (strain + jnp.swapaxes(strain, -1, -2)))
    of_atom = strain[jnp.minimum(graph.owner, graph.n_graphs - 1)]
    return graph.replace(
        positions=positions + jnp.einsum("ax,axy->ay", positions, of_atom),
        cell=graph.cell + graph.cell @ strain,
    )


def graph_from_atoms(
    atoms: Atoms,
    cutoff: float,
    inner_cutoff: float = 0.0,
    *,
    slots: int | None = None,
    inner: int | None = None,
    dtype: type = np.float32,
) -> Graph:
    """One structure as a Graph with numpy leaves.

    Positions far from the origin are translated, by lattice vectors or as a whole, before they are cast: see `origin`.

    Args:
        atoms: the structure; periodic in any subset of directions, of any size, wrapped or not.
        cutoff: neighbours within this distance in Å get a slot; cells smaller than the cutoff use many images.
        inner_cutoff: distance that the leading `inner` slots must cover (see `Graph.inner`).
        slots: number of neighbour slots; by default just enough.
        inner: number of leading slots for the inner cutoff; by default just enough.
        dtype: of positions and cell.

    Raises:
        ValueError: for NaN or infinite positions, a singular periodic cell, coinciding atoms, or too few slots.
    """
    check_structure(atoms)
    cell = periodic_cell(atoms)
    positions = atoms.positions - offset_from_origin(atoms.positions, cell).vectors(cell)
    neighbors, shifts, needed_inner = dense_neighbors(positions, cell, cutoff, inner_cutoff, slots=slots)
    if inner is not None and inner < needed_inner:
        raise ValueError(f"{needed_inner} slots are needed within {inner_cutoff} Å, but inner={inner} was given.")
    return Graph(
        positions=np.asarray(positions, dtype=dtype),
        species=np.asarray(atoms.numbers, dtype=np.int32),
        cell=np.asarray(cell[None], dtype=dtype),
        neighbors=neighbors,
        shifts=shifts,
        owner=np.zeros(len(atoms), dtype=np.int32),
        inner=needed_inner if inner is None else inner,
    )


def atoms_from_graph(graph: Graph) -> list[Atoms]:
    """The structures of a batch, without padding: the inverse of `graph_from_atoms` and `batch_graphs`.

    Translations from far off the origin are not undone.
    """
    positions, species, cells, owner = map(np.asarray, (graph.positions, graph.species, graph.cell, graph.owner))
    structures = []
    for index, cell in enumerate(cells):
        mine = owner == index
        if mine.any():
            structures.append(Atoms(species[mine], positions[mine], cell=cell, pbc=cell.any(axis=1)))
    return structures


def batch_graphs(
    graphs: Sequence[Graph], *, n_atoms: int | None = None, n_graphs: int | None = None, slots: int | None = None
) -> Graph:
    """Concatenate graphs and pad to the given shapes (by default: no padding atoms or graphs, just enough slots).

    Raises:
        ValueError: if the graphs do not fit the given shapes, or there are none.
    """
    if len(graphs) == 0:
        raise ValueError("There are no graphs to batch.")
    total = sum(g.n_atoms for g in graphs)
    n_atoms = total if n_atoms is None else n_atoms
    n_graphs = sum(g.n_graphs for g in graphs) if n_graphs is None else n_graphs
    slots = max(g.n_slots for g in graphs) if slots is None else slots
    room = {"atoms": (total, n_atoms), "graphs": (sum(g.n_graphs for g in graphs), n_graphs)}
    room["slots"] = (max(g.n_slots for g in graphs), slots)
    for what, (need, have) in room.items():
        if need > have:
            raise ValueError(f"{need} {what} do not fit into a batch of {have} {what}.")

    dtype = graphs[0].positions.dtype
    batch = Graph(
        positions=np.zeros((n_atoms, 3), dtype),
        species=np.zeros(n_atoms, np.int32),
        cell=np.zeros((n_graphs, 3, 3), dtype),
        neighbors=np.full((n_atoms, slots), GHOST, np.int32),
        shifts=np.zeros((n_atoms, slots, 3), np.int8),
        owner=np.full(n_atoms, n_graphs, np.int32),
        inner=min(slots, max(g.inner for g in graphs)),
    )
    atom, graph = 0, 0
    for g in graphs:
        real = np.asarray(g.owner) < g.n_graphs
        here = np.s_[atom : atom + g.n_atoms]
        batch.positions[here] = g.positions
        batch.species[here] = g.species
        batch.cell[graph : graph + g.n_graphs] = g.cell
        neighbors = np.asarray(g.neighbors)
        batch.neighbors[here, : g.n_slots] = np.where(neighbors == GHOST, GHOST, neighbors + atom)
        batch.shifts[here, : g.n_slots] = g.shifts
        batch.owner[here] = np.where(real, np.asarray(g.owner) + graph, n_graphs)
        atom, graph = atom + g.n_atoms, graph + g.n_graphs
    return batch


def periodic_cell(atoms: Atoms) -> HostMatrix:
    """The cell of a structure with zero rows where it is not periodic."""
    return np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)


def check_structure(atoms: Atoms) -> None:
    """Raise ValueError if a structure cannot be simulated: no atoms, dummy atoms, NaN, or a singular periodic cell."""
    if len(atoms) == 0:
        raise ValueError("The structure has no atoms.")
    if (atoms.numbers <= 0).any():
        raise ValueError(
            f"Atom {np.flatnonzero(atoms.numbers <= 0)[0]} of {atoms.symbols} has no element (atomic number 0); remove "
            "dummy atoms from the structure."
        )
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if bad.size:
        raise ValueError(
            f"The position of atom {bad[0]} ({atoms.symbols[bad[0]]}) of {atoms.symbols} is not finite; "
            "the structure is damaged, or the simulation that made it has failed."
        )
    rows = atoms.cell.array[atoms.pbc]
    if not np.isfinite(rows).all():
        raise ValueError(f"The cell of {atoms.symbols} is not finite.")
    if len(rows):
        lengths = np.linalg.norm(rows, axis=1)
        spanned = np.sqrt(max(np.linalg.det(rows @ rows.T), 0.0))
        if not lengths.all() or spanned < 1e-6 * lengths.prod():
            raise ValueError(
                f"The cell of {atoms.symbols} is singular along its periodic directions {atoms.pbc.tolist()}: "
                f"{atoms.cell.array.tolist()}. Give a full cell, or set pbc=False for a molecule."
            )
        width = 1 / np.linalg.norm(np.linalg.pinv(rows), axis=0).max()
        if width < THINNEST_CELL:
            raise ValueError(
                f"The cell of {atoms.symbols} is only {width:.3g} Å wide, less than any crystal; give its vectors in Å."
            )
