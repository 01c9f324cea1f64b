"""Undistorted elements and compounds of the prototypes, and what energies say of their stability.

Energies of formation are against the elements, energies of decomposition against all competing phases at the same
composition (Bartel et al., npj Comput. Mater. 6, 97 (2020)): below zero for what is stable, by as much as it is. All
phases are as `many_crystals` starts from, unrelaxed, and the same for every potential.
"""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from jaxtyping import Float
from scipy.optimize import linprog

from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.ions import GASES
from jaxmlip.systems.prototypes import PROTOTYPES, decorations, ideal

BOX = 10.0
"""Å, edge of the cell of a molecule: beyond what reaches its images."""

FROM_TABLE = ("H", "N", "O", "F", "Cl")
"""Elements whose diatomic molecules ASE knows; of the others bonds are twice the covalent radius."""


def candidates(compounds: Sequence[str], elements: Sequence[str], prototypes: Sequence[str] | None) -> list[Atoms]:
    """Undistorted phases in which the energies of compounds are to be told: of all elements, and of their systems.

    Args:
        compounds: compositions of interest.
        elements: symbols of all elements.
        prototypes: names of the structure types; all of `PROTOTYPES` by default.

    Returns:
        Crystals of every element, diatomic molecules in a box for gases, and every decoration of the prototypes whose
        elements are among those of one of the compounds.
    """
    names = [name for name in PROTOTYPES if prototypes is None or name in prototypes]
    # Elements have their own structure types, whether compounds are asked for in them or not.
    pure = [name for name in PROTOTYPES if not PROTOTYPES[name].cations]
    found = {d: ideal(d) for name in pure for d in decorations(name, elements) if len(d.elements) == 1}
    for compound in dict.fromkeys(compounds):
        for name in names:
            for decoration in decorations(name, {*Atoms(compound).symbols}):
                found.setdefault(decoration, ideal(decoration))
    return [_diatomic(symbol) for symbol in elements if symbol in GASES and symbol != "He"] + [*found.values()]


def lowest(frames: Sequence[Frame]) -> list[Frame]:
    """Of each composition the phase of least energy per atom; elements first, each group in alphabetical order."""
    best: dict[str, Frame] = {}
    for frame in frames:
        name = composition(frame.atoms)
        if name not in best or _per_atom(frame) < _per_atom(best[name]):
            best[name] = frame
    return [best[name] for name in sorted(best, key=lambda name: (len({*best[name].atoms.numbers}) > 1, name))]


def formation_energies(frames: Sequence[Frame]) -> Float[np.ndarray, " frames"]:
    """Energies per atom (eV) of phases relative to the elements among them.

    Raises:
        ValueError: if an element of a phase is not among them.
    """
    pure = {int(f.atoms.numbers[0]): _per_atom(f) for f in frames if len({*f.atoms.numbers}) == 1}
    lacking = sorted({chemical_symbols[z] for f in frames for z in f.atoms.numbers if z not in pure})
    if lacking:
        raise ValueError(f"There is no energy of formation without the elements {', '.join(lacking)}.")
    return np.array([_per_atom(f) - np.mean([pure[int(z)] for z in f.atoms.numbers]) for f in frames])


def decomposition_energies(frames: Sequence[Frame]) -> Float[np.ndarray, " frames"]:
    """Energies per atom (eV) of phases relative to the best mixture of all the others at their composition.

    Args:
        frames: phases, one for each composition, elements among them. That of an element is NaN: it cannot decompose.
    """
    energies = formation_energies(frames)
    shares = np.array([np.bincount(f.atoms.numbers, minlength=N_SPECIES) / len(f.atoms) for f in frames])
    found = np.full(len(frames), np.nan)
    for number, share in enumerate(shares):
        inside = np.flatnonzero(share)
        if len(inside) == 1:
            continue
        outside = np.delete(np.arange(shares.shape[1]), inside)
        others = np.flatnonzero(~shares[:, outside].any(axis=1) & (np.arange(len(frames)) != number))
        mixture = linprog(energies[others], A_eq=shares[np.ix_(others, inside)].T, b_eq=share[inside], method="highs")
        found[number] = energies[number] - mixture.fun
    return found


def _per_atom(frame: Frame) -> float:
    return frame.energy / len(frame.atoms)


def _diatomic(symbol: str) -> Atoms:
    length = 2 * covalent_radii[atomic_numbers[symbol]]
    atoms = molecule(f"{symbol}2") if symbol in FROM_TABLE else Atoms([symbol] * 2, [[0, 0, 0], [0, 0, length]])
    atoms = Atoms(atoms.numbers, atoms.positions, cell=[BOX] * 3, pbc=True)
    atoms.center()
    atoms.info["kind"] = "diatomic"
    return atoms
