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
from jaxmlip.simulation.dynamics import Dynamics
from jaxmlip.simulation.observing import Means, Observation, observe_replicas, with_sample
from jaxmlip.simulation.safety import failures
from jaxmlip.simulation.step import (
    ONE,
    Layout,
    System,
    current_cells,
    displacement,
    made_lists,
    predicted,
    step,
)
from jaxmlip.systems.capacity import Capacity
from jaxmlip.types import Leaf

SHARED = "replicas"
"""Axis of a mesh along which replicas lie."""

FLAGS = ("step", "stale", "fresh", "skin_broken", "narrow", "needed")
"""Fields of `ReplicaState` that replicas of one device have in common."""


class ReplicaState(flax.struct.PyTreeNode):
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


@functools.partial(jax.jit, static_argnames=("capacity", "stop_at_failure", "layout"))
def advance(
    potential: Potential,
    system: System,
    replicas: ReplicaState,
    means: Means | None,
    dynamics: Dynamics,
    observation: Observation | None,
    until: Any,
    dt: Any,
    skin: Any,
    *,
    capacity: Capacity,
    stop_at_failure: bool,
    layout: Layout = ONE,
) -> tuple[ReplicaState, Means | None]:
    """Take steps until `until`, or until the lists do not fit, the skin is too thin, or a failure stops the run.

    What is observed on the way is added to the means.
    """
    local = functools.partial(_advance, capacity=capacity, stop_at_failure=stop_at_failure, layout=layout)
    if layout.mesh is None:
        return local(potential, system, replicas, means, dynamics, observation, until, dt, skin)

    def on_one_device(
        potential: Any, system: Any, replicas: ReplicaState, means: Any, *rest: Any
    ) -> tuple[ReplicaState, Any]:
        flags = {name: getattr(replicas, name)[0] for name in FLAGS}
        means = means and means.replace(needs=means.needs[0])
        replicas, means = local(potential, system, replicas.replace(**flags), means, *rest)
        means = means and means.replace(needs=means.needs[None])
        return replicas.replace(**{name: getattr(replicas, name)[None] for name in FLAGS}), means

    own, all_ = PartitionSpec(SHARED), PartitionSpec()
    parts = System(species=own, cells=own, inverses=own, lowest=all_, bonds=own)  # type: ignore[arg-type]
    seen = observation and observation.replace(masses=own, degrees=own, kinds=own, every=all_, other=all_)
    specs = (own if layout.models else all_, parts, own, own, own, seen, all_, all_, all_)
    shared = jax.shard_map(on_one_device, mesh=layout.mesh, in_specs=specs, out_specs=own, check_vma=False)
    return shared(potential, system, replicas, means, dynamics, observation, until, dt, skin)


def _advance(
    potential: Potential,
    system: System,
    replicas: ReplicaState,
    means: Means | None,
    dynamics: Dynamics,
    observation: Observation | None,
    until: Any,
    dt: Any,
    skin: Any,
    *,
    capacity: Capacity,
    stop_at_failure: bool,
    layout: Layout,
) -> tuple[ReplicaState, Means | None]:
    """`advance` for the replicas of one device."""
    moving = _Moving(potential, system, dynamics, observation, dt, skin, capacity, layout)

    def wanted(carry: tuple[ReplicaState, Means | None]) -> Any:
        replicas, means = carry
        failed = replicas.failure > 0
        ended = failed.any() if stop_at_failure else failed.all()
        stuck = replicas.skin_broken | replicas.narrow | ~capacity.fits(replicas.needed)
        if means is not None and observation is not None and observation.capacity is not None:
            stuck |= ~observation.capacity.fits(means.needs)
        return (replicas.step < until) & ~ended & ~stuck

    def with_these_lists(carry: tuple[ReplicaState, Means | None]) -> tuple[ReplicaState, Means | None]:
        replicas, means = carry
        replicas = jax.lax.cond(replicas.stale, moving.with_lists, lambda same: same, replicas)
        return jax.lax.while_loop(
            lambda carry: wanted(carry) & ~carry[0].stale, lambda carry: moving.step(*carry), (replicas, means)
        )

    return jax.lax.while_loop(wanted, with_these_lists, (replicas, means))


@dataclasses.dataclass(frozen=True)
class _Moving:
    """What all steps of a run have in common; see `advance`."""

    potential: Potential
    system: System
    dynamics: Dynamics
    observation: Observation | None
    dt: Any
    skin: Any
    capacity: Capacity
    layout: Layout

    def with_lists(self, replicas: ReplicaState) -> ReplicaState:
        """The replicas with neighbour lists made at their present positions."""
        positions, moves_cell = replicas.state.position, self.dynamics.moves_cell
        cells = current_cells(self.system, replicas.state, moves_cell)
        reach = self.potential.cutoff + self.skin
        (neighbors, shifts), needed, narrow = made_lists(
            self.system, positions, cells, reach, self.capacity, moves_cell
        )
        return replicas.replace(
            neighbors=neighbors,
            shifts=shifts,
            origin=positions,
            origin_cells=cells,
            stale=jnp.zeros((), bool),
            fresh=jnp.ones((), bool),
            narrow=narrow,
            needed=needed,
        )

    def step(self, replicas: ReplicaState, means: Means | None) -> tuple[ReplicaState, Means | None]:
        """One step of all replicas, kept only if the lists held for all of them, and what is seen after it."""
        time, moves_cell = (replicas.step + 1) * self.dt, self.dynamics.moves_cell
        state, energy, needed = step(
            self.potential,
            self.dynamics,
            self.system,
            replicas.state,
            (replicas.neighbors, replicas.shifts),
            time,
            self.dt,
            self.capacity,
            self.layout,
        )
        cells = current_cells(self.system, state, moves_cell)
        before = replicas.state.position, current_cells(self.system, replicas.state, moves_cell)
        now = state.position, cells
        leap, leap_strain = displacement(before, now, moves_cell)
        away, strain = displacement((replicas.origin, replicas.origin_cells), now, moves_cell)
        sound = replicas.failure == 0
        bonds = self.system.bonds
        found, wild = failures(self.dynamics, bonds, state, energy, leap, leap_strain, cells, self.system.cells)
        failure = jnp.where(sound, found, replicas.failure)
        moving = failure == 0

        # A potential may answer NaN to lists that lack room, so what is not finite has a say; what exploded has not.
        asking = sound & ~wild
        needed = jnp.where(asking[:, None], needed.max(1), 0).max(0)
        needed = replicas.needed.at[1:3].set(needed)
        # A pair of the list's blind spot, once further than cutoff + skin apart, is now further than
        # (1 − strain) (cutoff + skin) − 2 away, which must not be less than the cutoff.
        half_reach = 0.5 * (self.potential.cutoff + self.skin)
        away, leap = away + half_reach * strain, leap + half_reach * leap_strain
        within_skin = ~(moving & (away > 0.5 * self.skin)).any()
        held = within_skin & self.capacity.fits(needed)
        if means is not None:
            means, seen = self.with_observation(replicas, means, state, energy, moving, held)
            held &= seen
        keep = held & moving
        soon = (jnp.where(moving, away + 1.5 * leap, 0.0) > 0.5 * self.skin).any()

        def chosen(new: Any, old: Any) -> Any:
            return jnp.where(keep.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        replicas = replicas.replace(
            state=jax.tree.map(chosen, state, replicas.state),
            energy=jnp.where(keep, energy, replicas.energy),
            failure=jnp.where(held, failure, replicas.failure),
            failed_at=jnp.where(held & sound & ~moving, replicas.step + 1, replicas.failed_at),
            step=replicas.step + held,
            stale=~within_skin | soon,
            fresh=jnp.zeros((), bool),
            skin_broken=~within_skin & replicas.fresh,
            needed=jnp.where(within_skin, needed, replicas.needed),
        )
        return replicas, means

    def with_observation(
        self, replicas: ReplicaState, means: Means, state: Any, energy: Any, moving: Any, held: Any
    ) -> tuple[Means, Any]:
        """The means with what is seen in a state, if a look at it is due, and whether there was room to look."""
        observation = self.observation
        assert observation is not None
        after = replicas.step + 1

        def due(means: Means) -> Means:
            stress = state.stress if self.dynamics.moves_cell else None
            if stress is None and observation.stress:
                lists = replicas.neighbors, replicas.shifts
                where = self.system, state.position, self.system.cells
                stress = predicted(self.potential, *where, lists, self.capacity, True, self.layout)[0].stress
            seen, needs = observe_replicas(
                observation, self.system, state, energy, stress, self.dynamics.moves_cell, moving
            )
            new = with_sample(means, seen).replace(needs=needs)
            if observation.capacity is None:
                return new
            fits = observation.capacity.fits(needs)
            return jax.tree.map(lambda a, b: jnp.where(fits, a, b), new, means).replace(needs=needs)

        means = jax.lax.cond(held & (after > 0) & (after % observation.every == 0), due, lambda same: same, means)
        fits = True if observation.capacity is None else observation.capacity.fits(means.needs)
        return means, fits
