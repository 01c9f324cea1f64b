"""Whether labels are in the units that they are read in: what energies, forces and structures say of one another."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import units
from ase.data import atomic_numbers
from jaxtyping import Float

from jaxmlip.systems.dataset import Frame

CLOSE = 0.3
"""Å, the farthest that an atom may move between two frames whose energies are compared by their forces."""

HELD = 32
"""Systems whose last frame is held, to be compared with the next of the same atoms and cell."""

PAIRS = 4
"""Of frames at least, from which a factor between energies and forces is taken."""

CORRELATED = 0.95
"""Of energy differences and work at least, or the frames are too far apart to tell."""

NEAR = 0.1
"""Relative difference within which a factor may be that of a unit: forces change between frames, not evenly."""

OFF = 0.3
"""Relative difference from which on energies and forces do not belong together."""

NEAR_TOTAL = 0.06
"""The same for total energies; those of the Thomas–Fermi atom are that good from helium on."""

SIZES = 1.5
"""Ratio of the sizes of systems of one composition from which on it shows whether energies grow with them."""

UNITS = {
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
    "kJ/mol": units.kJ / units.mol,
    "kcal/mol": units.kcal / units.mol,
}
"""In eV."""

FACTORS = {f"the energies look like {name}": 1 / value for name, value in UNITS.items()} | {
    "energies and forces look like atomic units (Hartree or Rydberg, and the same per bohr)": 1 / units.Bohr,
    "the forces look like Hartree/bohr": units.Hartree / units.Bohr,
    "the forces look like Rydberg/bohr": units.Rydberg / units.Bohr,
    "the forces look like kJ/mol/Å": units.mol / units.kJ,
    "the forces look like kcal/mol/Å": units.mol / units.kcal,
    "the forces look like gradients, with the opposite sign": -1.0,
}
"""What differences of energies are, in units of the work of the forces, if these are eV and eV/Å in name only."""


class Step(NamedTuple):
    """Two frames of the same atoms and cell, near to each other.

    Attributes:
        energy: difference, as labelled.
        work: that the forces do against it, −½ (F₁ + F₂) · Δr: the difference that they say, but for third order.
        atoms: how many there are.
    """

    energy: float
    work: float
    atoms: int


class UnitCheck:
    """Labels of frames, one after the other, held against each other."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self._last: dict[bytes, Frame] = {}
        self._steps: list[Step] = []
        self._totals: list[float] = []
        self._sizes: dict[tuple, list[tuple[int, float]]] = defaultdict(list)

    def add(self, frame: Frame, counts: dict[str, int]) -> None:
        """Take a frame, and how many atoms of each element it has; one without an energy tells nothing."""
        if not math.isfinite(frame.energy):
            return
        size = len(frame.atoms)
        self._totals.append(frame.energy / sum(n * thomas_fermi(symbol) for symbol, n in counts.items()))
        divisor = math.gcd(*counts.values())
        self._sizes[tuple(sorted((s, n // divisor) for s, n in counts.items()))].append((size, frame.energy))
        if np.isfinite(frame.forces).all():
            key = frame.atoms.numbers.tobytes() + frame.atoms.cell.array.tobytes() + frame.atoms.pbc.tobytes()
            before = self._last.pop(key, None)
            if before is not None and (step := _step(before, frame)) is not None:
                self._steps.append(step)
            self._last[key] = frame
            if len(self._last) > HELD:
                del self._last[next(iter(self._last))]

    def said(self) -> list[str]:
        """What is odd, in sentences; the surest sign alone, for they are of one cause."""
        for sign in (self._by_forces, self._by_sizes, self._by_totals):
            found, told = sign()
            if found:
                return [found]
            if told:
                return []
        return []

    def _by_forces(self) -> tuple[str | None, bool]:
        """From differences of energies and the work of forces, and whether they tell anything."""
        if len(self._steps) < PAIRS:
            return None, False
        energy, work, atoms = (np.array(values, float) for values in zip(*self._steps, strict=True))
        factor, correlation = _slope(energy, work)
        per_atom, also = _slope(energy * atoms, work)
        if max(abs(correlation), abs(also)) < CORRELATED:
            return None, False
        between = f"Of {len(self._steps)} pairs of frames near to each other, energies differ by {factor:.3g} times the"
        if _near(factor, 1.0, NEAR):
            return None, True
        ratios = {what: factor / expected for what, expected in FACTORS.items()}
        if atoms.min() > 1:
            ratios["the energies look like eV/atom, and totals are expected"] = per_atom
        alike = [
            what for what in sorted(ratios, key=lambda what: abs(ratios[what] - 1)) if _near(ratios[what], 1, NEAR)
        ]
        if alike:
            return f"{between} work of the forces, where 1 is expected: {', or '.join(alike)}.", True
        if abs(factor - 1) > OFF:
            return f"{between} work of the forces, where 1 is expected: they are of other units or levels.", True
        return None, True

    def _by_sizes(self) -> tuple[str | None, bool]:
        """From energies that do not grow with the number of atoms."""
        for formula, found in self._sizes.items():
            sizes, energies = (np.array(values, float) for values in zip(*found, strict=True))
            if len(found) < 3 or sizes.max() < SIZES * sizes.min() or not energies.all():
                continue
            if _spread(energies) < 0.1 * _spread(energies / sizes):
                name = "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in formula)
                return (
                    f"Energies of {name} with {int(sizes.min())} to {int(sizes.max())} atoms are nearly the same "
                    f"({energies.mean():.4g}): they look like eV/atom, and totals are expected."
                ), True
        return None, False

    def _by_totals(self) -> tuple[str | None, bool]:
        """From all-electron total energies, which are known well enough to tell units apart."""
        if not self._totals:
            return None, False
        for name, value in UNITS.items():
            expected = units.Hartree / value
            low, middle, high = np.quantile(self._totals, [0.1, 0.5, 0.9])
            if all(_near(each, expected, NEAR_TOTAL) for each in (low, middle, high)):
                return f"The energies look like all-electron total energies in {name}; eV are expected.", True
        return None, False


def thomas_fermi(symbol: str) -> float:
    """Total energy of a neutral atom in Hartree, −0.7687 Z^(7/3) + Z²/2 − 0.2699 Z^(5/3).

    The statistical atom of Schwinger, Phys. Rev. A 24, 2353 (1981).
    """
    z = atomic_numbers[symbol]
    return -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)


def _step(before: Frame, after: Frame) -> Step | None:
    """The step from one frame to another; None if it is too long, or none."""
    moved = after.atoms.positions - before.atoms.positions
    cell = after.atoms.cell
    if cell.rank == 3 and after.atoms.pbc.any():
        fractions = cell.scaled_positions(moved)
        moved = moved - (np.round(fractions) * after.atoms.pbc) @ cell.array
    longest = np.linalg.norm(moved, axis=1).max()
    if not 0 < longest < CLOSE:
        return None
    work = -0.5 * float(((before.forces + after.forces) * moved).sum())
    return Step(after.energy - before.energy, work, len(after.atoms))


def _slope(y: Float[np.ndarray, " pairs"], x: Float[np.ndarray, " pairs"]) -> tuple[float, float]:
    """Of the line through the origin, and the correlation about it."""
    if not (x.any() and y.any()):
        return 0.0, 0.0
    return float(x @ y / (x @ x)), float(x @ y / math.sqrt((x @ x) * (y @ y)))


def _near(value: float, expected: float | int, within: float) -> bool:
    return bool(abs(value / expected - 1) < within)


def _spread(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values) / abs(np.mean(values)))
