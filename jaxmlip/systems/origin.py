"""Positions as single precision can hold them, wherever the origin is.

A number in single precision has 24 bits: 10⁵ Å from the origin positions are 8·10⁻³ Å apart. Energies depend on
differences alone, so what is large is taken off in double precision, before the cast: lattice vectors where a structure
is periodic, and a translation of the whole where it is not.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxmlip.types import HostMatrix, HostVectors

NEAR = 16.0
"""Å; coordinates up to this have an error of at most 5·10⁻⁷ Å in single precision, and are left as they are."""

GRID = 8.0
"""Å; translations of the whole are multiples of this, so that a small drift changes nothing."""


class Offset(NamedTuple):
    """By how much positions in a structure's own frame exceed those near the origin: `images @ cell + centre`.

    Attributes:
        images: [atoms, 3], lattice translation of each atom.
        centre: [3], translation of all atoms, Å.
    """

    images: Int[np.ndarray, "atoms 3"]
    centre: Float[np.ndarray, " 3"]

    def vectors(self, cell: HostMatrix) -> HostVectors:
        """[atoms, 3], in Å, where the cell may have changed since."""
        return self.images @ cell + self.centre


def offset_from_origin(positions: HostVectors, cell: HostMatrix, near: float = NEAR, cells_away: int = 0) -> Offset:
    """The offset without which the positions are near the origin; zero for those that are near it already.

    Args:
        positions: Å, in double precision.
        cell: lattice vectors as rows, Å; zero rows where not periodic.
        near: Å, up to which coordinates are near.
        cells_away: atoms outside the cell by no more than so many cells are left there, too.
    """
    images, centre = np.zeros(positions.shape, np.int64), np.zeros(3)
    far = np.abs(positions).max(axis=1, initial=0.0) > near
    if not far.any():
        return Offset(images, centre)
    inverse = np.linalg.pinv(cell)
    fractions = positions @ inverse
    turns = np.floor(fractions).astype(np.int64) * cell.any(axis=1)
    outside = (np.abs(turns) > cells_away).any(axis=1)
    images = np.where((far & outside)[:, None], turns, 0)
    # The median stays with the many where one atom has left.
    across = positions - fractions @ cell
    if np.abs(across).max() > near:
        middle = GRID * np.rint(np.median(across, axis=0) / GRID)
        centre = middle - middle @ inverse @ cell
    return Offset(images, centre)
