"""What counts as the failure of a replica, looked at in every step on the device."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.motion import any_held, n_mobile
from jaxmlip.simulation.schedules import Schedule
from jaxmlip.simulation.trajectory import Outcome
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.graph import periodic_cell
from jaxmlip.systems.neighbors import neighbor_pairs
from jaxmlip.types import Leaf
from jaxmlip.units import KB

MAX_STEP = 0.5
"""Å; an atom that moves further in one step has exploded (a proton with 50 eV moves 0.5 Å in 0.5 fs)."""

MAX_STRAIN = 0.1
"""Change of a cell in one step (Frobenius norm) beyond which it has exploded."""

HOTTEST = 10.0
"""Multiple of the target beyond which a temperature is a failure."""

COLD = 100.0
"""K; a target below counts as this one, for a start that is not relaxed may well heat a cold replica tenfold."""

STRETCHED = 2.0
"""Multiple of its length at the start at which a bond is broken."""

BONDED = 1.25
"""Multiple of the sum of covalent radii (Cordero et al., Dalton Trans. 2832 (2008)) within which atoms are bonded."""

PARTNERS = (5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
"""Elements whose bonds to hydrogen are watched: B, C, N, O, F, Si, P, S, Cl, Br, I."""

NOT_FINITE, EXPLODED, CELL_LOST, HOT, BOND_BROKEN = 1, 2, 3, 4, 5
OUTCOMES = {
    0: Outcome.COMPLETED,
    NOT_FINITE: Outcome.NOT_FINITE,
    EXPLODED: Outcome.EXPLODED,
    CELL_LOST: Outcome.CELL_LOST,
    HOT: Outcome.TOO_HOT,
    BOND_BROKEN: Outcome.BOND_BROKEN,
}
"""Meaning of `Walkers.failure`."""


class Bonds(flax.struct.PyTreeNode):
    """Bonds that must not break; replicas with fewer have bonds without limit.

    Attributes:
        pairs: [replicas, bonds, 2], indices of atoms.
        shifts: [replicas, bonds, 3], lattice translation of the second atom, at the start and ever after: positions are
            not wrapped, but for those that the driver brings near the origin.
        limits: [replicas, bonds], Å.
    """

    pairs: Leaf
    shifts: Leaf
    limits: Leaf


def bonds_of_hydrogen(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bonds of hydrogen to the elements in `PARTNERS`: pairs [bonds, 2], shifts [bonds, 3] and lengths [bonds] in Å.

    A hydrogen atom that is within `BONDED` times the sum of covalent radii of exactly one atom of any element is bonded
    to it; one that is shared, as by two oxygen atoms, is not. Atoms of other elements are left alone: metals and salts
    have no bonds that must last.
    """
    radii = BONDED * covalent_radii
    numbers = atoms.numbers
    hydrogens = numbers == 1
    none = np.zeros((0, 2), int), np.zeros((0, 3)), np.zeros(0)
    if not hydrogens.any():
        return none
    i, j, shift, distance = neighbor_pairs(atoms.positions, periodic_cell(atoms), radii[1] + radii[numbers].max())
    near = hydrogens[i] & (distance < radii[numbers[i]] + radii[numbers[j]])
    single = np.bincount(i[near], minlength=len(atoms)) == 1
    kept = near & single[i] & np.isin(numbers[j], PARTNERS)
    return np.stack([i[kept], j[kept]], axis=1), shift[kept].astype(float), distance[kept]


def bonds_to_watch(starts: list[Atoms]) -> Bonds:
    """The bonds of all replicas at their starts, and how long they may become."""
    found = {id(atoms): bonds_of_hydrogen(atoms) for atoms in starts}
    most = max(len(lengths) for _, _, lengths in found.values())
    pairs = np.zeros((len(starts), most, 2), np.int32)
    shifts = np.zeros((len(starts), most, 3))
    limits = np.full((len(starts), most), np.inf)
    for replica, atoms in enumerate(starts):
        of_this, translations, lengths = found[id(atoms)]
        here = np.s_[replica, : len(lengths)]
        pairs[here], shifts[here], limits[here] = of_this, translations, STRETCHED * lengths
    return Bonds(jnp.asarray(pairs), jnp.asarray(shifts, float), jnp.asarray(limits, float))


def translated(bonds: Bonds, images: np.ndarray) -> Bonds:
    """The bonds of atoms from which lattice translations [replicas, atoms, 3] were taken."""
    first, second = (np.take_along_axis(images, np.asarray(bonds.pairs)[:, :, k, None], axis=1) for k in (0, 1))
    return bonds.replace(shifts=bonds.shifts + jnp.asarray(second - first, bonds.shifts.dtype))


def no_bonds(replicas: int) -> Bonds:
    """Nothing to watch."""
    return Bonds(jnp.zeros((replicas, 0, 2), jnp.int32), jnp.zeros((replicas, 0, 3)), jnp.zeros((replicas, 0)))


def failures(
    kind: type[Ensemble],
    schedules: dict[str, Schedule],
    bonds: Bonds,
    state: Any,
    energy: Any,
    leap: Any,
    leap_strain: Any,
    cells: Any,
    starts: Any,
) -> tuple[Any, Any]:
    """What is wrong with each replica, as a key of `OUTCOMES`, and whether it made a senseless step, both [replicas].

    Args:
        kind: the ensemble.
        schedules: its numbers.
        bonds: that must not break.
        state: after a step, with a leading axis of replicas.
        energy: [replicas], eV.
        leap: [replicas], the longest displacement of an atom in the step, relative to the cell, Å.
        leap_strain: [replicas], by how much the cell was strained in the step.
        cells: [replicas, 3, 3], after the step.
        starts: [replicas, 3, 3], the cells at the start of the run.
    """
    finite = jnp.isfinite(energy) & jnp.isfinite(state.momentum).all((1, 2)) & jnp.isfinite(state.force).all((1, 2))
    wild = (leap > MAX_STEP) | (leap_strain > MAX_STRAIN)
    nothing = jnp.zeros_like(finite)
    lost = hot = broken = nothing
    if kind.moves_cell:
        finite &= jnp.isfinite(state.stress).all((1, 2)) & jnp.isfinite(cells).all((1, 2))
        ratio = geometry.heights(cells) / geometry.heights(starts)
        lost = ((ratio < 0.5) | (ratio > 2.0)).any(-1)
    if "kT" in schedules:
        # Few atoms may by chance have many times their mean kinetic energy; up to four count as four.
        degrees = jnp.maximum(kind.degrees_of_freedom(n_mobile(state.mass), any_held(state.mass)), 12)
        target = jnp.maximum(schedules["kT"].highest, KB * COLD)
        kinetic = 0.5 * (state.momentum**2 / state.mass).sum((1, 2))
        hot = kinetic > HOTTEST * 0.5 * degrees * target
    if bonds.limits.shape[1]:
        first, second = (jnp.take_along_axis(state.position, bonds.pairs[:, :, k, None], axis=1) for k in (0, 1))
        squared = ((second + bonds.shifts @ cells - first) ** 2).sum(-1)
        broken = (squared > bonds.limits**2).any(-1)
    found = [~finite, wild, lost, hot, broken]
    codes = [NOT_FINITE, EXPLODED, CELL_LOST, HOT, BOND_BROKEN]
    return jnp.select(found, [jnp.full(nothing.shape, code, jnp.int32) for code in codes], 0), wild
