"""Minimisation of the energy by positions and cell on the device: FIRE, with neighbour lists that hold."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.fire import fire
from jaxmlip.simulation.safety import CELL_LOST, NOT_FINITE, widths_lost
from jaxmlip.simulation.step import System, displacement, made_lists, predicted
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.capacity import Capacity
from jaxmlip.systems.graph import GHOST
from jaxmlip.types import Leaf

FIRE = fire()

MAX_MOVE = 0.2
"""Å; the longest step of an atom, relative to the cell."""

MAX_STRAIN = 0.02
"""The largest strain of the cell in a step (Frobenius norm)."""


class Limits(flax.struct.PyTreeNode):
    """What may remain: force in eV/Å, stress in eV/Å³; and the pressure, eV/Å³."""

    force: Leaf
    stress: Leaf
    pressure: Leaf


class Minimization(flax.struct.PyTreeNode):
    """State of the minimisation of one structure.

    Attributes:
        position, force: [atoms, 3].
        cell, stress: [3, 3]; the stress is zero where the cell is fixed.
        energy: [], eV, relative to the references.
        fire: state of FIRE, which moves positions relative to the cell [atoms, 3] and coordinates of the cell [3, 3].
        step: [], steps taken; −1 before the forces at the start are known.
        done: [], whether forces and stress are below the limits.
        failure: [], 0 while sound, else a key of `safety.OUTCOMES`.
        lists: neighbours and shifts, for `predicted`.
        origin: positions [1, atoms, 3] and cell [1, 3, 3] the lists were made at.
        needed: [4], what lists need that do not fit; see `Capacity.fits`.
        narrow: [], whether the cell has become too narrow for the search of images.
    """

    position: Leaf
    force: Leaf
    cell: Leaf
    stress: Leaf
    energy: Leaf
    fire: Leaf
    step: Leaf
    done: Leaf
    failure: Leaf
    lists: Leaf
    origin: Leaf
    needed: Leaf
    narrow: Leaf

    def without_lists(self, capacity: Capacity) -> "Minimization":
        """With empty lists, of the size of the capacity, which no positions are near."""
        shape = (1, len(self.position), capacity.listed)
        return self.replace(
            lists=(jnp.full(shape, GHOST, jnp.int32), jnp.zeros((*shape, 3), jnp.int16)),
            origin=(jnp.full((1, *self.position.shape), jnp.inf, self.position.dtype), self.cell[None]),
            needed=jnp.zeros(4, jnp.int32),
            narrow=jnp.zeros((), bool),
        )


def start(position: Any, cell: Any, capacity: Capacity) -> Minimization:
    """At positions [atoms, 3] in a cell [3, 3], before the first forces are known."""
    no_force, no_stress = jnp.zeros_like(position), jnp.zeros_like(cell)
    return Minimization(
        position=position,
        force=no_force,
        cell=cell,
        stress=no_stress,
        energy=jnp.zeros((), position.dtype),
        fire=FIRE.init((no_force, no_stress)),
        step=jnp.full((), -1, jnp.int32),
        done=jnp.zeros((), bool),
        failure=jnp.zeros((), jnp.int32),
        lists=None,
        origin=None,
        needed=None,
        narrow=None,
    ).without_lists(capacity)


@functools.partial(jax.jit, static_argnames=("capacity", "with_cell"))
def minimized(
    potential: Potential,
    system: System,
    now: Minimization,
    moves: Any,
    limits: Limits,
    until: Any,
    skin: Any,
    *,
    capacity: Capacity,
    with_cell: bool,
) -> Minimization:
    """Steps until `until`, until all is below the limits, or until lists do not fit or the relaxation fails."""

    def wanted(now: Minimization) -> Any:
        return (now.step < until) & ~now.done & (now.failure == 0) & capacity.fits(now.needed) & ~now.narrow

    def step(now: Minimization) -> Minimization:
        moved = _moved(now, moves, limits, with_cell)
        where = moved.position[None], moved.cell[None]
        away, strain = displacement(now.origin, where, with_cell)
        # As in the engine: what a compression of the cell may bring near.
        stale = ~((away + 0.5 * (potential.cutoff + skin) * strain)[0] <= 0.5 * skin)

        def made(_: None) -> tuple[Any, ...]:
            reach = potential.cutoff + skin
            return *made_lists(system, *where, reach, capacity, with_cell), where

        def kept(_: None) -> tuple[Any, ...]:
            return now.lists, jnp.zeros(4, jnp.int32), jnp.zeros((), bool), now.origin

        lists, needed, narrow, origin = jax.lax.cond(stale, made, kept, None)
        found, slots = predicted(potential, system, *where, lists, capacity, with_cell)
        needed = needed.at[1:3].set(slots.reshape(-1, 2).max(0))
        after = moved.replace(
            force=found.forces[0],
            stress=found.stress[0] if with_cell else now.stress,
            energy=found.energy[0],
            step=now.step + 1,
        )
        after = after.replace(done=_done(after, moves, limits, with_cell), failure=_failure(after, system, with_cell))
        fits = capacity.fits(needed) & ~narrow
        after = jax.tree.map(lambda new, old: jnp.where(fits, new, old), after, now)
        return after.replace(lists=lists, origin=origin, needed=needed, narrow=narrow)

    return jax.lax.while_loop(wanted, step, now)


def _moved(now: Minimization, moves: Any, limits: Limits, with_cell: bool) -> Minimization:
    """After a step of FIRE, with the forces of before. The first, before there are forces, leads nowhere."""
    scale = _scale(now.cell, len(now.position)) if with_cell else 1.0
    of_atoms, of_cell = -jnp.where(moves[:, None], now.force, 0.0), jnp.zeros_like(now.cell)
    if with_cell:
        of_cell = jnp.where(now.step >= 0, geometry.volumes(now.cell) * _excess(now, limits) / scale, 0.0)
    updates: Any
    updates, fire = FIRE.update((of_atoms, of_cell), now.fire)
    far, strain = updates[0], updates[1] / scale
    longest, strained = jnp.sqrt((far**2).sum(-1).max()), jnp.sqrt((strain**2).sum())
    shortened = jnp.minimum(1.0, 1.0 / jnp.maximum(jnp.maximum(longest / MAX_MOVE, strained / MAX_STRAIN), 1e-20))
    far, strain = shortened * far, shortened * strain
    position = now.position + now.position @ strain + far
    return now.replace(position=position, cell=now.cell + now.cell @ strain, fire=fire)


def _scale(cell: Any, atoms: int) -> Any:
    """Å; the coordinates of the cell are its strains times this.

    A length of one atom's share of the volume, times √N: the second derivative of the energy by such a coordinate is
    then independent of the size of the cell, and comparable to those by positions of atoms (Sheppard et al., J. Chem.
    Phys. 136, 074103 (2012)).
    """
    return geometry.volumes(cell) ** (1 / 3) * atoms ** (1 / 6)


def _excess(now: Minimization, limits: Limits) -> Any:
    """σ + P 1, [3, 3], eV/Å³."""
    return now.stress + limits.pressure * jnp.eye(3, dtype=now.stress.dtype)


def _done(now: Minimization, moves: Any, limits: Limits, with_cell: bool) -> Any:
    """Whether what remains is below the limits."""
    acting = jnp.where(moves[:, None], now.force, 0.0)
    done = (acting**2).sum(1).max() < limits.force**2
    return done & (jnp.abs(_excess(now, limits)).max() < limits.stress) if with_cell else done


def _failure(now: Minimization, system: System, with_cell: bool) -> Any:
    """What is wrong, as a key of `safety.OUTCOMES`."""
    finite = jnp.isfinite(now.energy) & jnp.isfinite(now.force).all() & jnp.isfinite(now.stress).all()
    lost = widths_lost(now.cell, system.cells[0]) if with_cell else jnp.zeros((), bool)
    return jnp.where(finite, jnp.where(lost, CELL_LOST, 0), NOT_FINITE).astype(jnp.int32)
