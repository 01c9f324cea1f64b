"""Isotropic changes of volume, of atoms or of whole molecules, as Monte Carlo takes them.

The volume is changed to V' = V e^x with a normal number x, and every point of `points` (atoms, or centres of mass of
molecules, whose inner geometry stays) is scaled with the cell by e^(x/3). Momenta stay as they are. In the measure
d ln V dⁿs of scaled points s, the ensemble of constant pressure is V^(n+1) exp(−β (U + PV)) with n points, so that a
move is accepted with the probability

    min(1, exp(−β (ΔU + P ΔV) + (n + 1) x))

(Frenkel and Smit, Understanding Molecular Simulation, 2nd ed., sec. 5.4; for molecules n is their number).
"""

import dataclasses
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from jaxmlip.systems.molecules import molecules_in

SAME = 1e-3
"""Å; how well the inner geometry of a molecule must be found again in the new cell."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledPoints:
    """What is scaled with the cell: every atom on its own, or whole molecules.

    Attributes:
        molecule: [atoms], index of the molecule that an atom belongs to.
        parents: [atoms], atom to whose nearest image an atom is attached; itself for the first of a molecule.
        order: [atoms], such that parents come before those attached to them.
        weights: [molecules, atoms], shares of atoms in the centre of mass of their molecule.
    """

    molecule: Int[np.ndarray, " atoms"]
    parents: Int[np.ndarray, " atoms"]
    order: Int[np.ndarray, " atoms"]
    weights: Float[np.ndarray, "molecules atoms"]

    @property
    def number(self) -> int:
        """N of points."""
        return len(self.weights)

    def scaled(self, positions: Any, cells: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
        """Positions in cells scaled by factors, and for which replicas the opposite factor leads back.

        Args:
            positions: [replicas, atoms, 3], Å.
            cells: [replicas, 3, 3], Å.
            factors: [replicas], of lengths.
        """
        scale = factors[:, None, None]
        if self.number == positions.shape[1]:
            return scale * positions, np.ones(len(positions), bool)
        inner = self._inner(positions, cells)
        moved = scale * positions - (scale - 1.0) * inner
        found = self._inner(moved, scale * cells)
        return moved, np.abs(found - inner).max((1, 2)) < SAME

    def _inner(self, positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Vectors from the centre of mass of its molecule to each atom, [replicas, atoms, 3], Å."""
        inverses = np.linalg.inv(cells)
        bonds = positions - positions[:, self.parents]
        bonds = bonds - np.rint(bonds @ inverses) @ cells
        vectors = np.zeros_like(positions)
        for atom in self.order:
            if self.parents[atom] != atom:
                vectors[:, atom] = vectors[:, self.parents[atom]] + bonds[:, atom]
        centres = np.einsum("ma,rax->rmx", self.weights, vectors)
        return vectors - centres[:, self.molecule]


def atoms_scaled(number: int) -> ScaledPoints:
    """Every atom on its own."""
    each = np.arange(number)
    return ScaledPoints(each, each, each, np.eye(number))


def molecules_scaled(atoms: Atoms) -> ScaledPoints:
    """Whole molecules, as covalent bonds make them (see `molecules_in`).

    Raises:
        ValueError: if bonds lead from atoms to their own images, so that there are no molecules.
    """
    try:
        number, molecules = len(atoms), molecules_in(atoms)
    except ValueError as error:
        raise ValueError(f'{error} Scale atoms, by Proposal(scaled="atoms").') from None
    molecule, parents = np.zeros(number, np.int64), np.arange(number)
    for index, each in enumerate(molecules):
        members = np.array(each.atoms)
        molecule[members], parents[members] = index, members[list(each.parents)]
    weights = np.zeros((len(molecules), number))
    weights[molecule, np.arange(number)] = atoms.get_masses()
    order = np.array([atom for each in molecules for atom in each.atoms])
    return ScaledPoints(molecule, parents, order, weights / weights.sum(1, keepdims=True))
