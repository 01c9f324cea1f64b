"""Potentials times a number, of which sums make mixtures."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import Graph
from jaxmlip.types import Leaf, PerAtom, PerGraph


@flax.struct.dataclass
class Scaled(Potential):
    """A potential whose energies and references are a factor times another's; the factor is a leaf.

    With `Sum` it makes mixtures, (1 − λ) U + λ U', whose stacks differ in λ alone.
    """

    of: Potential
    factor: Leaf

    @property
    def params(self) -> Any:
        """Parameters of the other."""
        return self.of.params

    def with_params(self, params: Any) -> "Potential":
        """The same with other parameters."""
        return self.replace(of=self.of.with_params(params))

    @property
    def opaque(self) -> bool:
        """Whether JAX does not see the parameters."""
        return self.of.opaque

    @property
    def references(self) -> Float[np.ndarray, "*models 119"]:
        """Scaled elemental references, eV."""
        return np.asarray(self.factor, np.float64)[..., None] * np.asarray(self.of.references, np.float64)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.of.cutoff

    @property
    def inner_cutoff(self) -> float:
        """Å."""
        return self.of.inner_cutoff

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that the other knows."""
        return self.of.species

    @property
    def reads_elements(self) -> bool:
        """Whether the other saves work by it."""
        return self.of.reads_elements

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that the other has seen."""
        return self.of.trained_on

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Scaled atomic energies, eV."""
        return self.factor * self.of.atomic_energies(graph)

    def energy(self, graph: Graph) -> PerGraph:
        """Scaled energies, eV; the other need not have atomic energies."""
        return self.factor * self.of.energy(graph)

    @property
    def has_magnetic_moments(self) -> bool:
        """Whether the other predicts them; they are not scaled."""
        return self.of.has_magnetic_moments

    def energy_and_moments(self, graph: Graph) -> tuple[PerGraph, PerAtom | None]:
        """Scaled energies, eV, and the other's magnetic moments, μB."""
        energy, moments = self.of.energy_and_moments(graph)
        return self.factor * energy, moments

    def references_for(self, species: Sequence[int] | Int[np.ndarray, " atoms"]) -> Float[np.ndarray, "119"]:
        """Scaled references, eV."""
        return float(self.factor) * self.of.references_for(species)

    def check(self, atoms: Atoms, *, stress: bool = False) -> None:
        """Whether the other can say what is asked for; ValueError if not."""
        self.of.check(atoms, stress=stress)

    def complaint(self) -> str:
        """What went wrong in the other."""
        return self.of.complaint()
