"""Potentials of pairs: one function of the distance for every pair of elements."""

import abc
import itertools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.potentials.radial import envelope
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.types import AnyArray, Leaf, PerAtom

ENVELOPE_POWER = 5
"""p of the polynomial envelope that takes every function to zero at the cutoff."""


class _OfPairs(Potential):
    """Energies that are linear in coefficients for pairs of elements; see the fields of the classes that follow."""

    params: Leaf
    known: tuple[int, ...]
    reach: float

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.reach

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the potential knows, ascending."""
        return self.known

    @abc.abstractmethod
    def functions(self, graph: Graph) -> Float[Array, "atoms pairs functions"]:
        """What the coefficients multiply: functions summed over the neighbours of each atom, halved."""

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV; 0 for padding atoms, NaN for elements the potential does not know."""
        functions = self.functions(graph)
        energies = jnp.einsum("apk,pk->a", functions, jnp.asarray(self.params, functions.dtype))
        return _only_known(energies, graph, self.known)


@flax.struct.dataclass
class PairPotential(_OfPairs):
    """E_i = ½ Σ_j f(r_ij), with f = Σ_k c_k exp(−(ln r − u_k)² / 2h²) · envelope for each unordered pair of elements.

    The centres u_k divide [ln `shortest`, ln cutoff] evenly and h is their distance: resolution is finest where bonds
    are, and the energy is linear in the coefficients. Below `shortest` the functions fade away, so that such a
    potential is a correction to another, which holds the atoms apart.

    Attributes:
        params: coefficients c in eV, [pairs, centres], pairs as in `element_pairs`.
        references: [119], eV.
        known: atomic numbers, ascending (static).
        reach: cutoff in Å (static).
        shortest: Å (static).
    """

    params: Leaf
    references: Leaf
    known: tuple[int, ...] = flax.struct.field(pytree_node=False)
    reach: float = flax.struct.field(pytree_node=False)
    shortest: float = flax.struct.field(pytree_node=False)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Energies, from which the coefficients come."""
        return ("energy",)

    def functions(self, graph: Graph) -> Float[Array, "atoms pairs centres"]:
        """What the coefficients multiply: the basis functions summed over the neighbours of each atom, halved."""
        vectors, mask = edge_vectors(graph)
        vectors = jnp.asarray(vectors)
        lengths = jnp.where(mask, jnp.sqrt(jnp.sum(vectors**2, axis=-1)), self.reach)
        centres = jnp.asarray(log_centres(self.shortest, self.reach, self.params.shape[-1]), lengths.dtype)
        steps = (jnp.log(lengths)[..., None] - centres) / (centres[1] - centres[0])
        smooth = jnp.where(mask, envelope(lengths, self.reach, ENVELOPE_POWER), 0.0)
        basis = jnp.exp(-0.5 * steps**2) * smooth[..., None]
        kind = _pair_kind(graph, self.known)
        summed = [jnp.sum(jnp.where((kind == k)[..., None], basis, 0.0), axis=1) for k in range(self.params.shape[-2])]
        return 0.5 * jnp.stack(summed, axis=1)


@flax.struct.dataclass
class PairForces(_OfPairs):
    """E_i = ½ Σ_j φ(r_ij), where the force f = −φ′ is linear between knots, and φ and f are 0 at the cutoff.

    φ = Σ_k c_k ∫_r^cutoff h_k dr′ with the triangle h_k about the knot k, so that a coefficient is the force at a
    distance, and what it contributes is what that force does.

    Attributes:
        params: forces c at the knots in eV/Å, positive where they repel, [pairs, knots], pairs as in `element_pairs`.
        references: [119], eV.
        known: atomic numbers, ascending (static).
        reach: cutoff in Å (static).
    """

    params: Leaf
    references: Leaf
    known: tuple[int, ...] = flax.struct.field(pytree_node=False)
    reach: float = flax.struct.field(pytree_node=False)

    @property
    def knots(self) -> Float[np.ndarray, " knots"]:
        """Å; the cutoff would be the next one."""
        number = self.params.shape[-1]
        return np.arange(number) * (self.reach / number)

    def functions(self, graph: Graph) -> Float[Array, "atoms pairs knots"]:
        """What the coefficients multiply in energies, halved like these."""
        lengths, _, mask = self._edges(graph)
        steps, width = self._steps(lengths), self.reach / self.params.shape[-1]
        # ∫ of a triangle of unit height and half width from r on: 1 where r is left of it, ½ at its tip, 0 beyond.
        left, right = jnp.clip(steps, -1.0, 0.0), jnp.clip(steps, 0.0, 1.0)
        beyond = 0.5 - (left + 0.5 * left**2) - (right - 0.5 * right**2)
        return 0.5 * width * self._by_pair(graph, jnp.where(mask[..., None], beyond, 0.0))

    def forces_of_functions(self, graph: Graph) -> Float[Array, "atoms 3 pairs knots"]:
        """What the coefficients multiply in forces."""
        lengths, directions, mask = self._edges(graph)
        heights = jnp.where(mask[..., None], jnp.maximum(0.0, 1.0 - jnp.abs(self._steps(lengths))), 0.0)
        along = [self._by_pair(graph, -heights * directions[..., axis, None]) for axis in range(3)]
        return jnp.stack(along, axis=1)

    def _edges(self, graph: Graph) -> tuple[Any, Any, Any]:
        """Lengths, unit vectors towards the neighbours, and which edges there are."""
        vectors, mask = edge_vectors(graph)
        vectors = jnp.asarray(vectors)
        squared = jnp.sum(vectors**2, axis=-1)
        mask = mask & (squared < self.reach**2)
        lengths = jnp.sqrt(jnp.where(mask, squared, self.reach**2))
        return lengths, vectors / lengths[..., None], mask

    def _steps(self, lengths: Any) -> Any:
        """From the knots, in distances between these, [..., knots]."""
        return (lengths[..., None] - self.knots.astype(lengths.dtype)) * (self.params.shape[-1] / self.reach)

    def _by_pair(self, graph: Graph, values: Any) -> Any:
        """Sums over neighbours [atoms, slots, ...] by pairs of elements."""
        kind = _pair_kind(graph, self.known)
        summed = [jnp.sum(jnp.where((kind == k)[..., None], values, 0.0), 1) for k in range(self.params.shape[-2])]
        return jnp.stack(summed, axis=1)


def _rows(known: Sequence[int]) -> Array:
    """Places of atomic numbers among those that are known; −1 for others."""
    row = np.full(N_SPECIES, -1, np.int32)
    row[list(known)] = np.arange(len(known))
    return jnp.asarray(row)


def _pair_kind(graph: Graph, known: Sequence[int]) -> AnyArray:
    """Number of the pair of elements of every edge."""
    element = jnp.maximum(_rows(known)[graph.species], 0)
    table = np.zeros((len(known),) * 2, np.int32)
    for kind, (one, other) in enumerate(itertools.combinations_with_replacement(range(len(known)), 2)):
        table[one, other] = table[other, one] = kind
    return jnp.asarray(table)[element[:, None], element[jnp.asarray(graph.neighbors)]]


def _only_known(energies: Any, graph: Graph, known: Sequence[int]) -> Any:
    """Energies of atoms, 0 for padding and NaN for elements that are not known."""
    unknown = _rows(known)[graph.species] < 0
    return jnp.where(graph.atom_mask, jnp.where(unknown, jnp.nan, energies), 0.0)


def element_pairs(known: Sequence[int]) -> list[tuple[int, int]]:
    """Unordered pairs of atomic numbers, in the order of the coefficients."""
    return list(itertools.combinations_with_replacement(sorted(known), 2))


def log_centres(shortest: float, cutoff: float, centres: int) -> Float[np.ndarray, " centres"]:
    """Centres of the basis functions on the axis of ln(r / Å)."""
    return np.linspace(np.log(shortest), np.log(cutoff), centres)
