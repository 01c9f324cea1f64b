"""A potential of pairs: one smooth function of the distance for every pair of elements."""

import itertools
from collections.abc import Sequence

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


@flax.struct.dataclass
class PairPotential(Potential):
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
    def cutoff(self) -> float:
        """Å."""
        return self.reach

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the potential knows, ascending."""
        return self.known

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
        kind = self._pair_kind(graph)
        summed = [jnp.sum(jnp.where((kind == k)[..., None], basis, 0.0), axis=1) for k in range(self.params.shape[-2])]
        return 0.5 * jnp.stack(summed, axis=1)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV; 0 for padding atoms, NaN for elements the potential does not know."""
        functions = self.functions(graph)
        energies = jnp.einsum("apk,pk->a", functions, jnp.asarray(self.params, functions.dtype))
        unknown = self._rows()[graph.species] < 0
        return jnp.where(graph.atom_mask, jnp.where(unknown, jnp.nan, energies), 0.0)

    def _rows(self) -> Array:
        row = np.full(N_SPECIES, -1, np.int32)
        row[list(self.known)] = np.arange(len(self.known))
        return jnp.asarray(row)

    def _pair_kind(self, graph: Graph) -> AnyArray:
        """Number of the pair of elements of every edge."""
        element = jnp.maximum(self._rows()[graph.species], 0)
        table = np.zeros((len(self.known),) * 2, np.int32)
        for kind, (one, other) in enumerate(itertools.combinations_with_replacement(range(len(self.known)), 2)):
            table[one, other] = table[other, one] = kind
        return jnp.asarray(table)[element[:, None], element[jnp.asarray(graph.neighbors)]]


def element_pairs(known: Sequence[int]) -> list[tuple[int, int]]:
    """Unordered pairs of atomic numbers, in the order of the coefficients."""
    return list(itertools.combinations_with_replacement(sorted(known), 2))


def log_centres(shortest: float, cutoff: float, centres: int) -> Float[np.ndarray, " centres"]:
    """Centres of the basis functions on the axis of ln(r / Å)."""
    return np.linspace(np.log(shortest), np.log(cutoff), centres)
