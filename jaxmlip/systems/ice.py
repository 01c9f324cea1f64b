"""Proton-disordered ice Ih in orthorhombic boxes.

The oxygens are those of the ideal lattice; GenIce2 (Matsumoto et al., J. Comput. Chem. 39, 61 (2018); J. Chem. Inf.
Model. 61, 2542 (2021)) orients the hydrogen bonds by the ice rules, at random and with little net dipole.
"""

import itertools
import logging
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from jaxtyping import Float

from jaxmlip.types import HostVectors
from jaxmlip.units import G_PER_CM3

LATTICE_A = 4.51842, 7.35556
"""Hexagonal lattice constants a and c in Å at 250 K; Röttger et al., Acta Cryst. B 50, 644 (1994)."""

OH_LENGTH = 0.9572
"""O–H distance in Å and, below, H–O–H angle in degrees of the gas-phase molecule; Benedict et al., J. Chem. Phys. 24,
1139 (1956)."""

HOH_ANGLE = 104.52

MOLECULES_PER_CELL = 8
"""Water molecules in the orthorhombic unit cell a × √3 a × c."""

MAX_ASPECT = 3.0
"""Longest over shortest side of a box that is made without being asked for by its `cells`."""

_OXYGENS = np.array(
    [
        [1 / 4, 1 / 3, 1 / 8],
        [3 / 4, 5 / 6, 1 / 8],
        [1 / 4, 2 / 3, 2 / 8],
        [3 / 4, 1 / 6, 2 / 8],
        [1 / 4, 2 / 3, 5 / 8],
        [3 / 4, 1 / 6, 5 / 8],
        [1 / 4, 1 / 3, 6 / 8],
        [3 / 4, 5 / 6, 6 / 8],
    ]
)
"""Fractional positions in the orthorhombic cell: bilayers one eighth of c thick, three eighths apart."""


def ice_ih(
    molecules: int | None = None,
    *,
    cells: tuple[int, int, int] | None = None,
    density_g_cm3: float = 0.92,
    seed: int = 0,
) -> Atoms:
    """Proton-disordered ice Ih: whole molecules, ordered O, H, H, in a periodic orthorhombic box.

    Args:
        molecules: number of molecules, a multiple of 8; the box is the most cubic one that holds them. 96 if neither
            this nor `cells` is given.
        cells: instead of `molecules`, repetitions of the 8-molecule cell along a, √3 a and c (at least 2, 1, 1).
        density_g_cm3: the lattice is scaled to it; 0.92 is the experiment's at 250 K (IAPWS R10-06).
        seed: another seed is another proton order; the caller's random state is left alone.

    Raises:
        ValueError: if no box of sensible shape holds that number of molecules (naming those that do), if both or
            impossible `cells` are given, or for a density that is not positive.
    """
    if molecules is not None and cells is not None:
        raise ValueError(f"Give molecules={molecules} or cells={cells}, not both.")
    if not density_g_cm3 > 0:
        raise ValueError(f"The density must be positive, not {density_g_cm3} g/cm³.")
    if cells is None:
        cells = _most_cubic(96 if molecules is None else molecules)
    elif len(cells) != 3 or min(cells) < 1 or cells[0] < 2:
        raise ValueError(
            f"cells={tuple(cells)} cannot hold ice Ih: the repetitions along a, √3 a and c must be at least (2, 1, 1), "
            "or a molecule would be bonded to an image of its own neighbour."
        )

    corners = np.array(list(itertools.product(*map(range, cells))))
    scaled = ((corners[:, None, :] + _OXYGENS) / cells).reshape(-1, 3)
    mass = len(scaled) * (atomic_masses[8] + 2 * atomic_masses[1])
    sides = np.array(cells) * _unit_cell()
    sides = sides * (mass / (density_g_cm3 * G_PER_CM3) / sides.prod()) ** (1 / 3)
    orientations = _proton_order(scaled, sides, seed)

    half = math.radians(HOH_ANGLE) / 2
    # In GenIce2's molecular frame the hydrogens lie in the yz plane, symmetric about z.
    monomer = OH_LENGTH * np.array(
        [[0, 0, 0], [0, math.sin(half), math.cos(half)], [0, -math.sin(half), math.cos(half)]]
    )
    positions = (scaled * sides)[:, None, :] + monomer @ orientations
    return Atoms("OH2" * len(scaled), positions.reshape(-1, 3), cell=sides, pbc=True)


def _unit_cell() -> Float[np.ndarray, "3"]:
    """Sides of the 8-molecule cell at 250 K, Å."""
    a, c = LATTICE_A
    return np.array([a, math.sqrt(3) * a, c])


def _most_cubic(molecules: int) -> tuple[int, int, int]:
    """Repetitions of the unit cell whose box of so many molecules has the smallest aspect."""
    choice = _best_box(molecules)
    if choice is None:
        smaller = next((n for n in range(molecules - 1, 0, -1) if _best_box(n)), None)
        larger = next(n for n in itertools.count(max(molecules + 1, MOLECULES_PER_CELL)) if _best_box(n))
        nearest = f"size is {larger}" if smaller is None else f"sizes are {smaller} and {larger}"
        raise ValueError(
            f"No box of sensible shape holds {molecules} molecules of ice Ih; the nearest possible {nearest} (other "
            f"multiples of {MOLECULES_PER_CELL}, in elongated boxes, are made by cells=(nx, ny, nz))."
        )
    return choice


def _best_box(molecules: int) -> tuple[int, int, int] | None:
    """The most cubic repetitions, or None if there are none or all are elongated beyond `MAX_ASPECT`."""
    units, rest = divmod(molecules, MOLECULES_PER_CELL)
    if rest or units < 2:
        return None
    best, best_aspect = None, MAX_ASPECT
    for nx in range(2, units + 1):
        if units % nx:
            continue
        for ny in range(1, units // nx + 1):
            if (units // nx) % ny:
                continue
            sides = np.array([nx, ny, units // nx // ny]) * _unit_cell()
            if sides.max() / sides.min() < best_aspect:
                best, best_aspect = (nx, ny, units // nx // ny), sides.max() / sides.min()
    return best


def _proton_order(scaled: HostVectors, sides: Float[np.ndarray, "3"], seed: int) -> Float[np.ndarray, "molecules 3 3"]:
    """Orientations by the ice rules: rows are the axes of each molecule's frame."""
    with _silenced():
        from genice2.genice import GenIce
        from genice2.plugin import Format

    class Lattice:
        """The whole supercell, as GenIce2 reads a lattice plugin: lengths in Å are rescaled by `density`."""

        waters = scaled
        coord = "relative"
        cell = np.diag(sides)
        bondlen = 3.0

    with _seeded(seed), _silenced():
        # GenIce2's own constants: the density that leaves the lattice as it is.
        same = 18 * len(scaled) / (6.022e23 * sides.prod() * 1e-24)
        ice = GenIce(cast(Any, Lattice()), density=same)
        output = ice.generate_ice(Format("raw", stage=(5,)), depol="strict")
    return cast(dict, output)["rotmatrices"]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """GenIce2 draws from the global generators: seed them inside, restore them after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _silenced() -> Iterator[None]:
    """GenIce2 logs to the root logger, and configures it if the application has not: undo both."""
    root, threshold = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(threshold)
        root.handlers[:] = handlers
