"""What a simulation leaves behind, in memory and in a file."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import h5py
import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from ase.io import write
from jaxtyping import Bool, Float, Int

from jaxmlip.describing import count, short
from jaxmlip.files import written_whole
from jaxmlip.simulation.h5md import (
    CONSTANTS,
    MEAN,
    SERIES,
    Fixed,
    RunStatus,
    opened,
    prefixed,
    read_fixed,
    read_frames_number,
    read_series,
    read_status,
    read_steps,
)
from jaxmlip.simulation.trajectory_file import TrajectoryFile
from jaxmlip.systems.constraints import hold
from jaxmlip.units import FS

FRAMES_AT_ONCE = 256
"""Frames in memory while a trajectory is exported."""


class Outcome(enum.Enum):
    """How a replica ended; the value is the message for the user."""

    COMPLETED = "ran to the end"
    UNFINISHED = "its run was stopped before the end; the same command goes on"
    NOT_FINITE = "its energy, forces or momenta ceased to be finite"
    EXPLODED = "an atom or the cell moved further in one step than any sound dynamics does"
    CELL_LOST = "its cell shrank to half of its width at the start, or grew to twice of it"
    TOO_HOT = "its temperature rose above ten times the target"
    BOND_BROKEN = "a covalent bond of hydrogen became twice as long as at the start"
    NOT_CONVERGED = "it was not yet relaxed after the last step"


PER_REPLICA = (*(name for name in SERIES if name != "numbers"), "masses", "fixed", "outcomes", "lengths")
"""Attributes of `Run` whose first axis is that of the replicas, besides what was observed; in a fixed order."""


class Tables(NamedTuple):
    """Tables that stood for radial networks in a simulation.

    Attributes:
        tolerance: see `jaxmlip.potentials.tabulation.tabulate`.
        force_error_meV_A: RMS difference of force components at the start, its atoms displaced as by heat.
    """

    tolerance: float
    force_error_meV_A: float


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Trajectories of replicas; host numpy throughout.

    `len(run)` and iteration give frames as `ase.Atoms`, replica by replica, so that `[*run]` is a list of structures.

    Attributes:
        numbers: [atoms], atomic numbers.
        positions: [replicas, frames, atoms, 3], Å, unwrapped: differences in time are displacements. In double
            precision where they are far from the origin, or atoms are held.
        cells: [replicas, 3, 3], lattice vectors as rows, Å, with the vacuum of directions that are not periodic.
            [replicas, frames, 3, 3] where cells move; `frame_cells` is always of this shape.
        pbc: [3].
        masses: [replicas, atoms], amu.
        potential_energy: [replicas, frames], total energies in eV, elemental references included.
        temperature: [replicas, frames], kinetic temperature in K: 2K/3Nk for Langevin dynamics (NVT, NPT) and where
            atoms are held, N being those that move, 2K/(3N − 3)k where the centre of mass is at rest. With BAOAB it is
            low by about (ωh)²/4 in a mode of frequency ω (3 % for an O–H stretch at h = 0.5 fs) although the
            configurations are right.
        time_fs: [frames], time since the start; the start structure itself is not a frame.
        timestep_fs: fs.
        outcomes: one per replica.
        lengths: [replicas], frames a replica completed before it failed; later ones are NaN.
        wall_s: wall time of the whole run, compilation included.
        ns_per_day: summed over replicas, compilation not included.
        conserved: [replicas, frames], eV, the quantity that an exact integrator would conserve; None for ensembles
            without one. See there.
        pressure_GPa: [replicas, frames], instantaneous pressure, kinetic part included; None at constant volume.
        velocities: [replicas, frames, atoms, 3], Å/fs, where `keep_velocities` asked for them; else None.
        observed: [replicas, frames, ...] by name, means since the frame before of what was observed on the way.
        observed_units: their units.
        fixed: [replicas, atoms], which atoms constraints have held (ASE's FixAtoms); None where none was.
        time_constants_ps: ps, by name: of thermostat and barostat, and how long a ramp lasts; empty where not known.
        tables: of the radial functions, if they were simulated with (see `simulate`); None if not, or not known.
    """

    numbers: Int[np.ndarray, " atoms"]
    positions: Float[np.ndarray, "replicas frames atoms 3"]
    cells: Float[np.ndarray, "replicas *frames 3 3"]
    pbc: Bool[np.ndarray, " 3"]
    masses: Float[np.ndarray, "replicas atoms"]
    potential_energy: Float[np.ndarray, "replicas frames"]
    temperature: Float[np.ndarray, "replicas frames"]
    time_fs: Float[np.ndarray, " frames"]
    timestep_fs: float
    outcomes: tuple[Outcome, ...]
    lengths: Int[np.ndarray, " replicas"]
    wall_s: float
    ns_per_day: float
    conserved: Float[np.ndarray, "replicas frames"] | None = None
    pressure_GPa: Float[np.ndarray, "replicas frames"] | None = None
    velocities: Float[np.ndarray, "replicas frames atoms 3"] | None = None
    observed: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    observed_units: dict[str, str] = dataclasses.field(default_factory=dict)
    fixed: Bool[np.ndarray, "replicas atoms"] | None = None
    time_constants_ps: dict[str, float] = dataclasses.field(default_factory=dict)
    tables: Tables | None = None

    def __repr__(self) -> str:
        """Atoms, replicas, frames and how they ended."""
        length = f" to {self.time_fs[-1] / 1000:g} ps" if self.n_frames else ""
        sizes = f"{count(self.n_replicas, 'replica')} of {count(self.n_frames, 'frame')}{length}"
        ends = Counter(outcome.name for outcome in self.outcomes)
        told = ", ".join(f"{number} {name}" for name, number in ends.items())
        observed = f"observed {', '.join(self.observed)}" if self.observed else ""
        return short("Run", str(Atoms(self.numbers).symbols), sizes, told, observed)

    @property
    def n_replicas(self) -> int:
        """Number of replicas, failed ones included."""
        return self.positions.shape[0]

    @property
    def n_frames(self) -> int:
        """Frames per replica."""
        return self.positions.shape[1]

    @property
    def frame_cells(self) -> Float[np.ndarray, "replicas frames 3 3"]:
        """The cell of every frame, Å, whether cells move or not."""
        cells = self.cells if self.cells.ndim == 4 else self.cells[:, None]
        return np.broadcast_to(cells, (self.n_replicas, self.n_frames, 3, 3))

    @property
    def volume(self) -> Float[np.ndarray, "replicas frames"]:
        """Volumes in Å³; 0 unless periodic in all three directions."""
        return np.abs(np.linalg.det(self.frame_cells)) * self.pbc.all()

    @property
    def momenta(self) -> Float[np.ndarray, "replicas frames atoms 3"] | None:
        """Momenta in √(amu eV), as ASE has them; None unless velocities were kept."""
        if self.velocities is None:
            return None
        return self.masses[:, None, :, None] * self.velocities.astype(np.float64) / FS

    @property
    def completed(self) -> Bool[np.ndarray, " replicas"]:
        """Which replicas ran to the end."""
        return np.array([outcome is Outcome.COMPLETED for outcome in self.outcomes])

    def __len__(self) -> int:
        """Number of frames over all replicas."""
        return int(self.lengths.sum())

    @overload
    def __getitem__(self, index: int) -> Atoms: ...
    @overload
    def __getitem__(self, index: slice) -> list[Atoms]: ...
    def __getitem__(self, index: int | slice) -> Atoms | list[Atoms]:
        """A frame by its place in the iteration, or a list of them."""
        places = [(replica, frame) for replica, length in enumerate(self.lengths) for frame in range(length)]
        chosen = places[index]
        return [self._atoms(*place) for place in chosen] if isinstance(chosen, list) else self._atoms(*chosen)

    def __iter__(self) -> Iterator[Atoms]:
        """Frames, replica by replica."""
        return iter(self.frames())

    def frames(self, stride: int = 1) -> list[Atoms]:
        """Every `stride`-th frame of each replica, replica by replica; `info` says which, with its time and energy.

        Raises:
            ValueError: for a stride below 1.
        """
        _check_stride(stride)
        return [
            self._atoms(replica, frame)
            for replica, length in enumerate(self.lengths)
            for frame in range(stride - 1, int(length), stride)
        ]

    def _atoms(self, replica: int, frame: int) -> Atoms:
        info = {
            "replica": replica,
            "time_fs": float(self.time_fs[frame]),
            "potential_energy": float(self.potential_energy[replica, frame]),
        }
        atoms = Atoms(
            self.numbers,
            self.positions[replica, frame].astype(np.float64),
            masses=None if (self.masses[replica] == atomic_masses[self.numbers]).all() else self.masses[replica],
            cell=self.frame_cells[replica, frame],
            pbc=self.pbc,
            info=info,
        )
        if self.velocities is not None:
            atoms.set_velocities(self.velocities[replica, frame].astype(np.float64) / FS)
        hold(atoms, None if self.fixed is None else self.fixed[replica])
        return atoms

    def part(self, chosen: slice) -> "Run":
        """The run of some of its replicas; wall time and speed remain those of all."""
        changes = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "observed":
                changes["observed"] = {name: values[chosen] for name, values in value.items()}
            elif field.name in PER_REPLICA and value is not None:
                changes[field.name] = value[chosen]
        return dataclasses.replace(self, **changes)

    def during(self, frames: slice) -> "Run":
        """The run of a stretch of its frames, without a stride; wall time and speed remain those of all.

        Raises:
            ValueError: for a slice with a stride.
        """
        start, stop, step = frames.indices(self.n_frames)
        if step != 1:
            raise ValueError(f"A stretch of a run has all its frames, not every {step}.")
        within, frame_by_frame = slice(start, stop), set(PER_REPLICA) - {"masses", "fixed", "outcomes", "lengths"}
        frame_by_frame -= {"cells"} if self.cells.ndim == 3 else set()
        changes = {name: getattr(self, name)[:, within] for name in frame_by_frame if getattr(self, name) is not None}
        return dataclasses.replace(
            self,
            time_fs=self.time_fs[within],
            lengths=np.clip(self.lengths, start, stop) - start,
            observed={name: values[:, within] for name, values in self.observed.items()},
            **changes,
        )

    def save(self, path: str | Path) -> None:
        """Write an HDF5 file in the H5MD layout, see `h5md`; it appears under its name only when it is whole."""
        path = Path(path)
        fixed = Fixed(
            numbers=self.numbers,
            pbc=self.pbc,
            masses=self.masses,
            cells=self.cells if self.cells.ndim == 3 else None,
            timestep_fs=self.timestep_fs,
            identity={} if self.tables is None else {"tables": self.tables._asdict()},
            observed=prefixed(self.observed_units),
            fixed=self.fixed,
            time_constants_ps=self.time_constants_ps,
        )
        names = SERIES.keys() - ({"numbers"} if fixed.cells is None else CONSTANTS)
        series = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        series |= prefixed(self.observed)
        status = RunStatus([outcome.name for outcome in self.outcomes], self.lengths, self.wall_s, self.ns_per_day)
        with written_whole(path) as draft, TrajectoryFile.create(draft, fixed, series) as file:
            file.append(np.rint(self.time_fs / self.timestep_fs).astype(np.int64), series, status)


def load_run(path: str | Path | Sequence[str | Path], every: int = 1) -> Run:
    """Read a trajectory, also one whose simulation is under way or was killed.

    Args:
        path: a file of `Run.save` or `simulate(..., to=...)`; or several, such as processes write that share the
            replicas, which make one run as long as the shortest.
        every: read each `every`-th frame only, as `Run.frames` does.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is damaged or holds something else, or files are of runs that cannot be one.
    """
    _check_stride(every)
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]
    if not paths:
        raise ValueError("There are no files to read a run from.")
    lengths = []
    for each in paths:
        with opened(each) as file:
            lengths.append(read_frames_number(file))
    runs = []
    for each in paths:
        with opened(each) as file:
            runs.append(read_part(file, slice(every - 1, min(lengths), every)))
    return runs[0] if len(runs) == 1 else _joined(paths, runs)


def _joined(paths: Sequence[Path], runs: Sequence[Run]) -> Run:
    """One run of the replicas of several of equal length."""
    first = runs[0]
    names = [name for name in PER_REPLICA if name != "outcomes" and getattr(first, name) is not None]
    for path, run in zip(paths, runs, strict=True):
        same = all(np.array_equal(getattr(run, name), getattr(first, name)) for name in ("numbers", "pbc", "time_fs"))
        same &= all(np.shape(getattr(run, name))[1:] == np.shape(getattr(first, name))[1:] for name in names)
        if not same or run.observed_units != first.observed_units:
            raise ValueError(f"{path} and {paths[0]} hold different runs; give the files of one run.")
    changes: dict[str, Any] = {name: np.concatenate([getattr(run, name) for run in runs]) for name in names}
    return dataclasses.replace(
        first,
        **changes,
        outcomes=tuple(outcome for run in runs for outcome in run.outcomes),
        wall_s=max(run.wall_s for run in runs),
        ns_per_day=sum(run.ns_per_day for run in runs),
        observed={name: np.concatenate([run.observed[name] for run in runs]) for name in first.observed},
    )


def export_extxyz(path: str | Path, out: str | Path, *, every: int = 1) -> int:
    """Write the frames of a trajectory as extended XYZ, replica by replica, a piece in memory at a time.

    Args:
        path: a file of `Run.save` or `simulate(..., to=...)`.
        out: file to write; it appears under its name when it is whole.
        every: write each `every`-th frame of a replica only.

    Returns:
        How many frames were written.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds something else, or a stride is below 1.
    """
    _check_stride(every)
    out = Path(out)
    with opened(Path(path)) as file:
        lengths = read_status(file).lengths
    written = 0
    with written_whole(out) as draft, draft.open("w") as text:
        for replica, length in enumerate(lengths):
            for start in range(0, int(length), FRAMES_AT_ONCE * every):
                end = min(start + FRAMES_AT_ONCE * every, int(length))
                with opened(Path(path)) as file:
                    frames = [*read_part(file, slice(start + every - 1, end, every), [replica])]
                for atoms in frames:
                    atoms.info["replica"] = replica
                write(text, frames, format="extxyz")
                written += len(frames)
    return written


def _check_stride(every: int) -> None:
    if every < 1:
        raise ValueError(f"A stride is 1 or more, not {every}.")


def read_part(file: h5py.File, frames: slice, replicas: Sequence[int] | None = None) -> Run:
    """The frames of a slice, of all replicas or of some."""
    fixed, status = read_fixed(file), read_status(file)
    chosen = list(range(len(status.outcomes)) if replicas is None else replicas)
    names = SERIES.keys() - CONSTANTS
    series = {name: read_series(file, name, frames, chosen) for name in names}
    observed = {name.removeprefix(MEAN): read_series(file, name, frames, chosen) for name in fixed.observed}
    series["positions"] = single_if_exact(series["positions"])
    series["cells"] = read_series(file, "cells", frames, chosen) if fixed.cells is None else fixed.cells[chosen]
    # Frames of the slice that come before a replica's end.
    lengths = [len(range(*slice(frames.start, min(frames.stop, n), frames.step).indices(n))) for n in status.lengths]
    return Run(
        numbers=fixed.numbers,
        pbc=fixed.pbc,
        masses=fixed.masses[chosen],
        time_fs=fixed.timestep_fs * read_steps(file, frames),
        timestep_fs=fixed.timestep_fs,
        outcomes=tuple(Outcome[status.outcomes[n]] for n in chosen),
        lengths=np.asarray(lengths, np.int64)[chosen],
        wall_s=status.wall_s,
        ns_per_day=status.ns_per_day,
        observed=observed,  # type: ignore[arg-type]
        observed_units={name.removeprefix(MEAN): unit for name, unit in fixed.observed.items()},
        fixed=None if fixed.fixed is None else fixed.fixed[chosen],
        time_constants_ps=fixed.time_constants_ps,
        tables=Tables(**fixed.identity["tables"]) if fixed.identity.get("tables") else None,
        **series,  # type: ignore[arg-type]
    )


def single_if_exact(values: Any) -> np.ndarray:
    """The values in single precision if it holds them."""
    single = np.asarray(values, np.float32)
    return single if np.array_equal(single, values, equal_nan=True) else values
