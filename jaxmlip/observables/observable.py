"""What an observable is: a function of a frame, and how its values over many frames become an Estimate."""

import abc
import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from ase.units import kB
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.spectrum import seen_lengths
from jaxmlip.observables.statistics import correlated_mean, drifts, equilibration_frames
from jaxmlip.simulation.neighbors import cell_heights
from jaxmlip.simulation.observing import FrameState
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.origin import offset_from_origin

FRAMES_AT_ONCE = 8
"""Frames that are evaluated side by side."""

DISCARDED = 5.0
"""Time constants of the ensemble that are discarded at the start: then 1 % is left of where it came from."""

KEPT = 2.0
"""Time constants that must be kept for any error: intervals hold from two correlation times on."""

KEPT_FOR_OK = 40.0
"""Time constants that must be kept for the status OK."""

CONSERVED = 0.1
"""Fluctuations of the total energy, relative to those of the potential energy, below which it counts as conserved."""


class Observable(abc.ABC):
    """A function of a frame, averaged over a run. Subclasses are frozen dataclasses, hence hashable.

    `per_frame` can be jitted and mapped; it can be differentiated where the subclass says so. `reduce` serves plain
    and reweighted averages alike.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Short name for tables and plots."""

    @property
    @abc.abstractmethod
    def unit(self) -> str:
        """Unit of the values; empty for pure numbers."""

    @abc.abstractmethod
    def per_frame(self, frame: FrameState) -> Any:
        """Value of one frame."""

    def check(self, run: Run) -> None:
        """Raise ValueError if the observable makes no sense for a run."""
        del run

    def reduce(self, values: Any, weights: Any = None) -> Estimate:
        """Average of values [replicas, frames, ...], with weights [replicas, frames] if given.

        Raises:
            ValueError: see `correlated_mean`.
        """
        return correlated_mean(np.asarray(values), None if weights is None else np.asarray(weights))

    def over(self, run: Run, first: int = 0) -> Float[np.ndarray, "replicas frames *shape"]:
        """Values in all frames from `first` on of the replicas that ran to the end.

        Where the observable was observed on the way, these are its means since the frame before.
        """
        self.check(run)
        kept = run.completed
        if self.name in run.observed:
            return run.observed[self.name][kept, first:]
        frames = frame_states(run, first)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), frames)
        values = np.asarray(_map_frames(self, flat), np.float64)
        return values.reshape(int(kept.sum()), run.n_frames - first, *values.shape[1:])


def frame_states(run: Run, first: int = 0) -> FrameState:
    """The frames from `first` on of the replicas that ran to the end; leaves start with [replicas, frames]."""
    kept = run.completed
    cells = np.where(run.pbc[:, None], run.frame_cells[kept, first:], 0.0)
    # Rounded down, so that runs of nearly equal cells share compiled code.
    lowest = cell_heights(np.where(run.pbc[:, None], run.cells[kept], 0.0)).reshape(-1, 3).min(axis=0)
    heights = np.floor(10.0 * lowest) / 10.0
    return FrameState(
        positions=_near_origin(run.positions[kept, first:], cells),
        cell=cells.astype(np.float32),
        potential_energy=run.potential_energy[kept, first:],
        temperature=run.temperature[kept, first:],
        mass=np.broadcast_to(run.masses[kept].sum(1)[:, None], run.temperature[kept, first:].shape),
        numbers=tuple(run.numbers.tolist()),
        heights=tuple(heights.tolist()),
    )


def _near_origin(positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Positions in single precision; those of a run that needed double are translated first (see `FrameState`)."""
    if positions.dtype == np.float32:
        return positions
    near = np.empty(positions.shape, np.float32)
    for place in np.ndindex(positions.shape[:2]):
        near[place] = positions[place] - offset_from_origin(positions[place], cells[place]).vectors(cells[place])
    return near


@functools.partial(jax.jit, static_argnums=0)
def _map_frames(observable: Observable, frames: FrameState) -> Any:
    return jax.lax.map(observable.per_frame, frames, batch_size=FRAMES_AT_ONCE)


def average(run: Run, observable: Observable, *, equilibration: Literal["auto"] | float | int = "auto") -> Estimate:
    """Mean of an observable over the frames and replicas of a run, with its standard error.

    Replicas that failed are left out, and the status says so. The estimate has no error where the run is not yet in
    equilibrium: where temperature, energy or, if the cell moves, volume still drift in what is kept, where the ramp and
    `DISCARDED` of the ensemble's time constants (`Run.time_constants_ps`) are more than half of the run, or where less
    than `KEPT` of these are kept. It is not OK with less than `KEPT_FOR_OK` of them. Where no constants are known
    (constant energy, older files), twice the longest time in which one of these series or the total energy falls
    to 1/e takes their place, unless you say what to discard.

    Args:
        run: from `simulate`.
        observable: for example `RDF("O", "O")`.
        equilibration: time in ps to discard at the start, or "auto": what the slowest of temperature, energy and
            volume takes (`equilibration_frames`), at least any ramp and `DISCARDED` time constants after it, and at
            most half of the run.

    Raises:
        ValueError: if the observable makes no sense for the run, or nothing is left of it.
    """
    kept = run.completed
    if not kept.any():
        raise ValueError(
            f"{Status.NO_DATA.value.capitalize()}: there is nothing to average {observable.name} over. "
            f"Replica 0: {run.outcomes[0].value}."
        )
    first, status = _settled(run, equilibration)
    estimate = observable.reduce(observable.over(run, first))
    failed = [] if kept.all() else [Status.REPLICA_FAILED]
    status = worst(status, estimate.status, *failed)
    if not status.has_error:
        nothing = np.full_like(estimate.value, np.nan)
        estimate = dataclasses.replace(estimate, error=nothing, effective_samples=math.nan, blocks=None)
    energies = np.ascontiguousarray(run.potential_energy[kept])
    return dataclasses.replace(
        estimate,
        status=status,
        unit=observable.unit,
        source=(zlib.crc32(energies.tobytes()), energies.shape, first),
        discarded_fs=float(run.time_fs[first - 1]) if first else 0.0,
    )


def _settled(run: Run, equilibration: Literal["auto"] | float | int) -> tuple[int, Status]:
    """The first frame to keep, and whether the run is in equilibrium from there on."""
    kept, times = run.completed, dict(run.time_constants_ps)
    ramp = times.pop("ramp", 0.0)
    slowest = max(times.values(), default=0.0)
    settling = [run.temperature[kept], run.potential_energy[kept]]
    if run.cells.ndim == 4 and run.pbc.all():
        settling.append(run.volume[kept])
    length = run.time_fs[-1] / 1000.0
    if equilibration == "auto":
        slowest = slowest if times else _decay_ps(run, settling)
        needed = int(np.searchsorted(run.time_fs, 1000.0 * (ramp + DISCARDED * slowest), side="right"))
        wanted = max(equilibration_frames(series) for series in settling)
        first = min(max(wanted, needed), run.n_frames // 2)
        short = needed > first
    else:
        first = int(np.searchsorted(run.time_fs, 1000.0 * float(equilibration), side="right"))
        if not equilibration >= 0 or first >= run.n_frames:
            raise ValueError(f"Discarding {equilibration!r} ps leaves nothing of a run of {length:g} ps.")
        short = equilibration < ramp
    kept_ps = length - (run.time_fs[first - 1] / 1000.0 if first else 0.0)
    if short or kept_ps < KEPT * slowest:
        return first, Status.TOO_SHORT
    # Where the most effective samples begin is uncertain in short runs; whether what is kept drifts is what counts.
    if drifts([series[:, first:] for series in settling]):
        return first, Status.NOT_EQUILIBRATED
    return first, Status.OK if kept_ps >= KEPT_FOR_OK * slowest else Status.SLOW_MOTION


def _decay_ps(run: Run, settling: Sequence[np.ndarray]) -> float:
    """Twice the longest time in which one of several series [replicas, frames] falls to 1/e, transients included.

    The total energy is another: exchange with a thermostat is hidden below the vibrations in both of its parts. Where
    it is conserved, its differences between replicas and the integrator's error are nothing that settles. Twice,
    because the time looks shorter than it is in runs that are not long beside it.
    """
    kept = run.completed
    potential = run.potential_energy[kept]
    total = potential + 1.5 * len(run.numbers) * kB * run.temperature[kept]
    total = total - total.mean(axis=1, keepdims=True)
    exchanged = [total] if total.std() > CONSERVED * potential.std() else []
    deviations = [(series - series.mean())[:, :, None] for series in (*settling, *exchanged)]
    decays = (1.0 / seen_lengths(each) for each in deviations if each.any())
    return run.time_fs[-1] / 1000.0 * max(decays, default=0.0)
