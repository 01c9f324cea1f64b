"""Averages over runs: observables in all frames, what of a run is in equilibrium, and estimates with their status."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable, References
from jaxmlip.observables.spectrum import seen_lengths
from jaxmlip.observables.statistics import drifts, equilibration_frames
from jaxmlip.potentials.potential import Potential, reference_energy
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.capacity import Capacity, graph_of_replicas, needs_of
from jaxmlip.systems.device_lists import cell_heights
from jaxmlip.systems.origin import offset_from_origin
from jaxmlip.units import KB

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


def observe(
    run: Run, observable: Observable, first: int = 0, potential: Potential | None = None
) -> Float[np.ndarray, "replicas frames *shape"]:
    """Values of an observable in all frames from `first` on of the replicas that ran to the end.

    Where it was observed on the way, these are its means since the frame before.

    Args:
        run: from `simulate`.
        observable: for example `RDF("O", "O")`.
        first: frame to begin with.
        potential: what the value depends on, for example of the energies of another potential at these frames. By
            default it is what the run knows of its own.

    Raises:
        ValueError: if the observable makes no sense for the run, or the run does not have what it depends on.
    """
    kept = run.completed
    if potential is None and observable.name in run.observed:
        return run.observed[observable.name][kept, first:]
    recorded = observable.recorded_in(run) if potential is None else None
    if recorded is not None:
        return recorded[kept, first:]
    observable = observable.bound_to(run[int(run.lengths[: np.argmax(kept)].sum())])
    frames = frame_states(run, first, potential=potential)
    observable.check(frames)
    if potential is None and observable.needs_stress:
        raise ValueError(
            f"Frames hold no stress, so that the {observable.name} must be observed while the simulation runs: give "
            f"simulate observables=[{type(observable).__name__}()]; or give a potential."
        )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), frames)
    values = np.asarray(_map_frames(observable, flat, potential), np.float64)
    values = values.reshape(int(kept.sum()), run.n_frames - first, *values.shape[1:])
    if potential is None:
        return values
    sums = np.full(len(values), reference_energy(potential, run.numbers))
    return observable.completed(values, References(sums, None, np.full(len(values), len(run.numbers))))


def frame_states(run: Run, first: int = 0, *, potential: Potential | None = None) -> FrameState:
    """The frames from `first` on of the replicas that ran to the end; leaves start with [replicas, frames].

    They are in single precision, or in double under `jax.enable_x64`.

    Args:
        run: from `simulate`.
        first: frame to begin with.
        potential: that is to be evaluated on the frames, for which they get the capacity.
    """
    kept = run.completed
    cells = np.where(run.pbc[:, None], run.frame_cells[kept, first:], 0.0)
    shape = cells.shape[:2]
    momenta = run.momenta
    if momenta is not None:
        momenta = momenta[kept, first:].astype(dtype)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    frames = FrameState(
        positions=_near_origin(run.positions[kept, first:], cells).astype(dtype),
        cell=cells.astype(dtype),
        masses=np.broadcast_to(run.masses[kept, None].astype(dtype), (*shape, len(run.numbers))),
        momenta=momenta,
        degrees=None if momenta is None else _degrees(run, momenta, first),
        numbers=tuple(run.numbers.tolist()),
        heights=cell_range(run.cells[kept], run.pbc),
    )
    if potential is None:
        return frames
    return frames.replace(capacity=room_for(frames, (potential.cutoff, potential.inner_cutoff)))


def cell_range(cells: np.ndarray, pbc: np.ndarray) -> tuple[float, ...]:
    """Least heights [3] in Å of cells [..., 3, 3], infinite where not periodic.

    They are rounded down, so that runs of nearly equal cells share compiled code.
    """
    lowest = cell_heights(np.where(pbc[:, None], cells, 0.0)).reshape(-1, 3).min(axis=0)
    return tuple((np.floor(10.0 * lowest) / 10.0).tolist())


def _near_origin(positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Positions that single precision holds: those of a run that needed double are translated (see `FrameState`)."""
    if positions.dtype == np.float32:
        return positions
    near = np.empty(positions.shape)
    for place in np.ndindex(positions.shape[:2]):
        near[place] = positions[place] - offset_from_origin(positions[place], cells[place]).vectors(cells[place])
    return near


def _degrees(run: Run, momenta: np.ndarray, first: int) -> np.ndarray:
    """Degrees of freedom [replicas, frames] that the run's temperatures were counted with."""
    kinetic = 0.5 * (momenta.astype(np.float64) ** 2 / run.masses[run.completed, None, :, None]).sum((2, 3))
    return np.rint(2.0 * kinetic / (KB * run.temperature[run.completed, first:])).astype(np.float32)


def room_for(frames: FrameState, cutoffs: tuple[float, float]) -> Capacity:
    """What neighbour lists of all frames need for potentials of such a cutoff and inner cutoff.

    It is the frames' own capacity where that suffices, or more.
    """
    heights, atoms = np.array(frames.heights), len(frames.numbers)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), frames.at_rest)
    one = [np.asarray(flat.positions[0], np.float64)], np.asarray(flat.cell[:1], np.float64)
    here = heights, cutoffs[0], atoms
    capacity = frames.capacity or Capacity.holding(needs_of(*one, heights, cutoffs, 0.0, atoms), *here)
    inverses = np.linalg.pinv(flat.cell).astype(flat.cell.dtype)
    while True:
        needs = np.asarray(_needs(flat.positions, flat.cell, inverses, frames.numbers, cutoffs, capacity))
        if capacity.fits(needs):
            return capacity
        capacity = capacity.grown(needs, *here)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _needs(
    positions: Any,
    cells: Any,
    inverses: Any,
    numbers: tuple[int, ...],
    cutoffs: tuple[float, float],
    capacity: Capacity,
) -> Any:
    def of_frame(frame: tuple[Any, Any, Any]) -> Any:
        species = jnp.asarray(np.array(numbers, np.int32))
        position, cell, inverse = (each[None] for each in frame)
        return graph_of_replicas(species[None], position, cell, inverse, cutoffs, capacity)[1][0]

    return jax.lax.map(of_frame, (positions, cells, inverses)).max(0)


@functools.partial(jax.jit, static_argnums=0)
def _map_frames(observable: Observable, frames: FrameState, potential: Potential | None) -> Any:
    return jax.lax.map(lambda frame: observable.per_frame(frame, potential), frames, batch_size=FRAMES_AT_ONCE)


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
    first, status = settled(run, equilibration)
    estimate = observable.estimate(observe(run, observable, first))
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


def settled(run: Run, equilibration: Literal["auto"] | float | int) -> tuple[int, Status]:
    """The first frame to keep, and whether the run is in equilibrium from there on; see `average`.

    Raises:
        ValueError: if nothing is left of the run.
    """
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
    total = potential + 1.5 * len(run.numbers) * KB * run.temperature[kept]
    total = total - total.mean(axis=1, keepdims=True)
    exchanged = [total] if total.std() > CONSERVED * potential.std() else []
    deviations = [(series - series.mean())[:, :, None] for series in (*settling, *exchanged)]
    decays = (1.0 / seen_lengths(each) for each in deviations if each.any())
    return run.time_fs[-1] / 1000.0 * max(decays, default=0.0)
