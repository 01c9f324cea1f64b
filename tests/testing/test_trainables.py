"""What strategies rely on holds for all that they train, and what breaks it is named."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.potentials.adapters import low_rank, trainable_references
from jaxmlip.potentials.chgnet import CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.potentials.trainable import Group, Trainable, grouped
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.testing import check_trainable
from jaxmlip.types import Leaf

STUDENT = Equivariant(channels=4, l_max=1, correlation=2, layers=1, cutoff=3.5, radial_mlp=(8,))


def kinds() -> dict[str, Potential]:
    references = np.zeros(N_SPECIES)
    references[[1, 8]] = -13.587222, -2041.8396
    student = STUDENT.build([1, 8], average_neighbors=9.0, references=references, scale=0.3, seed=1)
    offsets = trainable_references(student.with_heads(2))
    return {
        "student": student,
        "student of two heads": student.with_heads(2, fresh=3),
        "low rank": low_rank(student, 2, seed=0),
        "trainable references": offsets.with_params(
            offsets.params | {"offsets": np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)}
        ),
        "both": trainable_references(low_rank(student, 2, seed=0)),
        "CHGNet": (chgnet := CHGNetModel().build([1, 8], references=references, scale=0.3, seed=1)),
        "CHGNet of two heads": chgnet.with_heads(2, fresh=3),
        "low-rank CHGNet": low_rank(chgnet, 2, seed=0),
        "CHGNet with trainable references": trainable_references(chgnet),
    }


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in kinds() if kind not in ("student", "low rank")]


@pytest.mark.parametrize("kind", ["student", "low rank", *SLOW])
def test_our_own_conform(kind: str) -> None:
    check_trainable(kinds()[kind])


@flax.struct.dataclass
class Charges(Trainable):
    """E_i = w Σ_j q_i q_j exp(−r) (1 − r²/9)³ · scale + shift, with charges q of the elements and one weight w."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(N_SPECIES))
    scale: Leaf = 1.0
    shift: Leaf = 0.0
    fault: str = flax.struct.field(pytree_node=False, default="")

    @property
    def cutoff(self) -> float:
        return 3.0

    @property
    def species(self) -> tuple[int, ...]:
        return (1, 8)

    def atomic_energies(self, graph: Graph):
        vectors, mask = edge_vectors(graph)
        length = jnp.sqrt((jnp.asarray(vectors) ** 2).sum(-1))
        charge = jnp.asarray(self.params["charges"])[(jnp.asarray(graph.species) == 8).astype(int)]
        if self.fault == "gradient":
            charge = jax.lax.stop_gradient(charge)
        if self.fault == "infinite":
            charge = charge + jnp.sqrt(charge - charge)
        near = mask & (length < 3.0)
        pairs = jnp.where(near, jnp.exp(-length) * (1 - jnp.minimum(length / 3.0, 1.0) ** 2) ** 3, 0.0)
        network = self.params["weight"] * charge * (pairs * charge[graph.neighbors]).sum(1)
        shift = 0.0 if self.fault == "shift" else self.shift
        return jnp.where(graph.atom_mask, self.scale * network + shift, 0.0)

    def groups(self):
        if self.fault == "some":
            return {"charges": Group("embedding", 1), "weight": None}
        deep = Group("readout", 2) if self.fault == "depth" else Group("readout")
        shallow = Group("embedding", 0 if self.fault == "bottom" else 1)
        if self.fault == "role":
            object.__setattr__(shallow, "role", "charge")  # past beartype
        return grouped(self.params, lambda path: deep if path == "weight" else shallow)

    def fresh(self, *, references, scale, shift, seed, species=None):
        if self.fault == "seed":
            return self.replace(references=references, scale=scale, shift=shift)
        draw = np.random.default_rng(0 if self.fault == "random" else None if self.fault == "wild" else seed)
        params = {"charges": draw.normal(size=2).astype(np.float32), "weight": np.float32(draw.normal())}
        kept = self.references if self.fault == "kept" else references
        return Charges(params, kept, scale, shift, self.fault)

    def select_head(self, head: int):
        return self if self.fault == "any head" else super().select_head(head)

    def with_params(self, params):
        if self.fault == "rounds":
            return self.replace(params=params, references=np.asarray(self.references, np.float32))
        if self.fault == "device":
            return self.replace(params=params, references=jnp.asarray(self.references))
        if self.fault == "forgets":
            return self.replace(params=params | {"weight": self.params["weight"]})
        return super().with_params(params)

    def with_references(self, references):
        if self.fault == "float32":
            return self.replace(references=np.asarray(np.asarray(references, np.float32), np.float64))
        return super().with_references(references)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("", None),
        ("rounds", "references is float32 instead of float64"),
        ("device", "references must stay on the host"),
        ("forgets", "takes the parameters it is given: .*weight.* has other values"),
        ("some", "groups: the pytree is not like params"),
        ("depth", "groups: readout lies at depth 2"),
        ("bottom", "embedding, at depth 0, is not below the trunk"),
        ("role", "the role 'charge' is none of"),
        ("gradient", "do not depend on the embedding at depth 1"),
        ("infinite", "gradient: the one by a parameter of the embedding is not finite"),
        ("any head", "there is no head -1"),
        ("kept", "fresh: references are those that are given: .* has other values"),
        ("seed", "the parameters are those of another seed"),
        ("random", "the parameters are those of another seed"),
        ("wild", "the same seed gives the same potential"),
        ("shift", "shift is added to an atom's energy: off by"),
        ("float32", "with_references keeps double precision"),
    ],
)
def test_a_broken_law_is_named(fault: str, law: str | None) -> None:
    references = np.zeros(N_SPECIES)
    references[[1, 8]] = 1 / 3, 7.1
    params = {"charges": np.array([0.5, 0.7], np.float32), "weight": np.float32(2.0)}
    broken = Charges(params, references, fault=fault)
    if law is None:
        check_trainable(broken)
        return
    with pytest.raises(AssertionError, match=law):
        check_trainable(broken)


def test_what_is_not_trainable_is_told() -> None:
    student = kinds()["student"]
    with pytest.raises(AssertionError, match=r"A Sum does not derive from jaxmlip\.Trainable"):
        check_trainable(student + student)
