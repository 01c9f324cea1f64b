"""The conformance tests pass what obeys the laws, and name the law that is broken."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.potentials.adapters import low_rank, trainable_references
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.pairs import PairPotential
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.testing import check_potential
from jaxmlip.types import Leaf, PerAtom

STUDENT = Equivariant(channels=4, l_max=1, message_l=1, correlation=2, cutoff=3.5, radial_mlp=(8,), readout_hidden=4)


def pair_potential() -> PairPotential:
    """Two elements, random coefficients."""
    coefficients = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    return PairPotential(coefficients, np.zeros(N_SPECIES), known=(1, 8), reach=4.0, shortest=0.6)


def kinds() -> dict[str, Potential]:
    """Every kind of potential that is cheap to compile."""
    student = STUDENT.build([1, 8], average_neighbors=9.0, seed=1)
    change = jax.tree.map(lambda leaf: 0.01 * jnp.ones_like(leaf), student.params)
    return {
        "student": student,
        "low rank": low_rank(student, 2, seed=0),
        "trainable references": trainable_references(student),
        "linearized": LinearizedPotential(student, change, student.references),
        "pairs": pair_potential(),
        "sum": pair_potential() + pair_potential(),
    }


SLOW = [
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("student", "low rank", "trainable references", "linearized")
]


@pytest.mark.parametrize("kind", ["pairs", "sum", *SLOW])
def test_our_own_potentials_conform(kind: str) -> None:
    check_potential(kinds()[kind])


@flax.struct.dataclass
class Broken(Potential):
    """A soft pair potential with one fault, by name."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(N_SPECIES))
    fault: str = flax.struct.field(pytree_node=False, default="")

    @property
    def cutoff(self) -> float:
        return 3.0

    @property
    def species(self) -> tuple[int, ...]:
        return (1, 8)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        vectors, mask = edge_vectors(graph)
        length = jnp.sqrt((jnp.asarray(vectors) ** 2).sum(-1))
        reach = 1.1 * self.cutoff if self.fault == "reach" else self.cutoff
        near = mask & (length < reach)
        end = 1.0 if self.fault == "cutoff" else (1 - jnp.minimum(length / reach, 1.0) ** 2) ** 3
        pairs = jnp.where(near, self.params["depth"] * jnp.exp(-length) * end, 0.0).sum(1)
        if self.fault == "turn":
            pairs = pairs + jnp.where(near, 0.1 * vectors[..., 0] ** 2 * end, 0.0).sum(1)
        if self.fault == "order":
            pairs = pairs * (1 + 0.1 * jnp.arange(graph.n_atoms))
        if self.fault == "place":
            pairs = pairs + 0.01 * graph.positions[:, 0] ** 2
        if self.fault == "padding":
            pairs = pairs + 0.1 * graph.n_graphs * jnp.mean(pairs)
        if self.fault == "force":
            pairs = pairs + jax.lax.stop_gradient(pairs)
        return jnp.where(graph.atom_mask, pairs, 0.0)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("", None),
        ("force", "forces are −∂E/∂R"),
        ("place", "translation"),
        ("turn", "rotation"),
        ("order", "permutation|translation"),
        ("reach", "beyond the cutoff"),
        ("cutoff", "at the cutoff"),
        ("padding", "doubled cell|one batch"),
    ],
)
def test_a_broken_law_is_named(fault: str, law: str | None) -> None:
    broken = Broken({"depth": np.float32(1.0)}, fault=fault)
    if law is None:
        check_potential(broken)
        return
    with pytest.raises(AssertionError, match=law):
        check_potential(broken)


def test_structures_are_checked() -> None:
    with pytest.raises(ValueError, match="one that is periodic"):
        check_potential(dataclasses.replace(Broken({"depth": np.float32(1.0)})), [])
