"""Energy, forces and stress of an exported potential. It needs jax and numpy alone: copy it wherever you like.

from load import load

potential = load("folder")
energy, forces, stress = potential(numbers, positions, cell, pbc)
"""

import itertools
import json
from pathlib import Path

import jax
import jax.export
import numpy as np


def load(folder):
    """The potential of a folder that `jaxmlip export` wrote."""
    return ExportedPotential(Path(folder))


class ExportedPotential:
    """A program and what it needs: cutoffs in Å, atomic numbers that it knows, their reference energies in eV."""

    def __init__(self, folder):
        """Read the folder."""
        about = json.loads((folder / "potential.json").read_text())
        self.cutoff, self.inner_cutoff, self.species = about["cutoff"], about["inner_cutoff"], about["species"]
        self.references = np.array(about["references"])
        self._call = jax.jit(jax.export.deserialize(bytearray((folder / "program.jax").read_bytes())).call)

    def __call__(self, numbers, positions, cell=None, pbc=(False, False, False)):
        """Energy in eV, forces [atoms, 3] in eV/Å, and stress [3, 3] in eV/Å³, positive under tension.

        Args:
            numbers: [atoms], atomic numbers.
            positions: [atoms, 3], Å.
            cell: [3, 3], lattice vectors as rows, Å.
            pbc: periodic directions; without all three the stress is None.

        Raises:
            ValueError: for elements that the potential does not know.
        """
        numbers, positions = np.asarray(numbers, np.int32), np.asarray(positions, np.float64)
        if unknown := sorted(set(numbers.tolist()) - set(self.species)):
            raise ValueError(f"The potential does not know the atomic numbers {unknown}; it knows {self.species}.")
        periodic = np.broadcast_to(np.asarray(pbc, bool), 3)
        lattice = np.where(periodic[:, None], np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64), 0.0)
        positions, neighbors, shifts, inner = _neighbors(positions, lattice, self.cutoff, self.inner_cutoff)
        energy, forces, stress = self._call(
            (positions - positions.mean(axis=0)).astype(np.float32),
            numbers,
            lattice.astype(np.float32),
            neighbors,
            shifts,
            np.zeros(inner, np.float32),
        )
        energy = float(energy) + float(self.references[numbers].sum())
        return energy, np.asarray(forces), np.asarray(stress) if periodic.all() else None


def _neighbors(positions, lattice, cutoff, inner_cutoff):
    """Positions in the cell, and the neighbours of each, nearest first; −1 where a slot is empty."""
    inverse = np.linalg.pinv(lattice)
    positions = positions - np.floor(positions @ inverse) @ lattice
    reach = np.ceil(cutoff * np.linalg.norm(inverse, axis=0) - 1e-9).astype(int) + (np.abs(lattice).sum(1) > 0)
    found = []
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = positions[None] + np.array(shift) @ lattice - positions[:, None]
        lengths = np.sqrt((vectors**2).sum(-1))
        close = lengths < cutoff
        if not any(shift):
            np.fill_diagonal(close, False)
        i, j = np.nonzero(close)
        found.append((i, j, lengths[i, j], np.broadcast_to(shift, (len(i), 3))))
    i, j, lengths, shift = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((lengths, i))
    i, j, lengths, shift = i[order], j[order], lengths[order], shift[order]
    counts = np.bincount(i, minlength=len(positions))
    slots = 8 * (1 + int(1.1 * counts.max(initial=0)) // 8)  # with room, so that few programs are compiled
    rank = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors, shifts = np.full((len(positions), slots), -1, np.int32), np.zeros((len(positions), slots, 3), np.float32)
    neighbors[i, rank], shifts[i, rank] = j, shift
    near = np.bincount(i[lengths < inner_cutoff], minlength=len(positions)).max(initial=0)
    return positions, neighbors, shifts, min(slots, 4 * (1 + int(near) // 4))
