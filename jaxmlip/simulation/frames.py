"""Frames from wherever they are: files, stores, and trajectories of this package."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
from ase import Atoms
from jaxtyping import Int

from jaxmlip.simulation.h5md import being_written, opened, read_status
from jaxmlip.simulation.trajectory import FRAMES_AT_ONCE, read_part
from jaxmlip.systems import store
from jaxmlip.systems.checks import admitted
from jaxmlip.systems.dataset import Frame, describe, select_index

ENERGIES = (None, "energy", "potential_energy")
"""Names under which the energy of a trajectory is asked for."""


def open_frames(
    path: str | Path,
    *,
    energy_key: str | None = "energy",
    forces_key: str | None = "forces",
    stress_key: str | None = "stress",
    index: str | int = ":",
    allow_close: bool = False,
) -> Sequence[Frame]:
    """Labelled frames from files, stores and trajectories.

    Args:
        path: a store (`.h5`) or a trajectory of `jaxmlip md`, which are read lazily, or a file that `read_frames`
            reads. The frames of a trajectory come replica by replica, and have the energy of the potential that made
            them, but no forces and no stress.
        energy_key: name of the energy; see `read_frames`. A store or trajectory has one, which is also called "energy".
        forces_key: likewise, "forces".
        stress_key: likewise, "stress".
        index: which frames; see `read_frames`.
        allow_close: see `read_frames`; the frames of stores and trajectories are not checked here.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see `read_frames`; if a store or trajectory is damaged, or has no label of this name.
    """
    path = Path(path)
    keys = {"energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key}
    if not is_trajectory(path):
        return store.open_frames(path, **keys, index=index, allow_close=allow_close)
    default = {"energy_key": ENERGIES, "forces_key": (None, "forces"), "stress_key": (None, "stress")}
    for name, key in keys.items():
        if key not in default[name]:
            raise ValueError(f"{path} has no {key!r}: it is a trajectory, whose only label is its potential energy.")
    frames = TrajectoryFrames(path, energies=energy_key is not None)
    return frames.select(select_index(len(frames), index, path))


def last_structure(path: str | Path, *, allow_close: bool = False) -> Atoms:
    """The last structure of a file, store or trajectory, checked: where a simulation or a relaxation starts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see `open_frames` and `check_input`.
    """
    unread = {"energy_key": None, "forces_key": None, "stress_key": None}
    (frame,) = open_frames(path, **unread, index="-1", allow_close=allow_close)
    try:
        admitted(frame.atoms, allow_close=allow_close)  # stores and trajectories are not checked where they are read
    except ValueError as error:
        raise ValueError(f"{describe(frame, 0)}: {error}") from error
    return frame.atoms


def is_trajectory(path: Path) -> bool:
    """Whether a file is in the H5MD layout; also one that is being written."""
    if not (path.is_file() and h5py.is_hdf5(path)):
        return False
    try:
        with h5py.File(path, "r") as file:
            return "h5md" in file
    except OSError as error:  # a store is never seen while it is written
        return isinstance(error, BlockingIOError) or being_written(error)


class TrajectoryFrames(Sequence[Frame]):
    """The frames of a trajectory, replica by replica, or some of them, read when they are asked for."""

    def __init__(self, path: Path, *, energies: bool = True) -> None:
        """See how many frames there are.

        Args:
            path: of the trajectory.
            energies: whether frames have their potential energy as label.

        Raises:
            ValueError: if it is damaged, or has no frames yet.
        """
        self.path, self.energies = path, energies
        with opened(path) as file:
            lengths = np.asarray(read_status(file).lengths, int)
        if not lengths.sum():
            raise ValueError(f"{path} has no frames yet.")
        self._replicas = np.repeat(np.arange(len(lengths)), lengths)
        self._frames = np.concatenate([np.arange(length) for length in lengths])
        self._which = np.arange(len(self._frames))

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._which)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> "TrajectoryFrames": ...
    def __getitem__(self, index: int | slice) -> "Frame | TrajectoryFrames":
        """One frame, read now, or a view of some."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} frames, and {index} is none of them.")
        return self._block(self._which[[index]])[0]

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order; those that follow one another in the file are read together."""
        breaks = np.flatnonzero((np.diff(self._which) != 1) | (np.diff(self._replicas[self._which]) != 0)) + 1
        for run in np.split(self._which, breaks):
            for start in range(0, len(run), FRAMES_AT_ONCE):
                yield from self._block(run[start : start + FRAMES_AT_ONCE])

    def select(self, which: Sequence[int] | Int[np.ndarray, " chosen"]) -> "TrajectoryFrames":
        """A view of the frames of these numbers, in this order."""
        view = object.__new__(TrajectoryFrames)
        view.__dict__.update(self.__dict__ | {"_which": self._which[np.asarray(which, np.int64)]})
        return view

    def _block(self, numbers: np.ndarray) -> list[Frame]:
        """Frames of one replica that follow one another."""
        replica, begin = int(self._replicas[numbers[0]]), int(self._frames[numbers[0]])
        with opened(self.path) as file:
            run = read_part(file, slice(begin, begin + len(numbers), 1), [replica])
        return [self._frame(atoms, replica, int(number)) for atoms, number in zip(run, numbers, strict=True)]

    def _frame(self, atoms: Atoms, replica: int, number: int) -> Frame:
        atoms.info["replica"] = replica
        info: dict[str, Any] = dict(atoms.info)
        energy = float(info["potential_energy"]) if self.energies else np.nan
        info |= {"file": str(self.path), "frame": number}
        return Frame(atoms, energy, np.full((len(atoms), 3), np.nan), info=info)
