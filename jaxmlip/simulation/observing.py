"""Averages that accumulate on the device while a simulation runs, so that its frames need not be kept.

What is observed is looked at more often than frames are kept; each frame carries the means since the one before. The
compiled loop looks by itself, at all replicas after the step that is due, and carries the means.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable, References, check_names
from jaxmlip.observables.thermodynamics import (
    Density,
    EnergyDifference,
    PotentialEnergy,
    Pressure,
    SquaredForceError,
    Temperature,
)
from jaxmlip.potentials.potential import Potential, Prediction, check_species, evaluate, reference_energy
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.step import System, current_cells
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.capacity import Capacity, graph_of_replicas, needs_of
from jaxmlip.types import Leaf


class Observation(flax.struct.PyTreeNode):
    """What to look at, and when.

    Attributes:
        masses: [replicas, atoms], amu: not those of the state, where what is held weighs something else.
        degrees: [replicas], degrees of freedom that temperatures are counted with.
        kinds: [replicas], index into `numbers`.
        every: [], steps between looks.
        other: a second potential, to compare with; None if there is none.
        observables: what to average (static).
        numbers: atomic numbers of each kind of structure (static).
        heights: see `FrameState` (static).
        capacity: of the lists of the second potential (static).
    """

    masses: Leaf
    degrees: Leaf
    kinds: Leaf
    every: Leaf
    other: Potential | None
    observables: tuple[Observable, ...] = flax.struct.field(pytree_node=False)
    numbers: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)
    heights: tuple[float, ...] = flax.struct.field(pytree_node=False, default=())
    capacity: Capacity | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def stress(self) -> bool:
        """Whether frames must know their stress."""
        return any(observable.needs_stress for observable in self.observables)


class Means(flax.struct.PyTreeNode):
    """What was seen so far.

    Attributes:
        values: means by name, [replicas, ...].
        count: [replicas], how many there were.
        needs: [4], what the lists of the second potential needed where they did not fit, else 0; see `Capacity.fits`.
    """

    values: dict[str, Leaf]
    count: Leaf
    needs: Leaf


def observe_replicas(
    observation: Observation, system: System, state: Any, energy: Any, stress: Any, moves_cell: bool, alive: Any
) -> tuple[dict[str, Any], Any]:
    """Values of all observables in all replicas, [replicas, ...] each, and what the second potential's lists need.

    Args:
        observation: what to look at.
        system: see there.
        state: of the ensemble, with a leading axis of replicas.
        energy: [replicas], eV, relative to the references.
        stress: [replicas, 3, 3], eV/Å³, if the observation needs it.
        moves_cell: whether the cell is part of the state (static).
        alive: [replicas], whether a replica counts for what is needed: those that have failed may be anything.
    """
    cells = current_cells(system, state, moves_cell)
    other, needs = None, jnp.zeros(4, jnp.int32)
    if observation.other is not None:
        inverses = geometry.inverses(cells) if moves_cell else system.inverses
        other, needs = _of_other(observation, system.species, state.position, cells, inverses)
        needs = jnp.where(alive[:, None], needs, 0).max(0)

    def of_kind(numbers: tuple[int, ...]) -> Any:
        atoms = len(numbers)  # without padding

        def values(replica: Any) -> dict[str, Any]:
            positions, cell, masses, momenta, degrees, energy, forces, stress, other = replica
            frame = FrameState(
                positions=positions[:atoms],
                cell=cell,
                masses=masses[:atoms],
                momenta=momenta[:atoms],
                degrees=degrees,
                potential_energy=energy,
                forces=forces[:atoms],
                stress=stress,
                prediction=None if other is None else _of_replica(other, atoms),
                numbers=numbers,
                heights=observation.heights,
            )
            return {observable.name: observable.per_frame(frame) for observable in observation.observables}

        return values

    of_kinds = [of_kind(numbers) for numbers in observation.numbers]
    replicas = (state.position, cells, observation.masses, state.momentum, observation.degrees, energy, state.force)
    if len(of_kinds) == 1:
        return jax.lax.map(of_kinds[0], (*replicas, stress, other)), needs
    each = jax.lax.map(
        lambda one: jax.lax.switch(one[0], of_kinds, one[1:]), (observation.kinds, *replicas, stress, other)
    )
    return each, needs


def _of_other(
    observation: Observation, species: Any, positions: Any, cells: Any, inverses: Any
) -> tuple[Prediction, Any]:
    """What the second potential says, with forces [replicas, atoms, 3], and needs [replicas, 4]."""
    other, capacity = observation.other, observation.capacity
    assert other is not None
    assert capacity is not None
    cutoffs = other.cutoff, other.inner_cutoff
    graph, needs = graph_of_replicas(species, positions, cells, inverses, cutoffs, capacity)
    found = evaluate(other, graph, stress=any(each.needs_other_stress for each in observation.observables))
    return found.replace(forces=found.forces.reshape(positions.shape)), needs


def _of_replica(found: Prediction, atoms: int) -> Prediction:
    """The prediction of one replica, without its padding, as a batch of one."""
    stress = None if found.stress is None else found.stress[None]
    return Prediction(found.energy[None], found.forces[:atoms], stress)


def with_sample(means: Means, seen: dict[str, Any]) -> Means:
    """The means with one sample more."""
    count = means.count + 1

    def added(mean: Any, value: Any) -> Any:
        return mean + (value - mean) / count.reshape(-1, *[1] * (mean.ndim - 1))

    return means.replace(values=jax.tree.map(added, means.values, seen), count=count)


def make_observation(
    observables: Sequence[Observable],
    other: Potential | None,
    ensemble: Ensemble,
    numbers: Sequence[np.ndarray],
    masses: np.ndarray,
    degrees: np.ndarray,
    every: int,
    heights: np.ndarray,
) -> Observation:
    """What to observe, checked: energy, temperature and, where the cell moves, density and pressure are always.

    Args:
        observables: asked for.
        other: a second potential whose energies and forces the run's are compared with.
        ensemble: that moves the replicas.
        numbers: [atoms] of each replica, atomic numbers.
        masses: [replicas, atoms], amu, padding included.
        degrees: [replicas].
        every: steps between looks.
        heights: least heights of the cells, Å.

    Raises:
        ValueError: if two observables have one name, one makes no sense for the structures, or the second potential
            does not know the elements.
    """
    always: list[Observable] = [PotentialEnergy(), Temperature()]
    always += [Density(), Pressure()] if ensemble.moves_cell else []
    always += [SquaredForceError(), EnergyDifference()] if other is not None else []
    for observable in observables:
        if observable.of_fluctuations:
            raise ValueError(
                f"The {observable.name} is that of fluctuations, which means over several frames no longer show: leave "
                "it out of observables=, and average it over the frames of the run."
            )
    chosen = (*always, *(observable for observable in observables if observable not in always))
    check_names(chosen)
    kinds: dict[tuple[int, ...], int] = {}
    of_replicas = [kinds.setdefault(tuple(each.tolist()), len(kinds)) for each in numbers]
    for kind in kinds:
        if other is not None:
            check_species(other, np.array(kind))
        example = FrameState(None, None, None, numbers=kind, heights=tuple(heights.tolist()))
        for observable in chosen:
            observable.check(example)
    return Observation(
        masses=jnp.asarray(masses, float),
        degrees=jnp.asarray(np.broadcast_to(degrees, len(numbers)), float),
        kinds=jnp.asarray(of_replicas, jnp.int32),
        every=jnp.asarray(every, jnp.int32),
        other=other if other is None else jax.device_put(other),
        observables=chosen,
        numbers=tuple(kinds),
    )


def fitted(
    observation: Observation,
    positions: Sequence[np.ndarray],
    cells: np.ndarray,
    heights: np.ndarray,
    atoms: int,
    needs: np.ndarray | None = None,
) -> Observation:
    """The observation with room for the lists of its second potential.

    Args:
        observation: what to look at.
        positions: [atoms, 3] of each replica now, Å.
        cells: [replicas, 3, 3], now, Å.
        heights: least heights of the cells to come, Å.
        atoms: of each replica, padding included.
        needs: what did not fit; see `Capacity.fits`.
    """
    # Rounded down, so that runs of nearly equal cells share compiled code.
    shown = tuple((np.floor(10.0 * heights) / 10.0).tolist())
    other, capacity = observation.other, observation.capacity
    if other is None:
        return observation.replace(heights=shown)
    here = heights, other.cutoff, atoms
    if capacity is None:
        first = needs_of(positions, cells, heights, (other.cutoff, other.inner_cutoff), 0.0, atoms)
        return observation.replace(heights=shown, capacity=Capacity.holding(first, *here))
    needs = np.zeros(4, int) if needs is None else needs
    return observation.replace(heights=shown, capacity=capacity.grown(needs, *here))


def references_of(own: np.ndarray, other: Potential | None, numbers: Sequence[np.ndarray]) -> References:
    """What energies of the replicas are relative to; `own` is of the potential that moves them, [replicas], eV."""
    atoms = np.array([len(each) for each in numbers])
    return References(own, None if other is None else np.array([reference_energy(other, n) for n in numbers]), atoms)


def completed(means: Means, observables: Sequence[Observable], references: References) -> dict[str, np.ndarray]:
    """Means by name in double precision, [replicas, ...], with elemental references."""
    values = {name: np.array(each, np.float64) for name, each in jax.device_get(means.values).items()}
    return {each.name: each.completed(values[each.name], references) for each in observables}
