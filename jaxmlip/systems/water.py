"""Water molecules in a structure: each hydrogen is its nearest oxygen's, however stretched."""

import numpy as np
from ase import Atoms
from jaxtyping import Int

from jaxmlip.systems.graph import periodic_cell
from jaxmlip.systems.neighbors import neighbor_pairs

COVALENT = 1.5
"""A hydrogen has a covalent oxygen within this distance in Å: beyond the barrier of a shared proton (1.2 Å from either
oxygen), before the hydrogen bond (1.7 Å)."""


def molecules_of(atoms: Atoms) -> Int[np.ndarray, "molecules 3"]:
    """Indices (O, H, H) of the water molecules, in the order of their oxygens.

    Each hydrogen belongs to its nearest oxygen, through the periodic boundaries.

    Raises:
        ValueError: if there are other elements, or if an oxygen does not have exactly two hydrogens or a hydrogen no
            oxygen within `COVALENT` (a dissociated molecule), naming the atom.
    """
    foreign = sorted(set(atoms.symbols) - {"H", "O"})
    if foreign:
        raise ValueError(f"{atoms.symbols} is not pure water: it contains {', '.join(foreign)}.")
    if len(atoms) == 0:
        return np.zeros((0, 3), int)
    i, j, _, distance = neighbor_pairs(atoms.positions, periodic_cell(atoms), COVALENT)
    bonds = (atoms.numbers[i] == 1) & (atoms.numbers[j] == 8)
    i, j, distance = i[bonds], j[bonds], distance[bonds]
    nearest = np.lexsort((distance, i))
    hydrogens, first = np.unique(i[nearest], return_index=True)
    owner = j[nearest][first]

    free = np.setdiff1d(np.flatnonzero(atoms.numbers == 1), hydrogens)
    if free.size:
        raise ValueError(f"Hydrogen atom {free[0]} has no oxygen within {COVALENT} Å: a molecule has dissociated.")
    oxygens = np.flatnonzero(atoms.numbers == 8)
    counts = np.bincount(owner, minlength=len(atoms))[oxygens]
    if (counts != 2).any():
        wrong = int(np.argmax(counts != 2))
        raise ValueError(
            f"Oxygen atom {oxygens[wrong]} has {counts[wrong]} hydrogens instead of 2: a molecule has dissociated, or "
            "the structure is not water."
        )
    by_owner = np.argsort(owner, kind="stable")
    return np.column_stack([oxygens, hydrogens[by_owner].reshape(-1, 2)])
