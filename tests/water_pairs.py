"""Water by Morse pairs: a teacher with known parameters, and a student that compiles in no time."""

import flax.struct
import jax.numpy as jnp
import numpy as np

from jaxmlip.potentials.kinds import register_potential
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.types import Leaf

PAIRS = ("HH", "OH", "OO")


@register_potential("water_pairs")
@flax.struct.dataclass
class WaterPairs(Potential):
    """E_i = ½ Σ_j D ((1 − e^{−a(r − r₀)})² − 1) (1 − r²/16 Å²)³, with a depth D for each pair of elements and head.

    Attributes:
        params: depth [3 pairs, heads] in eV, length [3 pairs] in Å.
        references: [119], eV.
    """

    params: Leaf
    references: Leaf

    @property
    def cutoff(self) -> float:
        return 4.0

    @property
    def species(self) -> tuple[int, ...]:
        return (1, 8)

    def readouts(self, graph: Graph):
        vectors, mask = edge_vectors(graph)
        r = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        oxygen = (jnp.asarray(graph.species) == 8).astype(jnp.int32)
        pair = oxygen[:, None] + oxygen[graph.neighbors]
        stiffness = jnp.array([1.5, 3.0, 1.5], r.dtype)[pair]
        shape = (1 - jnp.exp(-stiffness * (r - self.params["length"][pair]))) ** 2 - 1
        shape = jnp.where(mask & (r < 4), shape * (1 - jnp.minimum(r / 4, 1) ** 2) ** 3, 0.0)
        return 0.5 * jnp.einsum("is,ish->ih", shape, self.params["depth"][pair])

    def atomic_energies(self, graph: Graph):
        return self.readouts(graph)[:, 0]


def water_pairs(depth=(0.3, 4.5, 0.2), length=(2.0, 0.97, 2.8), references=(-3.0, -10.0), dtype: type = np.float32):
    """One head if `depth` is a triple, one for each column if it is [3, heads]; references of H and O in eV."""
    table = np.zeros(N_SPECIES)
    table[[1, 8]] = references
    depth = np.asarray(depth, dtype).reshape(3, -1)
    return WaterPairs({"depth": depth, "length": np.asarray(length, dtype)}, table)


LOW = water_pairs()
HIGH = water_pairs(depth=(0.25, 4.9, 0.35), length=(2.05, 0.955, 2.75), references=(-13.6, -2044.0))
