"""The layout of trajectories, which is H5MD, and how to read them.

H5MD is de Buyl et al., Comput. Phys. Commun. 185, 1546 (2014); there is a group for each replica in `particles` and in
`observables`. How many frames are whole is a number of its own, see `trajectory_file`.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from jaxmlip.simulation.marked_files import check_marked, no_writer

LAYOUT = "jaxmlip-run-3"
"""Of the files that are written."""

LAYOUTS = ("jaxmlip-run-2", LAYOUT)
"""Of the files that are read and go on. The older has the names of boundaries as bytes, which znh5md takes for
periodic ones, and no cell vectors of directions that are not periodic."""

CLOCK = "particles/replica0/position"
"""Where steps and times of the frames are; all other series have links to them."""


LOCK_PATIENCE_S = 30.0
"""Readers lock out a writer that opens the file, and it them for a moment: how long one waits for the other."""


class SeriesPath(NamedTuple):
    """Where a series is in the file, with {} for the number of the replica, and its unit there."""

    name: str
    unit: str


SERIES = {
    "positions": SeriesPath("particles/replica{}/position", "Angstrom"),
    "numbers": SeriesPath("particles/replica{}/species", ""),
    "velocities": SeriesPath("particles/replica{}/velocity", "Angstrom fs-1"),
    "cells": SeriesPath("particles/replica{}/box/edges", "Angstrom"),
    "potential_energy": SeriesPath("observables/replica{}/potential_energy", "eV"),
    "temperature": SeriesPath("observables/replica{}/temperature", "K"),
    "conserved": SeriesPath("observables/replica{}/conserved", "eV"),
    "pressure_GPa": SeriesPath("observables/replica{}/pressure", "GPa"),
}
"""The series of a file, by the name they have in `Run`."""

NEEDED = ("positions", "potential_energy", "temperature")
"""Series that every run has."""

MEAN = "mean/"
"""Before the names of series of means between frames."""

CONSTANTS = ("numbers", "cells")
"""Series whose values may be the same in all frames: other programs want them as series."""


class Fixed(NamedTuple):
    """What does not change during a run.

    Attributes:
        numbers: [atoms], atomic numbers.
        pbc: [3].
        masses: [replicas, atoms], amu.
        cells: [replicas, 3, 3], Å, also of directions that are not periodic, if they do not move; else None.
        timestep_fs: fs.
        identity: plain data that tells the run from others.
        observed: units of the series that are not in `SERIES`, by name with `MEAN` before it.
        fixed: [replicas, atoms], which atoms constraints hold; None where none does.
        time_constants_ps: see `Run`; older files have none.
    """

    numbers: np.ndarray
    pbc: np.ndarray
    masses: np.ndarray
    cells: np.ndarray | None
    timestep_fs: float
    identity: dict[str, Any]
    observed: dict[str, str]
    fixed: np.ndarray | None = None
    time_constants_ps: dict[str, float] = {}  # noqa: RUF012, never changed


class RunStatus(NamedTuple):
    """How far the replicas have come.

    Attributes:
        outcomes: names of outcomes, one for each replica.
        lengths: [replicas], frames before a failure.
        wall_s: time spent on the run, compilation included.
        ns_per_day: summed over replicas, compilation not included.
    """

    outcomes: Sequence[str]
    lengths: np.ndarray
    wall_s: float
    ns_per_day: float


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A file to read, also one that is being written or whose writer was killed.

    Errors of the body are taken for errors of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or something else, or kept open in a way that shuts out others.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no trajectory {path}.")
    try:
        with patiently(lambda: _open_to_read(path)) as file:
            check_layout(file)
            yield file
    except BlockingIOError as error:
        raise ValueError(f"{path} is kept open by another program ({error}); close it there.") from error
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a trajectory saved by jaxmlip, or is damaged ({error}); run the simulation again."
        ) from error


def patiently(open_file: Callable[[], h5py.File]) -> h5py.File:
    """What a function opens, tried again while another process has the lock of the file.

    Raises:
        BlockingIOError: if that takes longer than `LOCK_PATIENCE_S`.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return open_file()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _open_to_read(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not being_written(error):
            raise
        with no_writer(path) as gone:
            if gone:
                check_marked(path)
        return h5py.File(path, "r", swmr=True)


def check_layout(file: h5py.File) -> None:
    """Raise ValueError or KeyError unless the file has our layout."""
    layout = str(file["h5md/creator"].attrs["version"])
    if layout not in LAYOUTS:
        raise ValueError(f"its layout is {layout}, and this version reads {' and '.join(LAYOUTS)}")


def read_fixed(file: h5py.File) -> Fixed:
    """What does not change during the run."""
    box = group_at(file, "particles/replica0/box")
    return Fixed(
        numbers=array_at(file, "parameters/numbers"),
        pbc=np.array([each in ("periodic", b"periodic") for each in np.asarray(box.attrs["boundary"]).tolist()]),
        masses=array_at(file, "parameters/masses"),
        cells=array_at(file, "parameters/cells") if "cells" in group_at(file, "parameters") else None,
        timestep_fs=float(array_at(file, "parameters/timestep_fs")),
        identity=json.loads(str(group_at(file, "parameters").attrs["identity"])),
        observed=json.loads(str(group_at(file, "parameters").attrs["observed"])),
        fixed=array_at(file, "parameters/fixed").astype(bool) if "fixed" in group_at(file, "parameters") else None,
        time_constants_ps=json.loads(str(group_at(file, "parameters").attrs.get("time_constants_ps", "{}"))),
    )


def read_status(file: h5py.File) -> RunStatus:
    """How far the replicas have come."""
    return RunStatus(
        outcomes=[name.decode() for name in array_at(file, "parameters/outcomes")],
        lengths=np.minimum(array_at(file, "parameters/lengths"), read_frames_number(file)),
        wall_s=float(array_at(file, "parameters/wall_s")),
        ns_per_day=float(array_at(file, "parameters/ns_per_day")),
    )


def read_frames_number(file: h5py.File) -> int:
    """How many frames are whole."""
    return int(array_at(file, "parameters/progress")[0])


def read_series(file: h5py.File, name: str, frames: slice, replicas: Iterable[int] | None = None) -> np.ndarray | None:
    """A series [replicas, frames, ...] of some replicas or all, or None if the run has none of this name.

    Raises:
        KeyError: if every run has one of this name, or this one is said to have it, and it is not there.
    """
    place = place_of(name)
    if not isinstance(file.get(place.format(0)), h5py.Group):
        if name in NEEDED or name.startswith(MEAN):
            raise KeyError(f"it has no {name}")
        return None
    chosen = range(len(group_at(file, "particles"))) if replicas is None else replicas
    return np.stack([dataset_at(file, place.format(n) + "/value")[frames] for n in chosen])


def read_steps(file: h5py.File, frames: slice) -> np.ndarray:
    """[frames], steps counted from the start."""
    return np.asarray(dataset_at(file, f"{CLOCK}/step")[frames])


def prefixed(means: dict[str, Any]) -> dict[str, Any]:
    """Means between frames under the names that their series have."""
    return {MEAN + name: value for name, value in means.items()}


def being_written(error: OSError) -> bool:
    """Whether HDF5 refuses a file because of the mark that a writer leaves. (Of others, SWMR would wait for more.)"""
    return "already open for write" in str(error)


def place_of(name: str) -> str:
    """The group of a series, with {} for the number of the replica."""
    return SERIES[name].name if name in SERIES else f"observables/means/replica{{}}/{name.removeprefix(MEAN)}"


def group_at(file: h5py.Group, name: str) -> h5py.Group:
    """A group; KeyError if something else has its name."""
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise KeyError(f"{name} is not a group")
    return group


def dataset_at(file: h5py.Group, name: str) -> h5py.Dataset:
    """A dataset; KeyError if something else has its name."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is not a dataset")
    return dataset


def array_at(file: h5py.Group, name: str) -> np.ndarray:
    """A dataset as an array."""
    return np.asarray(dataset_at(file, name)[()])
