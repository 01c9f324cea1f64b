"""Molecules of a structure by its covalent bonds: which atoms they are, and how each hangs on the others."""

import dataclasses
from collections import defaultdict

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, shortest_path

from jaxmlip.systems.graph import check_structure, periodic_cell
from jaxmlip.systems.neighbors import neighbor_pairs
from jaxmlip.systems.water import molecules_of

TOLERANCE = 1.25
"""Atoms are bonded within this times the sum of their covalent radii (Cordero et al., Dalton Trans. 2832 (2008)), which
is 1.21 Å for O–H and 1.90 Å for C–C."""


@dataclasses.dataclass(frozen=True)
class Molecule:
    """Atoms that covalent bonds connect.

    Attributes:
        atoms: indices, the lowest first, every other one after the atom that it hangs on.
        parents: for each atom the place in `atoms` of the one it is bonded to; 0 for the first.
    """

    atoms: tuple[int, ...]
    parents: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class CentredMolecule:
    """A molecule as it hangs on its central atom: that from which the fewest bonds lead to the farthest.

    Of several such, the heaviest, then the first: O of water, C of CO2, N of ammonia.

    Attributes:
        atoms: [atoms], indices, the central one first, every other one after an atom that it is bonded to.
        vectors: [atoms, 3], from the central atom to them, Å, whatever periodic boundaries are between.
    """

    atoms: Int[np.ndarray, " atoms"]
    vectors: Float[np.ndarray, "atoms 3"]


def covalent_bonds(atoms: Atoms) -> Int[np.ndarray, "bonds 2"]:
    """Pairs of bonded atoms, the lower index first, each once, in ascending order; through the periodic boundaries.

    Atoms are bonded within `TOLERANCE` times the sum of their covalent radii, hydrogens to no more than the nearest of
    the others. In pure water each hydrogen is bonded to its nearest oxygen, however stretched (`molecules_of`).

    Raises:
        ValueError: for water with a dissociated molecule, naming the atom, or an atom that is bonded to an image of
            itself, or to two images of another: the bonds are a network that never ends, and no molecules.
    """
    check_structure(atoms)
    hydrogens, all_oxygens = (np.count_nonzero(atoms.numbers == number) for number in (1, 8))
    if hydrogens == 2 * all_oxygens and hydrogens + all_oxygens == len(atoms):
        oxygens, first, second = molecules_of(atoms).T
        pairs = np.concatenate([np.column_stack([oxygens, first]), np.column_stack([oxygens, second])])
        return np.unique(np.sort(pairs, axis=1), axis=0)
    radii = covalent_radii[atoms.numbers]
    i, j, shift, distance = neighbor_pairs(atoms.positions, periodic_cell(atoms), 2.0 * TOLERANCE * radii.max())
    bonded = distance < TOLERANCE * (radii[i] + radii[j])
    i, j, shift, distance = i[bonded], j[bonded], shift[bonded], distance[bonded]
    kept = _hydrogens_bonded_once(atoms.numbers == 1, i, j, distance)
    i, j, shift = i[kept], j[kept], shift[kept]
    once = (i < j) | ((i == j) & (shift > 0).any(axis=1))
    pairs = np.column_stack([i[once], j[once]])
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    endless = unique[(unique[:, 0] == unique[:, 1]) | (counts > 1)]
    if len(endless):
        raise ValueError(_endless(atoms, int(endless[0, 0])))
    return unique


def molecules_in(atoms: Atoms) -> tuple[Molecule, ...]:
    """All molecules, in the order of their first atoms; an atom without bonds is one. For the bonds see there.

    Raises:
        ValueError: as `covalent_bonds`, or if bonds lead from an atom to its own image.
    """
    return _molecules(atoms, covalent_bonds(atoms))


def _links(atoms: Atoms, bonds: np.ndarray) -> csr_array:
    """The bonds as a sparse matrix of atoms."""
    return coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(len(atoms), len(atoms))).tocsr()


def _molecules(atoms: Atoms, bonds: np.ndarray) -> tuple[Molecule, ...]:
    """What the bonds connect; see `molecules_in`."""
    links = _links(atoms, bonds)
    _, member_of = connected_components(links, directed=False)
    found = []
    for first in np.unique(member_of, return_index=True)[1]:
        order, before = breadth_first_order(links, first, directed=False)
        place = {int(atom): index for index, atom in enumerate(order)}
        parents = tuple(0 if atom == first else place[int(before[atom])] for atom in order)
        found.append(Molecule(tuple(place), parents))
    found.sort(key=lambda molecule: molecule.atoms[0])
    _check_ends(atoms, bonds, found)
    return tuple(found)


def centred_molecules(atoms: Atoms) -> list[CentredMolecule]:
    """All molecules, in the order of their central atoms.

    Raises:
        ValueError: as `molecules_in`; for hydrogen and oxygen that are not water, as `molecules_of`.
    """
    hydrogens, oxygens = (np.count_nonzero(atoms.numbers == number) for number in (1, 8))
    if hydrogens != 2 * oxygens and hydrogens * oxygens > 0 and hydrogens + oxygens == len(atoms):
        molecules_of(atoms)  # says which molecule is broken
    bonds = covalent_bonds(atoms)
    molecules, links = _molecules(atoms, bonds), _links(atoms, bonds)
    cell, masses, found = periodic_cell(atoms), atoms.get_masses(), []
    inverse = np.linalg.pinv(cell)
    for molecule in molecules:
        mine = np.sort(molecule.atoms)
        own = links[mine][:, mine]
        farthest = shortest_path(own, directed=False, unweighted=True).max(axis=1)
        centre = int(np.lexsort((mine, -masses[mine], farthest))[0])
        order, before = breadth_first_order(own, centre, directed=False)
        vectors = np.zeros((len(mine), 3))
        for atom in order[1:]:
            bond = atoms.positions[mine[atom]] - atoms.positions[mine[before[atom]]]
            vectors[atom] = vectors[before[atom]] + bond - np.rint(bond @ inverse) @ cell
        found.append(CentredMolecule(mine[order], vectors[order]))
    return sorted(found, key=lambda molecule: int(molecule.atoms[0]))


def bonds_between(atoms: Atoms, first: str, second: str) -> tuple[tuple[int, int], ...]:
    """Covalent bonds between two elements, (index of the first, index of the second); see `covalent_bonds`."""
    symbols = atoms.get_chemical_symbols()
    both = [(int(i), int(j)) for pair in covalent_bonds(atoms) for i, j in (pair, pair[::-1])]
    found = sorted((i, j) for i, j in both if (symbols[i], symbols[j]) == (first, second))
    return tuple(pair for pair in found if first != second or pair[0] < pair[1])


def angles_between(atoms: Atoms, first: str, centre: str, last: str) -> tuple[tuple[int, int, int], ...]:
    """Angles of two bonds at one atom, by elements: indices (first, centre, last), each angle once."""
    symbols, bonded = atoms.get_chemical_symbols(), defaultdict(list)
    for i, j in covalent_bonds(atoms).tolist():
        bonded[i].append(j)
        bonded[j].append(i)
    found = []
    for middle in sorted(bonded):
        if symbols[middle] == centre:
            ends = sorted(bonded[middle])
            found += [
                (i, middle, k) for i in ends for k in ends if i != k and (symbols[i], symbols[k]) == (first, last)
            ]
    return tuple(angle for angle in found if first != last or angle[0] < angle[2])


def _hydrogens_bonded_once(hydrogen: np.ndarray, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Which of all ordered pairs are bonds: of a hydrogen's only the nearest other element, if there is one."""
    best = np.full(len(hydrogen), np.inf)
    np.minimum.at(best, i, np.where(hydrogen[i] & ~hydrogen[j], distance, np.inf))
    bonded_to_heavy = np.isfinite(best)

    def allowed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        nearest = ~hydrogen[other] & (distance <= best[one])
        return ~hydrogen[one] | np.where(bonded_to_heavy[one], nearest, True)

    return allowed(i, j) & allowed(j, i)


def _check_ends(atoms: Atoms, bonds: np.ndarray, molecules: list[Molecule]) -> None:
    """Raise ValueError if bonds lead from an atom to its own image: then their vectors do not add up around a ring."""
    cell, where = periodic_cell(atoms), atoms.positions.copy()
    inverse = np.linalg.pinv(cell)
    for molecule in molecules:
        for atom, parent in zip(molecule.atoms[1:], molecule.parents[1:], strict=True):
            away = where[atom] - where[molecule.atoms[parent]]
            where[atom] -= np.rint(away @ inverse) @ cell
    away = where[bonds[:, 1]] - where[bonds[:, 0]]
    broken = (np.abs(np.rint(away @ inverse)) > 0).any(axis=1)
    if broken.any():
        raise ValueError(_endless(atoms, int(bonds[np.argmax(broken), 0])))


def _endless(atoms: Atoms, atom: int) -> str:
    return (
        f"{atoms.symbols} is not made of molecules: covalent bonds lead from atom {atom} ({atoms.symbols[atom]}) "
        "through the periodic boundaries to an image of itself."
    )
