"""Averages that accumulate on the device while a simulation runs, so that its frames need not be kept.

What is observed is looked at more often than frames are kept; each frame carries the means since the one before.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.potentials.potential import Potential, Prediction, check_species, evaluate, reference_energy
from jaxmlip.simulation import cells as geometry
from jaxmlip.simulation.cell_lists import Bins, bins_for
from jaxmlip.simulation.driver import Driver, slots_needed
from jaxmlip.simulation.neighbors import image_search, within_cutoff
from jaxmlip.simulation.recording import Sampler
from jaxmlip.simulation.step import Room, System, as_one_graph, current_cells, lists_of_replicas
from jaxmlip.types import Leaf
from jaxmlip.units import G_PER_CM3, GPA

FORCE_ERROR = "squared force error"
"""Mean squared difference of a force component to that of a second potential."""

ENERGY_DIFFERENCE = "energy difference"
"""Energy per atom minus that of a second potential."""

PRESSURE_TENSOR = "pressure tensor"
"""Name of the observable that asks for the derivative of the run's own energy by strain."""

SECOND_UNITS = {FORCE_ERROR: "eV2/Å2", ENERGY_DIFFERENCE: "eV"}
"""Units of what comes of a second potential."""

SCALAR_UNITS = {"potential energy": "eV", "temperature": "K", "density": "g/cm³", "pressure": "GPa"}
"""Units of what is always observed, the last two where the cell moves; the names are those of the observables."""


class FrameState(flax.struct.PyTreeNode):
    """One frame, as observables see it.

    Attributes:
        positions: [atoms, 3], Å, up to translations of atoms by lattice vectors, and of the whole where not periodic:
            what is far from the origin is seen near it, where single precision suffices.
        cell: [3, 3], lattice vectors as rows, Å; zero rows where not periodic.
        potential_energy: [], eV.
        temperature: [], kinetic temperature in K.
        mass: [], of all atoms together, amu.
        numbers: atomic numbers (static).
        heights: distances in Å between the faces of the smallest cell to come (static), infinite where not periodic;
            they fix how many periodic images are looked at.
    """

    positions: Leaf
    cell: Leaf
    potential_energy: Leaf
    temperature: Leaf
    mass: Leaf
    numbers: tuple[int, ...] = flax.struct.field(pytree_node=False)
    heights: tuple[float, ...] = flax.struct.field(pytree_node=False)


@runtime_checkable
class PerFrame(Protocol):
    """What can be observed: an `Observable` that looks at positions and cells alone, hashable."""

    @property
    def name(self) -> str:
        """Of the series."""
        ...

    @property
    def unit(self) -> str:
        """Of the values."""
        ...

    def per_frame(self, frame: FrameState) -> Any:
        """Value of one frame."""
        ...


class Observer:
    """Looks at the replicas that a driver moves, and averages what it sees until it is asked.

    Attributes:
        units: of the series, by name.
    """

    def __init__(
        self,
        sampler: Sampler,
        observables: Sequence[PerFrame],
        against: Potential | None,
        numbers: Sequence[np.ndarray],
    ) -> None:
        """Begin to observe.

        Args:
            sampler: of the simulation.
            observables: what to average, besides energy, temperature and, where the cell moves, density and pressure.
            against: a second potential whose energies and forces the run's are compared with.
            numbers: [atoms] of each replica, atomic numbers.

        Raises:
            ValueError: if two observables have one name, the second potential does not know the elements, or a
                pressure is asked for where there is none.
        """
        self._sampler, self._driver, self._second, self._own = sampler, sampler.driver, None, None
        elsewhere = (*SCALAR_UNITS, PRESSURE_TENSOR)
        self._observables = tuple(each for each in observables if each.name not in elsewhere)
        # Not those of the state: what is held weighs something else there.
        self._masses = jnp.asarray(self._driver.masses, float)[:, :, None]
        self._kinds: dict[tuple[int, ...], list[int]] = {}
        for replica, of_atoms in enumerate(numbers):
            self._kinds.setdefault(tuple(of_atoms.tolist()), []).append(replica)
        names = [observable.name for observable in self._observables]
        if len(set(names)) < len(names):
            raise ValueError(f"Observables need names of their own, but there are {', '.join(names)}.")
        scalars = list(SCALAR_UNITS)[: None if sampler.kind.moves_cell else 2]
        self.units = {name: SCALAR_UNITS[name] for name in scalars}
        self.units |= {observable.name: observable.unit for observable in self._observables}
        if any(each.name == PRESSURE_TENSOR for each in observables):
            moves = sampler.kind.moves_cell  # then the engine knows the stress
            if self._driver.layout.models and not moves:
                raise ValueError(
                    f"The {PRESSURE_TENSOR} of a cell at rest is observed of one model alone; "
                    "simulate them by themselves."
                )
            if not np.isfinite(self._driver.heights).all():
                raise ValueError(f"The {PRESSURE_TENSOR} needs a cell that is periodic in all three directions.")
            self._own = None if moves else _Evaluator(self._driver, self._driver.potential, stress=True)
            self.units[PRESSURE_TENSOR] = "GPa"
        if against is not None:
            references = np.zeros(len(numbers))
            for of_atoms, replicas in self._kinds.items():
                check_species(against, np.array(of_atoms))
                references[replicas] = reference_energy(against, np.array(of_atoms))
            self._difference = (sampler.references - references) / self._driver.sizes
            self._second = _Evaluator(self._driver, against, stress=False)
            self.units |= SECOND_UNITS
        self._sums: dict[str, Any] = {}
        self._looks = 0

    def look(self) -> None:
        """Add the present state to the averages."""
        seen = self._scalars() | self._seen()
        if PRESSURE_TENSOR in self.units:
            walkers = self._driver.walkers
            stress = walkers.state.stress if self._own is None else self._own.evaluated().stress
            seen[PRESSURE_TENSOR] = _pressures(stress, walkers, self._cells())
        if self._second is not None:
            seen |= _compared(self._second.evaluated(), self._driver.walkers, self._driver.sizes)
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in seen.items()}
        self._looks += 1

    def means(self) -> dict[str, np.ndarray]:
        """Averages [replicas, ...] since this was last asked."""
        found = {name: np.asarray(total, np.float64) / self._looks for name, total in self._sums.items()}
        if self._second is not None:
            if complaint := self._second.potential.complaint():
                warnings.warn(f"What a run is compared with has failed. {complaint}", stacklevel=2)
            found[ENERGY_DIFFERENCE] += self._difference
        self._sums, self._looks = {}, 0
        return found

    def _scalars(self) -> dict[str, np.ndarray]:
        """In double precision: sums of energies would lose too much in single."""
        scalars = self._sampler.scalars()
        found = {"potential energy": scalars["potential_energy"], "temperature": scalars["temperature"]}
        if self._driver.kind.moves_cell:
            mass = np.asarray(self._driver.walkers.state.mass, np.float64).sum((1, 2))
            found["density"] = mass / (G_PER_CM3 * np.abs(np.linalg.det(scalars["cells"])))
            found["pressure"] = scalars["pressure_GPa"]
        return found

    def _seen(self) -> dict[str, Any]:
        if not self._observables:  # or a program for every kind of structure would be compiled that does nothing
            return {}
        driver = self._driver
        heights = tuple(np.floor(10.0 * least_heights(driver)) / 10.0)
        of_replicas = driver.walkers.state.position, self._cells(), self._masses
        if len(self._kinds) == 1:
            return _per_replica(self._observables, *self._kinds, heights, *of_replicas)
        seen = [
            _per_replica(self._observables, kind, heights, *(each[np.array(replicas)] for each in of_replicas))
            for kind, replicas in self._kinds.items()
        ]
        order = np.argsort(np.concatenate(list(self._kinds.values())))
        return jax.tree.map(lambda *values: jnp.concatenate(values)[order], *seen)

    def _cells(self) -> Any:
        return current_cells(self._driver.system, self._driver.walkers.state, self._driver.kind)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _per_replica(
    observables: tuple[PerFrame, ...],
    numbers: tuple[int, ...],
    heights: tuple[float, ...],
    positions: Any,
    cells: Any,
    masses: Any,
) -> dict[str, Any]:
    """Values of all observables, [replicas, ...] each."""

    def one(replica: tuple[Any, Any, Any]) -> dict[str, Any]:
        (position, cell, mass), scalar = replica, jnp.full((), jnp.nan)  # scalars are averaged by the host
        position = position[: len(numbers)]  # without padding, which weighs nothing
        frame = FrameState(position, cell, scalar, scalar, mass.sum(), numbers=numbers, heights=heights)
        return {observable.name: observable.per_frame(frame) for observable in observables}

    return jax.lax.map(one, (positions, cells, masses))


class _Evaluator:
    """A potential, evaluated where the replicas are, and room for its own lists."""

    def __init__(self, driver: Driver, potential: Potential, *, stress: bool) -> None:
        self.potential, self._driver, self._stress = jax.device_put(potential), driver, stress
        self._sizes: np.ndarray | None = None

    def evaluated(self) -> Prediction:
        """Energies without references [replicas], forces [replicas × atoms, 3], and stresses if asked for."""
        driver, walkers, cutoff = self._driver, self._driver.walkers, self.potential.cutoff
        if self._sizes is None:
            cells = np.asarray(current_cells(driver.system, walkers.state, driver.kind), np.float64)
            slots = slots_needed(driver.positions, cells, cutoff, self.potential.inner_cutoff, skin=0.0)
            self._sizes = np.append(slots, 0)
        heights = least_heights(driver)
        search, number = image_search(heights, cutoff), bins_for(driver.atoms, heights, cutoff)
        while True:
            _, slots, inner, in_bin = (int(size) for size in self._sizes)
            slots = max(slots, 1)  # a potential may see no neighbours, but lists have a place
            inner = inner if self.potential.inner_cutoff > 0 else 0
            room = Room(search, slots, slots, inner, None if number is None else Bins(number, max(in_bin, 1)))
            prediction, needed = _evaluated(
                self.potential, driver.system, walkers, kind=driver.kind, room=room, stress=self._stress
            )
            if room.fits(needed):
                return prediction
            self._sizes = np.maximum(self._sizes, np.asarray(needed) * 9 // 8 + 1)


def least_heights(driver: Driver) -> np.ndarray:
    """Heights in Å that cells have at least: those that lists are made for, less what the skin permits until then."""
    permitted = driver.skin / (driver.cutoff + driver.skin) if driver.kind.moves_cell else 0.0
    return (1.0 - permitted) * driver.heights


@functools.partial(jax.jit, static_argnames=("kind", "room", "stress"))
def _evaluated(
    potential: Potential, system: System, walkers: Any, *, kind: Any, room: Room, stress: bool
) -> tuple[Prediction, Any]:
    """What a potential says of the replicas, and what is needed of `Room`, [4]."""
    positions = walkers.state.position
    replicas, atoms, _ = positions.shape
    cells = current_cells(system, walkers.state, kind)
    inverses = geometry.inverses(cells) if kind.moves_cell else system.inverses
    lists, fullest = lists_of_replicas(system.species, positions, cells, inverses, potential.cutoff, room)
    graph = as_one_graph(system.species, positions, cells, lists.neighbors, lists.shifts)
    graph, needed = within_cutoff(graph, potential.cutoff, potential.inner_cutoff, slots=room.slots, inner=room.inner)
    # Frozen replicas may be anything; what they need does not count.
    alive = walkers.failure == 0
    seen_and_inner = jnp.where(alive[:, None], needed.reshape(replicas, atoms, 2).max(1), 0).max(0)
    listed = jnp.where(alive, lists.needed, 0).max()
    return evaluate(potential, graph, stress=stress), jnp.stack([listed, *seen_and_inner, fullest])


@jax.jit
def _compared(prediction: Prediction, walkers: Any, atoms: Any) -> dict[str, Any]:
    """Differences to the run's own energies, per atom and without references, and forces, [replicas]."""
    force = walkers.state.force
    return {
        FORCE_ERROR: ((prediction.forces.reshape(force.shape) - force) ** 2).sum((1, 2)) / (3 * atoms),
        ENERGY_DIFFERENCE: (walkers.energy - prediction.energy) / atoms,
    }


@jax.jit
def _pressures(stress: Any, walkers: Any, cells: Any) -> Any:
    """Pressure tensors Σ p pᵀ/m / V − σ in GPa, [replicas, 3, 3]."""
    momentum, mass = walkers.state.momentum, walkers.state.mass
    kinetic = jnp.einsum("rai,raj->rij", momentum / mass, momentum)
    return (kinetic / jnp.abs(jnp.linalg.det(cells))[:, None, None] - stress) / GPA
