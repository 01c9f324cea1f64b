"""Rock salt to label: cells of 8 to 64 atoms, strained and rattled at random, and the crystal that runs start from.

    uv run python experiments/nacl_density/make_structures.py FOLDER [--number 60] [--seed 0]

writes structures.xyz and crystal.xyz (64 atoms) into the folder.
"""

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk

LATTICE_A = 5.69
"""Å; near the teacher's at 0 K."""

REPEATS = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2))
"""Of the cubic cell of 8 atoms."""

STRETCH, STRAIN, RATTLE_A = 0.03, 0.02, (0.02, 0.25)
"""Largest change of all lengths; standard deviation of the elements of a symmetric strain; range of the standard
deviation of the atoms' displacements, Å."""


def crystal(repeats: tuple[int, int, int]) -> Atoms:
    """The crystal at rest."""
    return bulk("NaCl", "rocksalt", a=LATTICE_A, cubic=True).repeat(repeats)


def distorted(repeats: tuple[int, int, int], rng: np.random.Generator) -> Atoms:
    """The crystal with a random strain and random displacements."""
    atoms = crystal(repeats)
    strain = rng.normal(scale=STRAIN, size=(3, 3))
    strain = 0.5 * (strain + strain.T) + rng.uniform(-STRETCH, STRETCH) * np.eye(3)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.positions += rng.normal(scale=rng.uniform(*RATTLE_A), size=atoms.positions.shape)
    return atoms


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    structures = [distorted(REPEATS[number % len(REPEATS)], rng) for number in range(options.number)]
    ase.io.write(options.folder / "structures.xyz", structures, format="extxyz")
    ase.io.write(options.folder / "crystal.xyz", crystal(REPEATS[-1]), format="extxyz")


if __name__ == "__main__":
    main()
