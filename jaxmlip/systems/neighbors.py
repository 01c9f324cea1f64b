"""Neighbour lists in dense slots, made on the host by vesin.

Made once per structure, or between blocks of a simulation; the lists that live on the device are in
`jaxmlip.simulation`, next to the dynamics that needs them.
"""

import numpy as np
import vesin
from jaxtyping import Float, Int

from jaxmlip.types import HostMatrix, HostVectors


def dense_neighbors(
    positions: HostVectors, cell: HostMatrix, cutoff: float, inner_cutoff: float = 0.0, *, slots: int | None = None
) -> tuple[Int[np.ndarray, "atoms slots"], Int[np.ndarray, "atoms slots 3"], int]:
    """Every atom's neighbours within the cutoff, nearest first, in slots of equal number.

    Args:
        positions: Å, inside the cell or not.
        cell: lattice vectors as rows, Å; a zero row marks a direction that is not periodic.
        cutoff: Å; periodic images are neighbours too, an atom's own among them.
        inner_cutoff: Å; the leading slots that reach this far are counted.
        slots: number of slots; by default as many as the best-connected atom needs, and at least one.

    Returns:
        Neighbour indices (−1 in empty slots), their lattice shifts, and the number of leading slots that hold every
        neighbour within `inner_cutoff`.

    Raises:
        ValueError: if two atoms coincide, if an atom has more neighbours than `slots`, or if atoms are so many cells
            away from each other (positions never wrapped) that a shift overflows.
    """
    i, j, shift, distance = neighbor_pairs(positions, cell, cutoff)
    if distance.size and distance.min() < 1e-3:
        worst = int(np.argmin(distance))
        raise ValueError(f"Atoms {i[worst]} and {j[worst]} coincide ({distance[worst]:.1e} Å apart).")
    if np.abs(shift).max(initial=0) > np.iinfo(np.int8).max:
        far = int(i[np.argmax(np.abs(shift).max(axis=1))])
        raise ValueError(
            f"Atom {far} and its neighbours are more than {np.iinfo(np.int8).max} cells apart: wrap the positions into "
            "the cell first."
        )

    order = np.lexsort((distance, i))
    i, j, shift, distance = i[order], j[order], shift[order], distance[order]
    counts = np.bincount(i, minlength=len(positions))
    needed = max(1, int(counts.max(initial=0)))
    slots = needed if slots is None else slots
    if needed > slots:
        raise ValueError(f"An atom has {needed} neighbours within {cutoff} Å, but there are {slots} slots.")
    rank = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors = np.full((len(positions), slots), -1, dtype=np.int32)
    shifts = np.zeros((len(positions), slots, 3), dtype=np.int8)
    neighbors[i, rank] = j
    shifts[i, rank] = shift
    inner = np.bincount(i[distance < inner_cutoff], minlength=len(positions))
    return neighbors, shifts, int(inner.max(initial=0))


def neighbor_pairs(
    positions: HostVectors, cell: HostMatrix, cutoff: float
) -> tuple[
    Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, "pairs 3"], Float[np.ndarray, " pairs"]
]:
    """All ordered pairs within the cutoff, periodic images included: i, j, lattice shift and distance.

    The vector from i to j is `R[j] + shift @ cell − R[i]`. For the arguments see `dense_neighbors`.
    """
    periodic = np.any(cell != 0, axis=1)
    box = np.where(periodic[:, None], cell, _complement(cell, periodic))
    lists = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    i, j, shift, distance = lists.compute(points=positions, box=box, periodic=periodic, quantities="ijSd")
    return (
        np.asarray(i, np.int64),
        np.asarray(j, np.int64),
        np.asarray(shift, np.int64).reshape(-1, 3),
        np.asarray(distance, np.float64),
    )


def _complement(cell: HostMatrix, periodic: np.ndarray) -> HostMatrix:
    """Unit vectors that complete the periodic rows to a basis, in the rows that are not periodic."""
    _, _, rows = np.linalg.svd(cell)
    rank = int(periodic.sum())
    complement = np.zeros((3, 3))
    complement[~periodic] = rows[rank:]
    return complement
