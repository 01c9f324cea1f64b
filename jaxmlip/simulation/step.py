"""One step of all replicas at once, and what it needs: neighbour lists, and a potential evaluated on all of them.

Nothing here decides anything: whether lists held, and what to do about it, is for those who call, the supervised
`engine` and the differentiable `rollout`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmlip.potentials.potential import Potential, Prediction, evaluate
from jaxmlip.simulation.dynamics import Dynamics
from jaxmlip.simulation.motion import at_rest
from jaxmlip.simulation.safety import Bonds
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.capacity import Capacity, as_one_graph, lists_of_replicas
from jaxmlip.systems.device_lists import within_cutoff
from jaxmlip.types import Leaf


class System(flax.struct.PyTreeNode):
    """What stays fixed during a run.

    Attributes:
        species: [replicas, atoms]; 0 marks padding, behind the atoms of replicas that have fewer than others.
        cells: [replicas, 3, 3], those of the start, Å; zero rows where not periodic.
        inverses: [replicas, 3, 3], their pseudo-inverses, 1/Å.
        lowest: [3], heights of cells in Å below which `Capacity.search` is not complete.
        bonds: see `Bonds`.
    """

    species: Leaf
    cells: Leaf
    inverses: Leaf
    lowest: Leaf
    bonds: Bonds


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the replicas are computed; static.

    Attributes:
        models: whether the potential is a stack of models, with as many replicas for each, one model's after another's.
        mesh: devices that share the replicas, along its axis `SHARED`; None for one. Each looks after its own: the
            flags of `ReplicaState` then have a leading axis of devices.
        resting: whether there are atoms that do not move: padding of replicas that have fewer, and what is held.
        side_by_side: whether models are computed all at once, as accelerators want it, or one after the other, which is
            faster on a CPU.
    """

    models: bool = False
    mesh: Mesh | None = None
    resting: bool = False
    side_by_side: bool = False


ONE = Layout()


def step(
    potential: Potential,
    dynamics: Dynamics,
    system: System,
    state: Any,
    lists: tuple[Any, Any],
    time: Any,
    dt: Any,
    capacity: Capacity,
    layout: Layout = ONE,
) -> tuple[Any, Any, Any]:
    """One step of all replicas: a pure function, that anything may be derived from.

    Args:
        potential: any Potential, or a stack if the layout says so.
        dynamics: of the ensemble.
        system: what stays fixed.
        state: that the dynamics moves, a `State` with a leading axis of replicas.
        lists: neighbours and shifts, as in `DeviceList`, complete at the positions that the step leads to.
        time: at the end of the step, in the internal unit: when the schedules are asked.
        dt: length of the step, in the internal unit.
        capacity: of the lists.
        layout: see there.

    Returns:
        The state after the step, energies [replicas] in eV without references, and the slots that atoms need,
        [replicas, atoms, 2]: where the capacity has fewer, the step is wrong.
    """

    def forces(state: Any) -> tuple[Any, Any, tuple[Any, Any]]:
        where = state.position, current_cells(system, state, dynamics.moves_cell)
        found, needed = predicted(potential, system, *where, lists, capacity, dynamics.moves_cell, layout)
        return found.forces, found.stress, (found.energy, needed)

    state, (energy, needed) = integrated(forces, dynamics, state, time, dt, layout.resting)
    return state, energy, needed


def integrated(
    forces: Callable[[Any], tuple[Any, Any, Any]], dynamics: Dynamics, state: Any, time: Any, dt: Any, resting: bool
) -> tuple[Any, Any]:
    """One step of all replicas with forces from anywhere.

    Args:
        forces: of states: forces [replicas, atoms, 3] in eV/Å, stresses [replicas, 3, 3] in eV/Å³, which are read where
            the cell moves, and whatever else.
        dynamics: see `step`.
        state: see `step`.
        time: see `step`.
        dt: see `step`.
        resting: whether there are atoms at rest, padding or held (static).

    Returns:
        The state after the step, and what the forces said beside.
    """
    now, before = dynamics.at(time), state
    state = jax.vmap(lambda now, state: now.move(state, dt))(now, state)
    if resting:
        state = at_rest(before, state)
    acting, stress, rest = forces(state)
    if dynamics.moves_cell:
        state = state.set(stress=stress)
    state = jax.vmap(lambda now, state, acting: now.finish(state, acting, dt))(now, state, acting)
    return (at_rest(before, state) if resting else state), rest


def displacement(before: tuple[Any, Any], now: tuple[Any, Any], moves_cell: bool) -> tuple[Any, Any]:
    """How far the atom that moved most has come in each replica, in Å, and by how much its cell was strained since.

    Displacements are relative to the cell; what the cell adds to them is told by the strain alone.

    Args:
        before: positions [replicas, atoms, 3] and cells [replicas, 3, 3], Å.
        now: likewise.
        moves_cell: whether cells move at all (static).
    """
    positions, strain = before[0], jnp.zeros(())
    if moves_cell:
        change, strain = geometry.deformation(before[1], now[1])
        positions = positions @ change
    return jnp.sqrt(((now[0] - positions) ** 2).sum(-1).max(-1)), strain


def predicted(
    potential: Potential,
    system: System,
    positions: Any,
    cells: Any,
    lists: tuple[Any, Any],
    capacity: Capacity,
    stress: bool,
    layout: Layout = ONE,
) -> tuple[Prediction, Any]:
    """Energies, forces [replicas, atoms, 3] and stress, and the slots that atoms need, [replicas, atoms, 2]."""

    def of_one_model(potential: Potential, species: Any, positions: Any, *rest: Any) -> tuple[Prediction, Any]:
        graph, needed = within_cutoff(
            as_one_graph(species, positions, *rest, elements=capacity.elements),
            potential.cutoff,
            potential.inner_cutoff,
            slots=capacity.slots,
            inner=capacity.inner,
        )
        prediction = evaluate(potential, graph, stress=stress)
        forces = prediction.forces.reshape(positions.shape)
        return prediction.replace(forces=forces), needed.reshape(*positions.shape[:2], 2)

    replicas = system.species, positions, cells, *lists
    if not layout.models:
        return of_one_model(potential, *replicas)
    number = jax.tree.leaves(potential)[0].shape[0]
    by_model = potential, *(jnp.reshape(leaf, (number, -1, *leaf.shape[1:])) for leaf in replicas)
    if layout.side_by_side:
        found = jax.vmap(of_one_model)(*by_model)
    else:
        found = jax.lax.map(lambda one: of_one_model(*one), by_model)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


def current_cells(system: System, state: Any, moves_cell: bool) -> Any:
    """Cells of all replicas now, [replicas, 3, 3]; whether they move is static."""
    return state.cell if moves_cell else system.cells


def made_lists(
    system: System, positions: Any, cells: Any, reach: Any, capacity: Capacity, moves_cell: bool
) -> tuple[tuple[Any, Any], Any, Any]:
    """Neighbour lists of all replicas at their positions, for `predicted`.

    Args:
        system: see there.
        positions: [replicas, atoms, 3], Å.
        cells: [replicas, 3, 3], Å.
        reach: of the lists, cutoff and skin, Å.
        capacity: of the lists.
        moves_cell: whether cells are others than those of the start (static).

    Returns:
        Neighbours and shifts, as in `DeviceList`; what they need, [4], to be compared with the capacity, 0 for the
        slots within the cutoffs, which `predicted` tells; and whether a cell is too narrow for the search of images.
    """
    inverses, narrow = system.inverses, jnp.zeros((), bool)
    if moves_cell:
        inverses = geometry.inverses(cells)
        narrow = (geometry.heights(cells) < system.lowest).any()
    lists, fullest = lists_of_replicas(system.species, positions, cells, inverses, reach, capacity)
    needed = jnp.zeros(4, jnp.int32).at[0].set(lists.needed.max()).at[3].set(fullest)
    return (lists.neighbors, lists.shifts), needed, narrow
