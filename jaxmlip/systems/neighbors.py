"""Neighbour lists in dense slots, made on the host by vesin.

Made once per structure, or between blocks of a simulation; the lists that live on the device are in
`jaxmlip.simulation`, next to the dynamics that needs them.
"""

import numpy as np
import vesin
from jaxtyping import Int

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
        ValueError: if two atoms coincide, or if an atom has more neighbours than `slots`.
    """
    periodic = np.any(cell != 0, axis=1)
    box = np.where(periodic[:, None], cell, _complement(cell, periodic))
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    i, j, shift, distance = calculator.compute(points=positions, box=box, periodic=periodic, quantities="ijSd")
    if distance.size and distance.min() < 1e-3:
        worst = int(np.argmin(distance))
        raise ValueError(f"Atoms {i[worst]} and {j[worst]} coincide ({distance[worst]:.1e} Å apart).")

    order = np.lexsort((distance, i))
    i, j, shift, distance = (np.asarray(x)[order] for x in (i, j, shift, distance))
    counts = np.bincount(i.astype(np.int64), minlength=len(positions))
    needed = max(1, int(counts.max(initial=0)))
    slots = needed if slots is None else slots
    if needed > slots:
        raise ValueError(f"An atom has {needed} neighbours within {cutoff} Å, but there are {slots} slots.")
    rank = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors = np.full((len(positions), slots), -1, dtype=np.int32)
    shifts = np.zeros((len(positions), slots, 3), dtype=np.int8)
    neighbors[i, rank] = j
    shifts[i, rank] = shift
    inner = np.bincount(i[distance < inner_cutoff].astype(np.int64), minlength=len(positions))
    return neighbors, shifts, int(inner.max(initial=0))


def _complement(cell: HostMatrix, periodic: np.ndarray) -> HostMatrix:
    """Unit vectors that complete the periodic rows to a basis, in the rows that are not periodic."""
    _, _, rows = np.linalg.svd(cell)
    rank = int(periodic.sum())
    complement = np.zeros((3, 3))
    complement[~periodic] = rows[rank:]
    return complement
