"""Molecular dynamics of many replicas at once, on any potential.

One compiled function advances all replicas from one sample to the next: an outer loop makes neighbour lists, an inner
loop steps while they hold. What decides whether they hold is looked at in every step and for all replicas together, so
that nothing invalid is ever kept:

* A step after which any atom is further than half the skin from where the lists were made is discarded, lists are made
  afresh, and the step is repeated with the same random numbers. (As a rule the lists are renewed just before.)
* A list that does not fit its slots stops the loop before any step is taken with it. The host provides more room,
  which compiles anew, and the loop goes on.
* A replica that fails is frozen where it last was sound; the others go on, or the run ends with an exception.

A trajectory therefore depends neither on the skin nor on the room for the lists, beyond the rounding of sums over
differently ordered neighbours.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from tqdm import tqdm

from jaxmlip.potentials.potential import Potential, check_species, evaluate, reference_energy
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.neighbors import ImageSearch, cell_heights, device_neighbors, image_search, pseudo_inverse
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.graph import GHOST, Graph, check_structure, periodic_cell
from jaxmlip.systems.neighbors import dense_neighbors
from jaxmlip.types import Leaf
from jaxmlip.units import FS, KB

MAX_STEP = 0.5
"""Å; an atom that moves further in one step has exploded (a proton with 50 eV moves 0.5 Å in 0.5 fs)."""

PAIRS_AT_ONCE = 2**25
"""Pairs whose distances are held in memory at once when lists are made; replicas take turns beyond."""

_OUTCOMES = {1: Outcome.NOT_FINITE, 2: Outcome.EXPLODED}


class SimulationError(RuntimeError):
    """A replica failed; the message names it, the step, and the likely causes."""


class _System(flax.struct.PyTreeNode):
    """What stays fixed during a run: species [atoms], and per replica the cell and its pseudo-inverse."""

    species: Leaf
    cells: Leaf
    inverses: Leaf


class _Walkers(flax.struct.PyTreeNode):
    """What changes: the replicas, their lists, and the flags that decide what happens next.

    Attributes:
        state: state of the ensemble, with a leading axis of replicas.
        energy: [replicas], eV, relative to the references.
        failure: [replicas], 0 while sound, else a key of `_OUTCOMES`.
        failed_at: [replicas], the step that failed, or −1.
        step: [], steps taken; −1 before the forces at the start are known.
        neighbors, shifts: the lists, as in `DeviceList`.
        origin: [replicas, atoms, 3], positions the lists were made at.
        stale: [], whether the lists must be made before the next step.
        fresh: [], whether no step has been taken with the lists.
        skin_broken: [], whether a single step led beyond the skin of fresh lists.
        needed: [2], the most slots, and inner slots, that the lists need.
    """

    state: Leaf
    energy: Leaf
    failure: Leaf
    failed_at: Leaf
    step: Leaf
    neighbors: Leaf
    shifts: Leaf
    origin: Leaf
    stale: Leaf
    fresh: Leaf
    skin_broken: Leaf
    needed: Leaf


@dataclasses.dataclass(frozen=True)
class _Room:
    """Static sizes of the lists; a change compiles anew.

    Attributes:
        search: translations tried for each pair.
        slots: neighbour slots.
        inner: leading slots for the inner cutoff; 0 if the potential has none.
    """

    search: ImageSearch
    slots: int
    inner: int

    def fits(self, needed: Any) -> Any:
        """Whether lists that need so many slots and inner slots are complete."""
        return (needed[0] <= self.slots) & (needed[1] <= self.inner)


@functools.partial(jax.jit, static_argnames=("kind", "room", "stop_at_failure"))
def _advance(
    potential: Potential,
    system: _System,
    walkers: _Walkers,
    parameters: dict[str, Any],
    until: Any,
    dt: Any,
    skin: Any,
    *,
    kind: type[Ensemble],
    room: _Room,
    stop_at_failure: bool,
) -> _Walkers:
    """Take steps until `until`, or until the lists do not fit, the skin is too thin, or a failure stops the run."""

    def remade(walkers: _Walkers) -> _Walkers:
        return _with_lists(potential, system, walkers, skin, room)

    def wanted(walkers: _Walkers) -> Any:
        failed = walkers.failure > 0
        ended = failed.any() if stop_at_failure else failed.all()
        return (walkers.step < until) & ~ended & ~walkers.skin_broken & room.fits(walkers.needed)

    def step(walkers: _Walkers) -> _Walkers:
        return _step(potential, system, walkers, parameters, dt, skin, kind, room)

    def with_these_lists(walkers: _Walkers) -> _Walkers:
        walkers = jax.lax.cond(walkers.stale, remade, lambda same: same, walkers)
        return jax.lax.while_loop(lambda w: wanted(w) & ~w.stale, step, walkers)

    return jax.lax.while_loop(wanted, with_these_lists, walkers)


def _with_lists(potential: Potential, system: _System, walkers: _Walkers, skin: Any, room: _Room) -> _Walkers:
    """The walkers with neighbour lists made at their present positions."""
    positions = walkers.state.position
    replicas, atoms, _ = positions.shape

    def lists_of(replica: tuple[Any, Any, Any]) -> Any:
        inner = potential.inner_cutoff + skin if potential.inner_cutoff > 0 else 0.0
        return device_neighbors(*replica, potential.cutoff + skin, inner, search=room.search, slots=room.slots)

    pairs = atoms * atoms * len(room.search.translations)
    at_once = max(1, min(replicas, PAIRS_AT_ONCE // pairs))
    lists = jax.lax.map(lists_of, (positions, system.cells, system.inverses), batch_size=at_once)
    return walkers.replace(
        neighbors=lists.neighbors,
        shifts=lists.shifts,
        origin=positions,
        stale=jnp.zeros((), bool),
        fresh=jnp.ones((), bool),
        needed=jnp.stack([lists.needed.max(), lists.needed_inner.max()]),
    )


def _step(
    potential: Potential,
    system: _System,
    walkers: _Walkers,
    parameters: dict[str, Any],
    dt: Any,
    skin: Any,
    kind: type[Ensemble],
    room: _Room,
) -> _Walkers:
    """One step of all replicas, kept only if the lists held for all of them."""

    def one(state: Any, cell: Any, neighbors: Any, shifts: Any) -> tuple[Any, Any]:
        def energy_and_forces(positions: Any) -> tuple[Any, Any]:
            owner = jnp.zeros(positions.shape[0], jnp.int32)
            graph = Graph(positions, system.species, cell[None], neighbors, shifts, owner, room.inner)
            prediction = evaluate(potential, graph)
            return prediction.energy[0], prediction.forces

        return kind.apply(state, energy_and_forces, dt, parameters)

    state, energy = jax.vmap(one)(walkers.state, system.cells, walkers.neighbors, walkers.shifts)

    leap = _furthest(state.position, walkers.state.position)
    away = _furthest(state.position, walkers.origin)
    finite = jnp.isfinite(energy) & jnp.isfinite(state.momentum).all((1, 2)) & jnp.isfinite(state.force).all((1, 2))
    sound = walkers.failure == 0
    failure = jnp.where(sound & ~finite, 1, jnp.where(sound & (leap > MAX_STEP), 2, walkers.failure))
    moving = failure == 0

    held = ~(moving & (away > 0.5 * skin)).any()
    keep = held & moving
    soon = (jnp.where(moving, away + 1.5 * leap, 0.0) > 0.5 * skin).any()

    def chosen(new: Any, old: Any) -> Any:
        return jnp.where(keep.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return walkers.replace(
        state=jax.tree.map(chosen, state, walkers.state),
        energy=jnp.where(keep, energy, walkers.energy),
        failure=jnp.where(held, failure, walkers.failure),
        failed_at=jnp.where(held & sound & ~moving, walkers.step + 1, walkers.failed_at),
        step=walkers.step + held,
        stale=~held | soon,
        fresh=jnp.zeros((), bool),
        skin_broken=~held & walkers.fresh,
    )


def _furthest(here: Any, there: Any) -> Any:
    """The longest displacement among a replica's atoms, Å."""
    return jnp.sqrt(((here - there) ** 2).sum(-1).max(-1))


@functools.partial(jax.jit, static_argnames="kind")
def _start(positions: Any, masses: Any, key: Any, parameters: dict[str, Any], *, kind: type[Ensemble]) -> Any:
    """States of all replicas; a replica's random numbers depend on the seed and its index alone."""
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(positions.shape[0]))
    return jax.vmap(kind.init, in_axes=(0, 0, 0, None))(keys, positions, masses, parameters)


def simulate(
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    time_ps: float | None = None,
    steps: int | None = None,
    timestep_fs: float = 0.5,
    replicas: int | None = None,
    seed: int = 0,
    sample_every_fs: float = 10.0,
    skin: float = 0.5,
    progress: bool = True,
    on_failure: Literal["raise", "mark"] = "raise",
) -> Run:
    """Molecular dynamics of replicas that differ in their random numbers, and in their start if several are given.

    Velocities start from the Maxwell–Boltzmann distribution at the ensemble's temperature. Arithmetic is in single
    precision (double under `jax.enable_x64`); energies are completed with the elemental references in double.

    Args:
        potential: any Potential. Runs of potentials with equal pytree structure share compiled code.
        structure: the start of all replicas, or one start for each: equal atoms in equal order, any cells.
        ensemble: for example `NVT(temperature_K=250)`.
        time_ps: length of the run in ps; this or `steps`.
        steps: length of the run in steps.
        timestep_fs: fs.
        replicas: number of replicas; by default as many as structures.
        seed: a non-negative integer; the same seed gives the same trajectories on the same machine.
        sample_every_fs: time between frames, rounded to steps; the start is not a frame.
        skin: Å, by how much neighbour lists reach beyond the cutoff. It affects speed alone.
        progress: show a progress bar.
        on_failure: "raise" ends the run when a replica fails; "mark" lets the others go on and says so in
            `Run.outcomes`.

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

    engine = _Engine(potential, starts, ensemble, timestep_fs, skin, seed, on_failure == "raise")
    recorder = _Recorder(starts, reference_energy(potential, starts[0].numbers), total // every)
    engine.prepare()
    moving_s = 0.0
    with tqdm(total=total * timestep_fs / 1000, unit="ps", disable=not progress, bar_format=_BAR) as bar:
        for frame in range(total // every):
            moving_s += engine.advance((frame + 1) * every)
            recorder.record(frame, engine.walkers)
            taken = (frame + 1) * every * timestep_fs * len(starts)
            bar.set_postfix_str(f"{_ns_per_day(taken, moving_s):.3g} ns/day", refresh=False)
            bar.update(every * timestep_fs / 1000)
            if engine.all_failed:
                break

    failure, failed_at = np.asarray(engine.walkers.failure), np.asarray(engine.walkers.failed_at)
    outcomes = tuple(_OUTCOMES.get(int(code), Outcome.COMPLETED) for code in failure)
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


class _Engine:
    """The host's side of the loop: drives `_advance`, gives it room, and turns failures into exceptions."""

    def __init__(
        self,
        potential: Potential,
        starts: list[Atoms],
        ensemble: Ensemble,
        timestep_fs: float,
        skin: float,
        seed: int,
        stop_at_failure: bool,
    ) -> None:
        cells = np.stack([periodic_cell(atoms) for atoms in starts])
        self.potential = jax.device_put(potential)
        self.cutoff, self.inner_cutoff = potential.cutoff, potential.inner_cutoff
        self.heights = np.atleast_2d(cell_heights(cells)).min(axis=0)
        self.timestep_fs, self.skin, self.stop_at_failure = timestep_fs, skin, stop_at_failure
        self.kind, self.parameters = type(ensemble), ensemble.parameters()
        host_positions = np.stack([atoms.positions for atoms in starts])
        positions = jnp.asarray(host_positions, float)
        self.system = _System(
            species=jnp.asarray(starts[0].numbers, jnp.int32),
            cells=jnp.asarray(cells, float),
            inverses=jnp.asarray(np.stack([pseudo_inverse(cell) for cell in cells]), float),
        )
        needed = self._counts(host_positions, cells)
        self.room = self._room_for(int(needed[0]), int(needed[1]))
        masses = jnp.asarray(np.stack([atoms.get_masses() for atoms in starts]), float)
        n = len(starts)
        self.walkers = _Walkers(
            state=_start(positions, masses, jax.random.key(int(seed)), self.parameters, kind=self.kind),
            energy=jnp.zeros(n, positions.dtype),
            failure=jnp.zeros(n, jnp.int32),
            failed_at=jnp.full(n, -1, jnp.int32),
            step=jnp.full((), -1, jnp.int32),
            neighbors=jnp.zeros(0),
            shifts=jnp.zeros(0),
            origin=positions,
            stale=jnp.ones((), bool),
            fresh=jnp.ones((), bool),
            skin_broken=jnp.zeros((), bool),
            needed=jnp.zeros(2, jnp.int32),
        )
        self._clear_lists()

    @property
    def all_failed(self) -> bool:
        """Whether no replica is left."""
        return bool((np.asarray(self.walkers.failure) > 0).all())

    @property
    def _inner_range(self) -> float:
        return self.inner_cutoff + self.skin if self.inner_cutoff > 0 else 0.0

    def _room_for(self, slots: int, inner: int) -> _Room:
        """Room for lists that fluctuate about the given needs: √n is the spread of a gas, a generous one of a solid."""
        slots = _rounded_up(slots + np.sqrt(slots) + 2)
        inner = _rounded_up(inner + np.sqrt(inner) + 2) if self.inner_cutoff > 0 else 0
        return _Room(image_search(self.heights, self.cutoff + self.skin), max(slots, inner), inner)

    def _clear_lists(self) -> None:
        """Empty lists of the present size, to be made before the next step."""
        replicas, atoms, _ = self.walkers.origin.shape
        self.walkers = self.walkers.replace(
            neighbors=jnp.full((replicas, atoms, self.room.slots), GHOST, jnp.int32),
            shifts=jnp.zeros((replicas, atoms, self.room.slots, 3), jnp.int16),
            stale=jnp.ones((), bool),
            skin_broken=jnp.zeros((), bool),
            needed=jnp.zeros(2, jnp.int32),
        )

    def prepare(self) -> None:
        """Compute the forces at the start, by a step of zero length with the code that all others use."""
        self._run(until=0, timestep_fs=0.0)

    def advance(self, until: int) -> float:
        """Take steps up to `until`; returns the seconds it took, compilation not included."""
        return self._run(until, self.timestep_fs)

    def _run(self, until: int, timestep_fs: float) -> float:
        """Advance, making room as often as needed."""
        spent = 0.0
        while True:
            start = time.perf_counter()
            self.walkers = self._advanced(until, timestep_fs)
            w = self.walkers
            flags = (w.step, w.failure, w.failed_at, w.needed, w.skin_broken)
            step, failure, failed_at, needed, skin_broken = map(np.asarray, jax.device_get(flags))
            spent += time.perf_counter() - start
            if self.stop_at_failure and failure.any():
                self._raise(failure, failed_at)
            if step >= until or (failure > 0).all():
                return spent
            self._make_room(needed, bool(skin_broken))
            # No steps: compiles for the new sizes outside the time that counts.
            jax.block_until_ready(self._advanced(int(step), timestep_fs))

    def _advanced(self, until: int, timestep_fs: float) -> _Walkers:
        return _advance(
            self.potential,
            self.system,
            self.walkers,
            self.parameters,
            until,
            timestep_fs * FS,
            self.skin,
            kind=self.kind,
            room=self.room,
            stop_at_failure=self.stop_at_failure,
        )

    def _make_room(self, needed: np.ndarray, skin_broken: bool) -> None:
        """More slots for lists that need them, or a thicker skin for atoms that outran it in one step."""
        if skin_broken:
            self.skin *= 2.0
            positions = np.asarray(self.walkers.state.position, np.float64)
            needed = self._counts(positions, np.asarray(self.system.cells, np.float64))
        grown = self._room_for(int(needed[0]), int(needed[1]))
        self.room = _Room(grown.search, max(grown.slots, self.room.slots), max(grown.inner, self.room.inner))
        self._clear_lists()

    def _counts(self, positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Slots and inner slots that the replicas' lists need, counted on the host."""
        counts = []
        for where, cell in zip(positions, cells, strict=True):
            neighbors, _, inner = dense_neighbors(where, cell, self.cutoff + self.skin, self._inner_range)
            counts.append((neighbors.shape[1], inner))
        return np.max(counts, axis=0)

    def _raise(self, failure: np.ndarray, failed_at: np.ndarray) -> None:
        replica = int(np.flatnonzero(failure)[0])
        step = int(failed_at[replica])
        raise SimulationError(
            f"Replica {replica} failed in step {step} ({step * self.timestep_fs:g} fs): "
            f"{_OUTCOMES[int(failure[replica])].value}. Likely causes: (a) atoms too close in the start structure; "
            f"(b) a timestep of {self.timestep_fs:g} fs is too long for the lightest atoms; (c) the potential left the "
            'range of its training data. With on_failure="mark" the other replicas go on.'
        )


class _Recorder:
    """Collects frames on the host."""

    def __init__(self, starts: list[Atoms], reference: float, frames: int) -> None:
        self.starts, self.reference = starts, reference
        self.positions = np.full((len(starts), frames, len(starts[0]), 3), np.nan, np.float32)
        self.energy = np.full((len(starts), frames), np.nan)
        self.temperature = np.full((len(starts), frames), np.nan)

    def record(self, frame: int, walkers: _Walkers) -> None:
        """Keep the present positions, energies and kinetic temperatures 2K/3Nk."""
        state = walkers.state
        position, momentum, mass, energy = jax.device_get((state.position, state.momentum, state.mass, walkers.energy))
        kinetic = 0.5 * (np.asarray(momentum, np.float64) ** 2 / mass).sum((1, 2))
        self.positions[:, frame] = position
        self.energy[:, frame] = np.asarray(energy, np.float64) + self.reference
        self.temperature[:, frame] = 2.0 * kinetic / (3 * position.shape[1] * KB)

    def run(self, lengths: np.ndarray, **rest: Any) -> Run:
        """The Run, with NaN where a replica had failed."""
        over = np.arange(self.energy.shape[1]) >= lengths[:, None]
        for values in (self.positions, self.energy, self.temperature):
            values[over] = np.nan
        return Run(
            numbers=np.asarray(self.starts[0].numbers, np.int64),
            positions=self.positions,
            cells=np.stack([periodic_cell(atoms) for atoms in self.starts]),
            pbc=np.asarray(self.starts[0].pbc, bool),
            potential_energy=self.energy,
            temperature=self.temperature,
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
    time_ps: float | None, steps: int | None, timestep_fs: float, sample_every_fs: float
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


def _rounded_up(number: float, multiple: int = 4) -> int:
    return int(np.ceil(number / multiple) * multiple)


def _ns_per_day(simulated_fs: float, seconds: float) -> float:
    return 1e-6 * simulated_fs * 86400.0 / seconds if seconds > 0 else 0.0
