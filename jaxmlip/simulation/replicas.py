"""Molecular dynamics of many replicas at once, on any potential: the host's side."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.potentials.potential import Potential, check_species, reference_energy
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.engine import OUTCOMES, Room, System, Walkers, advance, initial_state
from jaxmlip.simulation.ensembles import Ensemble, Number
from jaxmlip.simulation.neighbors import cell_heights, image_search, pseudo_inverse
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.graph import GHOST, check_structure, periodic_cell
from jaxmlip.systems.neighbors import dense_neighbors
from jaxmlip.units import FS, KB

RATTLE = 0.07
"""Å, in each direction: about how much neighbouring atoms of ice move against each other at 250 K."""

RATTLED = 8
"""Rattled structures that the room for neighbour lists is found from."""


class SimulationError(RuntimeError):
    """A replica failed; the message names it, the step, and the likely causes."""


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
        skin: Å, by how much neighbour lists reach beyond the cutoff. It affects speed alone, and not the potential's:
            neighbours beyond the cutoff are sorted out before it is called.
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
    with progress_bar(total=total, unit_scale=timestep_fs / 1000, disable=not progress, bar_format=_BAR) as bar:
        for frame in range(total // every):
            moving_s += engine.advance((frame + 1) * every)
            recorder.record(frame, engine.walkers)
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


class _Engine:
    """The host's side of the loop: drives `advance`, gives it room, and turns failures into exceptions."""

    def __init__(
        self,
        potential: Potential,
        starts: list[Atoms],
        ensemble: Ensemble,
        timestep_fs: Number,
        skin: Number,
        seed: int,
        stop_at_failure: bool,
    ) -> None:
        cells = np.stack([periodic_cell(atoms) for atoms in starts])
        self.potential = jax.device_put(potential)
        self.cutoff, self.inner_cutoff = potential.cutoff, potential.inner_cutoff
        self.heights = np.atleast_2d(cell_heights(cells)).min(axis=0)
        self.timestep_fs, self.skin, self.stop_at_failure = float(timestep_fs), float(skin), stop_at_failure
        self.kind, self.parameters = type(ensemble), ensemble.parameters()
        host_positions = np.stack([atoms.positions for atoms in starts])
        positions = jnp.asarray(host_positions, float)
        self.system = System(
            species=jnp.asarray(starts[0].numbers, jnp.int32),
            cells=jnp.asarray(cells, float),
            inverses=jnp.asarray(np.stack([pseudo_inverse(cell) for cell in cells]), float),
        )
        needed = self._needed(host_positions, cells)
        self.room = self._room_for(*map(int, needed))
        masses = jnp.asarray(np.stack([atoms.get_masses() for atoms in starts]), float)
        n = len(starts)
        self.walkers = Walkers(
            state=initial_state(positions, masses, jax.random.key(int(seed)), self.parameters, kind=self.kind),
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
            needed=jnp.zeros(3, jnp.int32),
        )
        self._clear_lists()

    @property
    def all_failed(self) -> bool:
        """Whether no replica is left."""
        return bool((np.asarray(self.walkers.failure) > 0).all())

    def _room_for(self, listed: int, slots: int, inner: int) -> Room:
        """Room for the given needs, rounded up so that runs from similar structures share compiled code.

        Little is added: a slot too many costs in every step (an inner one with the square of their number), a slot too
        few costs one compilation.
        """
        listed, slots = (int(np.ceil(n / 4)) * 4 for n in (listed, slots))
        slots = max(slots, inner)
        return Room(image_search(self.heights, self.cutoff + self.skin), max(listed, slots), slots, inner)

    def _clear_lists(self) -> None:
        """Empty lists of the present size, to be made before the next step."""
        replicas, atoms, _ = self.walkers.origin.shape
        self.walkers = self.walkers.replace(
            neighbors=jnp.full((replicas, atoms, self.room.listed), GHOST, jnp.int32),
            shifts=jnp.zeros((replicas, atoms, self.room.listed, 3), jnp.int16),
            stale=jnp.ones((), bool),
            skin_broken=jnp.zeros((), bool),
            needed=jnp.zeros(3, jnp.int32),
        )

    def prepare(self) -> None:
        """Compute the forces at the start, by a step of zero length with the code that all others use."""
        self._run(until=0, timestep_fs=0.0)

    def advance(self, until: int) -> float:
        """Take steps up to `until`; returns the seconds it took, compilation not included."""
        return self._run(until, self.timestep_fs)

    def _run(self, until: int, timestep_fs: Number) -> float:
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

    def _advanced(self, until: int, timestep_fs: Number) -> Walkers:
        return advance(
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
            needed = self._needed(positions, np.asarray(self.system.cells, np.float64))
        listed, slots, inner = (int(n) for n in needed)
        grown = self._room_for(listed + listed // 8, slots + slots // 8, inner + 1 + inner // 8)
        self.room = Room(
            grown.search,
            max(grown.listed, self.room.listed),
            max(grown.slots, self.room.slots),
            max(grown.inner, self.room.inner) if self.inner_cutoff > 0 else 0,
        )
        self._clear_lists()

    def _needed(self, positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Slots that the replicas' lists will need (listed, seen by the potential, inner), found on the host.

        Structures at rest say little of the thermal motion to come: the most is taken over structures whose atoms are
        displaced at random by `RATTLE`.
        """
        counts, rng = [], np.random.default_rng(0)
        for where, cell in zip(positions, cells, strict=True):
            # Wrapped: the host's lists have room for shifts of few cells.
            where = where - np.floor(where @ pseudo_inverse(cell) + 1e-9) @ cell
            for _ in range(-(-RATTLED // len(positions))):
                moved = where + rng.normal(scale=RATTLE, size=where.shape)
                listed, _, seen = dense_neighbors(moved, cell, self.cutoff + self.skin, self.cutoff)
                _, _, inner = dense_neighbors(moved, cell, self.cutoff, self.inner_cutoff)
                counts.append((listed.shape[1], seen, inner))
        return np.max(counts, axis=0)

    def _raise(self, failure: np.ndarray, failed_at: np.ndarray) -> None:
        replica = int(np.flatnonzero(failure)[0])
        step = int(failed_at[replica])
        raise SimulationError(
            f"Replica {replica} failed in step {step} ({step * self.timestep_fs:g} fs): "
            f"{OUTCOMES[int(failure[replica])].value}. Likely causes: (a) atoms too close in the start structure; "
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

    def record(self, frame: int, walkers: Walkers) -> None:
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
