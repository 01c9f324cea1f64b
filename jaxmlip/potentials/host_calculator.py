"""An ASE calculator on the host, as compiled code and the host ask it: what `AsePotential` runs on."""

import functools
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from jaxtyping import Float

from jaxmlip.potentials.ase import labels_of
from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.systems.dataset import Frame

BOX = 15.0
"""Å, edge of the periodic box that an isolated atom is put into for calculators that cannot do without one."""

COARSE = 1e-3
"""eV: rounding of an energy in single precision that is worth a warning."""

ENERGY, FORCES, STRESS = 1, 2, 3
"""How much is asked of a calculator; each with what comes before it."""

CARRIED = {
    "initial_magmoms": "initial magnetic moments",
    "initial_charges": "initial charges",
    "charge": "a charge",
    "spin": "a spin",
}
"""What a structure may tell a calculator besides positions, elements and cell, by its name in arrays or `info`."""


class HostCalculator:
    """A calculator on the host: made when first needed, asked by one thread at a time.

    Equality is identity, so that it can be static in compiled code.

    Attributes:
        name: as messages call it.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        name: str,
        identity: str,
        references: Mapping[int, float] | None = None,
        template: Atoms | None = None,
    ) -> None:
        """Keep what is needed to make and to ask a calculator.

        Args:
            make: gives the calculator.
            name: of it.
            identity: what tells it from others, in every process.
            references: by atomic number, eV.
            template: see `from_ase`.
        """
        self.name, self._identity, self._make = name, identity, make
        self._template = None if template is None else template.copy()
        self._lock = threading.RLock()
        self._references = np.zeros(N_SPECIES)
        self._unknown: dict[int, str] = {}
        self._known = set(references or {})
        for number, energy in (references or {}).items():
            self._references[number] = energy
        self._complaint, self._warned = "", False

    def __repr__(self) -> str:
        return self._identity

    def __copy__(self) -> "HostCalculator":
        """Itself: there is one calculator."""
        return self

    def __deepcopy__(self, memo: Any) -> "HostCalculator":
        """Itself."""
        return self

    @functools.cached_property
    def calculator(self) -> Any:
        """The calculator."""
        with self._lock:
            return self._make()

    def complaint(self) -> str:
        """See `AsePotential`."""
        with self._lock:
            said, self._complaint = self._complaint, ""
        return said

    def label(self, structures: Sequence[Atoms], *, stress: bool, progress: bool) -> list[Frame]:
        """See `labels_of`."""
        with self._lock:
            return labels_of(self.calculator, self.name, structures, stress=stress, progress=progress)

    def check(self, atoms: Atoms, stress: bool) -> None:
        """See `AsePotential`."""
        offered = getattr(self.calculator, "implemented_properties", None)
        if stress and offered is not None and "stress" not in offered:
            raise ValueError(
                f"The calculator {self.name} gives no stress, without which no cell can move and no pressure is known; "
                "keep the cell as it is (NVT, relaxation of positions), evaluate it without the stress of the labels "
                "(--stress-key none), or choose another calculator."
            )
        template = self._template
        if template is not None and np.array_equal(template.numbers, atoms.numbers):
            return
        carried = atoms.arrays | atoms.info
        for key, what in CARRIED.items():
            if key in carried and np.any(carried[key]):
                raise ValueError(
                    f"{atoms.symbols} has {what} ({key}), which the calculator {self.name} may read but a simulation "
                    "does not hand on; give from_ase(calculator, template=atoms) the structure, set it in the "
                    "calculator's own arguments, or remove it from the structure."
                )

    def references(self, species: Any) -> Float[np.ndarray, "119"]:
        """The table, after the energies of isolated atoms of these elements were found out."""
        with self._lock:
            for number in sorted(set(np.unique(np.asarray(species, int)).tolist()) - self._known - {0}):
                self._known.add(number)
                try:
                    self._references[number] = self._isolated(number)
                except Exception as error:
                    self._unknown[number] = _reason(error)
            return self._references.copy()

    def without_reference(self, species: Any) -> list[int]:
        """Of these elements, those whose isolated atoms the calculator cannot compute."""
        return sorted(set(np.unique(np.asarray(species, int)).tolist()) & set(self._unknown))

    def _isolated(self, number: int) -> float:
        """Energy of an isolated atom, eV."""
        atom, in_box = Atoms([number]), Atoms([number], [[0.5 * BOX] * 3], cell=[BOX] * 3, pbc=True)
        try:
            return self._asked(atom, ENERGY)[0]
        except Exception as error:
            try:
                return self._asked(in_box, ENERGY)[0]
            except Exception:
                raise error from None

    def _asked(self, atoms: Atoms, level: int) -> list[Any]:
        """Energy, forces and stress of a structure, as many of them as are wanted."""
        atoms.calc = self.calculator
        found: list[Any] = [float(atoms.get_potential_energy())]
        if level >= FORCES:
            found.append(np.array(atoms.get_forces(), np.float64))
        if level >= STRESS:
            found.append(np.array(atoms.get_stress(voigt=False), np.float64))
        for what, values in zip(("energy", "forces", "stress"), found, strict=False):
            if not np.isfinite(values).all():
                raise ValueError(f"its {what} is not finite")
        return found

    def answers(
        self, level: int, real: np.dtype, positions: Any, cell: Any, species: Any, owner: Any
    ) -> tuple[np.ndarray, ...]:
        """What compiled code asks for: energies [graphs], forces [atoms, 3], derivatives by the cell [graphs, 3, 3].

        The cell h and positions R under a strain ε are h (1 + ε) and R (1 + ε), so that the stress σ is
        V σ = Rᵀ ∂E/∂R + hᵀ ∂E/∂h, of which ∂E/∂h follows. It is NaN unless periodic in all three directions.

        Args:
            level: how much is asked for.
            real: precision of positions, cell and answers; double precision comes, and goes, as pairs of integers.
            positions: [atoms, 3], Å.
            cell: [graphs, 3, 3], Å.
            species: [atoms].
            owner: [atoms].
        """
        positions, cell = _numbers(positions), _numbers(cell)
        species, owner = np.asarray(species), np.asarray(owner)
        energies, forces = np.zeros(len(cell)), np.zeros_like(positions)
        by_cell = np.zeros_like(cell)
        with self._lock:
            for graph in np.unique(owner[species > 0]):
                mine = np.flatnonzero((owner == graph) & (species > 0))
                atoms = self._atoms(species[mine], positions[mine], cell[graph])
                periodic = bool(atoms.pbc.all())
                try:
                    energy, *rest = self._asked(atoms, level if periodic else min(level, FORCES))
                except Exception as error:
                    self._complaint = f"The calculator {self.name} failed for {atoms.symbols}: {_reason(error)}."
                    energies[graph], forces[mine], by_cell[graph] = np.nan, np.nan, np.nan
                    continue
                energies[graph] = energy - self.references(atoms.numbers)[atoms.numbers].sum()
                self._watch_rounding(atoms, float(energies[graph]), real)
                if level >= FORCES:
                    forces[mine] = rest[0]
                if level >= STRESS:
                    virial = atoms.get_volume() * rest[1] + atoms.positions.T @ rest[0] if periodic else np.nan
                    by_cell[graph] = np.linalg.solve(cell[graph].T, virial) if periodic else np.nan
        return tuple(_sent(each, real) for each in (energies, forces, by_cell)[:level])

    def _atoms(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> Atoms:
        template = self._template
        if template is None or not np.array_equal(template.numbers, numbers):
            return Atoms(numbers, positions, cell=cell, pbc=cell.any(axis=1))
        atoms = template.copy()
        atoms.set_constraint()
        atoms.set_cell(cell)
        atoms.pbc, atoms.positions = cell.any(axis=1), positions
        return atoms

    def _watch_rounding(self, atoms: Atoms, energy: float, real: Any) -> None:
        """Warn, once, where single precision rounds energies noticeably for want of references."""
        coarse = float(np.spacing(np.asarray(abs(energy), real)))
        unknown = self.without_reference(atoms.numbers)
        if self._warned or coarse < COARSE or not unknown:
            return
        self._warned = True
        names = ", ".join(chemical_symbols[number] for number in unknown)
        warnings.warn(
            f"The calculator {self.name} cannot compute isolated atoms of {names} ({self._unknown[unknown[0]]}), so "
            f"single precision rounds energies of {atoms.symbols} to {coarse:.1g} eV; forces are not concerned. Give "
            "their energies: from_ase(calculator, references={element: eV}).",
            stacklevel=2,
        )


def _numbers(values: Any) -> np.ndarray:
    """In double precision."""
    values = np.ascontiguousarray(values)
    return values.view(np.float64)[..., 0] if values.dtype == np.uint32 else values.astype(np.float64)


def _sent(values: np.ndarray, real: np.dtype) -> np.ndarray:
    """The inverse of `_numbers`."""
    return values.view(np.uint32).reshape(*values.shape, 2) if real == np.float64 else values.astype(real)


def _reason(error: Exception) -> str:
    """What an exception says, in a line."""
    text = " ".join(str(error).split()).rstrip(".")
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:500]
