"""Neighbour lists made on the device, for the inner loop of a simulation.

Every pair is tried with every periodic image that can lie in range: O(images · atoms²), which is cheap beside the
forces for cells of a few hundred atoms, and needs no bookkeeping; see `cell_lists` for large cells. Positions may have
diffused any number of cells away: the lattice shifts undo it.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxmlip.systems.graph import GHOST, Graph, edge_vectors
from jaxmlip.types import AnyArray, HostMatrix, Leaf, Vectors


class ImageSearch(NamedTuple):
    """Which lattice translations to try for a pair of atoms; static, so hashable.

    Along each lattice vector the fractional difference of a pair is first brought into [−½, ½) or into [0, 1),
    whichever leaves fewer translations in range: 2 instead of 3 per direction for a
    cell between one and two cutoffs wide.

    Attributes:
        centred: per lattice vector, whether the difference is brought into [−½, ½).
        first: per lattice vector, the smallest translation to try.
        number: per lattice vector, how many translations to try; 1 where the cell is not periodic.
    """

    centred: tuple[bool, ...]
    first: tuple[int, ...]
    number: tuple[int, ...]

    @property
    def translations(self) -> Int[np.ndarray, "images 3"]:
        """All translations to try, as multiples of the lattice vectors."""
        axes = [np.arange(start, start + count) for start, count in zip(self.first, self.number, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


class DeviceList(flax.struct.PyTreeNode):
    """Neighbour slots as `Graph` wants them, and whether they sufficed.

    Attributes:
        neighbors: [atoms, slots], nearest first; −1 in empty slots.
        shifts: [atoms, slots, 3], int16.
        needed: [], slots the best-connected atom needs; the list is incomplete if there are fewer.
    """

    neighbors: Leaf
    shifts: Leaf
    needed: Leaf


def cell_heights(cell: Float[np.ndarray, "*cells 3 3"]) -> Float[np.ndarray, "*cells 3"]:
    """Distances in Å between opposite faces of cells; infinite along directions that are not periodic (zero rows)."""
    inverse = np.linalg.pinv(np.asarray(cell, np.float64))
    lengths = np.linalg.norm(inverse, axis=-2)
    periodic = np.any(np.asarray(cell) != 0, axis=-1)
    return np.where(periodic, 1.0 / np.where(lengths > 0, lengths, 1.0), np.inf)


def image_search(heights: Float[np.ndarray, " 3"], radius: float) -> ImageSearch:
    """The translations that find every image within `radius` Å in cells of at least the given heights.

    A lattice translation moves an image by one height along the normal of a face, so an image whose fractional
    coordinate difference is d lies at least |d| heights away.
    """
    centred, first, number = [], [], []
    for height in heights:
        if np.isinf(height):
            centred.append(True)
            first.append(0)
            number.append(1)
            continue
        # The margin keeps pairs at the edge of the range in spite of single-precision fractional coordinates.
        reach = 1.0001 * radius / height + 1e-4
        around_zero = int(np.floor(reach + 0.5))
        below, above = int(np.floor(reach + 1.0)), int(np.floor(reach))
        use_centre = 2 * around_zero + 1 <= below + above + 1
        centred.append(bool(use_centre))
        first.append(-around_zero if use_centre else -below)
        number.append(2 * around_zero + 1 if use_centre else below + above + 1)
    return ImageSearch(tuple(centred), tuple(first), tuple(number))


def pair_shifts(
    positions: Float[AnyArray, "atoms 3"],
    others: Float[AnyArray, "others 3"],
    inverse: Float[AnyArray, "3 3"],
    search: ImageSearch,
) -> Int[AnyArray, "atoms others 3"]:
    """The lattice translation that brings each pair's fractional difference into the range `search` starts from.

    Args:
        positions: Å, wrapped or not.
        others: Å, the second atoms of the pairs.
        inverse: pseudo-inverse of the cell, 1/Å (columns are zero where the cell is not periodic).
        search: see `image_search`.
    """
    fractions = others[None, :, :] @ inverse - (positions @ inverse)[:, None, :]
    offset = jnp.asarray(np.where(search.centred, 0.5, 0.0), positions.dtype)
    return -jnp.floor(fractions + offset).astype(jnp.int32)


def squared_distances(
    positions: Float[AnyArray, "atoms 3"],
    others: Float[AnyArray, "others 3"],
    cell: Float[AnyArray, "3 3"],
    inverse: Float[AnyArray, "3 3"],
    search: ImageSearch,
) -> tuple[Float[AnyArray, "atoms others images"], Int[AnyArray, "atoms others 3"]]:
    """Squared distances in Å² of all pairs in all images tried, and each pair's own lattice translation.

    Image k of a pair is translated by its own translation plus `search.translations[k]`.
    """
    own = pair_shifts(positions, others, inverse, search)
    nearest = others[None, :, :] - positions[:, None, :] + own.astype(positions.dtype) @ cell
    images = jnp.asarray(search.translations, positions.dtype) @ cell
    total = jnp.zeros((), positions.dtype)
    for axis in range(3):
        total += (nearest[:, :, None, axis] + images[:, axis]) ** 2
    return total, own


def device_neighbors(
    real: Bool[AnyArray, " atoms"],
    positions: Vectors,
    cell: Float[AnyArray, "3 3"],
    inverse: Float[AnyArray, "3 3"],
    cutoff: float | Float[AnyArray, ""],
    *,
    search: ImageSearch,
    slots: int,
) -> DeviceList:
    """Every atom's neighbours within the cutoff, nearest first; the traced counterpart of `systems.dense_neighbors`.

    Args:
        real: False for padding atoms, which have no neighbours and are none.
        positions: Å, wrapped or not.
        cell: lattice vectors as rows, Å; zero rows where it is not periodic.
        inverse: pseudo-inverse of the cell, 1/Å.
        cutoff: Å, at most the radius that `search` was made for.
        search: see `image_search`.
        slots: number of slots; `DeviceList.needed` tells whether they sufficed.
    """
    atoms, translations = positions.shape[0], search.translations
    squared, own = squared_distances(positions, positions, cell, inverse, search)
    images = len(translations)
    not_itself = ~(jnp.eye(atoms, dtype=bool)[:, :, None] & jnp.asarray(~translations.any(axis=1)))
    both = (real[:, None] & real)[:, :, None]
    squared = jnp.where(not_itself & both, squared, jnp.inf).reshape(atoms, atoms * images)
    found, index, needed = nearest_pairs(squared, cutoff, slots)

    other = index // images
    shift = jnp.take_along_axis(own, other[:, :, None], axis=1) + jnp.asarray(translations, jnp.int32)[index % images]
    return DeviceList(
        neighbors=jnp.where(found, other, -1),
        shifts=jnp.where(found[:, :, None], shift, 0).astype(jnp.int16),
        needed=needed.max(),
    )


def within_cutoff(graph: Graph, cutoff: float, inner_cutoff: float, *, slots: int, inner: int) -> tuple[Graph, Any]:
    """The graph with only those neighbours that are within the cutoff now, again nearest first.

    A list with a skin holds half as many neighbours again, and a skin about a short inner cutoff doubles those: sorting
    them out in every step costs little beside what a network would spend on them.

    Args:
        graph: its lists reach the cutoff at least.
        cutoff: Å.
        inner_cutoff: Å; 0 if the potential has none.
        slots: slots of the new graph.
        inner: leading slots for the inner cutoff.

    Returns:
        The graph, and for each atom the slots and inner slots it needs, [atoms, 2]; where there are fewer the graph is
        incomplete.
    """
    vectors, mask = edge_vectors(graph)
    squared = jnp.where(mask, (vectors**2).sum(-1), jnp.inf)
    real, index, needed = nearest_pairs(squared, cutoff, slots)
    neighbors = jnp.take_along_axis(graph.neighbors, index, axis=1)
    shifts = jnp.take_along_axis(graph.shifts, index[:, :, None], axis=1)
    needed_inner = (squared < inner_cutoff**2).sum(axis=1, dtype=jnp.int32)
    nearby = graph.replace(
        neighbors=jnp.where(real, neighbors, GHOST), shifts=jnp.where(real[:, :, None], shifts, 0), inner=inner
    )
    return nearby, jnp.stack([needed, needed_inner], axis=1)


def nearest_pairs(
    squared: Float[AnyArray, "atoms pairs"], cutoff: float | Float[AnyArray, ""], slots: int
) -> tuple[Bool[AnyArray, "atoms slots"], Int[AnyArray, "atoms slots"], Int[AnyArray, " atoms"]]:
    """Each atom's nearest pairs: whether they are within the cutoff, which they are, and how many there are in all."""
    kept = min(slots, squared.shape[1])
    nearest, index = jax.lax.top_k(-squared, kept)
    padding = ((0, 0), (0, slots - kept))
    real = jnp.pad(-nearest < cutoff**2, padding)
    needed = (squared < cutoff**2).sum(axis=1, dtype=jnp.int32)
    return real, jnp.pad(index.astype(jnp.int32), padding), needed


def pseudo_inverse(cell: HostMatrix) -> HostMatrix:
    """Pseudo-inverse of a cell with zero rows where it is not periodic, 1/Å."""
    return np.linalg.pinv(np.asarray(cell, np.float64))
