"""Oxidation states that are common, and sizes of ions and atoms: what a first guess of a crystal needs.

The charges are a choice of common ones, as far as the prototypes here can use them; the radii are Shannon's effective
ionic radii for six neighbours, high spin where there is a choice (Acta Cryst. A 32, 751 (1976)).
"""

import numpy as np
from ase.data import atomic_numbers, covalent_radii, reference_states

CATIONS: dict[str, dict[int, float]] = {
    "Li": {1: 0.76}, "Na": {1: 1.02}, "K": {1: 1.38}, "Rb": {1: 1.52}, "Cs": {1: 1.67},
    "Be": {2: 0.45}, "Mg": {2: 0.72}, "Ca": {2: 1.00}, "Sr": {2: 1.18}, "Ba": {2: 1.35},
    "Sc": {3: 0.745}, "Y": {3: 0.90}, "La": {3: 1.032}, "Ce": {3: 1.01, 4: 0.87}, "Pr": {3: 0.99}, "Nd": {3: 0.983},
    "Pm": {3: 0.97}, "Sm": {3: 0.958}, "Eu": {2: 1.17, 3: 0.947}, "Gd": {3: 0.938}, "Tb": {3: 0.923}, "Dy": {3: 0.912},
    "Ho": {3: 0.901}, "Er": {3: 0.89}, "Tm": {3: 0.88}, "Yb": {2: 1.02, 3: 0.868}, "Lu": {3: 0.861},
    "Ac": {3: 1.12}, "Th": {4: 0.94}, "Pa": {4: 0.90, 5: 0.78}, "U": {3: 1.025, 4: 0.89}, "Np": {3: 1.01, 4: 0.87},
    "Pu": {3: 1.00, 4: 0.86},
    "Ti": {2: 0.86, 3: 0.67, 4: 0.605}, "Zr": {4: 0.72}, "Hf": {4: 0.71},
    "V": {2: 0.79, 3: 0.64, 4: 0.58, 5: 0.54}, "Nb": {4: 0.68, 5: 0.64}, "Ta": {4: 0.68, 5: 0.64},
    "Cr": {2: 0.80, 3: 0.615, 4: 0.55}, "Mo": {3: 0.69, 4: 0.65, 5: 0.61}, "W": {4: 0.66, 5: 0.62},
    "Mn": {2: 0.83, 3: 0.645, 4: 0.53}, "Tc": {4: 0.645}, "Re": {4: 0.63, 5: 0.58},
    "Fe": {2: 0.78, 3: 0.645}, "Ru": {3: 0.68, 4: 0.62}, "Os": {4: 0.63},
    "Co": {2: 0.745, 3: 0.61}, "Rh": {3: 0.665, 4: 0.60}, "Ir": {3: 0.68, 4: 0.625},
    "Ni": {2: 0.69, 3: 0.60}, "Pd": {2: 0.86, 4: 0.615}, "Pt": {2: 0.80, 4: 0.625},
    "Cu": {1: 0.77, 2: 0.73}, "Ag": {1: 1.15}, "Au": {1: 1.37, 3: 0.85},
    "Zn": {2: 0.74}, "Cd": {2: 0.95}, "Hg": {2: 1.02},
    "B": {3: 0.27}, "Al": {3: 0.535}, "Ga": {3: 0.62}, "In": {3: 0.80}, "Tl": {1: 1.50, 3: 0.885},
    "Si": {4: 0.40}, "Ge": {4: 0.53}, "Sn": {4: 0.69}, "Pb": {2: 1.19, 4: 0.775},
    "As": {3: 0.58}, "Sb": {3: 0.76, 5: 0.60}, "Bi": {3: 1.03}, "Te": {4: 0.97},
}  # fmt: skip
"""Radii in Å by charge."""

ANIONS: dict[int, dict[str, float | None]] = {
    -1: {"H": 1.40, "F": 1.33, "Cl": 1.81, "Br": 1.96, "I": 2.20},
    -2: {"O": 1.40, "S": 1.84, "Se": 1.98, "Te": 2.21},
    -3: {"N": None, "P": None, "As": None, "Sb": None, "Bi": None},
    -4: {"C": None, "Si": None, "Ge": None, "Sn": None},
}
"""Radii in Å by element; none where bonds are covalent: their lengths are sums of covalent radii. Hydride
has the usual value for salts, where Shannon has none."""

COORDINATION = {4: 0.94, 6: 1.00, 8: 1.03, 12: 1.00}
"""By how much an ionic bond with so many neighbours differs from one with six (Goldschmidt, 1926); a twelvefold site
adapts to the frame around it."""

METALLIC = {4: 0.88, 8: 0.97, 12: 1.00}
"""The same for metals, relative to twelve neighbours."""

NOBLE = ("Ne", "Ar", "Kr", "Xe")

GASES = ("H", "He", "N", "O", "F", "Cl", "Br", "I")
"""Elements that are no crystals of single atoms at ordinary pressure."""

CLOSE_PACKED = {"fcc": 4, "bcc": 2, "hcp": 2}
"""Atoms in the conventional cell of structures whose volumes an element keeps, within a few per cent, in the others."""

ATOMIC_VOLUMES = {
    "Mn": 12.2, "Ga": 19.6, "Pm": 33.2, "Sm": 33.2, "Pa": 25.0, "U": 20.8, "Np": 19.2, "Pu": 20.4,
    "Se": None, "Te": None,
}  # fmt: skip
"""Å³ per atom, from densities at room temperature (CRC Handbook of Chemistry and Physics), of metals of other
structures; none for elements whose hexagonal cell in ASE's table is that of chains."""


def anion_charge(symbol: str) -> int | None:
    """The charge of an anion, None for what is none."""
    return next((charge for charge, radii in ANIONS.items() if symbol in radii), None)


def bond_length(cation: str, charge: int, anion: str, coordination: int) -> float:
    """Å, of a cation with so many neighbours that are anions."""
    radius = ANIONS[anion_charge(anion) or 0][anion]
    if radius is None:
        return float(covalent_radii[atomic_numbers[cation]] + covalent_radii[atomic_numbers[anion]])
    return (CATIONS[cation][charge] + radius) * COORDINATION[coordination]


def anion_contact(anion: str) -> float:
    """Å, between two anions that touch."""
    radius = ANIONS[anion_charge(anion) or 0][anion]
    return 2 * float(covalent_radii[atomic_numbers[anion]] if radius is None else radius)


def element_distance(symbol: str, coordination: int) -> float:
    """Å, between nearest neighbours in a crystal of one element.

    From the volume that the element has in its own close-packed structure (ASE's `reference_states`), or else from its
    density, or else from its covalent radius, taken to be that of four neighbours.
    """
    volume = _close_packed_volume(symbol)
    if volume is None:
        return 2 * float(covalent_radii[atomic_numbers[symbol]]) * METALLIC[coordination] / METALLIC[4]
    return (np.sqrt(2) * volume) ** (1 / 3) * METALLIC[coordination]


def _close_packed_volume(symbol: str) -> float | None:
    if symbol in ATOMIC_VOLUMES:
        return ATOMIC_VOLUMES[symbol]
    state = reference_states[atomic_numbers[symbol]]
    if state is None or state.get("symmetry") not in CLOSE_PACKED:
        return None
    shape = np.sqrt(3) / 2 * state["c/a"] if state["symmetry"] == "hcp" else 1.0
    return float(state["a"] ** 3 * shape / CLOSE_PACKED[state["symmetry"]])
