"""Room for the neighbour lists of many replicas, how it grows, and the one way from their positions to a Graph."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxmlip.systems.cell_lists import Bins, binned_neighbors, bins_for, fullest_bin
from jaxmlip.systems.device_lists import (
    DeviceList,
    ImageSearch,
    device_neighbors,
    image_search,
    pseudo_inverse,
    within_cutoff,
)
from jaxmlip.systems.graph import GHOST, Graph
from jaxmlip.systems.neighbors import dense_neighbors

RATTLE = 0.07
"""Å, in each direction: about how much neighbouring atoms of ice move against each other at 250 K."""

RATTLED = 8
"""Rattled structures that the capacity for neighbour lists is found from, at most."""

RATTLED_ATOMS = 20_000
"""Atoms in all of them from which on no more are made: so many have met what heat will do."""

PAIRS_AT_ONCE = 2**24
"""Pairs whose distances are held in memory at once when lists are made; replicas take turns beyond."""

Needs = Int[np.ndarray, "4"]
"""Slots of lists with their skin, slots within the cutoff, slots within the inner cutoff, and atoms in a bin."""


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of neighbour lists; a change compiles anew.

    Attributes:
        search: translations tried for each pair.
        listed: neighbour slots of the lists, skin included.
        slots: neighbour slots that a potential sees.
        inner: leading slots for the inner cutoff; 0 if the potential has none.
        bins: of large cells, which then are looked through in place of all pairs.
        elements: see `Graph.elements`, of all replicas together.
    """

    search: ImageSearch
    listed: int
    slots: int
    inner: int
    bins: Bins | None = None
    elements: tuple[int, int] = (0, 0)

    @classmethod
    def holding(cls, needs: Needs, heights: Float[np.ndarray, "3"], reach: float, atoms: int) -> "Capacity":
        """Capacity for so much, rounded up so that similar structures share compiled code.

        Little is added: a slot too many costs in every step (an inner one with the square of their number), a slot too
        few costs one compilation.

        Args:
            needs: see `Needs`.
            heights: least heights of the cells to come, Å; infinite where not periodic.
            reach: how far lists go, Å.
            atoms: of each replica, padding included.
        """
        listed, slots, in_bin = (max(1, int(np.ceil(needs[k] / 4)) * 4) for k in (0, 1, 3))
        inner, number = int(needs[2]), bins_for(atoms, heights, reach)
        slots = max(slots, inner)
        bins = None if number is None else Bins(number, in_bin)
        return cls(image_search(heights, reach), max(listed, slots), slots, inner, bins)

    def grown(self, needs: Needs, heights: Float[np.ndarray, "3"], reach: float, atoms: int) -> "Capacity":
        """Capacity for an eighth more than is needed, and no less than there is; see `holding`."""
        needs = np.asarray(needs) + np.asarray(needs) // 8
        needs[2] += needs[2] > 0
        new = Capacity.holding(needs, heights, reach, atoms)
        bins = new.bins
        if bins is not None and self.bins is not None:
            bins = Bins(bins.number, max(bins.room, self.bins.room))
        sizes = {name: max(getattr(new, name), getattr(self, name)) for name in ("listed", "slots", "inner")}
        return dataclasses.replace(self, search=new.search, bins=bins, **sizes)

    def fits(self, needs: Any) -> Any:
        """Whether lists that need so much (see `Needs`) are complete."""
        return (needs <= jnp.asarray([self.listed, self.slots, self.inner, self.bins.room if self.bins else 0])).all()


def needs_of(
    positions: Sequence[np.ndarray],
    cells: np.ndarray,
    heights: np.ndarray,
    cutoffs: tuple[float, float],
    skin: float,
    atoms: int,
) -> Needs:
    """What lists of replicas will need, with some to spare for the motion to come; found on the host.

    Structures at rest say little of thermal motion: the most is taken over structures whose atoms are displaced at
    random by `RATTLE`.

    Args:
        positions: [atoms, 3] of each replica, Å.
        cells: [replicas, 3, 3], Å.
        heights: see `Capacity.holding`.
        cutoffs: cutoff and inner cutoff of the potential, Å.
        skin: by how much lists reach beyond the cutoff, Å.
        atoms: see `Capacity.holding`.
    """
    counts, rng, (cutoff, inner_cutoff) = [], np.random.default_rng(0), cutoffs
    for where, cell in zip(positions, cells, strict=True):
        # Wrapped: the host's lists have room for shifts of few cells.
        where = where - np.floor(where @ pseudo_inverse(cell) + 1e-9) @ cell
        for _ in range(min(-(-RATTLED // len(positions)), -(-RATTLED_ATOMS // max(1, len(where))))):
            moved = where + rng.normal(scale=RATTLE, size=where.shape)
            listed, _, seen = dense_neighbors(moved, cell, cutoff + skin, cutoff)
            _, _, inner = dense_neighbors(moved, cell, cutoff, inner_cutoff)
            counts.append((listed.shape[1], seen, inner))
    number, in_bin = bins_for(atoms, heights, cutoff + skin), 0
    if number is not None:
        in_bin = max(fullest_bin(*each, number) for each in zip(positions, cells, strict=True)) * 5 // 4
    return np.append(np.max(counts, axis=0), in_bin)


def lists_of_replicas(
    species: Any, positions: Any, cells: Any, inverses: Any, reach: Any, capacity: Capacity
) -> tuple[DeviceList, Any]:
    """Lists of all replicas, made for as many at once as memory allows, and the atoms in the fullest bin."""
    replicas, atoms, _ = positions.shape
    real = species > 0
    if capacity.bins is not None:
        bins = capacity.bins

        def binned(replica: tuple[Any, Any, Any, Any]) -> Any:
            real, where, cell, inverse = replica
            return binned_neighbors(real, where, cell, inverse, reach, bins=bins, slots=capacity.listed)

        lists, fullest = jax.lax.map(binned, (real, positions, cells, inverses))
        return lists, fullest.max().astype(jnp.int32)

    def lists_of(replica: tuple[Any, Any, Any, Any]) -> Any:
        real, where, cell, inverse = replica
        return device_neighbors(real, where, cell, inverse, reach, search=capacity.search, slots=capacity.listed)

    pairs = atoms * atoms * len(capacity.search.translations)
    at_once = max(1, min(replicas, PAIRS_AT_ONCE // pairs))
    return jax.lax.map(lists_of, (real, positions, cells, inverses), batch_size=at_once), 0


def as_one_graph(
    species: Any, positions: Any, cells: Any, neighbors: Any, shifts: Any, *, elements: tuple[int, int] = (0, 0)
) -> Graph:
    """All replicas as one batch, which a potential handles better than a mapped axis: it knows how to cut batches."""
    replicas, atoms, _ = positions.shape
    offset = (atoms * jnp.arange(replicas, dtype=jnp.int32))[:, None, None]
    neighbors = jnp.where(neighbors == GHOST, GHOST, neighbors + offset)
    return Graph(
        positions=positions.reshape(-1, 3),
        species=species.reshape(-1),
        cell=cells,
        neighbors=neighbors.reshape(replicas * atoms, -1),
        shifts=shifts.reshape(replicas * atoms, -1, 3),
        owner=jnp.where(species > 0, jnp.arange(replicas, dtype=jnp.int32)[:, None], replicas).reshape(-1),
        elements=elements,
    )


def graph_of_replicas(
    species: Any, positions: Any, cells: Any, inverses: Any, cutoffs: tuple[Any, Any], capacity: Capacity
) -> tuple[Graph, Any]:
    """Positions of all replicas as one Graph, its lists made here and now.

    Args:
        species: [replicas, atoms]; 0 for padding.
        positions: [replicas, atoms, 3], Å, wrapped or not.
        cells: [replicas, 3, 3], Å; zero rows where not periodic.
        inverses: their pseudo-inverses, 1/Å.
        cutoffs: cutoff and inner cutoff, Å.
        capacity: of the lists, without a skin.

    Returns:
        The graph, and what each replica needs of the capacity, [replicas, 4]; the graph is wrong where that is more.
    """
    replicas, atoms, _ = positions.shape
    cutoff, inner_cutoff = cutoffs
    lists, fullest = lists_of_replicas(species, positions, cells, inverses, cutoff, capacity)
    graph = as_one_graph(species, positions, cells, lists.neighbors, lists.shifts, elements=capacity.elements)
    graph, seen = within_cutoff(graph, cutoff, inner_cutoff, slots=capacity.slots, inner=capacity.inner)
    seen = seen.reshape(replicas, atoms, 2).max(1)
    in_bin = jnp.broadcast_to(jnp.asarray(fullest, jnp.int32), (replicas, 1))
    return graph, jnp.concatenate([lists.needed[:, None], seen, in_bin], axis=1)
