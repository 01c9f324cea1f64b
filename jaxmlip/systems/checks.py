"""Whether a structure that comes in from outside is one that can be simulated.

`check_input` stands at the doors: files that are read, structures to label, starts of simulations and relaxations on
the command line. It is not asked again at every step behind them. There atoms may come as close as the dynamics, an
optimiser or a scan brings them; only those that coincide are refused, by the neighbour list. Programs may have reasons
for more, such as reduced units: `check_start`, for what they simulate, warns of close atoms.
"""

import warnings
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, covalent_radii

from jaxmlip.systems.graph import check_structure, periodic_cell
from jaxmlip.systems.neighbors import neighbor_pairs

ALLOW_CLOSE = "allow_close"
"""Key of `Atoms.info` that says, where it is true, that close atoms are meant; files keep it like any other word."""

SHORTEST_BOND = 0.5
"""Of the sum of the covalent radii (Cordero et al., Dalton Trans. 2008, 2832). H2 and N2 bonds are 1.2 and 0.8 sums."""

SMALLEST_BIN = 2.0
"""Å; pairs are searched for within this distance at least, as bins of less cost more than they save."""

FULL = 0.999
"""Occupancy from which on a site is full; files round."""

SAME_MASS = 2e-3
"""Relative difference of tables of standard masses; isotopes of light elements differ by more."""


def check_input(atoms: Atoms, *, allow_close: bool = False) -> None:
    """Refuse what `check_structure` refuses, partly occupied sites, senseless masses, and atoms closer than any bond.

    Args:
        atoms: a structure from a file, another program or the user.
        allow_close: take atoms as close as they are; also where `atoms.info["allow_close"]` is true.

    Raises:
        ValueError: naming the atoms and what is wrong with them.
    """
    check_structure(atoms)
    _check_occupancy(atoms)
    _check_masses(atoms)
    if not (allow_close or atoms.info.get(ALLOW_CLOSE)):
        found = close_contact(atoms)
        if found:
            raise ValueError(found)


def check_start(atoms: Atoms) -> None:
    """`check_input` for what is simulated from Python, with a warning of atoms closer than any bond.

    Raises:
        ValueError: see `check_input`.

    Warns:
        UserWarning: of close atoms, unless `atoms.info["allow_close"]` is true.
    """
    check_input(atoms, allow_close=True)
    if not atoms.info.get(ALLOW_CLOSE) and (found := close_contact(atoms)):
        warnings.warn(found, stacklevel=2)


def admitted(atoms: Atoms, *, allow_close: bool = False) -> None:
    """`check_input`, and a note in `atoms.info` where close atoms were allowed, for all that comes after.

    Raises:
        ValueError: see `check_input`.
    """
    check_input(atoms, allow_close=allow_close)
    if allow_close and close_contact(atoms):
        atoms.info[ALLOW_CLOSE] = True


def close_contact(atoms: Atoms) -> str | None:
    """The pair of atoms that is closest for its elements, in a sentence, if it is closer than any bond.

    That is half of the sum of the covalent radii. Doubled sites of rounded crystallographic files and virtual sites of
    water models (read as tungsten, MW) are. Periodic images count, an atom's own among them.
    """
    if len(atoms) == 1 and not atoms.pbc.any():
        return None
    radii = covalent_radii[atoms.numbers]
    reach = max(2 * SHORTEST_BOND * float(radii.max()), SMALLEST_BIN)
    i, j, shift, distance = neighbor_pairs(atoms.positions, periodic_cell(atoms), reach)
    floor = SHORTEST_BOND * (radii[i] + radii[j])
    if not (distance < floor).any():
        return None
    worst = int(np.argmin(distance / floor))
    image = " (a periodic image)" if shift[worst].any() else ""
    one, other = sorted((int(i[worst]), int(j[worst])))
    return (
        f"Atoms {one} ({atoms.symbols[one]}) and {other} ({atoms.symbols[other]}){image} are {distance[worst]:.3g} Å "
        f"apart, closer than any bond (less than {floor[worst]:.2g} Å): a site that is there twice, or a virtual site "
        "of a water model; remove one of the two. If it is meant, as in a model in reduced units, allow it "
        "(--allow-close, allow_close=True, or atoms.info['allow_close'] = True)."
    )


def _check_occupancy(atoms: Atoms) -> None:
    """Refuse sites that ASE's readers say are occupied in part (CIF: `info`, PDB: a column)."""
    sites = atoms.info.get("occupancy")
    if isinstance(sites, dict):
        kinds = np.asarray(atoms.arrays.get("spacegroup_kinds", np.arange(len(atoms))))
        for site, occupants in sites.items():
            if not isinstance(occupants, dict):
                continue
            shares = {symbol: _share(value) for symbol, value in occupants.items()}
            if len(shares) == 1 and min(shares.values()) >= FULL:
                continue
            here = np.flatnonzero(kinds.astype(str) == str(site))
            atom = f" (atom {here[0]})" if here.size else ""
            said = ", ".join(f"{symbol} {share:g}" for symbol, share in shares.items())
            raise ValueError(
                f"Site {site}{atom} is occupied in part: {said}. An average over disorder cannot be simulated; make "
                "an ordered structure of it, in which every site has one atom."
            )
    column = atoms.arrays.get("occupancy")
    if column is not None and column.shape == (len(atoms),) and column.dtype.kind == "f":
        partial = np.flatnonzero((column > 0) & (column < FULL))  # programs that do not know write zeros
        if partial.size:
            raise ValueError(
                f"Atom {partial[0]} ({atoms.symbols[partial[0]]}) has an occupancy of {column[partial[0]]:g}; choose "
                "one of the alternatives, so that every site has one atom."
            )


def _share(value: Any) -> float:
    """An occupancy; what is unknown or inapplicable in CIF ("?", ".") stands for its default, 1."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 1.0


def _check_masses(atoms: Atoms) -> None:
    """Refuse masses and momenta that are no numbers, and masses under a name that nothing reads."""
    masses, momenta = atoms.arrays.get("masses"), atoms.arrays.get("momenta")
    if masses is not None:
        bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
        if bad.size:
            raise ValueError(
                f"The mass of atom {bad[0]} ({atoms.symbols[bad[0]]}) is {masses[bad[0]]:g}; it must be positive (amu)."
            )
    if momenta is not None and not np.isfinite(momenta).all():
        raise ValueError(f"The momenta of {atoms.symbols} are not finite; leave them out, or mend them.")
    other = atoms.arrays.get("mass")
    if masses is None and other is not None and other.shape == (len(atoms),) and other.dtype.kind in "fi":
        unlike = np.flatnonzero(np.abs(other / atomic_masses[atoms.numbers] - 1) > SAME_MASS)
        if unlike.size:
            raise ValueError(
                f"The column 'mass' gives atom {unlike[0]} ({atoms.symbols[unlike[0]]}) the mass {other[unlike[0]]:g}, "
                "but masses are read from a column of the name 'masses' (amu): rename it, or remove it."
            )
