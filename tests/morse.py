"""A cheap many-body potential: Morse pairs to 5 Å and an embedding to 3.5 Å that reads the inner slots only."""

import flax.struct
import jax.numpy as jnp
import numpy as np

from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.types import Leaf, PerAtom

TRACES: list[tuple[int, int, int]] = []
"""Shape (atoms, slots, inner) of every graph the energy was traced with."""


@flax.struct.dataclass
class Morse(Potential):
    """E_i = ½ Σ_j D ((1 − e^{−a(r − r₀)})² − 1) c(r / 5 Å) − b √(ε + Σ_j c(r / 3.5 Å)), c(x) = (1 − x²)³."""

    params: Leaf
    references: Leaf
    known: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(1, 8, 29, 47))

    @property
    def cutoff(self) -> float:
        return 5.0

    @property
    def inner_cutoff(self) -> float:
        return 3.5

    @property
    def species(self) -> tuple[int, ...]:
        return self.known

    def atomic_energies(self, graph: Graph) -> PerAtom:
        TRACES.append((graph.n_atoms, graph.n_slots, graph.inner))
        vectors, _ = edge_vectors(graph)
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        pair = self.params["pair"]
        pairs = pair["depth"] * ((1 - jnp.exp(-pair["stiffness"] * (distances - pair["length"]))) ** 2 - 1)
        pairs = jnp.sum(pairs * smooth(distances / self.cutoff), axis=1)
        density = jnp.sum(smooth(distances[:, : graph.inner] / self.inner_cutoff), axis=1)
        embedded = -self.params["embedding"] * jnp.sqrt(0.01 + density)
        return jnp.where(graph.atom_mask, 0.5 * pairs + embedded, 0.0)


def smooth(x):
    return jnp.where(x < 1, (1 - jnp.minimum(x, 1.0) ** 2) ** 3, 0.0)


def morse(dtype: type = np.float32, *, depth: float = 0.3, oxygen: float = -2044.0) -> Morse:
    references = np.zeros(N_SPECIES)
    references[[1, 8, 29, 47]] = -13.5872, oxygen, -1.25, 1 / 3
    number = lambda value: np.asarray(value, dtype)  # noqa: E731
    pair = {"depth": number(depth), "stiffness": number(1.4), "length": number(2.7)}
    return Morse({"pair": pair, "embedding": number(0.05)}, references)
