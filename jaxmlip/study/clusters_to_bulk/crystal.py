"""The crystal under test: ice Ih, or another one of molecules, from a file."""

import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from jaxmlip.simulation.frames import last_structure
from jaxmlip.study.clusters_to_bulk.config import System
from jaxmlip.study.section import ConfigError
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.molecules import TOLERANCE, molecules_in

WATERS_PER_G_CM3_A3 = 0.0334
"""Molecules of water in 1 Å³ at 1 g/cm³."""


class Crystal(NamedTuple):
    """What has to be known of the crystal before it is made.

    Attributes:
        name: in words.
        molecules: in the cell.
        atoms: of a molecule, on average.
        density: molecules in 1 Å³.
        numbers: atomic numbers of its elements.
    """

    name: str
    molecules: int
    atoms: float
    density: float
    numbers: tuple[int, ...]


def crystal_of(system: System) -> Crystal:
    """The crystal of a configuration.

    Raises:
        ConfigError: if the file cannot be read, or its cell is not periodic or not made of molecules.
    """
    if system.structure is None:
        name = f"ice Ih of {system.molecules} molecules"
        return Crystal(name, system.molecules, 3.0, WATERS_PER_G_CM3_A3 * system.density_g_cm3, (1, 8))
    cell = _read(system)
    molecules = molecules_in(cell)
    formula, number = cell.get_chemical_formula("hill"), len(molecules)
    name = f"the crystal of {Path(system.structure).name}, {formula} in {number} molecules"
    elements = tuple(sorted(set(cell.numbers.tolist())))
    return Crystal(name, number, len(cell) / number, number / cell.get_volume(), elements)


def made(system: System, seed: int) -> Atoms:
    """The crystal itself; the seed orders the protons of ice."""
    if system.structure is None:
        return ice_ih(system.molecules, density_g_cm3=system.density_g_cm3, seed=seed)
    return _read(system)


def _read(system: System) -> Atoms:
    assert system.structure is not None
    return _repeated(system.structure, system.repeat).copy()


@functools.lru_cache(maxsize=4)
def _repeated(file: str, repeat: tuple[int, int, int]) -> Atoms:
    """The cell of a file, repeated, without anything that is not a crystal's."""
    try:
        read = last_structure(Path(file))
        if not read.pbc.all():
            raise ValueError(f"pbc is {read.pbc.tolist()}, and a crystal is periodic in all three directions")
        cell = Atoms(read.numbers, read.positions, cell=read.cell, pbc=True).repeat(repeat)
        if read.has("masses"):
            cell.set_array("masses", np.tile(read.get_masses(), int(np.prod(repeat))), float, ())
        if len(molecules_in(cell)) < 2:
            raise ValueError(f"{cell.symbols} is a single molecule; repeat it")
    except (OSError, ValueError) as error:
        raise ConfigError(f"system.structure: {file}: {str(error).rstrip('.')}.") from error
    return cell


def pairs_of(atoms: Atoms) -> dict[str, tuple[str, str]]:
    """Pairs of elements whose radial distribution functions are compared, by name; the heaviest element first."""
    heaviest_first = dict(sorted(zip(atoms.numbers.tolist(), atoms.symbols, strict=True), reverse=True)).values()
    return {one + other: (one, other) for one, other in itertools.combinations_with_replacement(heaviest_first, 2)}


def longest_bond(pair: tuple[str, str]) -> float:
    """Å; closer pairs of these elements are bonded (see `covalent_bonds`), so that peaks of g(r) are those of bonds."""
    one, other = Atoms("".join(pair)).numbers
    return float(TOLERANCE * (covalent_radii[one] + covalent_radii[other]))
