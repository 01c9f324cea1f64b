"""Trajectory files that grow while a simulation runs.

They are written in HDF5's single-writer mode (SWMR): whatever happens to the writer, what it had written before can be
read, and others may look on. How many frames are whole is a number of its own, written last, so that nothing half
written is ever taken for a frame. Beside the frames are two places for what a simulation needs to go on; the one not
in use is written to, and the same number says which is valid.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np

from jaxmlip.files import written_whole
from jaxmlip.simulation.h5md import (
    CLOCK,
    LAYOUT,
    SERIES,
    Fixed,
    RunStatus,
    array_at,
    being_written,
    check_layout,
    dataset_at,
    group_at,
    opened,
    patiently,
    place_of,
    read_fixed,
    read_series,
    read_status,
    read_steps,
)
from jaxmlip.simulation.marked_files import check_marked, check_metadata, lock_of

FORMAT = ("v110", "v110")
"""Of HDF5 files: the oldest that SWMR can do with, so that older programs read them."""

CHUNK_BYTES = 2**18
"""About the size of the pieces that a series is stored in, before compression."""

LONGEST_CHUNK = 1024
"""Most frames in a piece."""

WRITER_PATIENCE_S = 2.0
"""A reader locks out writers while it looks whether a file is whole that one has left: how long a writer waits."""

MARGIN_BYTES = 2**20
"""Room that must be left on the disk for the file's own bookkeeping."""


class TrajectoryFile:
    """A file that is being written, by one process alone; a context manager.

    Attributes:
        path: of the file.
        frames: how many are whole.
        fixed: what was said at its creation.
    """

    def __init__(self, path: Path, file: h5py.File, fixed: Fixed, lock: filelock.BaseFileLock) -> None:
        """Use `create` or `reopen`."""
        self.path, self.fixed = path, fixed
        self._file, self._lock, self._broken = file, lock, False
        self._replicas = len(group_at(file, "particles"))
        self.frames, self._slot = (int(n) for n in array_at(file, "parameters/progress"))

    @classmethod
    def create(
        cls,
        path: Path,
        fixed: Fixed,
        first: dict[str, np.ndarray],
        snapshot: Sequence[np.ndarray] = (),
    ) -> "TrajectoryFile":
        """A new file without frames; it appears under its name when it is whole.

        Args:
            path: must not be a file that is still needed.
            fixed: what does not change.
            first: arrays [replicas, frames, ...] as they will be appended, for their shapes and types.
            snapshot: arrays as `append` will get them, but for their lengths.

        Raises:
            ValueError: if another process is writing it.
        """
        lock = _locked(path)
        try:
            with written_whole(path) as draft:
                file = h5py.File(draft, "w", libver=FORMAT)
                _lay_out(file, fixed, _with_constants(fixed, first), snapshot)
                file.swmr_mode = True
        except BaseException:
            _unlock(path, lock)
            raise
        return cls(path, file, fixed, lock)

    @classmethod
    def reopen(cls, path: Path) -> "TrajectoryFile":
        """Go on with a file, whole or left by a writer that was killed.

        Raises:
            ValueError: if another process is writing it or keeps it open, or it is damaged, or no trajectory that
                can go on.
        """
        lock = _locked(path)
        try:
            try:
                _check_whole(path)
                file = patiently(lambda: _open_to_append(path))
            except OSError as error:
                if not being_written(error):
                    raise
                _rewrite(path)  # the writer is no more, or it would have the lock
                file = patiently(lambda: _open_to_append(path))
            check_layout(file)
            return cls(path, file, read_fixed(file), lock)
        except BlockingIOError as error:
            _unlock(path, lock)
            raise ValueError(f"{path} is kept open by another program ({error}); close it there.") from error
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            _unlock(path, lock)
            raise ValueError(
                f"{path} is no trajectory that can go on, or is damaged ({error}); choose another file, or delete it."
            ) from error

    def __enter__(self) -> "TrajectoryFile":
        """The file."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the file; what was appended is kept."""
        self.close()

    def close(self) -> None:
        """End writing."""
        failed = (OSError, RuntimeError) if self._broken else ()
        try:
            with contextlib.suppress(*failed):  # what could not be written has been said
                self._file.close()
        finally:
            _unlock(self.path, self._lock)

    def append(
        self,
        steps: np.ndarray,
        series: dict[str, np.ndarray],
        status: RunStatus,
        snapshot: Sequence[np.ndarray] = (),
    ) -> None:
        """Add frames, and replace the snapshot; afterwards they outlast the process.

        Args:
            steps: [frames], counted from the start of the run.
            series: arrays [replicas, frames, ...].
            status: after these frames.
            snapshot: what a continuation needs.

        Raises:
            OSError: if the disk is full; the file keeps the frames it had.
        """
        first, last = self.frames, self.frames + len(steps)
        series = _with_constants(self.fixed, series)
        try:
            _check_room(self.path, sum(array.nbytes for array in (*series.values(), *snapshot)))
            _extend(self._file, f"{CLOCK}/step", first, steps)
            _extend(self._file, f"{CLOCK}/time", first, steps * self.fixed.timestep_fs)
            for name, values in series.items():
                for replica in range(self._replicas):
                    _extend(self._file, place_of(name).format(replica) + "/value", first, values[replica])
            slot = 1 - self._slot
            for place, array in enumerate(snapshot):
                dataset = dataset_at(self._file, _snapshot_name(slot, place))
                if dataset.shape != array.shape:
                    dataset.resize(array.shape)
                dataset[...] = array
            self._file.flush()
            dataset_at(self._file, "parameters/progress")[...] = [last, slot]
            self._file.flush()
            self.set_status(status)
        except (OSError, RuntimeError) as error:
            self._broken = True
            raise OSError(
                f"{self.path} could not be written ({error}); is the disk full? It keeps its first {first} frames: "
                "make room, and run the same again to go on."
            ) from error
        self.frames, self._slot = last, slot

    def snapshot(self) -> list[np.ndarray]:
        """What was last given to `append`."""
        number = len(group_at(self._file, f"parameters/snapshot/{self._slot}"))
        return [array_at(self._file, _snapshot_name(self._slot, place)) for place in range(number)]

    def set_status(self, status: RunStatus) -> None:
        """Say how far the replicas have come."""
        values = {
            "outcomes": np.array(status.outcomes, dtype="S16"),
            "lengths": np.asarray(status.lengths, np.int64),
            "wall_s": status.wall_s,
            "ns_per_day": status.ns_per_day,
        }
        for name, value in values.items():
            dataset_at(self._file, f"parameters/{name}")[...] = value
        self._file.flush()


def _check_whole(path: Path) -> None:
    """Damaged metadata are an error here; in single-writer mode HDF5 waits for them to be mended."""
    with patiently(lambda: h5py.File(path, "r")) as file:
        check_metadata(file)


def _open_to_append(path: Path) -> h5py.File:
    """In single-writer mode from the first: killed between two modes, it would leave a file that nobody can read."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    return h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE, access))


def _lay_out(file: h5py.File, fixed: Fixed, first: dict[str, np.ndarray], snapshot: Sequence[np.ndarray]) -> None:
    """All groups and datasets of a run without frames: in single-writer mode none can be added."""
    header = file.create_group("h5md")
    header.attrs["version"] = np.array([1, 1], np.int32)
    header.create_group("author").attrs["name"] = "unknown"
    creator = header.create_group("creator")
    creator.attrs["name"], creator.attrs["version"] = "jaxmlip", LAYOUT

    replicas = len(first["positions"])
    step = _growing(file, f"{CLOCK}/step", (), np.dtype(np.int64))
    time = _growing(file, f"{CLOCK}/time", (), np.dtype(np.float64))
    time.attrs["unit"] = "fs"
    for replica in range(replicas):
        particles = file.require_group(f"particles/replica{replica}")
        box = particles.create_group("box")
        box.attrs["dimension"] = 3
        boundary = ["periodic" if each else "none" for each in fixed.pbc]
        box.attrs.create("boundary", boundary, dtype=h5py.string_dtype())
        for name, values in first.items():
            place = place_of(name).format(replica)
            unit = SERIES[name].unit if name in SERIES else fixed.observed[name]
            _growing(file, f"{place}/value", values.shape[2:], values.dtype).attrs["unit"] = unit
            if place != CLOCK:
                group_at(file, place)["step"], group_at(file, place)["time"] = step, time

    parameters = file.create_group("parameters")
    parameters.attrs["identity"] = json.dumps(fixed.identity)
    parameters.attrs["observed"] = json.dumps(fixed.observed)
    parameters.attrs["time_constants_ps"] = json.dumps(fixed.time_constants_ps)
    parameters["numbers"], parameters["timestep_fs"] = fixed.numbers, fixed.timestep_fs
    parameters.create_dataset("masses", data=fixed.masses).attrs["unit"] = "u"
    if fixed.fixed is not None:
        parameters["fixed"] = fixed.fixed.astype(np.uint8)
    if fixed.cells is not None:
        parameters.create_dataset("cells", data=fixed.cells).attrs["unit"] = "Angstrom"
    parameters["outcomes"] = np.full(replicas, "UNFINISHED", dtype="S16")
    parameters["lengths"] = np.zeros(replicas, np.int64)
    parameters["wall_s"] = parameters["ns_per_day"] = 0.0
    parameters["progress"] = np.zeros(2, np.int64)
    for slot in (0, 1):
        parameters.create_group(f"snapshot/{slot}")
        for place, array in enumerate(snapshot):
            room = {"chunks": True, "maxshape": (None,) * array.ndim} if array.ndim else {}
            file.create_dataset(_snapshot_name(slot, place), shape=array.shape, dtype=array.dtype, **room)


def _with_constants(fixed: Fixed, series: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The series, with those of atomic numbers and of cells that do not move."""
    shape = series["positions"].shape[:2]
    constant = {"numbers": np.broadcast_to(fixed.numbers, (*shape, len(fixed.numbers)))}
    if fixed.cells is not None:
        constant["cells"] = np.broadcast_to(fixed.cells[:, None], (*shape, 3, 3))
    return series | constant


def _growing(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """An empty series of values of a shape, compressed."""
    size = max(1, int(np.prod(shape)) * dtype.itemsize)
    chunk = min(max(1, CHUNK_BYTES // size), LONGEST_CHUNK)
    return file.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        dtype=dtype,
        chunks=(chunk, *shape),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )


def _extend(file: h5py.File, name: str, first: int, values: np.ndarray) -> None:
    """Write values from a frame on; what was there beyond it, left by a writer that was killed, is forgotten."""
    dataset = dataset_at(file, name)
    dataset.resize(first + len(values), axis=0)
    dataset[first:] = values


def _check_room(path: Path, size: int) -> None:
    """Raise OSError unless so many bytes can be written beside a file: HDF5 does not survive a write that fails."""
    probe = _partial(path)
    descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(descriptor, 0, size + MARGIN_BYTES)
    finally:
        os.close(descriptor)
        probe.unlink()


def _rewrite(path: Path) -> None:
    """Replace a file that HDF5 opens for reading only by one with its whole frames."""
    check_marked(path)
    with written_whole(path) as draft, opened(path) as old:
        fixed, (frames, slot) = read_fixed(old), (int(n) for n in array_at(old, "parameters/progress"))
        number = len(group_at(old, f"parameters/snapshot/{slot}"))
        snapshot = [array_at(old, _snapshot_name(slot, place)) for place in range(number)]

        def piece(start: int) -> dict[str, np.ndarray]:
            frames_here = slice(start, start + LONGEST_CHUNK)
            found = {name: read_series(old, name, frames_here) for name in (*SERIES, *fixed.observed)}
            return {name: values[:, : frames - start] for name, values in found.items() if values is not None}

        with TrajectoryFile.create(draft, fixed, piece(0), snapshot) as new:
            for start in range(0, frames, LONGEST_CHUNK):
                steps = read_steps(old, slice(start, min(start + LONGEST_CHUNK, frames)))
                new.append(steps, piece(start), read_status(old), snapshot)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _locked(path: Path) -> filelock.BaseFileLock:
    """Take the lock on writing a file: HDF5's own is given up in single-writer mode."""
    lock = filelock.FileLock(lock_of(path), thread_local=False)  # another thread may close the file
    try:
        lock.acquire(timeout=WRITER_PATIENCE_S)
    except filelock.Timeout:
        raise ValueError(f"Another process is writing {path}; wait for it, or choose another file.") from None
    return lock


def _unlock(path: Path, lock: filelock.BaseFileLock) -> None:
    lock_of(path).unlink(missing_ok=True)
    lock.release()


def _snapshot_name(slot: int, place: int) -> str:
    return f"parameters/snapshot/{slot}/{place:03d}"
