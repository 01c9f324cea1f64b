"""Energies of any number of potentials in the frames of a run: one pass, in double precision, that can be resumed.

Weights are exponentials of energies over kT, which is 0.02 eV at 250 K, while a total energy in single precision is
rounded by as much in large cells. Atomic energies therefore leave the device one by one, and are added in double
precision.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxmlip.digests import digest
from jaxmlip.files import written_whole
from jaxmlip.observables.frame import FrameState
from jaxmlip.potentials.potential import Potential, fingerprint, reference_energy
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.h5md import opened, read_frames_number, read_series
from jaxmlip.simulation.trajectory import Run, read_part
from jaxmlip.validation.averages import FRAMES_AT_ONCE, cell_range, frame_states, room_for

PIECE = 512
"""Frames of all replicas together that are read at once from a file, and after which what is known is kept."""


def frame_energies(
    run: Run | str | Path,
    potentials: Sequence[Potential],
    *,
    first: int = 0,
    to: str | Path | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "potentials replicas frames"]:
    """Total energies in eV, elemental references included, of several potentials in all frames of a run.

    All potentials share one pass over the frames: lists and programs are theirs together.

    Args:
        run: from `simulate`; or a trajectory's file, which is read piece by piece. Replicas that failed are left out.
        potentials: any, with cutoffs and parameters of their own.
        first: frame to begin with.
        to: `.npz` file that keeps what is known, piece by piece: the same call again goes on from there.
        progress: show a bar.

    Raises:
        ValueError: if a potential does not know an element, or no replica ran to the end; if the file at `to` is of
            other potentials or another run.
    """
    frames = _Frames.of(run, first)
    for potential in potentials:
        potential.check(frames.structure)
    kept = _Kept.at(to, potentials, frames)
    size = max(1, PIECE // frames.replicas)
    states: FrameState | None = None
    with progress_bar(
        total=frames.number * frames.replicas, desc="energies of frames", unit="frame", compiles=True,
        disable=not progress,
    ) as bar:  # fmt: skip
        bar.resume(kept.done * frames.replicas)
        while kept.done < frames.number:
            piece = frames.piece(kept.done, min(kept.done + size, frames.number))
            states = _with_room(frame_states(piece), potentials, frames.heights, states)
            kept.add(_energies_of(potentials, states, bar.update))
    references = [reference_energy(potential, frames.numbers) for potential in potentials]
    return kept.energies + np.array(references)[:, None, None]


@dataclasses.dataclass(frozen=True)
class _Frames:
    """Where frames come from.

    Attributes:
        first: frame to begin with.
        number: of frames from there on, in each replica.
        run: in memory; of a file, its first frame.
        path: of the file, if they are there.
        heights: least heights of all cells, Å.
    """

    first: int
    number: int
    run: Run
    path: Path | None
    heights: tuple[float, ...]

    @classmethod
    def of(cls, run: Run | str | Path, first: int) -> "_Frames":
        if isinstance(run, Run):
            one, number, path, cells = run, run.n_frames, None, run.frame_cells
        else:
            path = Path(run)
            with opened(path) as file:
                number, one = read_frames_number(file), read_part(file, slice(0, 1))
            one = dataclasses.replace(one, lengths=np.minimum(one.lengths, 1))
            cells = one.frame_cells if one.cells.ndim == 3 else _series(path, "cells")
        if not one.completed.any():
            raise ValueError(f"No replica ran to the end. Replica 0: {one.outcomes[0].value}.")
        if not 0 <= first < number:
            raise ValueError(f"The run has {number} frames, and none from {first} on.")
        return cls(first, number - first, one, path, cell_range(cells[one.completed], one.pbc))

    @property
    def replicas(self) -> int:
        return int(self.run.completed.sum())

    @property
    def numbers(self) -> np.ndarray:
        return self.run.numbers

    @property
    def structure(self) -> Any:
        return self.run.part(slice(int(np.argmax(self.run.completed)), None))[0]

    def piece(self, start: int, stop: int) -> Run:
        where = slice(self.first + start, self.first + stop)
        if self.path is None:
            return self.run.during(where)
        with opened(self.path) as file:
            return read_part(file, where)


class _Kept:
    """Energies relative to the references that are known, frame by frame, and in a file if there is one."""

    def __init__(self, path: Path | None, identity: str, energies: np.ndarray) -> None:
        self.path, self.identity, self.energies = path, identity, energies

    @classmethod
    def at(cls, path: str | Path | None, potentials: Sequence[Potential], frames: _Frames) -> "_Kept":
        nothing = np.zeros((len(potentials), frames.replicas, 0))
        if path is None:
            return cls(None, "", nothing)
        run = frames.run
        energies = run.potential_energy if frames.path is None else _series(frames.path, "potential_energy")
        identity = digest(*map(fingerprint, potentials), energies, run.numbers, frames.first)
        path = Path(path)
        if not path.exists():
            return cls(path, identity, nothing)
        try:
            with np.load(path) as file:
                there, energies = str(file["identity"]), file["energies"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is no file of frame energies ({error}); remove it.") from error
        if there != identity:
            raise ValueError(f"{path} has energies of another run or of other potentials; remove it, or use another.")
        return cls(path, identity, energies)

    @property
    def done(self) -> int:
        return self.energies.shape[2]

    def add(self, energies: np.ndarray) -> None:
        self.energies = np.concatenate([self.energies, energies], axis=2)
        if self.path is not None:
            with written_whole(self.path) as draft, draft.open("wb") as file:
                np.savez(file, identity=self.identity, energies=self.energies)


def _series(path: Path, name: str) -> np.ndarray:
    """One series of a file's frames, [replicas, frames, ...], without the positions."""
    with opened(path) as file:
        return np.asarray(read_series(file, name, slice(0, read_frames_number(file))))


def _with_room(
    frames: FrameState, potentials: Sequence[Potential], heights: tuple[float, ...], before: FrameState | None
) -> FrameState:
    """Frames with lists for all potentials, as large as those before if these suffice."""
    frames = frames.replace(heights=heights, capacity=None if before is None else before.capacity)
    cutoffs = tuple(max(getattr(each, name) for each in potentials) for name in ("cutoff", "inner_cutoff"))
    return frames.replace(capacity=room_for(frames, cutoffs))


def _energies_of(
    potentials: Sequence[Potential], frames: FrameState, done: Callable[[int], Any]
) -> Float[np.ndarray, "potentials replicas frames"]:
    """Energies relative to the references, of frames [replicas, frames]."""
    shape = frames.positions.shape[:2]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), frames.at_rest)
    number, parts = shape[0] * shape[1], []
    for start in range(0, number, FRAMES_AT_ONCE):
        # The last batch is filled up with its last frame, so that there is one shape.
        chosen = np.minimum(np.arange(start, start + FRAMES_AT_ONCE), number - 1)
        atomic = _atomic_energies(tuple(potentials), jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], flat))
        parts.append(np.asarray(atomic, np.float64).sum(2))
        done(min(FRAMES_AT_ONCE, number - start))
    return np.concatenate(parts, axis=1)[:, :number].reshape(len(potentials), *shape)


@jax.jit
def _atomic_energies(potentials: tuple[Potential, ...], frames: FrameState) -> Any:
    """[potentials, frames, atoms], eV; NaN where lists lack room."""
    return jax.numpy.stack([atomic_energies(potential, frames) for potential in potentials])


def atomic_energies(potential: Potential, frames: FrameState) -> Any:
    """[frames, atoms], eV, relative to the references, of frames with a leading axis; NaN where lists lack room."""
    graph, fits = frames.batch_graph(potential)
    energies = potential.atomic_energies(graph).reshape(len(frames.positions), -1)
    return jax.numpy.where(fits, energies, jax.numpy.nan)
