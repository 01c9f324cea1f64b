"""The compiled heart of a simulation: replicas, their neighbour lists, and the flags that decide what happens next.

One compiled function advances all replicas from one sample to the next: an outer loop makes neighbour lists, an inner
loop steps while they hold. What decides whether they hold is looked at in every step and for all replicas together, so
that nothing invalid is ever kept:

* A step after which the lists of any replica could miss a pair is discarded, lists are made afresh, and the step is
  repeated with the same random numbers. (As a rule the lists are renewed just before.) What counts against the skin is
  how far atoms have moved relative to their cell, plus by how much the cell has been compressed since.
* A list that does not fit its slots, or whose cell is too narrow for the search of images, stops the loop, and what was
  computed with it is discarded. The host provides more room, which compiles anew, and the loop goes on.
* A replica that fails is frozen where it last was sound; the others go on, or the run ends with an exception.

A trajectory therefore depends neither on the skin nor on the room for the lists, beyond the rounding of sums over
differently ordered neighbours.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxmlip.potentials.potential import Potential, Prediction, evaluate
from jaxmlip.simulation import cells as geometry
from jaxmlip.simulation.cell_lists import Bins, binned_neighbors
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.motion import at_rest
from jaxmlip.simulation.neighbors import DeviceList, ImageSearch, device_neighbors, within_cutoff
from jaxmlip.simulation.safety import Bonds, failures
from jaxmlip.simulation.schedules import Schedule
from jaxmlip.systems.graph import GHOST, Graph
from jaxmlip.types import Leaf

PAIRS_AT_ONCE = 2**24
"""Pairs whose distances are held in memory at once when lists are made; replicas take turns beyond."""

SHARED = "replicas"
"""Axis of a mesh along which replicas lie."""

FLAGS = ("step", "stale", "fresh", "skin_broken", "narrow", "needed")
"""Fields of `Walkers` that replicas of one device have in common."""


class System(flax.struct.PyTreeNode):
    """What stays fixed during a run.

    Attributes:
        species: [replicas, atoms]; 0 marks padding, behind the atoms of replicas that have fewer than others.
        cells: [replicas, 3, 3], those of the start, Å; zero rows where not periodic.
        inverses: [replicas, 3, 3], their pseudo-inverses, 1/Å.
        lowest: [3], heights of cells in Å below which `Room.search` is not complete.
        bonds: see `Bonds`.
    """

    species: Leaf
    cells: Leaf
    inverses: Leaf
    lowest: Leaf
    bonds: Bonds


class Walkers(flax.struct.PyTreeNode):
    """What changes: the replicas, their lists, and the flags that decide what happens next.

    Attributes:
        state: state of the ensemble, with a leading axis of replicas.
        energy: [replicas], eV, relative to the references.
        failure: [replicas], 0 while sound, else a key of `safety.OUTCOMES`.
        failed_at: [replicas], the step that failed, or −1.
        step: [], steps taken; −1 before the forces at the start are known.
        neighbors, shifts: the lists, as in `DeviceList`.
        origin: [replicas, atoms, 3], positions the lists were made at.
        origin_cells: [replicas, 3, 3], cells the lists were made in.
        stale: [], whether the lists must be made before the next step.
        fresh: [], whether no step has been taken with the lists.
        skin_broken: [], whether a single step led beyond the skin of fresh lists.
        narrow: [], whether a cell is too narrow for the search of images.
        needed: [4], what is needed, to be compared with what `Room` has; 0 where not known to be too little.
    """

    state: Leaf
    energy: Leaf
    failure: Leaf
    failed_at: Leaf
    step: Leaf
    neighbors: Leaf
    shifts: Leaf
    origin: Leaf
    origin_cells: Leaf
    stale: Leaf
    fresh: Leaf
    skin_broken: Leaf
    narrow: Leaf
    needed: Leaf


@dataclasses.dataclass(frozen=True)
class Room:
    """Static sizes of the lists; a change compiles anew.

    Attributes:
        search: translations tried for each pair.
        listed: neighbour slots of the lists, skin included.
        slots: neighbour slots the potential sees.
        inner: leading slots for the inner cutoff; 0 if the potential has none.
        bins: of large cells, which then are looked through in place of all pairs.
    """

    search: ImageSearch
    listed: int
    slots: int
    inner: int
    bins: Bins | None = None

    def fits(self, needed: Any) -> Any:
        """Whether lists that need so many slots (listed, seen, inner) and atoms in a bin are complete."""
        return (needed <= jnp.asarray([self.listed, self.slots, self.inner, self.bins.room if self.bins else 0])).all()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the replicas are computed; static.

    Attributes:
        models: whether the potential is a stack of models, with as many replicas for each, one model's after another's.
        mesh: devices that share the replicas, along its axis `SHARED`; None for one. Each looks after its own: the
            flags of `Walkers` then have a leading axis of devices.
        resting: whether there are atoms that do not move: padding of replicas that have fewer, and what is held.
    """

    models: bool = False
    mesh: Mesh | None = None
    resting: bool = False


ONE = Layout()


@functools.partial(jax.jit, static_argnames=("kind", "room", "stop_at_failure", "layout"))
def advance(
    potential: Potential,
    system: System,
    walkers: Walkers,
    schedules: dict[str, Schedule],
    until: Any,
    dt: Any,
    skin: Any,
    *,
    kind: type[Ensemble],
    room: Room,
    stop_at_failure: bool,
    layout: Layout = ONE,
) -> Walkers:
    """Take steps until `until`, or until the lists do not fit, the skin is too thin, or a failure stops the run."""
    local = functools.partial(_advance, kind=kind, room=room, stop_at_failure=stop_at_failure, layout=layout)
    if layout.mesh is None:
        return local(potential, system, walkers, schedules, until, dt, skin)

    def on_one_device(potential: Any, system: Any, walkers: Walkers, *rest: Any) -> Walkers:
        flags = {name: getattr(walkers, name)[0] for name in FLAGS}
        walkers = local(potential, system, walkers.replace(**flags), *rest)
        return walkers.replace(**{name: getattr(walkers, name)[None] for name in FLAGS})

    own, all_ = PartitionSpec(SHARED), PartitionSpec()
    parts = System(species=own, cells=own, inverses=own, lowest=all_, bonds=own)  # type: ignore[arg-type]
    specs = (own if layout.models else all_, parts, own, own, all_, all_, all_)
    shared = jax.shard_map(on_one_device, mesh=layout.mesh, in_specs=specs, out_specs=own, check_vma=False)
    return shared(potential, system, walkers, schedules, until, dt, skin)


def _advance(
    potential: Potential,
    system: System,
    walkers: Walkers,
    schedules: dict[str, Schedule],
    until: Any,
    dt: Any,
    skin: Any,
    *,
    kind: type[Ensemble],
    room: Room,
    stop_at_failure: bool,
    layout: Layout,
) -> Walkers:
    """`advance` for the replicas of one device."""

    def remade(walkers: Walkers) -> Walkers:
        return _with_lists(potential, system, walkers, skin, kind, room)

    def wanted(walkers: Walkers) -> Any:
        failed = walkers.failure > 0
        ended = failed.any() if stop_at_failure else failed.all()
        stuck = walkers.skin_broken | walkers.narrow | ~room.fits(walkers.needed)
        return (walkers.step < until) & ~ended & ~stuck

    def step(walkers: Walkers) -> Walkers:
        return _step(potential, system, walkers, schedules, dt, skin, kind, room, layout)

    def with_these_lists(walkers: Walkers) -> Walkers:
        walkers = jax.lax.cond(walkers.stale, remade, lambda same: same, walkers)
        return jax.lax.while_loop(lambda w: wanted(w) & ~w.stale, step, walkers)

    return jax.lax.while_loop(wanted, with_these_lists, walkers)


def _with_lists(
    potential: Potential, system: System, walkers: Walkers, skin: Any, kind: type[Ensemble], room: Room
) -> Walkers:
    """The walkers with neighbour lists made at their present positions."""
    positions = walkers.state.position
    cells = current_cells(system, walkers.state, kind)
    inverses, narrow = system.inverses, jnp.zeros((), bool)
    if kind.moves_cell:
        inverses = geometry.inverses(cells)
        narrow = (geometry.heights(cells) < system.lowest).any()

    lists, fullest = lists_of_replicas(system.species, positions, cells, inverses, potential.cutoff + skin, room)
    return walkers.replace(
        neighbors=lists.neighbors,
        shifts=lists.shifts,
        origin=positions,
        origin_cells=cells,
        stale=jnp.zeros((), bool),
        fresh=jnp.ones((), bool),
        narrow=narrow,
        needed=jnp.zeros(4, jnp.int32).at[0].set(lists.needed.max()).at[3].set(fullest),
    )


def lists_of_replicas(
    species: Any, positions: Any, cells: Any, inverses: Any, reach: Any, room: Room
) -> tuple[DeviceList, Any]:
    """Lists of all replicas, made for as many at once as memory allows, and the atoms in the fullest bin."""
    replicas, atoms, _ = positions.shape
    real = species > 0
    if room.bins is not None:
        bins = room.bins

        def binned(replica: tuple[Any, Any, Any, Any]) -> Any:
            real, where, cell, inverse = replica
            return binned_neighbors(real, where, cell, inverse, reach, bins=bins, slots=room.listed)

        lists, fullest = jax.lax.map(binned, (real, positions, cells, inverses))
        return lists, fullest.max().astype(jnp.int32)

    def lists_of(replica: tuple[Any, Any, Any, Any]) -> Any:
        real, where, cell, inverse = replica
        return device_neighbors(real, where, cell, inverse, reach, search=room.search, slots=room.listed)

    pairs = atoms * atoms * len(room.search.translations)
    at_once = max(1, min(replicas, PAIRS_AT_ONCE // pairs))
    return jax.lax.map(lists_of, (real, positions, cells, inverses), batch_size=at_once), 0


def _step(
    potential: Potential,
    system: System,
    walkers: Walkers,
    schedules: dict[str, Schedule],
    dt: Any,
    skin: Any,
    kind: type[Ensemble],
    room: Room,
    layout: Layout,
) -> Walkers:
    """One step of all replicas, kept only if the lists held for all of them."""
    numbers = {name: schedule.at((walkers.step + 1) * dt) for name, schedule in schedules.items()}
    state = jax.vmap(kind.move, in_axes=(0, None, 0))(walkers.state, dt, numbers)
    if layout.resting:
        state = at_rest(walkers.state, state)
    cells = current_cells(system, state, kind)
    lists = walkers.neighbors, walkers.shifts
    prediction, needed = _predicted(
        potential, system, state.position, cells, *lists, kind.moves_cell, room, layout.models
    )
    energy, forces = prediction.energy, prediction.forces
    if kind.moves_cell:
        state = state.replace(stress=prediction.stress)
    state = jax.vmap(kind.finish, in_axes=(0, 0, None, 0))(state, forces, dt, numbers)
    if layout.resting:
        state = at_rest(walkers.state, state)

    old, origin = walkers.state.position, walkers.origin
    leap_strain = strain = jnp.zeros(())
    if kind.moves_cell:
        # Displacements relative to the cell; what the cell adds to them is counted apart.
        change, leap_strain = geometry.deformation(walkers.state.cell, cells)
        old = old @ change
        change, strain = geometry.deformation(walkers.origin_cells, cells)
        origin = origin @ change
    leap, away = _furthest(state.position, old), _furthest(state.position, origin)
    sound = walkers.failure == 0
    found, wild = failures(kind, schedules, system.bonds, state, energy, leap, leap_strain, cells, system.cells)
    failure = jnp.where(sound, found, walkers.failure)
    moving = failure == 0

    # A potential may answer NaN to lists that lack room, so what is not finite has a say here; what exploded has not.
    asking = sound & ~wild
    needed = jnp.where(asking[:, None], needed.max(1), 0).max(0)
    needed = walkers.needed.at[1:3].set(needed)
    # A pair of the list's blind spot, once further than cutoff + skin apart, is now further than
    # (1 − strain) (cutoff + skin) − 2 away, which must not be less than the cutoff.
    half_reach = 0.5 * (potential.cutoff + skin)
    away, leap = away + half_reach * strain, leap + half_reach * leap_strain
    within_skin = ~(moving & (away > 0.5 * skin)).any()
    held = within_skin & room.fits(needed)
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
        stale=~within_skin | soon,
        fresh=jnp.zeros((), bool),
        skin_broken=~within_skin & walkers.fresh,
        needed=jnp.where(within_skin, needed, walkers.needed),
    )


def _predicted(
    potential: Potential,
    system: System,
    positions: Any,
    cells: Any,
    neighbors: Any,
    shifts: Any,
    stress: bool,
    room: Room,
    models: bool,
) -> tuple[Prediction, Any]:
    """Energies, forces [replicas, atoms, 3] and stress, and the slots that atoms need, [replicas, atoms, 2]."""

    def of_one_model(potential: Potential, species: Any, positions: Any, *rest: Any) -> tuple[Prediction, Any]:
        graph, needed = within_cutoff(
            as_one_graph(species, positions, *rest),
            potential.cutoff,
            potential.inner_cutoff,
            slots=room.slots,
            inner=room.inner,
        )
        prediction = evaluate(potential, graph, stress=stress)
        forces = prediction.forces.reshape(positions.shape)
        return prediction.replace(forces=forces), needed.reshape(*positions.shape[:2], 2)

    replicas = system.species, positions, cells, neighbors, shifts
    if not models:
        return of_one_model(potential, *replicas)
    number = jax.tree.leaves(potential)[0].shape[0]
    by_model = potential, *(jnp.reshape(leaf, (number, -1, *leaf.shape[1:])) for leaf in replicas)
    if jax.default_backend() == "cpu":  # where models side by side are slower than one after the other
        found = jax.lax.map(lambda one: of_one_model(*one), by_model)
    else:
        found = jax.vmap(of_one_model)(*by_model)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


def current_cells(system: System, state: Any, kind: type[Ensemble]) -> Any:
    """Cells of all replicas now, [replicas, 3, 3]."""
    return state.cell if kind.moves_cell else system.cells


def as_one_graph(species: Any, positions: Any, cells: Any, neighbors: Any, shifts: Any) -> Graph:
    """All replicas as one batch, which a potential handles better than a mapped axis: it knows how to cut batches."""
    replicas, atoms, _ = positions.shape
    offset = (atoms * jnp.arange(replicas, dtype=jnp.int32))[:, None, None]
    neighbors = jnp.where(neighbors == GHOST, GHOST, neighbors + offset)
    return Graph(
        positions=positions.reshape(-1, 3),
        species=species.reshape(-1),
        cell=cells,
        neighbors=neighbors.reshape(replicas * atoms, -1),
        shifts=shifts.reshape(replicas * atoms, -1, 3),
        owner=jnp.where(species > 0, jnp.arange(replicas, dtype=jnp.int32)[:, None], replicas).reshape(-1),
    )


def _furthest(here: Any, there: Any) -> Any:
    """The longest displacement among a replica's atoms, Å."""
    return jnp.sqrt(((here - there) ** 2).sum(-1).max(-1))
