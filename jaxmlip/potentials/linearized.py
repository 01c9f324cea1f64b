"""A potential to first order in a change of its parameters: linear in the change, and as cheap to differentiate."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxmlip.potentials.potential import Potential, all_labels
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.graph import Graph
from jaxmlip.types import Leaf, PerAtom


@flax.struct.dataclass
class LinearizedPotential(Potential):
    """E(θ) + ∂E/∂θ · change, the tangent of a potential at its parameters.

    A network whose parameters are moved by closed-form regression is this one (Maddox et al., Fast Adaptation with
    Linearized Neural Networks, AISTATS 2021): moving the parameters of the network itself would add terms of higher
    order that the regression knows nothing of. Symmetries, smoothness and cutoff are those of the network. Energy and
    derivative come from one pass in forward mode, at about twice the cost of the energy.

    Attributes:
        base: the potential, with one readout.
        change: pytree like `base.params`.
        references: [119], eV.
    """

    base: Trainable
    change: Leaf
    references: Leaf

    @property
    def params(self) -> dict[str, Any]:
        """The base's parameters, and their change."""
        return {"base": self.base.params, "change": self.change}

    def with_params(self, params: Any) -> "LinearizedPotential":
        """The tangent at other parameters, with another change."""
        return self.replace(base=self.base.with_params(params["base"]), change=params["change"])

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.base.cutoff

    @property
    def inner_cutoff(self) -> float:
        """Å."""
        return self.base.inner_cutoff

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the base knows, ascending."""
        return self.base.species

    @property
    def reads_elements(self) -> bool:
        """Whether the base saves work by it."""
        return self.base.reads_elements

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that the base has seen, and energies, from which the change comes."""
        return all_labels([self.base.trained_on, ("energy",)])

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, relative to its elemental reference; 0 for padding atoms.

        Raises:
            ValueError: if the base has several heads.
        """
        dtype = graph.positions.dtype
        point, change = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (self.base.params, self.change))

        def energies(params: Any) -> PerAtom:
            return self.base.with_params(params).atomic_energies(graph)

        at_point, slope = jax.jvp(energies, (point,), (change,))
        return at_point + slope
