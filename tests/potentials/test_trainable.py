"""Parameters and how to rebuild, readouts and fresh potentials; the laws themselves are in jaxmlip.testing."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from morse import morse

import jaxmlip as jm
from jaxmlip.potentials.adapters import low_rank, trainable_references
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.potentials.trainable import Group, without_params

MODEL = Equivariant(channels=4, l_max=1, correlation=2, layers=2, cutoff=3.5, radial_mlp=(8,))


@pytest.fixture(scope="module")
def student() -> EquivariantPotential:
    references = np.zeros(N_SPECIES)
    references[[1, 8]] = -13.587222, -2041.8396
    return MODEL.build([1, 8], average_neighbors=9.0, references=references, scale=1 / 3, shift=-0.1, seed=1)


def kinds(student: EquivariantPotential) -> list[Potential]:
    change = jax.tree.map(np.ones_like, student.params)
    tangent = LinearizedPotential(student, change, student.references)
    return [student, low_rank(student, 2, seed=0), trainable_references(student), tangent, student + student, morse()]


def test_parameters_come_and_go_and_all_else_stays(student):
    """Under a transformation too: references, scale and shift are the float64 numbers of the host, bit for bit."""
    for potential in kinds(student):
        params, rebuild = jm.trainable(potential)
        jax.tree.map(np.testing.assert_array_equal, rebuild(params), potential)
        changed = rebuild(jax.tree.map(lambda leaf: leaf + 1, params))
        jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, old + 1), changed.params, params)
        np.testing.assert_array_equal(changed.references, potential.references)
        jax.tree.map(np.testing.assert_array_equal, without_params(potential).with_params(params), potential)

        def inside(params, rebuild=rebuild, potential=potential):
            built = rebuild(params)
            assert type(built.references) is np.ndarray
            assert built.references.dtype == np.float64
            np.testing.assert_array_equal(built.references, potential.references)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

        assert jax.tree.structure(jax.grad(inside)(params)) == jax.tree.structure(params)


@flax.struct.dataclass
class Counted(Potential):
    """Its parameters are a number of atoms, which nobody can train."""

    params: dict
    references: np.ndarray

    @property
    def cutoff(self) -> float:
        return 1.0

    @property
    def species(self) -> tuple[int, ...]:
        return (1,)

    def atomic_energies(self, graph):
        return jnp.zeros(graph.n_atoms)


def test_what_cannot_be_trained_is_named(student):
    from ase.calculators.emt import EMT

    with pytest.raises(ValueError, match="AsePotential has no parameters to be trained"):
        jm.trainable(jm.from_ase(EMT()))
    with pytest.raises(ValueError, match="Sum has no parameters to be trained"):
        jm.trainable(student + jm.from_ase(EMT()))
    with pytest.raises(ValueError, match="parameter atoms of a Counted is of type int32, and only floating-point"):
        jm.trainable(Counted({"atoms": np.int32(3)}, np.zeros(N_SPECIES)))


def test_groups_of_a_student_and_its_adapters(student):
    groups = {name: set(jax.tree.leaves(tree)) for name, tree in student.groups().items()}
    expected = {"embedding": Group("embedding", 3), "readout_0": Group("readout"), "readout_1": Group("readout")}
    expected |= {f"{kind}_{i}": Group("trunk", 2 - i) for kind in ("interaction", "product") for i in (0, 1)}
    assert {name: {group} for name, group in expected.items() if name in groups} == groups
    assert {"embedding", "readout_1", "interaction_0", "product_1"} <= set(groups)
    adapter = trainable_references(low_rank(student, 2, seed=0))
    assert jax.tree.structure(adapter.groups()) == jax.tree.structure(adapter.params)
    assert adapter.groups()["offsets"] == Group("references")
    assert adapter.groups()["potential"]["interaction_1/up_0"]["a"] == Group("trunk", 1)


def test_a_readout_may_be_fresh(student):
    """The last of them, by a seed; all others are copies."""
    three = student.with_heads(3, fresh=7)
    for head in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, three.select_head(head).params, student.params)
    last = three.select_head(2).params
    new = student.fresh(references=student.references, scale=1.0, shift=0.0, seed=7).params
    for name, tree in last.items():
        jax.tree.map(np.testing.assert_array_equal, tree, (new if name.startswith("readout") else student.params)[name])
    with pytest.raises(ValueError, match=r"has 3 readouts already: potential\.select_head"):
        three.with_heads(2)
    with pytest.raises(ValueError, match="LowRank has the readouts of what it adapts; give that 2 first"):
        low_rank(student, 2, seed=0).with_heads(2)


def test_a_tangent_is_kept_with_its_base(student, tmp_path):
    """Also one whose base is of another kind than ours; what is of no kind is refused in a sentence."""
    change = jax.tree.map(lambda leaf: np.full_like(leaf, 0.01), student.params)
    tangent = LinearizedPotential(student, change, student.references)
    jm.save(tangent, tmp_path / "tangent.jaxmlip")
    jax.tree.map(np.testing.assert_array_equal, jm.load(str(tmp_path / "tangent.jaxmlip")), tangent)
    adapted = low_rank(student, 2, seed=0)
    with pytest.raises(ValueError, match="A LowRank is of no kind that a file can hold"):
        jm.save(LinearizedPotential(adapted, adapted.params, student.references), tmp_path / "no.jaxmlip")
