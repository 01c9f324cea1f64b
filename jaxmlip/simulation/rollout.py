"""A piece of a trajectory as one pure function of potential, ensemble and state: to jit, vmap and differentiate.

What `simulate` does under supervision is done here blindly, with lists of fixed size that are made anew after a fixed
number of steps; whether that was right is told by a flag. The steps are the same.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.dynamics import Dynamics, Ensemble
from jaxmlip.simulation.motion import kinetic_energy
from jaxmlip.simulation.observing import Observation, observe_replicas
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.step import System, current_cells, displacement, made_lists, predicted, step
from jaxmlip.systems.capacity import Capacity
from jaxmlip.types import Leaf
from jaxmlip.units import FS

SPARE = 1.25
"""By how much lists have more room than the start needs: they cannot grow on the way."""


class SimulationState(flax.struct.PyTreeNode):
    """Replicas at one time: what a rollout starts from and ends with.

    Attributes:
        system: species, cells and what else stays fixed.
        replicas: state of the ensemble (`position`, `momentum`, `force`, ...), with a leading axis of replicas.
        step: [], steps taken.
    """

    system: System
    replicas: Leaf
    step: Leaf

    @property
    def positions(self) -> Any:
        """[replicas, atoms, 3], Å, unwrapped; of structures far from the origin, near it (see `systems.origin`)."""
        return self.replicas.position


@dataclasses.dataclass(frozen=True)
class RolloutCapacity:
    """Static sizes of a rollout; a change compiles anew.

    Attributes:
        lists: for neighbour lists.
        skin: Å, by how much lists reach beyond the cutoff.
        steps_per_list: steps after which lists are made anew.
        numbers: atomic numbers of each replica, if all have the same; for observables.
        heights: least heights of the cells, Å; for observables.
    """

    lists: Capacity
    skin: float
    steps_per_list: int
    numbers: tuple[int, ...]
    heights: tuple[float, ...]


def prepare_rollout(
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    replicas: int | None = None,
    seed: int = 0,
    timestep_fs: Number = 0.5,
    skin: Number = 1.0,
    steps_per_list: int = 10,
) -> tuple[SimulationState, RolloutCapacity]:
    """Where `simulate` would start with the same arguments, and room for a rollout from there.

    Args:
        potential: any Potential, not a traced one.
        structure: see `simulate`.
        ensemble: see `simulate`.
        replicas: see `simulate`.
        seed: see `simulate`.
        timestep_fs: fs.
        skin: Å. Between two makings of the lists no atom may move by more than half of it.
        steps_per_list: steps after which lists are made anew.

    Raises:
        ValueError: see `simulate`; for atoms that constraints hold; or for `steps_per_list` below 1.
    """
    if steps_per_list < 1:
        raise ValueError(f"Lists are made anew after 1 step or more, not {steps_per_list}.")
    options = Options(
        steps=1, timestep_fs=timestep_fs, sample_every_fs=timestep_fs, replicas=replicas, seed=seed, skin=skin
    )
    session = make_session([potential], structure, ensemble, options)
    if session.fixed is not None:
        raise ValueError(
            "A rollout moves all atoms: remove the constraints by atoms.set_constraint(), or use simulate."
        )
    driver = session.driver
    driver.prepare()
    found = driver.capacity
    bins = found.bins and found.bins._replace(room=math.ceil(SPARE * found.bins.room))
    larger = {name: math.ceil(SPARE * getattr(found, name)) for name in ("listed", "slots", "inner")}
    capacity = RolloutCapacity(
        lists=dataclasses.replace(found, **larger, bins=bins),
        skin=driver.skin,
        steps_per_list=steps_per_list,
        numbers=tuple(session.numbers.tolist()),
        heights=tuple(np.asarray(driver.heights, float).tolist()),
    )
    return SimulationState(driver.system, driver.replicas.state, driver.replicas.step), capacity


def rollout(
    potential: Potential,
    ensemble: Ensemble,
    state: SimulationState,
    capacity: RolloutCapacity,
    *,
    steps: int,
    every: int,
    timestep_fs: Any = 0.5,
    observe: Sequence[Observable] = (),
) -> tuple[SimulationState, dict[str, Any], Any]:
    """Take steps, and a sample after every so many: a pure function of its arguments.

    It can be jitted, mapped over stacked potentials and states, and differentiated in forward and reverse mode by the
    potential, the ensemble's numbers, the state and the timestep; random numbers are constants, those of the state's
    keys. Reverse mode keeps states at √(number of lists) places and recomputes the rest, in two levels. The forces at
    the start are computed anew, so that they depend on the potential.

    Args:
        potential: any Potential.
        ensemble: whose dynamics; a pytree of its numbers, which may be traced, or an argument of what is jitted.
        state: from `prepare_rollout`, or from another rollout.
        capacity: static; under `jax.jit` close over it, or name it in `static_argnames`.
        steps: to take; a multiple of `every`.
        every: steps between samples.
        timestep_fs: fs.
        observe: observables.

    Returns:
        The state at the end; samples [frames, replicas, ...] by name: `positions` (Å), `cells` (Å), `energy` (potential
        energy in eV, relative to the elemental references), `kinetic_energy` (eV), and what is observed; and whether
        all of it is valid: lists were complete, had room, and numbers are finite. If not, the rest is meaningless; make
        `skin` or the room larger, or `steps_per_list` smaller.

    Raises:
        ValueError: if `steps` is no positive multiple of `every`.
    """
    if every < 1 or steps < 1 or steps % every:
        raise ValueError(f"A rollout takes a positive multiple of every={every} steps, not {steps}.")
    dynamics = ensemble.dynamics(state.system.species.shape[0])
    move = _Moving(potential, dynamics, state.system, capacity, jnp.asarray(timestep_fs) * FS)
    state, valid = move.with_forces(state)

    def to_next_sample(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], dict[str, Any]]:
        (now, energy), valid = move.steps(*carry, every)
        return (now, valid), move.sample(now, energy, observe)

    (state, valid), samples = checkpointed_scan(to_next_sample, (state, valid), steps // every)
    finite = jnp.isfinite(samples["energy"]).all() & jnp.isfinite(samples["positions"]).all()
    return state, samples, valid & finite


def checkpointed_scan(body: Callable[[Any, None], tuple[Any, Any]], carry: Any, length: int) -> tuple[Any, Any]:
    """`jax.lax.scan` without inputs whose reverse mode keeps about 2 √length carries in place of all intermediates.

    The scan is cut into √length pieces; pieces and bodies are recomputed (Griewank, Optim. Methods Softw. 1, 35 (1992),
    with two levels).
    """
    inner = math.isqrt(length)
    pieces, rest = divmod(length, inner)
    body = jax.checkpoint(body)

    @jax.checkpoint
    def piece(carry: Any, _: None) -> tuple[Any, Any]:
        return jax.lax.scan(body, carry, length=inner)

    carry, found = jax.lax.scan(piece, carry, length=pieces)
    found = jax.tree.map(lambda leaf: leaf.reshape(pieces * inner, *leaf.shape[2:]), found)
    if rest:
        carry, last = jax.lax.scan(body, carry, length=rest)
        found = jax.tree.map(lambda *parts: jnp.concatenate(parts), found, last)
    return carry, found


@dataclasses.dataclass(frozen=True)
class _Moving:
    """The steps of a rollout."""

    potential: Potential
    dynamics: Dynamics
    system: System
    capacity: RolloutCapacity
    dt: Any

    @property
    def moves_cell(self) -> bool:
        """Whether the cell moves."""
        return self.dynamics.moves_cell

    def with_forces(self, state: SimulationState) -> tuple[SimulationState, Any]:
        """The state with the forces (and stress) that the potential gives at its positions, and whether they hold."""
        now = state.replicas
        cells = current_cells(self.system, now, self.moves_cell)
        lists, complete = self.lists(now.position, cells)
        found, needed = predicted(
            self.potential, self.system, now.position, cells, lists, self.capacity.lists, self.moves_cell
        )
        changes = {"force": found.forces} | ({"stress": found.stress} if self.moves_cell else {})
        return state.replace(replicas=now.set(**changes)), complete & self._fits(needed)

    def lists(self, positions: Any, cells: Any) -> tuple[tuple[Any, Any], Any]:
        """Neighbour lists with a skin, and whether they are complete; they have no derivative."""
        positions, cells = jax.lax.stop_gradient((positions, cells))
        lists, reach = self.capacity.lists, self.potential.cutoff + self.capacity.skin
        made, needed, narrow = made_lists(self.system, positions, cells, reach, lists, self.moves_cell)
        return made, lists.fits(needed) & ~narrow

    def steps(self, state: SimulationState, valid: Any, number: int) -> tuple[tuple[SimulationState, Any], Any]:
        """So many steps; the state with its energies, and whether all is valid."""
        most = min(self.capacity.steps_per_list, number)
        energy = jnp.zeros(self.system.species.shape[0], state.positions.dtype)

        def with_one_list(carry: tuple[Any, Any, Any], _: None, length: int = most) -> tuple[Any, None]:
            return self._with_one_list(carry, length), None

        carry, _ = checkpointed_scan(with_one_list, (state, energy, valid), number // most)
        if number % most:
            carry, _ = jax.checkpoint(functools.partial(with_one_list, length=number % most))(carry, None)
        return carry[:2], carry[2]

    def _with_one_list(self, carry: tuple[Any, Any, Any], length: int) -> tuple[Any, Any, Any]:
        state, energy, valid = carry
        origin = state.positions, current_cells(self.system, state.replicas, self.moves_cell)
        lists, complete = self.lists(*origin)

        @jax.checkpoint
        def one(carry: tuple[Any, Any, Any], _: None) -> tuple[tuple[Any, Any, Any], None]:
            state, _, valid = carry
            moved, energy, needed = step(
                self.potential,
                self.dynamics,
                self.system,
                state.replicas,
                lists,
                (state.step + 1) * self.dt,
                self.dt,
                self.capacity.lists,
            )
            held = self._held(origin, moved, needed)
            return (state.replace(replicas=moved, step=state.step + 1), energy, valid & held), None

        (state, energy, valid), _ = jax.lax.scan(one, (state, energy, valid & complete), length=length)
        return state, energy, valid

    def _held(self, origin: tuple[Any, Any], moved: Any, needed: Any) -> Any:
        """Whether lists could not miss a pair, and had room; see `engine` for the reasoning."""
        origin, now = jax.lax.stop_gradient(
            (origin, (moved.position, current_cells(self.system, moved, self.moves_cell)))
        )
        away, strain = displacement(origin, now, self.moves_cell)
        skin = self.capacity.skin
        away = away + 0.5 * (self.potential.cutoff + skin) * strain
        return (away <= 0.5 * skin).all() & self._fits(needed)

    def _fits(self, needed: Any) -> Any:
        """Whether atoms have the slots they need, [replicas, atoms, 2]."""
        lists = self.capacity.lists
        return (needed.reshape(-1, 2).max(0) <= jnp.asarray([lists.slots, lists.inner])).all()

    def sample(self, state: SimulationState, energy: Any, observe: Sequence[Observable]) -> dict[str, Any]:
        """What is kept of one time."""
        now = state.replicas
        cells = current_cells(self.system, now, self.moves_cell)
        kinetic = jax.vmap(kinetic_energy)(now.momentum, now.mass)
        found = {"positions": now.position, "cells": cells, "energy": energy, "kinetic_energy": kinetic}
        if not observe:
            return found

        replicas = len(now.position)
        observation = Observation(
            masses=now.mass[:, :, 0],
            degrees=jnp.full(replicas, self.dynamics.degrees_of_freedom(now.position.shape[1]), now.mass.dtype),
            kinds=jnp.zeros(replicas, jnp.int32),
            every=1,
            other=None,
            observables=tuple(observe),
            numbers=(self.capacity.numbers,),
            heights=self.capacity.heights,
        )
        stress = now.stress if self.moves_cell else None
        if observation.stress and stress is None:
            lists, _ = self.lists(now.position, cells)
            where = self.system, now.position, cells, lists
            stress = predicted(self.potential, *where, self.capacity.lists, True)[0].stress
        alive = jnp.ones(replicas, bool)
        return found | observe_replicas(observation, self.system, now, energy, stress, self.moves_cell, alive)[0]
