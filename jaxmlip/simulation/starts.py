"""Where replicas start: their structures, padded to equal numbers of atoms, on the host in double precision."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float, Int

from jaxmlip.simulation.motion import PADDING_MASS
from jaxmlip.simulation.safety import Bonds
from jaxmlip.simulation.schedules import Number
from jaxmlip.systems.graph import periodic_cell


@dataclasses.dataclass(frozen=True, eq=False)
class ReplicaStarts:
    """The starts of all replicas.

    Attributes:
        sizes: [replicas], numbers of atoms.
        numbers: [replicas, atoms], atomic numbers; 0 for padding.
        positions: [replicas, atoms, 3], Å.
        cells: [replicas, 3, 3], Å; see `periodic_cell`.
        masses: [replicas, atoms], amu.
        fixed: [replicas, atoms], whether an atom is held where it is.
        bonds: that must not break.
        indices: [replicas], which with the seed decide their random numbers, and by which messages call them.
    """

    sizes: Int[np.ndarray, " replicas"]
    numbers: Int[np.ndarray, "replicas atoms"]
    positions: Float[np.ndarray, "replicas atoms 3"]
    cells: Float[np.ndarray, "replicas 3 3"]
    masses: Float[np.ndarray, "replicas atoms"]
    fixed: Bool[np.ndarray, "replicas atoms"]
    bonds: Bonds
    indices: Int[np.ndarray, " replicas"]

    @classmethod
    def of(
        cls,
        structures: Sequence[Atoms],
        bonds: Bonds,
        *,
        fixed: Sequence[np.ndarray] | None = None,
        indices: Int[np.ndarray, " replicas"] | None = None,
        atoms: int | None = None,
    ) -> "ReplicaStarts":
        """One structure for each replica, periodic in the same directions.

        Args:
            structures: of equal numbers of atoms, or of different ones if the dynamics `pads`.
            bonds: that must not break.
            fixed: [atoms] of each replica; none is held by default.
            indices: of the replicas; by default they are counted.
            atoms: what replicas with fewer are padded to, by default the most there are.
        """
        sizes = np.array([len(each) for each in structures])
        most = int(sizes.max()) if atoms is None else atoms
        return cls(
            sizes=sizes,
            numbers=padded([each.numbers for each in structures], 0, most),
            positions=padded([each.positions for each in structures], 0.0, most),
            cells=np.stack([periodic_cell(each) for each in structures]),
            masses=padded([each.get_masses() for each in structures], PADDING_MASS, most),
            fixed=padded([np.zeros(size, bool) for size in sizes] if fixed is None else fixed, False, most),
            bonds=bonds,
            indices=np.arange(len(structures)) if indices is None else indices,
        )

    @property
    def atoms(self) -> int:
        """Of each replica, padding included."""
        return self.positions.shape[1]

    @property
    def mobile(self) -> Int[np.ndarray, " replicas"]:
        """Numbers of atoms that are not held."""
        return self.sizes - self.fixed.sum(1)

    def without_padding(self, values: np.ndarray) -> list[np.ndarray]:
        """Values [replicas, atoms, ...] of the atoms of each replica."""
        return [each[:size] for each, size in zip(values, self.sizes, strict=True)]


def padded(values: Sequence[np.ndarray], padding: Number, atoms: int) -> np.ndarray:
    """Values of the atoms of each replica, [replicas, atoms, ...]."""
    found = np.full((len(values), atoms, *values[0].shape[1:]), padding, values[0].dtype)
    for replica, each in enumerate(values):
        found[replica, : len(each)] = each
    return found
