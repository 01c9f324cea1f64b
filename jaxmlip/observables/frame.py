"""One frame of a simulation on the device, as observables see it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.potentials.potential import Potential, Prediction, evaluate
from jaxmlip.systems import cells as geometry
from jaxmlip.systems.capacity import Capacity, graph_of_replicas
from jaxmlip.systems.graph import Graph
from jaxmlip.types import Leaf
from jaxmlip.units import KB


class FrameState(flax.struct.PyTreeNode):
    """One frame; what is not known of it is None.

    Attributes:
        positions: [atoms, 3], Å, up to translations of atoms by lattice vectors, and of the whole where not periodic:
            what is far from the origin is seen near it, where single precision suffices.
        cell: [3, 3], lattice vectors as rows, Å; zero rows where not periodic.
        masses: [atoms], amu.
        momenta: [atoms, 3], in √(amu eV).
        degrees: [], degrees of freedom that temperatures are counted with; 3N if None.
        potential_energy: [], eV, of the potential that made the frame, relative to its elemental references.
        forces: [atoms, 3], eV/Å, of that potential.
        stress: [3, 3], eV/Å³, of that potential, without the kinetic part.
        prediction: of another potential at this frame, where there is one.
        numbers: atomic numbers (static).
        heights: distances in Å between the faces of the smallest cell to come (static), infinite where not periodic;
            they fix how many periodic images are looked at.
        capacity: of the neighbour lists that a potential needs (static); see `predicted`.
    """

    positions: Leaf
    cell: Leaf
    masses: Leaf
    momenta: Leaf = None
    degrees: Leaf = None
    potential_energy: Leaf = None
    forces: Leaf = None
    stress: Leaf = None
    prediction: Prediction | None = None
    numbers: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    heights: tuple[float, ...] = flax.struct.field(pytree_node=False, default=(np.inf, np.inf, np.inf))
    capacity: Capacity | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def at_rest(self) -> "FrameState":
        """The frame without momenta and without what is known of potentials: all that an energy depends on."""
        nothing = dict.fromkeys(("momenta", "degrees", "potential_energy", "forces", "stress", "prediction"))
        return self.replace(**nothing)

    @property
    def periodic(self) -> bool:
        """Whether the cell is periodic in all three directions."""
        return bool(np.isfinite(self.heights).all())

    @property
    def volume(self) -> Any:
        """[], Å³, of a cell that is periodic in three directions; differentiable."""
        return geometry.volumes(self.cell)

    @property
    def kinetic_energy(self) -> Any:
        """[], eV.

        Raises:
            ValueError: if the frame has no momenta.
        """
        return 0.5 * (self.known_momenta**2 / self.masses[:, None]).sum()

    @property
    def known_momenta(self) -> Any:
        """`momenta`; ValueError if there are none."""
        return self._known("momenta", "simulate with keep_velocities=True")

    @property
    def known_forces(self) -> Any:
        """`forces`; ValueError if there are none."""
        return self._known("forces", "observe while the simulation runs, by simulate(observables=...)")

    @property
    def temperature(self) -> Any:
        """[], kinetic temperature in K.

        Raises:
            ValueError: if the frame has no momenta.
        """
        degrees = 3 * len(self.numbers) if self.degrees is None else self.degrees
        return 2.0 * self.kinetic_energy / (degrees * KB)

    def energy_of(self, potential: Potential | None) -> Any:
        """[], eV, relative to the references: of a potential, or what is known of the one that made the frame.

        Raises:
            ValueError: if neither is there.
        """
        if potential is None:
            return self._known("potential_energy", "give a potential")
        graph, fits = self.graph_for(potential)
        return jnp.where(fits, potential.energy(graph)[0], jnp.nan)

    def stress_of(self, potential: Potential | None) -> Any:
        """[3, 3], eV/Å³, without the kinetic part: of a potential, or of the one that made the frame.

        Raises:
            ValueError: if neither is there.
        """
        if potential is None:
            return self._known("stress", "give a potential")
        return self.predicted(potential, stress=True).stress[0]

    def predicted(self, potential: Potential | None, *, stress: bool = False) -> Prediction:
        """What a potential says of the frame, as a batch of one; or the `prediction` that is known, if None is given.

        Raises:
            ValueError: if neither is there.
        """
        if potential is None:
            return self._known("prediction", "give the potential to compare with")
        graph, fits = self.graph_for(potential)
        found = evaluate(potential, graph, stress=stress)
        return jax.tree.map(lambda leaf: jnp.where(fits, leaf, jnp.nan), found)

    def graph_for(self, potential: Potential) -> tuple[Graph, Any]:
        """The frame as a potential reads it, differentiable in positions and cell, and whether `capacity` sufficed.

        Neighbour lists are made here and now, and have no derivative. Whatever is said where they did not fit is NaN.

        Raises:
            ValueError: if the frame has no capacity for lists.
        """
        one = jax.tree.map(lambda leaf: leaf[None], (self.positions, self.cell))
        return self._graph(potential, *one)

    def batch_graph(self, potential: Potential) -> tuple[Graph, Any]:
        """Frames whose leaves have a leading axis, as one batch of graphs; see `graph_for`.

        Potentials are faster with one batch than with frames that `jax.vmap` maps: they know how to cut it.
        """
        return self._graph(potential, self.positions, self.cell)

    def _graph(self, potential: Potential, positions: Any, cells: Any) -> tuple[Graph, Any]:
        if self.capacity is None:
            raise ValueError(
                "The frame has no capacity for neighbour lists: make it by jaxmlip.frame_states(run, potential=...)."
            )
        where, cell = jax.lax.stop_gradient((positions, cells))
        inverse = geometry.inverses(cell) if self.periodic else jnp.linalg.pinv(cell)
        species = jnp.broadcast_to(np.array(self.numbers, np.int32), where.shape[:2])
        cutoffs = potential.cutoff, potential.inner_cutoff
        graph, needs = graph_of_replicas(species, where, cell, inverse, cutoffs, self.capacity)
        here = graph.replace(positions=positions.reshape(-1, 3), cell=cells)
        return here, self.capacity.fits(needs.max(0))

    def _known(self, name: str, mend: str) -> Any:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"The frame has no {name.replace('_', ' ')}: {mend}.")
        return value
