"""Neighbour lists of large periodic cells, made on the device at a cost that is proportional to the number of atoms.

The cell is divided into bins at least as wide as the lists reach, so that all neighbours of an atom lie in its bin and
the 26 around it. Bins are along the lattice vectors, hence any shape of cell will do, and there are three or more in
each direction, hence no bin is looked into twice. Where there are more bins than atoms, as about a cluster in a large
box, only those that hold atoms have a place in memory, and are found by bisection.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxmlip.systems.device_lists import DeviceList, nearest_pairs
from jaxmlip.types import AnyArray, Vectors

BINNED_FROM = 1500
"""Atoms from which on bins are worth their while."""

ATOMS_AT_ONCE = 1024
"""Atoms whose distances to their candidates are in memory at once."""

MOST_BINS = 1000
"""Along a lattice vector: bins are numbered by 32-bit integers, and told apart by fractional coordinates in float32."""


class Bins(NamedTuple):
    """Static sizes.

    Attributes:
        number: along each lattice vector.
        room: atoms that a bin can hold.
    """

    number: tuple[int, int, int]
    room: int


def bins_for(atoms: int, heights: Float[np.ndarray, " 3"], reach: float) -> tuple[int, int, int] | None:
    """How many bins of at least the width `reach` (Å) cells of at least the given heights have along each vector.

    None where all pairs should be tried instead: in small cells, narrow ones, and those that are not periodic in all
    three directions.
    """
    if atoms < BINNED_FROM or np.isinf(heights).any():
        return None
    # The margin keeps pairs at the edge of the range in spite of single-precision fractional coordinates.
    number = np.minimum(heights / (1.0001 * reach + 1e-3), MOST_BINS).astype(int)
    return None if (number < 3).any() else (int(number[0]), int(number[1]), int(number[2]))


def fullest_bin(positions: Float[np.ndarray, "atoms 3"], cell: Float[np.ndarray, "3 3"], number: tuple) -> int:
    """Atoms in the fullest bin, found on the host."""
    fractions = positions @ np.linalg.inv(cell)
    place = np.minimum(((fractions - np.floor(fractions)) * number).astype(int), np.array(number) - 1)
    _, filled = np.unique(np.ravel_multi_index(tuple(place.T), number), return_counts=True)
    return int(filled.max())


def binned_neighbors(
    real: Bool[AnyArray, " atoms"],
    positions: Vectors,
    cell: Float[AnyArray, "3 3"],
    inverse: Float[AnyArray, "3 3"],
    cutoff: float | Float[AnyArray, ""],
    *,
    bins: Bins,
    slots: int,
) -> tuple[DeviceList, Int[AnyArray, ""]]:
    """What `device_neighbors` gives, and the atoms of the fullest bin; the lists are incomplete if it has no room.

    Args:
        real: False for padding atoms, which are in no bin.
        positions: Å, wrapped or not.
        cell: lattice vectors as rows, Å, periodic in all three directions.
        inverse: of the cell, 1/Å.
        cutoff: Å, at most the reach that the bins were made for.
        bins: see `bins_for`.
        slots: number of slots.
    """
    atoms, number = positions.shape[0], jnp.asarray(bins.number, jnp.int32)
    fractions = positions @ inverse
    turns = jnp.floor(fractions).astype(jnp.int32)
    place = jnp.clip(((fractions - turns) * number).astype(jnp.int32), 0, number - 1)
    inside = positions - turns.astype(positions.dtype) @ cell

    strides = jnp.asarray([bins.number[1] * bins.number[2], bins.number[2], 1], jnp.int32)
    total = int(np.prod(bins.number))
    flat = jnp.where(real, place @ strides, total)
    order = jnp.argsort(flat).astype(jnp.int32)
    ordered = flat[order]
    rank = jnp.arange(atoms) - jnp.searchsorted(ordered, ordered, side="left")
    fullest = jnp.where(ordered < total, rank + 1, 0).max()
    table, row_of = _table(order, ordered, rank, total=total, room=bins.room)

    around = jnp.asarray(np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3), jnp.int32)

    def of_one(atom: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        where = place[atom] + around
        image = where // number
        candidates = table[row_of((where - image * number) @ strides)]
        vectors = inside[candidates] + (image.astype(cell.dtype) @ cell)[:, None, :] - inside[atom]
        itself = (candidates == atom) & ~image.any(axis=1)[:, None]
        none = (candidates < 0) | itself | ~real[atom]
        squared = jnp.where(none, jnp.inf, (vectors**2).sum(-1))
        found, index, needed = nearest_pairs(squared.reshape(1, -1), cutoff, slots)
        other = candidates.ravel()[index[0]]
        shift = image[index[0] // bins.room] - turns[other] + turns[atom]
        neighbors = jnp.where(found[0], other, -1)
        return neighbors, jnp.where(found[0][:, None], shift, 0).astype(jnp.int16), needed[0]

    neighbors, shifts, needed = jax.lax.map(of_one, jnp.arange(atoms, dtype=jnp.int32), batch_size=ATOMS_AT_ONCE)
    return DeviceList(neighbors=neighbors, shifts=shifts, needed=needed.max()), fullest


def _table(
    order: Int[AnyArray, " atoms"],
    ordered: Int[AnyArray, " atoms"],
    rank: Int[AnyArray, " atoms"],
    *,
    total: int,
    room: int,
) -> tuple[Int[AnyArray, "rows room"], Callable[[AnyArray], AnyArray]]:
    """Atoms by bin, −1 where a row is not full, and the function from bins to rows.

    Args:
        order: the atoms, bin by bin.
        ordered: their bins; `total` for those that are in none.
        rank: their numbers in the bin.
        total: number of bins.
        room: atoms that a bin can hold.
    """
    atoms = len(order)
    if total <= atoms:
        table = jnp.full((total, room), -1, jnp.int32).at[ordered, rank].set(order, mode="drop")
        return table, lambda bins: bins
    row = jnp.cumsum(rank == 0) - 1
    # The last row, of no bin, stays empty.
    filled = jnp.full(atoms + 1, total, jnp.int32).at[row].set(ordered)
    row = jnp.where(ordered < total, row, atoms + 1)
    table = jnp.full((atoms + 1, room), -1, jnp.int32).at[row, rank].set(order, mode="drop")

    def row_of(bins: AnyArray) -> AnyArray:
        found = jnp.searchsorted(filled, bins)
        return jnp.where(filled[found] == bins, found, atoms)

    return table, row_of
