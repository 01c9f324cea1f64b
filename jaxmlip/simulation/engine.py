"""The compiled heart of a simulation: replicas, their neighbour lists, and the flags that decide what happens next.

One compiled function advances all replicas from one sample to the next: an outer loop makes neighbour lists, an inner
loop steps while they hold. What decides whether they hold is looked at in every step and for all replicas together, so
that nothing invalid is ever kept:

* A step after which the lists of any replica could miss a pair is discarded, lists are made afresh, and the step is
  repeated with the same random numbers. (As a rule the lists are renewed just before.) What counts against the skin is
  how far atoms have moved relative to their cell, plus by how much the cell has been compressed since.
* A list that does not fit its slots, or whose cell is too narrow for the search of images, stops the loop, and what was
  computed with it is discarded. The host provides more capacity, which compiles anew, and the loop goes on.
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
from jax.sharding import PartitionSpec

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.observing import Means, Observation, look, with_look
from jaxmlip.simulation.safety import failures
from jaxmlip.simulation.schedules import Schedule
from jaxmlip.simulation.step import (
    ONE,
    Layout,
    System,
    current_cells,
    displacement,
    predicted,
    step,
)
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.capacity import Capacity, lists_of_replicas
from jaxmlip.types import Leaf

SHARED = "replicas"
"""Axis of a mesh along which replicas lie."""

FLAGS = ("step", "stale", "fresh", "skin_broken", "narrow", "needed")
"""Fields of `Walkers` that replicas of one device have in common."""


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
        needed: [4], what is needed, to be compared with the `Capacity`; 0 where not known to be too little.
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


@functools.partial(jax.jit, static_argnames=("kind", "capacity", "stop_at_failure", "layout"))
def advance(
    potential: Potential,
    system: System,
    walkers: Walkers,
    means: Means | None,
    schedules: dict[str, Schedule],
    observation: Observation | None,
    until: Any,
    dt: Any,
    skin: Any,
    *,
    kind: type[Ensemble],
    capacity: Capacity,
    stop_at_failure: bool,
    layout: Layout = ONE,
) -> tuple[Walkers, Means | None]:
    """Take steps until `until`, or until the lists do not fit, the skin is too thin, or a failure stops the run.

    What is observed on the way is added to the means.
    """
    local = functools.partial(_advance, kind=kind, capacity=capacity, stop_at_failure=stop_at_failure, layout=layout)
    if layout.mesh is None:
        return local(potential, system, walkers, means, schedules, observation, until, dt, skin)

    def on_one_device(potential: Any, system: Any, walkers: Walkers, means: Any, *rest: Any) -> tuple[Walkers, Any]:
        flags = {name: getattr(walkers, name)[0] for name in FLAGS}
        means = means and means.replace(needs=means.needs[0])
        walkers, means = local(potential, system, walkers.replace(**flags), means, *rest)
        means = means and means.replace(needs=means.needs[None])
        return walkers.replace(**{name: getattr(walkers, name)[None] for name in FLAGS}), means

    own, all_ = PartitionSpec(SHARED), PartitionSpec()
    parts = System(species=own, cells=own, inverses=own, lowest=all_, bonds=own)  # type: ignore[arg-type]
    seen = observation and observation.replace(masses=own, degrees=own, kinds=own, every=all_, other=all_)
    specs = (own if layout.models else all_, parts, own, own, own, seen, all_, all_, all_)
    shared = jax.shard_map(on_one_device, mesh=layout.mesh, in_specs=specs, out_specs=own, check_vma=False)
    return shared(potential, system, walkers, means, schedules, observation, until, dt, skin)


def _advance(
    potential: Potential,
    system: System,
    walkers: Walkers,
    means: Means | None,
    schedules: dict[str, Schedule],
    observation: Observation | None,
    until: Any,
    dt: Any,
    skin: Any,
    *,
    kind: type[Ensemble],
    capacity: Capacity,
    stop_at_failure: bool,
    layout: Layout,
) -> tuple[Walkers, Means | None]:
    """`advance` for the replicas of one device."""
    moving = _Moving(potential, system, schedules, observation, dt, skin, kind, capacity, layout)

    def wanted(carry: tuple[Walkers, Means | None]) -> Any:
        walkers, means = carry
        failed = walkers.failure > 0
        ended = failed.any() if stop_at_failure else failed.all()
        stuck = walkers.skin_broken | walkers.narrow | ~capacity.fits(walkers.needed)
        if means is not None and observation is not None and observation.capacity is not None:
            stuck |= ~observation.capacity.fits(means.needs)
        return (walkers.step < until) & ~ended & ~stuck

    def with_these_lists(carry: tuple[Walkers, Means | None]) -> tuple[Walkers, Means | None]:
        walkers, means = carry
        walkers = jax.lax.cond(walkers.stale, moving.with_lists, lambda same: same, walkers)
        return jax.lax.while_loop(
            lambda carry: wanted(carry) & ~carry[0].stale, lambda carry: moving.step(*carry), (walkers, means)
        )

    return jax.lax.while_loop(wanted, with_these_lists, (walkers, means))


@dataclasses.dataclass(frozen=True)
class _Moving:
    """What all steps of a run have in common; see `advance`."""

    potential: Potential
    system: System
    schedules: dict[str, Schedule]
    observation: Observation | None
    dt: Any
    skin: Any
    kind: type[Ensemble]
    capacity: Capacity
    layout: Layout

    def with_lists(self, walkers: Walkers) -> Walkers:
        """The walkers with neighbour lists made at their present positions."""
        positions = walkers.state.position
        cells = current_cells(self.system, walkers.state, self.kind)
        inverses, narrow = self.system.inverses, jnp.zeros((), bool)
        if self.kind.moves_cell:
            inverses = geometry.inverses(cells)
            narrow = (geometry.heights(cells) < self.system.lowest).any()
        reach = self.potential.cutoff + self.skin
        lists, fullest = lists_of_replicas(self.system.species, positions, cells, inverses, reach, self.capacity)
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

    def step(self, walkers: Walkers, means: Means | None) -> tuple[Walkers, Means | None]:
        """One step of all replicas, kept only if the lists held for all of them, and what is seen after it."""
        time, kind = (walkers.step + 1) * self.dt, self.kind
        state, energy, needed = step(
            self.potential,
            kind,
            self.schedules,
            self.system,
            walkers.state,
            (walkers.neighbors, walkers.shifts),
            time,
            self.dt,
            self.capacity,
            self.layout,
        )
        cells = current_cells(self.system, state, kind)
        before = walkers.state.position, current_cells(self.system, walkers.state, kind)
        now = state.position, cells
        leap, leap_strain = displacement(before, now, kind.moves_cell)
        away, strain = displacement((walkers.origin, walkers.origin_cells), now, kind.moves_cell)
        sound = walkers.failure == 0
        bonds = self.system.bonds
        found, wild = failures(kind, self.schedules, bonds, state, energy, leap, leap_strain, cells, self.system.cells)
        failure = jnp.where(sound, found, walkers.failure)
        moving = failure == 0

        # A potential may answer NaN to lists that lack room, so what is not finite has a say; what exploded has not.
        asking = sound & ~wild
        needed = jnp.where(asking[:, None], needed.max(1), 0).max(0)
        needed = walkers.needed.at[1:3].set(needed)
        # A pair of the list's blind spot, once further than cutoff + skin apart, is now further than
        # (1 − strain) (cutoff + skin) − 2 away, which must not be less than the cutoff.
        half_reach = 0.5 * (self.potential.cutoff + self.skin)
        away, leap = away + half_reach * strain, leap + half_reach * leap_strain
        within_skin = ~(moving & (away > 0.5 * self.skin)).any()
        held = within_skin & self.capacity.fits(needed)
        if means is not None:
            means, seen = self.looked(walkers, means, state, energy, moving, held)
            held &= seen
        keep = held & moving
        soon = (jnp.where(moving, away + 1.5 * leap, 0.0) > 0.5 * self.skin).any()

        def chosen(new: Any, old: Any) -> Any:
            return jnp.where(keep.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        walkers = walkers.replace(
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
        return walkers, means

    def looked(
        self, walkers: Walkers, means: Means, state: Any, energy: Any, moving: Any, held: Any
    ) -> tuple[Means, Any]:
        """The means with what is seen in a state, if a look at it is due, and whether there was room to look."""
        observation = self.observation
        assert observation is not None
        after = walkers.step + 1

        def due(means: Means) -> Means:
            stress = state.stress if self.kind.moves_cell else None
            if stress is None and observation.stress:
                lists = walkers.neighbors, walkers.shifts
                where = self.system, state.position, self.system.cells
                stress = predicted(self.potential, *where, lists, self.capacity, True, self.layout)[0].stress
            seen, needs = look(observation, self.system, state, energy, stress, self.kind.moves_cell, moving)
            new = with_look(means, seen).replace(needs=needs)
            if observation.capacity is None:
                return new
            fits = observation.capacity.fits(needs)
            return jax.tree.map(lambda a, b: jnp.where(fits, a, b), new, means).replace(needs=needs)

        means = jax.lax.cond(held & (after > 0) & (after % observation.every == 0), due, lambda same: same, means)
        fits = True if observation.capacity is None else observation.capacity.fits(means.needs)
        return means, fits
