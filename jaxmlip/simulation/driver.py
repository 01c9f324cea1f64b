"""The host's side of the loop that advances replicas: it drives the compiled steps and gives them room."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from jaxmlip.memory import check_fits
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.present_elements import elements_of
from jaxmlip.simulation.dynamics import Dynamics, initial_state
from jaxmlip.simulation.engine import SHARED, Motion, ReplicaState, advance
from jaxmlip.simulation.motion import HELD_MASS
from jaxmlip.simulation.observing import Means, Observation, fitted, observe_replicas
from jaxmlip.simulation.origins import Origins, strayed
from jaxmlip.simulation.safety import OUTCOMES, translated
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.starts import ReplicaStarts, padded
from jaxmlip.simulation.states import as_before, plain
from jaxmlip.simulation.step import ONE, Layout, System, current_cells
from jaxmlip.systems.capacity import Capacity, needs_of
from jaxmlip.systems.cell_lists import Bins, bins_for
from jaxmlip.systems.device_lists import image_search, pseudo_inverse, search_heights
from jaxmlip.systems.graph import GHOST
from jaxmlip.systems.origin import offset_from_origin
from jaxmlip.units import FS


class SimulationError(RuntimeError):
    """A replica failed; the message names it, the step, and the likely causes."""


class DriverState(NamedTuple):
    """Where replicas are, with what decides how they go on."""

    replicas: ReplicaState
    capacity: Capacity
    skin: float
    heights: np.ndarray
    origins: Origins


class Driver:
    """The host's side of the loop: drives `advance`, gives it room, and turns failures into exceptions."""

    def __init__(
        self,
        potential: Potential,
        starts: ReplicaStarts,
        dynamics: Dynamics,
        *,
        timestep_fs: Number,
        skin: Number,
        seed: int,
        stop_at_failure: bool,
        layout: Layout = ONE,
    ) -> None:
        """Set up replicas at their starts.

        Args:
            potential: any Potential, or a stack of them if the layout says so.
            starts: of the replicas; where atoms are held, the layout says that atoms are at rest.
            dynamics: of the replicas.
            timestep_fs: fs.
            skin: Å.
            seed: of velocities and noise.
            stop_at_failure: whether the failure of one replica is an exception.
            layout: see there.
        """
        self._told: set[int] = set()
        self.layout, self.starts, self._cells = layout, starts, starts.cells
        self.potential = jax.device_put(potential)
        self.cutoff, self.inner_cutoff = potential.cutoff, potential.inner_cutoff
        self.heights = search_heights(starts.cells, dynamics.moves_cell)
        self.timestep_fs, self.skin, self.stop_at_failure = float(timestep_fs), float(skin), stop_at_failure
        self.dynamics = dynamics
        self.origins = Origins.of(starts.without_padding(starts.positions), starts.cells, starts.atoms)
        self.system = System(
            species=jnp.asarray(starts.numbers, jnp.int32),
            cells=jnp.asarray(starts.cells, float),
            inverses=jnp.asarray(np.stack([pseudo_inverse(cell) for cell in starts.cells]), float),
            lowest=jnp.asarray(self.heights, float),
            bonds=translated(starts.bonds, self.origins.images),
        )
        near = starts.without_padding(starts.positions - self.origins.vectors(starts.cells))
        needed = self._needed(near, starts.cells)
        self.capacity = dataclasses.replace(
            Capacity.holding(needed, self.heights, self.cutoff + self.skin, starts.atoms),
            elements=elements_of(potential, starts.numbers),
        )
        self._called = np.arange(len(starts.sizes)) if layout.models else starts.indices
        self.replicas = self._at_start(jnp.asarray(padded(near, 0.0, starts.atoms), float), seed)
        self._clear_lists()
        self.observation: Observation | None = None
        self.means: Means | None = None

    def _at_start(self, positions: Float[jax.Array, "replicas atoms 3"], seed: int) -> ReplicaState:
        """Replicas with new velocities, and without lists."""
        starts, n = self.starts, len(self.starts.sizes)
        weights = jnp.asarray(np.where(starts.fixed, HELD_MASS, starts.masses), float)
        key, dynamics = jax.random.key(int(seed)), self.dynamics
        state = initial_state(positions, weights, self.system.cells, key, starts.indices, dynamics)
        if starts.fixed.any():
            state = dynamics.with_degrees(state, int(dynamics.degrees_of_freedom(starts.mobile, True)[0]))
        return ReplicaState(
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

    def observe(self, observation: Observation) -> None:
        """Look at the replicas on the way, from now on; what is seen is in `means`."""
        self.observation = observation
        self._fit_observation()
        moves_cell, alive = self.dynamics.moves_cell, jnp.ones(len(self.starts.sizes), bool)

        def seen(observation: Observation, system: System, state: Any, energy: Any) -> dict[str, Any]:
            stress = system.cells  # as any has its shape
            return observe_replicas(observation, system, state, energy, stress, moves_cell, alive)[0]

        shapes = jax.eval_shape(seen, self.observation, self.system, self.replicas.state, self.replicas.energy)
        self._no_means = {name: (each.shape, each.dtype) for name, each in shapes.items()}
        self.forget()

    def forget(self) -> None:
        """Begin the means anew."""
        if self.observation is None:
            return
        means = Means(
            values={name: jnp.zeros(*shape) for name, shape in self._no_means.items()},
            count=jnp.zeros(len(self.starts.sizes), jnp.int32),
            needs=self._flag(jnp.zeros(4, jnp.int32)),
        )
        self.means = self._shared(means)

    def _fit_observation(self, needs: np.ndarray | None = None) -> None:
        assert self.observation is not None
        here = self.positions, self.cells, self.least_heights, self.starts.atoms
        self.observation = fitted(self.observation, *here, needs)

    @property
    def least_heights(self) -> np.ndarray:
        """Least heights of cells, Å: those that lists are made for, less what the skin permits until then."""
        permitted = self.skin / (self.cutoff + self.skin) if self.dynamics.moves_cell else 0.0
        return (1.0 - permitted) * self.heights

    def _shared(self, tree: Any) -> Any:
        """Leaves that begin with replicas, or devices, where their device is."""
        mesh = self.layout.mesh
        return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec(SHARED)))

    @property
    def positions(self) -> list[np.ndarray]:
        """Where the atoms of each replica are on the device now, [atoms, 3], Å."""
        return self.starts.without_padding(np.asarray(self.replicas.state.position, np.float64))

    @property
    def cells(self) -> np.ndarray:
        """Cells of all replicas now, [replicas, 3, 3], Å."""
        return np.asarray(self.replicas.state.cell, np.float64) if self.dynamics.moves_cell else self._cells

    def recorded_positions(self) -> np.ndarray:
        """Positions in the frames of the structures, [replicas, atoms, 3], Å: unwrapped; single where that suffices."""
        if self.origins.here and not self.starts.fixed.any():
            return np.array(self.replicas.state.position, np.float32)
        return self._in_frames()

    def _in_frames(self) -> np.ndarray:
        where = np.asarray(self.replicas.state.position, np.float64) + self.origins.vectors(self.cells)
        return np.where(self.starts.fixed[:, :, None], self.starts.positions, where)

    def bring_back(self) -> None:
        """Bring replicas that have drifted far from the origin back to it, on the device; to be called between frames.

        Their lists are made afresh. What is recorded knows nothing of it.
        """
        cells = self.cells
        failure = np.asarray(self.replicas.failure)
        gone = [n for n in strayed(self.positions, cells) if failure[n] == 0]
        if not gone:
            return
        where, state = self._in_frames(), self.replicas.state
        there = self.starts.without_padding(where)
        offsets = {n: offset_from_origin(there[n], cells[n]) for n in gone}
        self._translate(self.origins.with_offsets(offsets))
        near = self.starts.without_padding(where - self.origins.vectors(cells))
        position = np.array(state.position)
        for n in gone:
            position[n, : self.starts.sizes[n]] = near[n]
        position = jax.device_put(position, state.position.sharding)
        stale = jax.device_put(np.ones(self.replicas.stale.shape, bool), self.replicas.stale.sharding)
        self.replicas = self.replicas.replace(state=state.set(position=position), stale=stale)

    def _translate(self, origins: Origins) -> None:
        """Use other origins, also for the bonds that are watched."""
        bonds = translated(self.system.bonds, origins.images - self.origins.images)
        self.system, self.origins = self.system.replace(bonds=bonds), origins

    @property
    def all_failed(self) -> bool:
        """Whether no replica is left."""
        return bool((np.asarray(self.replicas.failure) > 0).all())

    def _clear_lists(self) -> None:
        """Empty lists of the present size, to be made before the next step."""
        replicas, atoms, _ = self.replicas.origin.shape
        self.replicas = self.replicas.replace(
            neighbors=jnp.full((replicas, atoms, self.capacity.listed), GHOST, jnp.int32),
            shifts=jnp.zeros((replicas, atoms, self.capacity.listed, 3), jnp.int16),
            **self._flags(),
        )
        self.replicas = self._shared(self.replicas)

    def _flags(self, **others: bool) -> dict[str, Any]:
        """Flags of replicas whose lists are to be made before the next step."""
        wanted = {"stale": True, "skin_broken": False, "narrow": False} | others
        flags = {name: self._flag(jnp.full((), value)) for name, value in wanted.items()}
        return flags | {"needed": self._flag(jnp.zeros(4, jnp.int32))}

    def _flag(self, value: Any) -> Any:
        """A flag of each device, or the only one."""
        mesh = self.layout.mesh
        return value if mesh is None else jnp.broadcast_to(value, (mesh.size, *value.shape))

    def prepare(self) -> None:
        """Compute the forces at the start, by a step of no length with the code of all others; TooLarge if no room."""
        replicas = len(self.starts.sizes)
        number, what = (
            (self.starts.atoms, "atoms") if replicas == 1 else (replicas, f"replicas of {self.starts.atoms} atoms")
        )
        mend = "share replicas among devices (devices=N)"
        check_fits(advance, *self._arguments(0, 0.0), number=number, what=what, mend=mend)
        self._run(until=0, timestep_fs=0.0)

    def advance(self, until: int) -> float:
        """Take steps up to `until`; returns the seconds it took, compilation not included."""
        return self._run(until, self.timestep_fs)

    @property
    def now(self) -> DriverState:
        """Where the replicas are now, for `snapshot`."""
        return DriverState(self.replicas, self.capacity, self.skin, self.heights, self.origins)

    def snapshot(self, state: DriverState, extra: Sequence[Number]) -> list[np.ndarray]:
        """What `restore` needs to go on from there to the same trajectory, bit for bit: neighbour lists included."""
        here = state.capacity
        room = [state.skin, *state.heights, here.listed, here.slots, here.inner, here.bins.room if here.bins else 0]
        leaves = [plain(leaf) for leaf in jax.tree.leaves(state.replicas)]
        numbers = np.concatenate([room, state.origins.images.ravel(), state.origins.centres.ravel()])
        return [np.array(extra, np.float64), numbers, *leaves]

    def restore(self, saved: list[np.ndarray]) -> list[float]:
        """Go on from a snapshot of a driver that was set up as this one was; returns its extra.

        Raises:
            ValueError: if it is of another kind of run.
        """
        extra, numbers, *leaves = saved
        room, offsets = numbers[:8], numbers[8:]
        old, structure = jax.tree.flatten(self.replicas)
        if [leaf.ndim for leaf in map(plain, old)] != [leaf.ndim for leaf in leaves]:
            raise ValueError("what it keeps of the simulation is of another version of jaxmlip, or of another ensemble")
        none = Origins.none(*self.starts.fixed.shape)  # as in files of versions that knew no offsets
        images, centres = offsets[: none.images.size].astype(np.int64), offsets[none.images.size :]
        there = (
            Origins(images.reshape(none.images.shape), centres.reshape(none.centres.shape)) if offsets.size else none
        )
        self._translate(there)
        self.skin, self.heights = float(room[0]), room[1:4]
        listed, slots, inner, in_bin = (int(number) for number in room[4:])
        reach = self.cutoff + self.skin
        number = bins_for(self.starts.atoms, self.heights, reach)
        bins = None if number is None else Bins(number, in_bin)
        self.capacity = Capacity(
            image_search(self.heights, reach), listed, slots, inner, bins, elements=self.capacity.elements
        )
        self.system = self.system.replace(lowest=jnp.asarray(self.heights, float))
        restored = [as_before(new, leaf) for new, leaf in zip(leaves, old, strict=True)]
        self.replicas = jax.tree.unflatten(structure, restored)
        self.replicas = self._shared(self.replicas)
        return extra.tolist()

    def _run(self, until: int, timestep_fs: Number) -> float:
        """Advance, making room as often as needed."""
        spent = 0.0
        while True:
            start = time.perf_counter()
            self.replicas, self.means = advance(*self._arguments(until, timestep_fs))
            w = self.replicas
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
            needed, skin_broken, narrow = needed.reshape(-1, 4).max(0), bool(skin_broken.any()), bool(narrow.any())
            if skin_broken or narrow or not self.capacity.fits(needed):
                self._grow(needed, skin_broken, narrow)
            self._grow_observation()
            # No steps: compiles for the new sizes outside the time that counts.
            jax.block_until_ready(advance(*self._arguments(int(step), timestep_fs)))

    def _arguments(self, until: int, timestep_fs: Number) -> tuple[Motion, ReplicaState, Means | None, int]:
        """Of `advance`."""
        motion = Motion(
            potential=self.potential,
            system=self.system,
            dynamics=self.dynamics,
            observation=self.observation,
            dt=timestep_fs * FS,
            skin=self.skin,
            capacity=self.capacity,
            layout=self.layout,
            stop_at_failure=self.stop_at_failure,
        )
        return motion, self.replicas, self.means, until

    def _grow(self, needed: np.ndarray, skin_broken: bool, narrow: bool) -> None:
        """More slots for lists that lack them, a thicker skin for atoms that outran it, more images in narrow cells."""
        if skin_broken or narrow:
            self.skin *= 2.0 if skin_broken else 1.0
            cells = np.asarray(current_cells(self.system, self.replicas.state, self.dynamics.moves_cell), np.float64)
            self.heights = search_heights(cells, self.dynamics.moves_cell)
            self.system = self.system.replace(lowest=jnp.asarray(self.heights, float))
            needed = self._needed(self.positions, cells)
        self.capacity = self.capacity.grown(needed, self.heights, self.cutoff + self.skin, self.starts.atoms)
        self._clear_lists()

    def _grow_observation(self) -> None:
        """For the lists of a second potential, where they did not fit, and for cells that have become narrower."""
        if self.observation is None or self.means is None:
            return
        needs = np.asarray(self.means.needs).reshape(-1, 4).max(0)
        self._fit_observation(needs)
        self.means = self.means.replace(needs=jnp.zeros_like(self.means.needs))

    def _needed(self, positions: Sequence[np.ndarray], cells: np.ndarray) -> np.ndarray:
        """What the lists of the replicas will need."""
        cutoffs = self.cutoff, self.inner_cutoff
        return needs_of(positions, cells, self.heights, cutoffs, self.skin, self.starts.atoms)

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
