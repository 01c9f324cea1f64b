"""Potentials simple enough that statistical mechanics knows the answer."""

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.types import Leaf, PerAtom


@flax.struct.dataclass
class Wells(Potential):
    """Every atom in its own harmonic well, ½ k |r − r₀|²: params {"k": [] or [atoms], "centres": [atoms, 3]}."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(119))

    @property
    def cutoff(self) -> float:
        """Wells need no neighbours, but a list wants some range, Å."""
        return 1.0

    @property
    def species(self) -> tuple[int, ...]:
        """Any element."""
        return tuple(range(1, 119))

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """½ k |r − r₀|², eV."""
        centres = self.params["centres"]
        # A graph may be a batch of replicas of the same atoms.
        away = graph.positions.reshape(-1, *centres.shape) - centres
        return 0.5 * (self.params["k"] * (away**2).sum(-1)).ravel()


@dataclasses.dataclass(frozen=True)
class SquaredDisplacement(Observable):
    """Mean squared displacement from wells at 5 Å in every direction, one number or one a direction."""

    directions: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        return "x2"

    @property
    def unit(self) -> str:
        """Of the values."""
        return "Å2"

    def per_frame(self, frame: Any, potential: Any = None) -> Any:
        """[] or [3], Å²."""
        squares = (frame.positions - 5.0) ** 2
        return squares.mean(0) if self.directions else squares.mean()


@flax.struct.dataclass
class LennardJones(Potential):
    """Lennard-Jones, cut at `range_` and shifted to zero there: params {"epsilon": [], "sigma": []} in eV and Å."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(119))
    range_: float = flax.struct.field(pytree_node=False, default=2.5)
    inner_range: float = flax.struct.field(pytree_node=False, default=0.0)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.range_

    @property
    def inner_cutoff(self) -> float:
        """Å; with one, only the leading slots are read, so that lists too short within it give other forces."""
        return self.inner_range

    @property
    def species(self) -> tuple[int, ...]:
        """Any element."""
        return tuple(range(1, 119))

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Half the pair energies, eV."""
        vectors, mask = edge_vectors(graph)
        cut = self.range_
        if self.inner_range > 0:
            vectors, mask, cut = vectors[:, : graph.inner], mask[:, : graph.inner], self.inner_range
        squared = (vectors**2).sum(-1)
        near = mask & (squared < cut**2)
        sixth = (self.params["sigma"] ** 2 / jnp.where(near, squared, cut**2)) ** 3
        at_cut = (self.params["sigma"] ** 2 / cut**2) ** 3
        pair = 4.0 * self.params["epsilon"] * ((sixth**2 - sixth) - (at_cut**2 - at_cut))
        return 0.5 * jnp.where(near, pair, 0.0).sum(-1)


@flax.struct.dataclass
class SmoothLennardJones(LennardJones):
    """Lennard-Jones whose pairs end smoothly at the cutoff, as derivatives of trajectories want it."""

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Half the pair energies times (1 − (r / cutoff)²)³, eV."""
        vectors, mask = edge_vectors(graph)
        squared = (vectors**2).sum(-1)
        near = mask & (squared < self.range_**2)
        squared = jnp.where(near, squared, self.range_**2)
        sixth = (self.params["sigma"] ** 2 / squared) ** 3
        pair = 4.0 * self.params["epsilon"] * (sixth**2 - sixth) * (1.0 - squared / self.range_**2) ** 3
        return 0.5 * jnp.where(near, pair, 0.0).sum(-1)


def lennard_jones(**options) -> LennardJones:
    """Reduced units: ε = 1 eV, σ = 1 Å."""
    return LennardJones({"epsilon": np.float32(1.0), "sigma": np.float32(1.0)}, **options)


REDUCED_K = 1.0 / 8.617330337217213e-05
"""The temperature in K at which kT = 1 eV."""

REDUCED_TIME_FS = 10.180505710774743
"""σ √(m/ε) in fs for 1 Å, 1 amu and 1 eV."""


@flax.struct.dataclass
class RockSalt(LennardJones):
    """Unlike pairs as `SmoothLennardJones`, like pairs that repel ten times as much: rock salt is their crystal."""

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Half the pair energies times (1 − (r / cutoff)²)³, eV."""
        vectors, mask = edge_vectors(graph)
        squared = (vectors**2).sum(-1)
        near = mask & (squared < self.range_**2)
        squared = jnp.where(near, squared, self.range_**2)
        sixth = (self.params["sigma"] ** 2 / squared) ** 3
        species = jnp.asarray(graph.species)
        like = species[graph.neighbors] == species[:, None]
        pair = 4.0 * self.params["epsilon"] * jnp.where(like, 10.0 * sixth**2, sixth**2 - sixth)
        return 0.5 * jnp.where(near, pair * (1.0 - squared / self.range_**2) ** 3, 0.0).sum(-1)
