"""A potential of many elements on structures of few: the same numbers, whatever graphs say of their elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from simple_potentials import LennardJones, lennard_jones

from jaxmlip.potentials.adapters import low_rank, trainable_references
from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.potential import Potential, Sum, stack
from jaxmlip.potentials.present_elements import FEW_ELEMENTS, elements_of, few
from jaxmlip.potentials.scaled import Scaled
from jaxmlip.potentials.tabulation import tabulate
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms, in_tiers

KNOWN = (3, 8, 9, 11, 12, 17, 20, 22, 56)
PLAIN = Equivariant(channels=3, l_max=1, correlation=1, layers=1, cutoff=3.6, radial_functions=3, radial_mlp=(6,))
RICH = PLAIN.model_copy(
    update={
        "layers": 2,
        "correlation": 2,
        "first_interaction": "agnostic",
        "distance_transform": "agnesi",
        "learned_radial_scale": True,
    }
)


def crystals() -> list[Atoms]:
    """Three structures of two, two and three elements, six in all."""
    perovskite = Atoms("CaTiO3", [[0, 0, 0], [2, 2, 2], [2, 2, 0], [2, 0, 2], [0, 2, 2]], cell=[4, 4, 4], pbc=True)
    made = [bulk("NaCl", "rocksalt", a=5.6), bulk("LiF", "rocksalt", a=4.1), perovskite]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.1, seed=seed)
    return made


def batched(structures: list[Atoms]) -> Graph:
    """Padded to the shape that all tests share."""
    return batch_graphs(
        [graph_from_atoms(atoms, 3.6, dtype=np.float64) for atoms in structures], n_atoms=12, n_graphs=4, slots=28
    )


def salt() -> list[Atoms]:
    """Of rock salt alone, compressed and not."""
    both = [bulk("NaCl", "rocksalt", a=a, cubic=cubic) for a, cubic in ((5.6, True), (5.2, False))]
    for seed, atoms in enumerate(both):
        atoms.rattle(0.1, seed=seed)
    return both


def build(specification: Equivariant = PLAIN, heads: int = 1) -> EquivariantPotential:
    return specification.build(KNOWN, average_neighbors=12.0, scale=0.7, shift=0.2, heads=heads)


@jax.jit
def everything(potential: EquivariantPotential, graph: Graph) -> tuple:
    """Readouts, their derivatives by the parameters, and by positions: of a function in which all of them matter."""

    def total(params, positions):
        readouts = potential.with_params(params).readouts(graph.replace(positions=positions))
        return jnp.sum(readouts**2), readouts

    return jax.grad(total, (0, 1), has_aux=True)(potential.params, graph.positions)


@jax.jit
def readouts(potential: EquivariantPotential, graph: Graph) -> jax.Array:
    return jnp.asarray(potential.readouts(graph))


def same(found, wanted) -> None:
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * scale)


GROUPS = [(salt(), (2, 0)), (crystals(), (0, 3))]
"""Few elements in all, and few in each."""


def test_derivatives_are_those_of_all_elements(x64: None) -> None:
    """With padding and two readouts."""
    potential = build(heads=2)
    for structures, elements in GROUPS:
        graph = batched(structures)
        wanted, found = (everything(potential, graph.replace(elements=said)) for said in ((0, 0), elements))
        same(found, wanted)
        assert float(jnp.abs(wanted[1]).max()) > 1e-3
        unused = KNOWN.index(56)
        assert not np.asarray(found[0][0]["embedding"][unused]).any()
        assert np.asarray(found[0][0]["embedding"][KNOWN.index(17)]).any()


def test_what_else_depends_on_elements(x64: None) -> None:
    """Maps of the first layer's messages, transforms of distances, and skip connections of a second layer."""
    potential = build(RICH)
    params = potential.params | {"radial_scale": jnp.linspace(-0.1, 0.1, len(KNOWN))}
    for structures, elements in GROUPS:
        graph = batched(structures)
        wanted, found = (
            readouts(potential.with_params(params), graph.replace(elements=said)) for said in ((0, 0), elements)
        )
        same(found, wanted)


def test_tiers_and_stacks(x64: None) -> None:
    """What else a network may be given."""
    potential, graph = build(), batched(crystals())
    degree = np.sort((np.asarray(graph.neighbors) >= 0).sum(axis=1))[::-1]
    tiered, order = in_tiers(graph, ((4, int(degree[0])), (8, int(degree[4]))))
    wanted, saying = readouts(potential, graph), graph.replace(elements=(0, 4))
    same(readouts(potential, tiered.replace(elements=(0, 3))), wanted[order])
    others = [potential, potential.replace(params=jax.tree.map(lambda leaf: 0.9 * leaf, potential.params))]
    mapped = jax.jit(jax.vmap(lambda one: one.readouts(saying)))(stack([*others]))
    same(mapped, jnp.stack([readouts(one, graph) for one in others]))


@pytest.mark.slow
def test_tables(x64: None) -> None:
    tables = tabulate(build(), 1e-3)
    for structures, elements in GROUPS:
        graph = batched(structures)
        same(readouts(tables, graph.replace(elements=elements)), readouts(tables, graph))


def test_more_elements_than_were_said_are_no_numbers(x64: None) -> None:
    """Those graphs alone, or all if it was said of all together; padding stays zero."""
    potential, graph = build(), batched(crystals())
    of_each = np.asarray(readouts(potential, graph.replace(elements=(0, 2))))[:, 0]
    assert np.isfinite(of_each[:4]).all()
    assert np.isnan(of_each[4:9]).all()
    assert not of_each[9:].any()
    in_all = np.asarray(readouts(potential, graph.replace(elements=(2, 0))))[:, 0]
    assert np.isnan(in_all[:9]).all()
    assert not in_all[9:].any()


def test_what_is_said_of_structures() -> None:
    potential, structures = build(), [atoms.numbers for atoms in crystals()]
    assert elements_of(potential, structures) == (0, 3)
    assert elements_of(potential, structures, rounded=True) == (0, 4)
    assert elements_of(potential, structures[:1]) == (2, 0)
    assert elements_of(potential, [np.append(structures[0], [0, 0])]) == (2, 0), "padding is no element"
    assert elements_of(potential, structures[:2]) == (4, 0)
    assert elements_of(potential, []) == (0, 0)
    assert elements_of(PLAIN.build(KNOWN[:FEW_ELEMENTS], average_neighbors=1.0), structures) == (0, 0)
    assert few(7, 5) == (0, 0)
    assert few(3, 3, rounded=True) == (4, 0)


def test_potentials_made_of_others_read_it_too() -> None:
    potential, pairs = build(), lennard_jones()
    change = jax.tree.map(np.zeros_like, potential.params)
    made: list[Potential] = [
        Sum((pairs, potential)),
        Scaled(potential, 0.5),
        LinearizedPotential(potential, change, potential.references),
        low_rank(potential, 1, 0),
        trainable_references(potential),
    ]
    assert all(one.reads_elements for one in made)
    assert not any(one.reads_elements for one in (pairs, Sum((pairs, pairs)), Scaled(pairs, 2.0)))


def test_predictions_and_calculators_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And other potentials are compiled for no more graphs than before."""
    seen: list[tuple[int, int]] = []

    def noted(self: Potential, graph: Graph) -> jax.Array:
        seen.append(graph.elements)
        return jnp.where(graph.atom_mask, graph.positions.sum(axis=1), 0.0)

    monkeypatch.setattr(EquivariantPotential, "atomic_energies", noted)
    monkeypatch.setattr(LennardJones, "atomic_energies", noted)
    potential, structures = build().replace(average_neighbors=11.0), crystals()  # nothing is compiled for it
    predict(potential, structures)
    assert set(seen) == {(0, 4)}
    seen.clear()
    for atoms in (structures[0], structures[2], structures[0]):
        atoms.calc = Calculator(potential)
        atoms.get_potential_energy()
    assert seen == [(2, 0), (4, 0)]
