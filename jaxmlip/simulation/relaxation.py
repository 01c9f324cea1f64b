"""Relaxation of positions and cells by FIRE, on the engine of the dynamics: any Potential, lists that hold."""

import dataclasses
import warnings
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.describing import short
from jaxmlip.potentials.checks import check_one
from jaxmlip.potentials.potential import Potential, reference_energy, without_stress
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.safety import OUTCOMES, no_bonds
from jaxmlip.simulation.schedules import Number, Schedule, schedule
from jaxmlip.simulation.step import Layout
from jaxmlip.simulation.trajectory import Outcome
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.constraints import fixed_atoms, hold
from jaxmlip.systems.graph import check_structure
from jaxmlip.types import HostMatrix, HostVectors, Leaf, Vectors
from jaxmlip.units import FS, GPA

START_DT, MAX_DT, MAX_MOVE = 0.1, 1.0, 0.2
"""FIRE's first and longest timestep (unit masses, eV and Å), and the longest step of all coordinates together, Å."""

MIXING, LESS_MIXING, LONGER, SHORTER, PATIENCE = 0.1, 0.99, 1.1, 0.5, 5
"""FIRE's α at the start, its factor, those of the timestep, and the downhill steps that must come before them."""

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

    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), as in ASE: the velocity before the step is mixed, and one step
    moves all coordinates together by at most 0.2 Å. The cell follows symmetric strains ε; as in ASE's UnitCellFilter
    its coordinates are N ε for N atoms, with forces −V (σ + P 1)/N. Atoms held by `FixAtoms` stay where they are, in a
    cell that does not move.

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
        ValueError: for elements the potential does not know, a damaged structure, settings that make no sense,
            constraints other than `FixAtoms`, or a cell that is to move without being periodic in all three directions
            or with atoms that are held.

    Warns:
        UserWarning: if the cell moves by a potential that was trained, but never on stress.
    """
    check_one(potential, "relax", "relax with one after the other")
    check_structure(structure)
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
    fixed = fixed_atoms(structure)
    if stress_GPa is not None and fixed.any():
        raise ValueError(
            f"{structure.symbols} has fixed atoms, which a cell that relaxes would move: keep the cell (no stress_GPa, "
            "no --cell), or remove the constraint by atoms.set_constraint()."
        )
    if stress_GPa is not None and (said := without_stress(potential)):
        warnings.warn(said, stacklevel=2)
    fire = Fire(forces_eV_A) if stress_GPa is None else FireWithCell(forces_eV_A, stress_GPa, pressure_GPa)
    engine = Driver(
        potential,
        [structure],
        type(fire),
        fire.schedules(1),
        masses=[np.ones(len(structure))],
        fixed=[fixed],
        bonds=no_bonds(1),
        timestep_fs=1.0 / FS,  # steps of length 1; FIRE has its own timestep
        skin=skin,
        seed=0,
        stop_at_failure=False,
        layout=Layout(resting=bool(fixed.any())),
    )
    reached = 0
    with progress_bar(total=steps, desc="relax", unit="step", disable=not progress, compiles=True) as bar:
        engine.prepare()
        bar.compiled()
        while reached < steps and not (bool(engine.walkers.state.done[0]) or engine.all_failed):
            before, reached = reached, min(reached + CHECK_EVERY, steps)
            engine.advance(reached)
            if progress:
                longest = np.linalg.norm(np.asarray(engine.walkers.state.force[0]), axis=-1).max()
                bar.set_postfix_str(f"longest force {longest:.2g} eV/Å", refresh=False)
            bar.update(reached - before)
    return _relaxed(engine, structure, reference_energy(potential, structure.numbers))


def _relaxed(engine: Driver, structure: Atoms, reference: float) -> Relaxed:
    walkers = engine.walkers
    failure = int(walkers.failure[0])
    outcome = OUTCOMES[failure] if failure else Outcome.COMPLETED if walkers.state.done[0] else Outcome.NOT_CONVERGED
    state = jax.device_get(walkers.state)
    atoms = structure.copy()
    hold(atoms, engine.fixed[0])
    if engine.kind.moves_cell:
        atoms.set_cell(engine.cells[0])
    atoms.positions = engine.recorded_positions()[0]
    return Relaxed(
        atoms=atoms,
        outcome=outcome,
        steps=int(state.steps[0]),
        energy=float(walkers.energy[0]) + reference,
        forces=np.asarray(state.force[0], np.float64),
        stress=np.asarray(state.stress[0], np.float64) if engine.kind.moves_cell else None,
    )


class FireState(flax.struct.PyTreeNode):
    """State of one relaxation.

    Attributes:
        position, momentum, force: [atoms, 3].
        mass: [atoms, 1], 1, or `HELD_MASS`.
        cell, stress: [3, 3], as in `barostats.CellState`.
        growth: [3, 3], velocity of the coordinates N ε.
        dt, mixing: [], FIRE's present timestep and α.
        downhill: [], steps since the force last pointed against the velocity.
        steps: [], steps taken.
        done: [], whether forces and stress are below the limits.
    """

    position: Leaf
    momentum: Leaf
    force: Leaf
    mass: Leaf
    cell: Leaf
    stress: Leaf
    growth: Leaf
    dt: Leaf
    mixing: Leaf
    downhill: Leaf
    steps: Leaf
    done: Leaf


@dataclasses.dataclass(frozen=True)
class Fire(Ensemble):
    """FIRE as the engine wants it. A step of zero length, or of what is relaxed, moves nothing.

    Attributes:
        forces_eV_A: see `relax`.
    """

    forces_eV_A: Number

    def schedules(self, replicas: int) -> dict[str, Schedule]:
        """The limit, eV/Å."""
        return {"force": schedule("forces_eV_A", self.forces_eV_A, 1.0, replicas)}

    @staticmethod
    def init(key: Any, positions: Vectors, masses: Any, cell: Any, numbers: dict[str, Any]) -> FireState:
        """At rest."""
        del key, numbers
        real, none = positions.dtype, jnp.zeros((), jnp.int32)
        return FireState(
            position=positions,
            momentum=jnp.zeros_like(positions),
            force=jnp.zeros_like(positions),
            mass=jnp.asarray(masses, real)[:, None],
            cell=cell,
            stress=jnp.zeros_like(cell),
            growth=jnp.zeros_like(cell),
            dt=jnp.full((), START_DT, real),
            mixing=jnp.full((), MIXING, real),
            downhill=none,
            steps=none,
            done=jnp.zeros((), bool),
        )

    @staticmethod
    def move(state: FireState, dt: Any, numbers: dict[str, Any]) -> FireState:
        """One step, forces being known."""
        return _moved(state, dt, jnp.zeros_like(state.cell))

    @staticmethod
    def finish(state: FireState, forces: Vectors, dt: Any, numbers: dict[str, Any]) -> FireState:
        """Whether it is relaxed."""
        del dt
        acting = forces / state.mass
        return state.replace(force=forces, done=(acting**2).sum(1).max() < numbers["force"] ** 2)


@dataclasses.dataclass(frozen=True)
class FireWithCell(Fire):
    """FIRE of positions and cell.

    Attributes:
        stress_GPa: see `relax`.
        pressure_GPa: see `relax`.
    """

    moves_cell: ClassVar[bool] = True

    stress_GPa: Number
    pressure_GPa: Number

    def schedules(self, replicas: int) -> dict[str, Schedule]:
        """The limits and the pressure, in eV and Å."""
        return super().schedules(replicas) | {
            "stress": schedule("stress_GPa", self.stress_GPa, GPA, replicas),
            "pressure": schedule("pressure_GPa", self.pressure_GPa, GPA, replicas),
        }

    @staticmethod
    def move(state: FireState, dt: Any, numbers: dict[str, Any]) -> FireState:
        """One step, forces and stress being known."""
        force = -geometry.volumes(state.cell) * _excess(state, numbers) / len(state.position)
        return _moved(state, dt, force)

    @staticmethod
    def finish(state: FireState, forces: Vectors, dt: Any, numbers: dict[str, Any]) -> FireState:
        """Whether it is relaxed."""
        state = Fire.finish(state, forces, dt, numbers)
        return state.replace(done=state.done & (jnp.abs(_excess(state, numbers)).max() < numbers["stress"]))


def _excess(state: FireState, numbers: dict[str, Any]) -> Any:
    """σ + P 1, [3, 3], eV/Å³."""
    return state.stress + numbers["pressure"] * jnp.eye(3, dtype=state.stress.dtype)


def _moved(state: FireState, dt: Any, of_cell: Any) -> FireState:
    """FIRE's step with the forces on atoms and on the coordinates N ε of the cell."""
    force, velocity, growth = state.force / state.mass, state.momentum, state.growth
    power = (force * velocity).sum() + (of_cell * growth).sum()
    steepness = jnp.sqrt((force**2).sum() + (of_cell**2).sum())
    speed = jnp.sqrt((velocity**2).sum() + (growth**2).sum())
    down = power > 0
    turned = state.mixing * speed / jnp.maximum(steepness, 1e-20)
    velocity = jnp.where(down, (1.0 - state.mixing) * velocity + turned * force, 0.0)
    growth = jnp.where(down, (1.0 - state.mixing) * growth + turned * of_cell, 0.0)
    # At rest, as in the first step, there is nothing to slow down.
    patient = down & (state.downhill > PATIENCE)
    shorter = jnp.where(speed > 0, SHORTER * state.dt, state.dt)
    longer = jnp.where(patient, jnp.minimum(LONGER * state.dt, MAX_DT), state.dt)
    step = jnp.where(down, longer, shorter)
    velocity, growth = velocity + step * force, growth + step * of_cell
    length = step * jnp.sqrt((velocity**2).sum() + (growth**2).sum())
    scaled = step * jnp.minimum(1.0, MAX_MOVE / jnp.maximum(length, 1e-20))
    strain = scaled * growth / len(state.position)
    moved = state.replace(
        position=state.position + state.position @ strain + scaled * velocity,
        momentum=velocity,
        cell=state.cell + state.cell @ strain,
        growth=growth,
        dt=step,
        mixing=jnp.where(down, jnp.where(patient, LESS_MIXING * state.mixing, state.mixing), MIXING),
        downhill=jnp.where(down, state.downhill + 1, 0),
        steps=state.steps + 1,
    )
    waits = state.done | (dt == 0)
    return jax.tree.map(lambda new, old: jnp.where(waits, old, new), moved, state)
