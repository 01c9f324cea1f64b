"""The host's side of the loop that advances replicas: it drives the compiled steps and gives them room."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.cell_lists import Bins, bins_for, fullest_bin
from jaxmlip.simulation.engine import SHARED, Walkers, advance
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.motion import HELD_MASS, PADDING_MASS
from jaxmlip.simulation.neighbors import cell_heights, image_search, pseudo_inverse
from jaxmlip.simulation.origins import Origins, strayed
from jaxmlip.simulation.safety import OUTCOMES, Bonds, translated
from jaxmlip.simulation.schedules import Number, Schedule
from jaxmlip.simulation.states import as_before, initial_state, plain
from jaxmlip.simulation.step import ONE, Layout, Room, System, current_cells
from jaxmlip.systems.graph import GHOST, periodic_cell
from jaxmlip.systems.neighbors import dense_neighbors
from jaxmlip.systems.origin import offset_from_origin
from jaxmlip.units import FS

RATTLE = 0.07
"""Å, in each direction: about how much neighbouring atoms of ice move against each other at 250 K."""

RATTLED = 8
"""Rattled structures that the room for neighbour lists is found from."""

SHRINKAGE = 0.95
"""By how much a cell that moves may shrink before images are searched anew: mostly as many, then nothing compiles."""


class SimulationError(RuntimeError):
    """A replica failed; the message names it, the step, and the likely causes."""


class Place(NamedTuple):
    """Where replicas are, with what decides how they go on."""

    walkers: Walkers
    room: Room
    skin: float
    heights: np.ndarray
    origins: Origins


class Driver:
    """The host's side of the loop: drives `advance`, gives it room, and turns failures into exceptions."""

    def __init__(
        self,
        potential: Potential,
        starts: list[Atoms],
        kind: type[Ensemble],
        schedules: dict[str, Schedule],
        *,
        masses: Sequence[np.ndarray],
        fixed: Sequence[np.ndarray] | None = None,
        bonds: Bonds,
        timestep_fs: Number,
        skin: Number,
        seed: int,
        stop_at_failure: bool,
        layout: Layout = ONE,
        indices: np.ndarray | None = None,
        atoms: int | None = None,
    ) -> None:
        """Set up replicas at their starts.

        Args:
            potential: any Potential, or a stack of them if the layout says so.
            starts: one structure for each replica, periodic in the same directions; of equal numbers of atoms, or of
                different ones if the ensemble `pads`.
            kind: the ensemble's functions.
            schedules: its numbers.
            masses: [atoms] of each replica, amu.
            fixed: [atoms] of each replica, whether an atom is held where it is; none is by default. The layout says
                that atoms are at rest.
            bonds: that must not break.
            timestep_fs: fs.
            skin: Å.
            seed: of velocities and noise.
            stop_at_failure: whether the failure of one replica is an exception.
            layout: see there.
            indices: [replicas], which with the seed decide their random numbers, and by which messages call them; by
                default they are counted.
            atoms: what replicas with fewer are padded to, by default the most there are.
        """
        self._told: set[int] = set()
        self.layout, self.sizes = layout, np.array([len(each) for each in starts])
        self.atoms = int(self.sizes.max()) if atoms is None else atoms
        cells = np.stack([periodic_cell(each) for each in starts])
        self.potential = jax.device_put(potential)
        self.cutoff, self.inner_cutoff = potential.cutoff, potential.inner_cutoff
        self.heights = self._search_heights(cells, kind)
        self.timestep_fs, self.skin, self.stop_at_failure = float(timestep_fs), float(skin), stop_at_failure
        self.kind, self.schedules = kind, schedules
        self.origins = Origins.of([each.positions for each in starts], cells, self.atoms)
        self._cells, self._starts = cells, self._padded([each.positions for each in starts], 0.0)
        none = [np.zeros(size, bool) for size in self.sizes]
        self.fixed = self._padded(none if fixed is None else fixed, padding=False)
        host_positions = self._without_padding(self._starts - self.origins.vectors(cells))
        positions = jnp.asarray(self._padded(host_positions, 0.0), float)
        species = jnp.asarray(self._padded([each.numbers for each in starts], 0), jnp.int32)
        self.system = System(
            species=species,
            cells=jnp.asarray(cells, float),
            inverses=jnp.asarray(np.stack([pseudo_inverse(cell) for cell in cells]), float),
            lowest=jnp.asarray(self.heights, float),
            bonds=translated(bonds, self.origins.images),
        )
        needed = self._needed(host_positions, cells)
        self.room = self._room_for(*map(int, needed))
        n, key = len(starts), jax.random.key(int(seed))
        indices = np.arange(n) if indices is None else indices
        self._called = np.arange(n) if layout.models else indices
        self.masses = self._padded(masses, PADDING_MASS)
        weights = jnp.asarray(np.where(self.fixed, HELD_MASS, self.masses), float)
        state = initial_state(positions, weights, self.system.cells, key, indices, schedules, kind=kind)
        if self.fixed.any():
            state = kind.with_degrees(state, int(kind.degrees_of_freedom(self.sizes - self.fixed.sum(1), True)[0]))
        self.walkers = Walkers(
            state=state,
            energy=jnp.zeros(n, positions.dtype),
            failure=jnp.zeros(n, jnp.int32),
            failed_at=jnp.full(n, -1, jnp.int32),
            step=self._flag(jnp.full((), -1, jnp.int32)),
            neighbors=jnp.zeros(0),
            shifts=jnp.zeros(0),
            origin=positions,
            origin_cells=self.system.cells,
            **self._flags(fresh=True),
        )
        self._clear_lists()

    def _padded(self, values: Sequence[np.ndarray], padding: Number) -> np.ndarray:
        """Values of each replica's atoms, [replicas, atoms, ...]."""
        padded = np.full((len(values), self.atoms, *values[0].shape[1:]), padding, values[0].dtype)
        for replica, each in enumerate(values):
            padded[replica, : len(each)] = each
        return padded

    def _without_padding(self, values: np.ndarray) -> list[np.ndarray]:
        return [each[:size] for each, size in zip(values, self.sizes, strict=True)]

    @property
    def positions(self) -> list[np.ndarray]:
        """Where the atoms of each replica are on the device now, [atoms, 3], Å."""
        return self._without_padding(np.asarray(self.walkers.state.position, np.float64))

    @property
    def cells(self) -> np.ndarray:
        """Cells of all replicas now, [replicas, 3, 3], Å."""
        return np.asarray(self.walkers.state.cell, np.float64) if self.kind.moves_cell else self._cells

    def recorded_positions(self) -> np.ndarray:
        """Positions in the frames of the structures, [replicas, atoms, 3], Å: unwrapped; single where that suffices."""
        if self.origins.here and not self.fixed.any():
            return np.array(self.walkers.state.position, np.float32)
        return self._in_frames()

    def _in_frames(self) -> np.ndarray:
        where = np.asarray(self.walkers.state.position, np.float64) + self.origins.vectors(self.cells)
        return np.where(self.fixed[:, :, None], self._starts, where)

    def bring_back(self) -> None:
        """Bring replicas that have drifted far from the origin back to it, on the device; to be called between frames.

        Their lists are made afresh. What is recorded knows nothing of it.
        """
        cells = self.cells
        failure = np.asarray(self.walkers.failure)
        gone = [n for n in strayed(self.positions, cells) if failure[n] == 0]
        if not gone:
            return
        where, state = self._in_frames(), self.walkers.state
        there = self._without_padding(where)
        offsets = {n: offset_from_origin(there[n], cells[n]) for n in gone}
        self._translate(self.origins.with_offsets(offsets))
        near = self._without_padding(where - self.origins.vectors(cells))
        position = np.array(state.position)
        for n in gone:
            position[n, : self.sizes[n]] = near[n]
        position = jax.device_put(position, state.position.sharding)
        stale = jax.device_put(np.ones(self.walkers.stale.shape, bool), self.walkers.stale.sharding)
        self.walkers = self.walkers.replace(state=dataclasses.replace(state, position=position), stale=stale)

    def _translate(self, origins: Origins) -> None:
        """Use other origins, also for the bonds that are watched."""
        bonds = translated(self.system.bonds, origins.images - self.origins.images)
        self.system, self.origins = self.system.replace(bonds=bonds), origins

    @property
    def all_failed(self) -> bool:
        """Whether no replica is left."""
        return bool((np.asarray(self.walkers.failure) > 0).all())

    def _room_for(self, listed: int, slots: int, inner: int, in_bin: int) -> Room:
        """Room for the given needs, rounded up so that runs from similar structures share compiled code.

        Little is added: a slot too many costs in every step (an inner one with the square of their number), a slot too
        few costs one compilation.
        """
        listed, slots, in_bin = (int(np.ceil(n / 4)) * 4 for n in (listed, slots, in_bin))
        slots = max(slots, inner)
        search = image_search(self.heights, self.cutoff + self.skin)
        return Room(search, max(listed, slots), slots, inner, self._bins(in_bin))

    def _bins(self, in_bin: int) -> Bins | None:
        """Bins with room for so many atoms, if the cell is large enough for them."""
        number = bins_for(self.atoms, self.heights, self.cutoff + self.skin)
        return None if number is None else Bins(number, in_bin)

    def _clear_lists(self) -> None:
        """Empty lists of the present size, to be made before the next step."""
        replicas, atoms, _ = self.walkers.origin.shape
        self.walkers = self.walkers.replace(
            neighbors=jnp.full((replicas, atoms, self.room.listed), GHOST, jnp.int32),
            shifts=jnp.zeros((replicas, atoms, self.room.listed, 3), jnp.int16),
            **self._flags(),
        )
        if self.layout.mesh is not None:
            self.walkers = jax.device_put(self.walkers, NamedSharding(self.layout.mesh, PartitionSpec(SHARED)))

    def _flags(self, **others: bool) -> dict[str, Any]:
        """Flags of walkers whose lists are to be made before the next step."""
        wanted = {"stale": True, "skin_broken": False, "narrow": False} | others
        flags = {name: self._flag(jnp.full((), value)) for name, value in wanted.items()}
        return flags | {"needed": self._flag(jnp.zeros(4, jnp.int32))}

    def _flag(self, value: Any) -> Any:
        """A flag of each device, or the only one."""
        mesh = self.layout.mesh
        return value if mesh is None else jnp.broadcast_to(value, (mesh.size, *value.shape))

    @staticmethod
    def _search_heights(cells: np.ndarray, kind: type[Ensemble]) -> np.ndarray:
        """The least heights of cells that images are searched for, Å; with a margin where cells move."""
        lowest = np.atleast_2d(cell_heights(cells)).min(axis=0)
        return SHRINKAGE * lowest if kind.moves_cell else lowest

    def prepare(self) -> None:
        """Compute the forces at the start, by a step of zero length with the code that all others use."""
        self._run(until=0, timestep_fs=0.0)

    def advance(self, until: int) -> float:
        """Take steps up to `until`; returns the seconds it took, compilation not included."""
        return self._run(until, self.timestep_fs)

    @property
    def place(self) -> Place:
        """Where the replicas are now, for `snapshot`."""
        return Place(self.walkers, self.room, self.skin, self.heights, self.origins)

    def snapshot(self, place: Place, notes: Sequence[Number]) -> list[np.ndarray]:
        """What `restore` needs to go on from there to the same trajectory, bit for bit: neighbour lists included."""
        here = place.room
        room = [place.skin, *place.heights, here.listed, here.slots, here.inner, here.bins.room if here.bins else 0]
        leaves = [plain(leaf) for leaf in jax.tree.leaves(place.walkers)]
        numbers = np.concatenate([room, place.origins.images.ravel(), place.origins.centres.ravel()])
        return [np.array(notes, np.float64), numbers, *leaves]

    def restore(self, saved: list[np.ndarray]) -> list[float]:
        """Go on from a snapshot of a driver that was set up as this one was; returns its notes.

        Raises:
            ValueError: if it is of another kind of run.
        """
        notes, numbers, *leaves = saved
        room, offsets = numbers[:8], numbers[8:]
        old, structure = jax.tree.flatten(self.walkers)
        if [leaf.ndim for leaf in map(plain, old)] != [leaf.ndim for leaf in leaves]:
            raise ValueError("what it keeps of the simulation is of another version of jaxmlip, or of another ensemble")
        none = Origins.none(*self.fixed.shape)  # as in files of versions that knew no offsets
        images, centres = offsets[: none.images.size].astype(np.int64), offsets[none.images.size :]
        there = (
            Origins(images.reshape(none.images.shape), centres.reshape(none.centres.shape)) if offsets.size else none
        )
        self._translate(there)
        self.skin, self.heights = float(room[0]), room[1:4]
        listed, slots, inner, in_bin = (int(number) for number in room[4:])
        search = image_search(self.heights, self.cutoff + self.skin)
        self.room = Room(search, listed, slots, inner, self._bins(in_bin))
        self.system = self.system.replace(lowest=jnp.asarray(self.heights, float))
        restored = [as_before(new, leaf) for new, leaf in zip(leaves, old, strict=True)]
        self.walkers = jax.tree.unflatten(structure, restored)
        if self.layout.mesh is not None:
            self.walkers = jax.device_put(self.walkers, NamedSharding(self.layout.mesh, PartitionSpec(SHARED)))
        return notes.tolist()

    def _run(self, until: int, timestep_fs: Number) -> float:
        """Advance, making room as often as needed."""
        spent = 0.0
        while True:
            start = time.perf_counter()
            self.walkers = self._advanced(until, timestep_fs)
            w = self.walkers
            flags = (w.step, w.failure, w.failed_at, w.needed, w.skin_broken, w.narrow)
            steps, failure, failed_at, needed, skin_broken, narrow = map(np.asarray, jax.device_get(flags))
            # A device whose replicas have all failed takes no more steps.
            lost = (failure > 0).reshape(steps.size, -1).all(1)
            step = np.where(lost, until, steps).min()
            spent += time.perf_counter() - start
            if self.stop_at_failure and failure.any():
                self._raise(failure, failed_at)
            self._tell(failure)
            if step >= until:
                return spent
            self._make_room(needed.reshape(-1, 4).max(0), bool(skin_broken.any()), bool(narrow.any()))
            # No steps: compiles for the new sizes outside the time that counts.
            jax.block_until_ready(self._advanced(int(step), timestep_fs))

    def _advanced(self, until: int, timestep_fs: Number) -> Walkers:
        return advance(
            self.potential,
            self.system,
            self.walkers,
            self.schedules,
            until,
            timestep_fs * FS,
            self.skin,
            kind=self.kind,
            room=self.room,
            stop_at_failure=self.stop_at_failure,
            layout=self.layout,
        )

    def _make_room(self, needed: np.ndarray, skin_broken: bool, narrow: bool) -> None:
        """More slots for lists that lack them, a thicker skin for atoms that outran it, more images in narrow cells."""
        if skin_broken or narrow:
            self.skin *= 2.0 if skin_broken else 1.0
            cells = np.asarray(current_cells(self.system, self.walkers.state, self.kind), np.float64)
            self.heights = self._search_heights(cells, self.kind)
            self.system = self.system.replace(lowest=jnp.asarray(self.heights, float))
            needed = self._needed(self.positions, cells)
        listed, slots, inner, in_bin = (int(n) for n in needed)
        grown = self._room_for(listed + listed // 8, slots + slots // 8, inner + 1 + inner // 8, in_bin + in_bin // 8)
        old = self.room
        if grown.bins is not None and old.bins is not None:
            grown = dataclasses.replace(grown, bins=Bins(grown.bins.number, max(grown.bins.room, old.bins.room)))
        self.room = Room(
            grown.search,
            max(grown.listed, old.listed),
            max(grown.slots, old.slots),
            max(grown.inner, old.inner) if self.inner_cutoff > 0 else 0,
            grown.bins,
        )
        self._clear_lists()

    def _needed(self, positions: Sequence[np.ndarray], cells: np.ndarray) -> np.ndarray:
        """Slots and, in large cells, atoms in a bin that the replicas will need, with some to spare."""
        slots = slots_needed(positions, cells, self.cutoff, self.inner_cutoff, self.skin)
        number = bins_for(self.atoms, self.heights, self.cutoff + self.skin)
        if number is None:
            return np.append(slots, 0)
        return np.append(slots, max(fullest_bin(*each, number) for each in zip(positions, cells, strict=True)) * 5 // 4)

    def _raise(self, failure: np.ndarray, failed_at: np.ndarray) -> None:
        replica = int(np.flatnonzero(failure)[0])
        step = int(failed_at[replica])
        raise SimulationError(
            f"Replica {self._called[replica]} failed in step {step} ({step * self.timestep_fs:g} fs): "
            f"{OUTCOMES[int(failure[replica])].value}. Likely causes: (a) atoms too close in the start structure; "
            f"(b) a timestep of {self.timestep_fs:g} fs is too long for the lightest atoms; (c) the potential left the "
            'range of its training data. With on_failure="mark" the other replicas go on.' + self._complaint()
        )

    def _tell(self, failure: np.ndarray) -> None:
        """Warn of what the potential has to say of replicas that have newly failed."""
        failed = set(np.flatnonzero(failure).tolist())
        complaint = self._complaint() if failed - self._told else ""
        self._told |= failed
        if complaint:
            warnings.warn(f"Replicas have failed ({', '.join(map(str, sorted(failed)))}).{complaint}", stacklevel=2)

    def _complaint(self) -> str:
        said = self.potential.complaint()
        return f" {said}" if said else ""


def slots_needed(
    positions: Sequence[np.ndarray], cells: np.ndarray, cutoff: float, inner_cutoff: float, skin: float
) -> np.ndarray:
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
            listed, _, seen = dense_neighbors(moved, cell, cutoff + skin, cutoff)
            _, _, inner = dense_neighbors(moved, cell, cutoff, inner_cutoff)
            counts.append((listed.shape[1], seen, inner))
    return np.max(counts, axis=0)
