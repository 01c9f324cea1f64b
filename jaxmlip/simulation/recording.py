"""What is kept of a simulation: samples of all replicas at one time, in memory or in a file that grows."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms

from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.dynamics import reservoirs
from jaxmlip.simulation.h5md import Fixed, RunStatus, opened, read_fixed, read_frames_number
from jaxmlip.simulation.safety import OUTCOMES
from jaxmlip.simulation.trajectory import Outcome, Tables
from jaxmlip.simulation.trajectory_file import TrajectoryFile
from jaxmlip.systems.graph import periodic_cell
from jaxmlip.units import FS, GPA, KB
from jaxmlip.versions import versions

SECONDS_BETWEEN_WRITES = 10.0
"""What a kill may cost, at most; frames that take longer are written one by one."""

FRAMES_BETWEEN_WRITES = 256
"""Most frames that wait in memory to be written."""

ReplicaFrames = dict[str, np.ndarray]
"""Arrays [replicas, ...] of one time, by their names in `Run`; NaN for replicas that have failed."""


class Sampler:
    """Takes samples of the replicas that a driver moves; sums are taken in double precision."""

    def __init__(
        self,
        driver: Driver,
        references: np.ndarray,
        time_constants_ps: dict[str, float] | None = None,
        *,
        velocities: bool = False,
    ) -> None:
        """Take samples of what a driver moves.

        Args:
            driver: of the replicas.
            references: [replicas], sums of elemental reference energies, eV, in double precision.
            time_constants_ps: see `Run`.
            velocities: whether to keep them.
        """
        self.time_constants_ps, self.velocities = time_constants_ps or {}, velocities
        self.driver, self.dynamics = driver, driver.dynamics
        self.references = references
        starts = driver.starts
        self.degrees = self.dynamics.degrees_of_freedom(starts.mobile, starts.mobile < starts.sizes)

    def scalars(self) -> ReplicaFrames:
        """Energy, temperature and, where it moves, cell and pressure."""
        replicas = self.driver.replicas
        state = replicas.state
        momentum, mass, energy = jax.device_get((state.momentum, state.mass, replicas.energy))
        kinetic = 0.5 * (np.asarray(momentum, np.float64) ** 2 / mass).sum((1, 2))
        found = {
            "potential_energy": np.asarray(energy, np.float64) + self.references,
            "temperature": 2.0 * kinetic / (self.degrees * KB),
        }
        if self.dynamics.moves_cell:
            cells, stress = (np.array(each, np.float64) for each in jax.device_get((state.cell, state.stress)))
            volumes = np.abs(np.linalg.det(cells))
            pressure = (2.0 * kinetic / volumes - np.trace(stress, axis1=1, axis2=2)) / (3.0 * GPA)
            found |= {"cells": cells, "pressure_GPa": pressure}
        return found

    def sample(self, step: int) -> ReplicaFrames:
        """What `Run` holds of the present state."""
        replicas, found = self.driver.replicas, self.scalars()
        found["positions"] = self.driver.recorded_positions()
        if self.velocities:
            momentum, mass = map(np.asarray, jax.device_get((replicas.state.momentum, replicas.state.mass)))
            found["velocities"] = FS * momentum / mass
        if self.dynamics.conserves:
            now = step * self.driver.timestep_fs * FS
            held = np.asarray(reservoirs(replicas.state, self.dynamics, now), np.float64)
            kinetic = 0.5 * self.degrees * KB * found["temperature"]
            found["conserved"] = found["potential_energy"] + kinetic + held
        return self.sound(found)

    def sound(self, sample: ReplicaFrames) -> ReplicaFrames:
        """A sample with NaN for replicas that have failed."""
        failed = np.asarray(self.driver.replicas.failure) > 0
        for values in sample.values():
            values[failed] = np.nan
        return sample


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What there is to say of a run whose frames are in a file.

    Attributes:
        path: of the file.
        frames: per replica, in the file.
        resumed: how many of them were there before.
        outcomes: one per replica.
        wall_s: wall time of the whole run so far, compilation included.
        ns_per_day: summed over replicas, compilation not included.
    """

    path: Path
    frames: int
    resumed: int
    outcomes: tuple[Outcome, ...]
    wall_s: float
    ns_per_day: float


class Recorder:
    """Appends samples to a trajectory file, with what a continuation needs; a context manager.

    Attributes:
        file: the trajectory.
        resumed: frames that the file held when it was opened.
    """

    def __init__(
        self,
        path: Path,
        sampler: Sampler,
        starts: list[Atoms],
        every: int,
        identity: dict[str, Any],
        first: ReplicaFrames,
        observed: dict[str, str],
        fixed: np.ndarray | None = None,
        tables: Tables | None = None,
    ) -> None:
        """Open a file; one that is there must be of the same run, and the driver then goes on where it ended.

        Args:
            path: of the file.
            sampler: of the simulation, whose driver is at its start.
            starts: the structures it starts from.
            every: steps between frames.
            identity: plain data that tells the run from others.
            first: a sample as those to come, for its shapes.
            observed: units of what is in it beside the series of a run.
            fixed: see `Run.fixed`.
            tables: see `Run.tables`.

        Raises:
            ValueError: if the file is another run's, damaged, or being written by another process.
        """
        self._sampler, self._driver, self._every = sampler, sampler.driver, every
        self._waiting: list[ReplicaFrames] = []
        self._written = time.monotonic()
        self._moving_s = self._wall_s = 0.0
        self._began = time.perf_counter()
        self._here = self._driver.now
        if path.exists():
            self.file = TrajectoryFile.reopen(path)
            try:
                _check_identity(path, self.file.fixed, starts, identity)
            except ValueError:
                self.file.close()
                raise
        else:
            constant = Fixed(
                numbers=np.asarray(starts[0].numbers, np.int64),
                pbc=np.asarray(starts[0].pbc, bool),
                masses=np.stack([atoms.get_masses() for atoms in starts]),
                cells=None if sampler.dynamics.moves_cell else np.stack([atoms.cell.array for atoms in starts]),
                timestep_fs=self._driver.timestep_fs,
                identity={"run": identity, "versions": versions(), "tables": tables and tables._asdict()},
                observed=observed,
                fixed=fixed,
                time_constants_ps=sampler.time_constants_ps,
            )
            self.file = TrajectoryFile.create(
                path, constant, _for_file([first]), self._driver.snapshot(self._here, [0.0, 0.0])
            )
        self.resumed = self.file.frames
        if self.resumed:
            self._moving_s, self._wall_s = self._driver.restore(self.file.snapshot())

    def __enter__(self) -> "Recorder":
        """The recorder."""
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        """Write what waits, unless writing is what failed, and close the file."""
        try:
            if kind is None or not issubclass(kind, OSError):
                self.write()
        finally:
            self.file.close()

    def record(self, sample: ReplicaFrames, seconds: float) -> None:
        """Take the next frame; `seconds` is what moving the replicas to it has taken."""
        self._waiting.append(sample)
        self._here = self._driver.now
        self._moving_s += seconds
        late = time.monotonic() - self._written > SECONDS_BETWEEN_WRITES
        if late or len(self._waiting) >= FRAMES_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Append the frames that wait.

        Raises:
            OSError: if the disk is full.
        """
        if not self._waiting:
            return
        first, number = self.file.frames, len(self._waiting)
        steps = self._every * np.arange(first + 1, first + number + 1, dtype=np.int64)
        status = self.status(first + number, finished=False)
        # The driver may be on its way to the next frame, when an interrupt leads here.
        snapshot = self._driver.snapshot(self._here, [self._moving_s, status.wall_s])
        self.file.append(steps, _for_file(self._waiting), status, snapshot)
        self._waiting = []
        self._written = time.monotonic()

    def finish(self, frames: int) -> RunStatus:
        """Write what waits, and that the run has reached its end after so many frames."""
        self.write()
        status = self.status(frames, finished=True)
        self.file.set_status(status)
        return status

    def status(self, frames: int, *, finished: bool) -> RunStatus:
        """How far the replicas have come with so many frames."""
        outcomes, lengths, simulated_fs = endings(self._driver, frames, self._every)
        if not finished:
            outcomes = [Outcome.UNFINISHED if each is Outcome.COMPLETED else each for each in outcomes]
        return RunStatus(
            outcomes=[outcome.name for outcome in outcomes],
            lengths=lengths,
            wall_s=self._wall_s + time.perf_counter() - self._began,
            ns_per_day=ns_per_day(simulated_fs, self._moving_s),
        )


def stacked(samples: list[ReplicaFrames]) -> dict[str, np.ndarray]:
    """Series [replicas, frames, ...] of samples."""
    return {name: np.stack([sample[name] for sample in samples], axis=1) for name in samples[0]}


def _for_file(samples: list[ReplicaFrames]) -> dict[str, np.ndarray]:
    """Series with positions in double precision, which a replica may come to need; what it does not is compressed."""
    series = stacked(samples)
    return series | {"positions": series["positions"].astype(np.float64)}


def endings(driver: Driver, frames: int, every: int) -> tuple[list[Outcome], np.ndarray, float]:
    """Outcome and number of frames of each replica after a number of frames, and the time simulated by all, fs."""
    failure, failed_at = np.asarray(driver.replicas.failure), np.asarray(driver.replicas.failed_at)
    outcomes = [OUTCOMES[int(code)] for code in failure]
    lengths = np.where(failure > 0, np.maximum(failed_at - 1, 0) // every, frames).astype(np.int64)
    steps = np.where(failure > 0, np.maximum(failed_at, 0), frames * every).sum()
    return outcomes, lengths, float(steps * driver.timestep_fs)


def ns_per_day(simulated_fs: float, seconds: float) -> float:
    """Speed of a simulation; 0 where no time has passed."""
    return 1e-6 * simulated_fs * 86400.0 / seconds if seconds > 0 else 0.0


def check_file(path: Path, starts: list[Atoms], every: int, frames: int, identity: dict[str, Any]) -> None:
    """Refuse a file of another run, or of a longer one, before anything is computed.

    What is there but no trajectory is left to those that open it to write.

    Args:
        path: of the file, which need not exist.
        starts: the structures that the run starts from.
        every: steps between frames.
        frames: how many there are to be.
        identity: see `Recorder`.

    Raises:
        ValueError: naming all that is different.
    """
    try:
        with opened(path) as file:
            fixed, there = read_fixed(file), read_frames_number(file)
    except (FileNotFoundError, ValueError):
        return
    _check_identity(path, fixed, starts, identity)
    if there > frames:
        ps = every * fixed.timestep_fs / 1000
        raise ValueError(
            f"{path} already holds {there} frames ({there * ps:g} ps), more than the {frames} ({frames * ps:g} ps) "
            "asked for: give a time that is as long or longer, or another file."
        )


def _check_identity(path: Path, fixed: Fixed, starts: list[Atoms], wanted: dict[str, Any]) -> None:
    """Raise ValueError, saying in words what is different, unless a file is of the run that is wanted."""
    there = fixed.identity.get("run")
    if there is None:
        raise ValueError(f"{path} is of a run that was saved as a whole, and cannot go on; choose another file.")
    different = [name for name in wanted if there.get(name) != wanted[name]]
    if "replicas" in different or "first replica" in different:
        # What is kept of all starts together differs then too, and says nothing more.
        different = [name for name in different if name not in ("structure", "masses")]
    if different:
        said = [_difference(name, fixed, starts, wanted) for name in different]
        raise ValueError(f"{path} holds another run: {', and '.join(said)}; choose another file, or delete this one.")


def _difference(name: str, fixed: Fixed, starts: list[Atoms], wanted: dict[str, Any]) -> str:
    """What is different, in words: what the file knows by its digest alone is told from what else is there."""
    there = fixed.identity["run"]
    if name == "structure":
        numbers, pbc = fixed.numbers, starts[0].pbc
        if not np.array_equal(numbers, starts[0].numbers):
            return f"its atoms are {Atoms(numbers).symbols} there and {starts[0].symbols} here"
        if not np.array_equal(fixed.pbc, pbc):
            return f"it is periodic along {fixed.pbc.tolist()} there and {pbc.tolist()} here"
        cells = np.stack([periodic_cell(atoms) for atoms in starts])
        if fixed.cells is not None and not np.array_equal(fixed.cells * fixed.pbc[:, None], cells):
            return "it started in another cell"
        return "it started from other positions, or from another cell"
    if name == "masses":
        return "its atoms have other masses"
    if name == "potential":
        return "it is of another potential"
    if name == "against" and None not in (there.get(name), wanted[name]):
        return "it is compared with another potential"
    shown = {"against": lambda value: "no potential" if value is None else "another potential"}.get(name, str)
    called = {"against": "what it is compared with"}.get(name, name)
    return f"{called} is {shown(there.get(name))} there and {shown(wanted[name])} here"
