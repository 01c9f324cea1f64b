"""Relaxation of positions and cells by FIRE, on the same lists as the dynamics: any Potential."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.describing import short
from jaxmlip.potentials.checks import check_one
from jaxmlip.potentials.potential import Potential, reference_energy, without_stress
from jaxmlip.potentials.present_elements import elements_of
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.minimization import Limits, Minimization, minimized, start
from jaxmlip.simulation.safety import OUTCOMES, no_bonds
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.step import System
from jaxmlip.simulation.trajectory import Outcome
from jaxmlip.systems.capacity import Capacity, needs_of
from jaxmlip.systems.checks import check_start
from jaxmlip.systems.constraints import fixed_atoms, hold
from jaxmlip.systems.device_lists import pseudo_inverse, search_heights
from jaxmlip.systems.graph import periodic_cell
from jaxmlip.systems.origin import offset_from_origin
from jaxmlip.types import HostMatrix, HostVectors
from jaxmlip.units import GPA

CHECK_EVERY = 20
"""Steps between looks at whether the relaxation is done."""


@dataclasses.dataclass(frozen=True, eq=False)
class Relaxed:
    """A relaxed structure, and how far it came.

    Attributes:
        atoms: the structure, a copy; positions are not wrapped. Its constraint, if there was one, is one `FixAtoms`.
        outcome: `COMPLETED` if it is relaxed, `NOT_CONVERGED`, or the failure that stopped it.
        steps: steps taken.
        energy: total energy, elemental references included, eV.
        forces: [atoms, 3], eV/Å, of the potential, on atoms that are held as well.
        stress: [3, 3], eV/Å³, positive under tension; None if the cell was fixed.
    """

    atoms: Atoms
    outcome: Outcome
    steps: int
    energy: float
    forces: HostVectors
    stress: HostMatrix | None

    def __repr__(self) -> str:
        """The structure, and what `summary` says."""
        return short("Relaxed", str(self.atoms.symbols), self.outcome.name, self.summary().removesuffix("."))

    @property
    def converged(self) -> bool:
        """Whether forces on what moves, and stress if the cell moved, are below the limits."""
        return self.outcome is Outcome.COMPLETED

    def summary(self) -> str:
        """Steps, energy and what remains of forces and stress, in one line."""
        longest = np.linalg.norm(self.forces[~fixed_atoms(self.atoms)], axis=1).max(initial=0.0)
        left = f"{self.steps} steps, {self.energy:.6f} eV, longest force {longest:.2g} eV/Å"
        if self.stress is None:
            return f"{left}."
        volume = self.atoms.get_volume()
        return f"{left}, {volume:.2f} Å³, largest stress {np.abs(self.stress).max() / GPA:.2g} GPa."


def relax(
    potential: Potential,
    structure: Atoms,
    forces_eV_A: Number = 0.01,
    stress_GPa: Number | None = None,
    *,
    pressure_GPa: Number = 0.0,
    steps: int = 1000,
    skin: Number = 0.5,
    progress: bool = False,
) -> Relaxed:
    """Relax positions, and the whole cell if `stress_GPa` is given, by FIRE.

    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), as in ASE: the velocity before the step is mixed. One step moves
    no atom by more than 0.2 Å, and strains the cell by 0.02 at most. The cell follows symmetric strains ε with forces
    −V (σ + P 1) by ε; its coordinates are L ε with L = V^⅓ N^⅙ for N atoms (Sheppard et al., J. Chem. Phys. 136, 074103
    (2012)), which are as stiff in a large cell as in a small one; those of ASE's filters, N ε, grow soft with N. Atoms
    held by `FixAtoms` stay where they are, in a cell that does not move.

    Args:
        potential: any Potential.
        structure: where to start.
        forces_eV_A: the longest force on an atom that moves that is allowed to remain, eV/Å.
        stress_GPa: the largest element of σ + P 1 that is allowed to remain, GPa; None keeps the cell.
        pressure_GPa: external pressure P on a cell that moves.
        steps: steps after which to give up.
        skin: see `simulate`.
        progress: show a bar of the steps.

    Raises:
        ValueError: for elements the potential does not know, a structure that `check_start` refuses, settings that make
            no sense, constraints other than `FixAtoms`, or a cell that is to move without being periodic in all three
            directions or with atoms that are held.

    Warns:
        UserWarning: if the cell moves by a potential that was trained, but never on stress.
    """
    check_one(potential, "relax", "relax with one after the other")
    check_start(structure)
    _check(potential, structure, forces_eV_A, stress_GPa, steps, skin)
    if stress_GPa is not None and (said := without_stress(potential)):
        warnings.warn(said, stacklevel=2)
    work = _Relaxation(potential, structure, stress_GPa is not None, skin)
    limits = Limits(forces_eV_A, (stress_GPa or 0.0) * GPA, pressure_GPa * GPA)
    reached = 0
    with progress_bar(total=steps, desc="relax", unit="step", disable=not progress, compiles=True) as bar:
        work.advance(0, limits)
        bar.compiled()
        while reached < steps and not work.ended:
            before, reached = reached, min(reached + CHECK_EVERY, steps)
            work.advance(reached, limits)
            if progress:
                longest = np.linalg.norm(np.asarray(work.now.force), axis=-1).max()
                bar.set_postfix_str(f"longest force {longest:.2g} eV/Å", refresh=False)
            bar.update(reached - before)
    relaxed = work.relaxed()
    if OUTCOMES[int(work.now.failure)] is not Outcome.COMPLETED and (complaint := potential.complaint()):
        warnings.warn(f"The relaxation has failed. {complaint}", stacklevel=2)
    return relaxed


def _check(potential: Potential, structure: Atoms, forces_eV_A: Any, stress_GPa: Any, steps: Any, skin: Any) -> None:
    """Raise ValueError for what `relax` cannot do."""
    potential.check(structure, stress=stress_GPa is not None)
    limits = {"forces_eV_A": forces_eV_A, "steps": steps, "skin": skin}
    limits |= {} if stress_GPa is None else {"stress_GPa": stress_GPa}
    for name, value in limits.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"A relaxation needs a positive {name}, not {value!r}.")
    if stress_GPa is not None and not structure.pbc.all():
        raise ValueError(
            f"Only a cell that is periodic in all three directions can relax, not pbc {structure.pbc.tolist()}; leave "
            "out stress_GPa."
        )
    if stress_GPa is not None and fixed_atoms(structure).any():
        raise ValueError(
            f"{structure.symbols} has fixed atoms, which a cell that relaxes would move: keep the cell (no stress_GPa, "
            "no --cell), or remove the constraint by atoms.set_constraint()."
        )


class _Relaxation:
    """The host's side of one relaxation."""

    def __init__(self, potential: Potential, structure: Atoms, with_cell: bool, skin: Number) -> None:
        self.structure, self.with_cell, self.skin = structure, with_cell, float(skin)
        self.potential = jax.device_put(potential)
        self.cutoffs = potential.cutoff, potential.inner_cutoff
        cell, self.fixed = periodic_cell(structure), fixed_atoms(structure)
        self.offset = offset_from_origin(structure.positions, cell)
        near = structure.positions - self.offset.vectors(cell)
        self.heights = search_heights(cell[None], with_cell)
        position, cells = jnp.asarray(near, float), jnp.asarray(cell, float)
        self.system = System(
            species=jnp.asarray(structure.numbers, jnp.int32)[None],
            cells=cells[None],
            inverses=jnp.asarray(pseudo_inverse(cell), float)[None],
            lowest=jnp.asarray(self.heights, float),
            bonds=no_bonds(1),
        )
        needs = self._needs(near, cell)
        self.capacity = dataclasses.replace(
            Capacity.holding(needs, self.heights, self.reach, len(structure)),
            elements=elements_of(potential, [structure.numbers]),
        )
        self.now: Minimization = start(position, cells, self.capacity)

    @property
    def reach(self) -> float:
        """Of the lists, Å."""
        return self.cutoffs[0] + self.skin

    @property
    def ended(self) -> bool:
        """Whether it is relaxed, or has failed."""
        return bool(self.now.done) or int(self.now.failure) > 0

    def advance(self, until: int, limits: Limits) -> None:
        """Take steps up to `until`, or to the end, with room for lists made as often as needed."""
        how = {"with_cell": self.with_cell}
        moves = jnp.asarray(~self.fixed)
        while True:
            self.now = minimized(
                self.potential, self.system, self.now, moves, limits, until, self.skin, capacity=self.capacity, **how
            )
            if int(self.now.step) >= until or self.ended:
                return
            needed, cell = np.asarray(self.now.needed), np.asarray(self.now.cell, np.float64)
            if bool(self.now.narrow):
                self.heights = search_heights(cell[None], self.with_cell)
                self.system = self.system.replace(lowest=jnp.asarray(self.heights, float))
                needed = self._needs(np.asarray(self.now.position, np.float64), cell)
            self.capacity = self.capacity.grown(needed, self.heights, self.reach, len(self.structure))
            self.now = self.now.without_lists(self.capacity)

    def relaxed(self) -> Relaxed:
        """Where it has come to."""
        now, failure = jax.device_get(self.now), int(self.now.failure)
        atoms, cell = self.structure.copy(), np.asarray(now.cell, np.float64)
        hold(atoms, self.fixed)
        if self.with_cell:
            atoms.set_cell(cell)
        there = np.asarray(now.position, np.float64) + self.offset.vectors(cell)
        atoms.positions = np.where(self.fixed[:, None], self.structure.positions, there)
        return Relaxed(
            atoms=atoms,
            outcome=OUTCOMES[failure] if failure else Outcome.COMPLETED if now.done else Outcome.NOT_CONVERGED,
            steps=int(now.step),
            energy=float(now.energy) + reference_energy(self.potential, self.structure.numbers),
            forces=np.asarray(now.force, np.float64),
            stress=np.asarray(now.stress, np.float64) if self.with_cell else None,
        )

    def _needs(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        return needs_of([positions], cell[None], self.heights, self.cutoffs, self.skin, len(positions))
