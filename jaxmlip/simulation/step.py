"""One step of all replicas at once, and what it needs: neighbour lists, and a potential evaluated on all of them.

Nothing here decides anything: whether lists held, and what to do about it, is for those who call, the supervised
`engine` and the differentiable `rollout`.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmlip.potentials.potential import Potential, Prediction, evaluate
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.motion import at_rest
from jaxmlip.simulation.safety import Bonds
from jaxmlip.simulation.schedules import Schedule
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.capacity import Capacity, as_one_graph
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
            flags of `Walkers` then have a leading axis of devices.
        resting: whether there are atoms that do not move: padding of replicas that have fewer, and what is held.
    """

    models: bool = False
    mesh: Mesh | None = None
    resting: bool = False


ONE = Layout()


def step(
    potential: Potential,
    kind: type[Ensemble],
    schedules: dict[str, Schedule],
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
        kind: the ensemble's functions.
        schedules: its numbers.
        system: what stays fixed.
        state: of the ensemble, with a leading axis of replicas.
        lists: neighbours and shifts, as in `DeviceList`, complete at the positions that the step leads to.
        time: at the end of the step, in the internal unit: when the schedules are asked.
        dt: length of the step, in the internal unit.
        capacity: of the lists.
        layout: see there.

    Returns:
        The state after the step, energies [replicas] in eV without references, and the slots that atoms need,
        [replicas, atoms, 2]: where the capacity has fewer, the step is wrong.
    """
    numbers = {name: schedule.at(time) for name, schedule in schedules.items()}
    before = state
    state = jax.vmap(kind.move, in_axes=(0, None, 0))(state, dt, numbers)
    if layout.resting:
        state = at_rest(before, state)
    cells = current_cells(system, state, kind)
    prediction, needed = predicted(potential, system, state.position, cells, lists, capacity, kind.moves_cell, layout)
    if kind.moves_cell:
        state = state.replace(stress=prediction.stress)
    state = jax.vmap(kind.finish, in_axes=(0, 0, None, 0))(state, prediction.forces, dt, numbers)
    if layout.resting:
        state = at_rest(before, state)
    return state, prediction.energy, needed


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
            as_one_graph(species, positions, *rest),
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
    if jax.default_backend() == "cpu":  # where models side by side are slower than one after the other
        found = jax.lax.map(lambda one: of_one_model(*one), by_model)
    else:
        found = jax.vmap(of_one_model)(*by_model)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


def current_cells(system: System, state: Any, kind: type[Ensemble]) -> Any:
    """Cells of all replicas now, [replicas, 3, 3]."""
    return state.cell if kind.moves_cell else system.cells
