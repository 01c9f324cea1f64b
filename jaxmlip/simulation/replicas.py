"""Molecular dynamics of many replicas at once, on any potential: the host's side."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from ase import Atoms

from jaxmlip.potentials.potential import Potential, check_species, reference_energy
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.engine import reservoirs
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.safety import OUTCOMES, bonds_to_watch, no_bonds
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.graph import check_structure, periodic_cell
from jaxmlip.units import FS, GPA, KB


def simulate(
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    time_ps: Number | None = None,
    steps: int | None = None,
    timestep_fs: Number = 0.5,
    replicas: int | None = None,
    seed: int = 0,
    sample_every_fs: Number = 10.0,
    skin: Number = 0.5,
    progress: bool = True,
    on_failure: Literal["raise", "mark"] = "raise",
    watch_bonds: bool = True,
) -> Run:
    """Molecular dynamics of replicas that differ in their random numbers, and in their start if several are given.

    Velocities start from the Maxwell–Boltzmann distribution at the ensemble's temperature. Arithmetic is in single
    precision (double under `jax.enable_x64`); energies are completed with the elemental references in double.

    Args:
        potential: any Potential. Runs of potentials with equal pytree structure share compiled code.
        structure: the start of all replicas, or one start for each: equal atoms in equal order, any cells. Masses are
            those of the Atoms: hydrogen may be deuterium.
        ensemble: for example `NVT(temperature_K=250)` or `NPT(temperature_K=250, pressure_GPa=0)`. Its temperature and
            pressure may be sequences, a value for each replica, and ramps (`Ramp`).
        time_ps: length of the run in ps; this or `steps`.
        steps: length of the run in steps.
        timestep_fs: fs.
        replicas: number of replicas; by default as many as structures.
        seed: a non-negative integer; the same seed gives the same trajectories on the same machine.
        sample_every_fs: time between frames, rounded to steps; the start is not a frame.
        skin: Å, by how much neighbour lists reach beyond the cutoff. It affects speed alone, and not the potential's:
            neighbours beyond the cutoff are sorted out before it is called.
        progress: show a progress bar.
        on_failure: "raise" ends the run when a replica fails; "mark" lets the others go on and says so in
            `Run.outcomes`.
        watch_bonds: whether a bond of hydrogen (to B, C, N, O, F, Si, P, S, Cl, Br or I) that becomes twice as long as
            it was at the start is a failure; False where protons are meant to travel.

    Raises:
        ValueError: for elements the potential does not know, damaged or unequal structures, and settings that make no
            sense.
        SimulationError: if a replica fails and `on_failure` is "raise".
    """
    began = time.perf_counter()
    starts = _checked_starts(potential, structure, replicas)
    total, every = _checked_steps(time_ps, steps, timestep_fs, sample_every_fs)
    if not 0 < skin < 10:
        raise ValueError(f"The skin must lie between 0 and 10 Å, not {skin!r}.")
    if seed != int(seed) or seed < 0:
        raise ValueError(f"A seed is a non-negative integer, not {seed!r}.")
    if on_failure not in ("raise", "mark"):
        raise ValueError(f'on_failure is "raise" or "mark", not {on_failure!r}.')

    if ensemble.moves_cell and not starts[0].pbc.all():
        raise ValueError(
            f"{type(ensemble).__name__} needs a cell that is periodic in all three directions, not pbc "
            f"{starts[0].pbc.tolist()}; put the atoms into a cell, or keep the volume constant."
        )
    engine = Driver(
        potential,
        starts,
        type(ensemble),
        ensemble.schedules(len(starts)),
        masses=np.stack([atoms.get_masses() for atoms in starts]),
        bonds=bonds_to_watch(starts) if watch_bonds else no_bonds(len(starts)),
        timestep_fs=timestep_fs,
        skin=skin,
        seed=seed,
        stop_at_failure=on_failure == "raise",
    )
    recorder = _Recorder(engine, starts, reference_energy(potential, starts[0].numbers), total // every)
    engine.prepare()
    moving_s = 0.0
    with progress_bar(total=total, unit_scale=timestep_fs / 1000, disable=not progress, bar_format=_BAR) as bar:
        for frame in range(total // every):
            moving_s += engine.advance((frame + 1) * every)
            recorder.record(frame, (frame + 1) * every)
            taken = (frame + 1) * every * timestep_fs * len(starts)
            bar.set_postfix_str(f"{_ns_per_day(taken, moving_s):.3g} ns/day", refresh=False)
            bar.update(every)
            if engine.all_failed:
                break

    failure, failed_at = np.asarray(engine.walkers.failure), np.asarray(engine.walkers.failed_at)
    outcomes = tuple(OUTCOMES[int(code)] for code in failure)
    lengths = np.where(failure > 0, np.maximum(failed_at - 1, 0) // every, total // every).astype(np.int64)
    simulated_fs = float(np.where(failure > 0, np.maximum(failed_at, 0), total // every * every).sum() * timestep_fs)
    return recorder.run(
        time_fs=(1.0 + np.arange(total // every)) * every * timestep_fs,
        timestep_fs=float(timestep_fs),
        outcomes=outcomes,
        lengths=lengths,
        wall_s=time.perf_counter() - began,
        ns_per_day=_ns_per_day(simulated_fs, moving_s),
    )


_BAR = "{l_bar}{bar}| {n:.3f}/{total:.3f} ps [{elapsed}<{remaining}{postfix}]"


class _Recorder:
    """Collects frames on the host."""

    def __init__(self, engine: Driver, starts: list[Atoms], reference: float, frames: int) -> None:
        self.engine, self.starts, self.reference = engine, starts, reference
        self.kind = engine.kind
        self.dof = self.kind.degrees_of_freedom(len(starts[0]))
        self.positions = np.full((len(starts), frames, len(starts[0]), 3), np.nan, np.float32)
        self.energy = np.full((len(starts), frames), np.nan)
        self.temperature = np.full((len(starts), frames), np.nan)
        self.conserved = np.full((len(starts), frames), np.nan) if self.kind.conserves else None
        self.pressure = np.full((len(starts), frames), np.nan) if self.kind.moves_cell else None
        self.cells = np.stack([periodic_cell(atoms) for atoms in starts])
        if self.kind.moves_cell:
            self.cells = np.full((len(starts), frames, 3, 3), np.nan)

    def record(self, frame: int, step: int) -> None:
        """Keep what `Run` holds of the present state; sums are taken in double precision."""
        state = self.engine.walkers.state
        position, momentum, mass, energy = jax.device_get(
            (state.position, state.momentum, state.mass, self.engine.walkers.energy)
        )
        kinetic = 0.5 * (np.asarray(momentum, np.float64) ** 2 / mass).sum((1, 2))
        self.positions[:, frame] = position
        self.energy[:, frame] = np.asarray(energy, np.float64) + self.reference
        self.temperature[:, frame] = 2.0 * kinetic / (self.dof * KB)
        if self.conserved is not None:
            time = step * self.engine.timestep_fs * FS
            held = np.asarray(reservoirs(state, self.engine.schedules, time, kind=self.kind), np.float64)
            self.conserved[:, frame] = self.energy[:, frame] + kinetic + held
        if self.pressure is not None:
            cells, stress = (np.asarray(each, np.float64) for each in jax.device_get((state.cell, state.stress)))
            self.cells[:, frame] = cells
            volumes = np.abs(np.linalg.det(cells))
            self.pressure[:, frame] = (2.0 * kinetic / volumes - np.trace(stress, axis1=1, axis2=2)) / (3.0 * GPA)

    def run(self, lengths: np.ndarray, **rest: Any) -> Run:
        """The Run, with NaN where a replica had failed."""
        over = np.arange(self.energy.shape[1]) >= lengths[:, None]
        series = [self.positions, self.energy, self.temperature, self.conserved, self.pressure]
        for values in (*series, self.cells if self.kind.moves_cell else None):
            if values is not None:
                values[over] = np.nan
        return Run(
            numbers=np.asarray(self.starts[0].numbers, np.int64),
            positions=self.positions,
            cells=self.cells,
            pbc=np.asarray(self.starts[0].pbc, bool),
            potential_energy=self.energy,
            temperature=self.temperature,
            conserved=self.conserved,
            pressure_GPa=self.pressure,
            lengths=lengths,
            **rest,
        )


def _checked_starts(potential: Potential, structure: Atoms | Sequence[Atoms], replicas: int | None) -> list[Atoms]:
    """One sound start per replica; ValueError says what is wrong."""
    if isinstance(structure, Atoms):
        count = 1 if replicas is None else replicas
        if count < 1:
            raise ValueError(f"A simulation needs at least one replica, not {count}.")
        starts = [structure] * count
    else:
        starts = list(structure)
        if not starts:
            raise ValueError("No structure was given to start from.")
        if replicas is not None and replicas != len(starts):
            raise ValueError(f"{replicas} replicas were asked for, but {len(starts)} structures were given.")
    for index, atoms in enumerate(starts if starts[0] is not starts[-1] else starts[:1]):
        check_structure(atoms)
        if not np.array_equal(atoms.numbers, starts[0].numbers) or not np.array_equal(atoms.pbc, starts[0].pbc):
            raise ValueError(
                f"Structure {index} ({atoms.symbols}, pbc {atoms.pbc.tolist()}) differs from structure 0 "
                f"({starts[0].symbols}, pbc {starts[0].pbc.tolist()}): replicas need the same atoms in the same order "
                "and the same periodic directions; sort the atoms, or run them one after another."
            )
    check_species(potential, starts[0].numbers)
    return starts


def _checked_steps(
    time_ps: Number | None, steps: int | None, timestep_fs: Number, sample_every_fs: Number
) -> tuple[int, int]:
    """Number of steps of the run and between samples."""
    if not 0 < timestep_fs <= 100:
        raise ValueError(
            f"The timestep must lie between 0 and 100 fs, not {timestep_fs!r}; with hydrogen, 0.5 fs is usual."
        )
    if (time_ps is None) == (steps is None):
        raise ValueError("Give the length of the run either as time_ps or as steps.")
    length = round(1000 * time_ps / timestep_fs) if time_ps is not None and np.isfinite(time_ps) else steps
    if length is None or length < 1 or length != int(length) or length >= 2**31:
        raise ValueError(f"The run needs a whole positive number of steps below 2³¹, not {length or time_ps!r}.")
    if not sample_every_fs > 0 or not np.isfinite(sample_every_fs):
        raise ValueError(f"sample_every_fs must be positive, not {sample_every_fs!r}.")
    every = max(1, round(sample_every_fs / timestep_fs))
    if every > length:
        raise ValueError(
            f"The run of {length * timestep_fs:g} fs ends before its first frame at {every * timestep_fs:g} fs; "
            "make it longer, or sample_every_fs shorter."
        )
    return int(length), every


def _ns_per_day(simulated_fs: float, seconds: float) -> float:
    return 1e-6 * simulated_fs * 86400.0 / seconds if seconds > 0 else 0.0
