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


class Motion(flax.struct.PyTreeNode):
    """What all steps of a run have in common.

    Attributes:
        potential: any Potential, or a stack if the layout says so.
        system: what stays fixed.
        dynamics: of the ensemble.
        observation: what to look at on the way; None for nothing.
        dt: length of a step, in the internal unit.
        skin: Å, by how much lists reach beyond the cutoff.
        capacity: of the lists (static).
        layout: see there (static).
        stop_at_failure: whether the failure of one replica ends the run (static).
    """

    potential: Potential
    system: System
    dynamics: Dynamics
    observation: Observation | None
    dt: Leaf
    skin: Leaf
    capacity: Capacity = flax.struct.field(pytree_node=False)
    layout: Layout = flax.struct.field(pytree_node=False)
    stop_at_failure: bool = flax.struct.field(pytree_node=False)

    def advance(self, replicas: ReplicaState, means: Means | None, until: Any) -> tuple[ReplicaState, Means | None]:
        """`advance` for the replicas of one device."""
        observation = self.observation

        def wanted(carry: tuple[ReplicaState, Means | None]) -> Any:
            replicas, means = carry
            failed = replicas.failure > 0
            ended = failed.any() if self.stop_at_failure else failed.all()
            stuck = replicas.skin_broken | replicas.narrow | ~self.capacity.fits(replicas.needed)
            if means is not None and observation is not None and observation.capacity is not None:
                stuck |= ~observation.capacity.fits(means.needs)
            return (replicas.step < until) & ~ended & ~stuck

        def with_these_lists(carry: tuple[ReplicaState, Means | None]) -> tuple[ReplicaState, Means | None]:
            replicas, means = carry
            replicas = jax.lax.cond(replicas.stale, self.with_lists, lambda same: same, replicas)
            return jax.lax.while_loop(
                lambda carry: wanted(carry) & ~carry[0].stale, lambda carry: self.step(*carry), (replicas, means)
            )

        return jax.lax.while_loop(wanted, with_these_lists, (replicas, means))

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
            new = with_sample(means, seen)
            if observation.capacity is None:
                return new
            fits = observation.capacity.fits(needs)
            new = jax.tree.map(lambda a, b: jnp.where(fits, a, b), new, means)
            return new.replace(needs=jnp.where(fits, 0, needs))

        means = jax.lax.cond(held & (after > 0) & (after % observation.every == 0), due, lambda same: same, means)
        fits = True if observation.capacity is None else observation.capacity.fits(means.needs)
        return means, fits


@jax.jit
def advance(
    motion: Motion, replicas: ReplicaState, means: Means | None, until: Any
) -> tuple[ReplicaState, Means | None]:
    """Take steps until `until`, or until the lists do not fit, the skin is too thin, or a failure stops the run.

    What is observed on the way is added to the means.
    """
    layout = motion.layout
    if layout.mesh is None:
        return motion.advance(replicas, means, until)

    def on_one_device(motion: Motion, replicas: ReplicaState, means: Any, until: Any) -> tuple[ReplicaState, Any]:
        flags = {name: getattr(replicas, name)[0] for name in FLAGS}
        means = means and means.replace(needs=means.needs[0])
        replicas, means = motion.advance(replicas.replace(**flags), means, until)
        means = means and means.replace(needs=means.needs[None])
        return replicas.replace(**{name: getattr(replicas, name)[None] for name in FLAGS}), means

    own, all_ = PartitionSpec(SHARED), PartitionSpec()
    system = System(species=own, cells=own, inverses=own, lowest=all_, bonds=own)  # type: ignore[arg-type]
    seen = motion.observation
    seen = seen and seen.replace(masses=own, degrees=own, kinds=own, every=all_, other=all_)
    potential = own if layout.models else all_
    parts = motion.replace(potential=potential, system=system, dynamics=own, observation=seen, dt=all_, skin=all_)
    shared = jax.shard_map(
        on_one_device, mesh=layout.mesh, in_specs=(parts, own, own, all_), out_specs=own, check_vma=False
    )
    return shared(motion, replicas, means, until)
