"""The equivariant student obeys the laws of physics, and its fast form is the plain one."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from jaxmlip.potentials import equivariant_network
from jaxmlip.potentials.equivariant import (
    Equivariant,
    EquivariantPotential,
    average_neighbors,
)
from jaxmlip.potentials.equivariant_layers import Interaction, paths
from jaxmlip.potentials.potential import Prediction, evaluate, stack
from jaxmlip.potentials.radial import SILU_SCALE
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms, in_tiers, strained
from jaxmlip.types import PerGraph

CUTOFF = 3.5
SMALL = Equivariant(
    channels=4, l_max=2, message_l=1, cutoff=CUTOFF, radial_functions=4, radial_mlp=(8, 8), readout_hidden=4
)
ATOMS, GRAPHS, SLOTS = 48, 3, 48
"""Every graph is padded to this shape, so that all tests share one compiled function."""


@jax.jit
def predict(potential: EquivariantPotential, graph: Graph) -> Prediction:
    """Energy, forces and stress; compiled once for all potentials and graphs of one shape."""
    return evaluate(potential, graph, stress=True)


@jax.jit
def energies(potential: EquivariantPotential, graph: Graph) -> PerGraph:
    return potential.energy(graph)


def build(specification: Equivariant = SMALL, seed: int = 0, **options) -> EquivariantPotential:
    return specification.build([1, 8], average_neighbors=12.0, scale=0.8, shift=-0.3, seed=seed, **options)


def padded(*structures: Atoms, cutoff: float = CUTOFF, dtype: type = np.float64) -> Graph:
    singles = [graph_from_atoms(structure, cutoff, dtype=dtype) for structure in structures]
    return batch_graphs(singles, n_atoms=ATOMS, n_graphs=GRAPHS, slots=SLOTS)


def water(copies: int = 2, seed: int = 0) -> Atoms:
    """A few distorted water molecules next to one another, not periodic."""
    draw = np.random.default_rng(seed)
    cluster = Atoms()
    for copy in range(copies):
        one = molecule("H2O")
        one.rotate(draw.uniform(0, 180), draw.standard_normal(3))
        one.positions += [2.7 * copy, 0.0, 0.0]
        cluster += one
    cluster.rattle(0.05, seed=seed)
    return cluster


def crystal(seed: int = 0) -> Atoms:
    """Two molecules in a triclinic cell whose edges are shorter than the cutoff."""
    atoms = water(2, seed)
    atoms.set_cell([[5.3, 0.1, 0.0], [0.4, 3.2, 0.2], [-0.3, 0.5, 3.4]])
    atoms.pbc = True
    return atoms


def close(actual, expected, relative: float = 1e-10) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=relative * np.abs(expected).max())


def check_rotation(specification: Equivariant) -> None:
    """Energy invariant, forces and stress equivariant, under proper and improper rotations."""
    potential, atoms = build(specification), crystal()
    before = predict(potential, padded(atoms))
    assert np.abs(np.asarray(before.forces)).max() > 1e-3
    for seed, sign in ((1, 1.0), (2, -1.0)):
        turn = sign * Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        turned = Atoms(atoms.numbers, atoms.positions @ turn.T, cell=atoms.cell.array @ turn.T, pbc=True)
        after = predict(potential, padded(turned))
        close(after.energy, before.energy)
        close(after.forces, before.forces @ turn.T)
        close(after.stress[0], turn @ before.stress[0] @ turn.T)


def test_rotation_and_reflection(x64: None) -> None:
    check_rotation(SMALL)


@pytest.mark.parametrize(
    "changes",
    [
        {"message_l": 0, "l_max": 3},
        pytest.param({"message_l": 1, "l_max": 1, "correlation": 2, "layers": 3}, marks=pytest.mark.slow),
        {"message_l": 0, "correlation": 1, "layers": 1},
    ],
    ids=str,
)
def test_rotation_and_reflection_of_other_networks(changes: dict, x64: None) -> None:
    check_rotation(SMALL.model_copy(update=changes))


def test_permutation_and_translation(x64: None) -> None:
    potential, atoms = build(), crystal()
    before = predict(potential, padded(atoms))
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = atoms[order]
    moved.positions += [0.7, -20.0, 3.1]
    after = predict(potential, padded(moved))
    close(after.energy, before.energy)
    close(after.forces[: len(atoms)], before.forces[: len(atoms)][order])
    close(after.stress[0], before.stress[0])
    close(np.sum(before.forces, axis=0) + 1.0, np.ones(3))


def derivative(energy: Callable[[float], float], step: float) -> float:
    """Central difference of fourth order."""
    return (8 * (energy(step) - energy(-step)) - energy(2 * step) + energy(-2 * step)) / (12 * step)


def test_forces_and_stress_are_derivatives_of_the_energy(x64: None) -> None:
    # The list has a skin, so that moving atoms changes no slot.
    potential, graph = build(), padded(crystal(), cutoff=CUTOFF + 0.3)
    result = predict(potential, graph)
    draw = np.random.default_rng(0)
    for _ in range(4):
        direction = draw.standard_normal((ATOMS, 3))

        def along(step: float, direction: np.ndarray = direction) -> float:
            return float(predict(potential, graph.replace(positions=graph.positions + step * direction)).energy[0])

        assert -np.sum(np.asarray(result.forces) * direction) == pytest.approx(derivative(along, 1e-3), rel=1e-7)
    volume = float(graph.volume()[0])
    for _ in range(4):
        strain = draw.standard_normal((GRAPHS, 3, 3))
        strain = strain + strain.transpose(0, 2, 1)

        def under(step: float, strain: np.ndarray = strain) -> float:
            return float(predict(potential, strained(graph, graph.positions, step * strain)).energy[0])

        assert volume * np.sum(np.asarray(result.stress[0]) * strain[0]) == pytest.approx(
            derivative(under, 3e-4), rel=1e-7
        )


def test_neighbours_beyond_the_cutoff_do_not_matter(x64: None) -> None:
    potential = build()
    exact, with_skin = (predict(potential, padded(crystal(), cutoff=c)) for c in (CUTOFF, CUTOFF + 0.4))
    close(with_skin.energy, exact.energy, 1e-14)
    close(with_skin.forces, exact.forces, 1e-14)


def test_twice_continuously_differentiable_at_the_cutoff(x64: None) -> None:
    potential = build()

    def energy_and_force(distance: float) -> tuple[float, float]:
        # The last atom's only neighbour is the oxygen.
        atoms = Atoms("OHH", [[0, 0, 0], [-0.9, 0.3, 0.2], [distance, 0, 0]])
        result = predict(potential, padded(atoms, cutoff=CUTOFF + 1.0))
        return float(result.energy[0]), float(result.forces[2, 0])

    outside, no_force = energy_and_force(CUTOFF + 1e-6)
    assert no_force == 0.0
    assert energy_and_force(CUTOFF + 0.5) == (outside, 0.0)
    inside = [energy_and_force(CUTOFF - gap) for gap in (0.1, 0.05, 0.025)]
    assert abs(inside[0][1]) > 1e-7
    for (energy, force), (next_energy, next_force) in itertools.pairwise(inside):
        # The force vanishes faster than the gap, so the second derivative is zero on both sides; the energy with it.
        assert abs(next_force) < 0.2 * abs(force)
        assert abs(next_energy - outside) < 0.1 * abs(energy - outside)


def test_isolated_atoms(x64: None) -> None:
    potential = build()
    oxygen, hydrogen = (predict(potential, padded(Atoms(s, [[0.0, 0, 0]]))) for s in "OH")
    pair = predict(potential, padded(Atoms("OH", [[0.0, 0, 0], [50.0, 0, 0]])))
    assert np.isfinite([oxygen.energy[0], hydrogen.energy[0]]).all()
    assert abs(float(oxygen.energy[0] - hydrogen.energy[0])) > 1e-6
    close(pair.energy, oxygen.energy + hydrogen.energy, 1e-14)
    assert not np.asarray(pair.forces).any()


def test_far_copies_have_twice_the_energy(x64: None) -> None:
    potential, one = build(), water()
    other = one.copy()
    other.positions += [0.0, 30.0, 0.0]
    single, double = predict(potential, padded(one)), predict(potential, padded(one + other))
    close(double.energy, 2 * single.energy)
    close(double.forces[6:12], single.forces[:6])


def test_batch_and_padding_change_nothing(x64: None) -> None:
    potential = build()
    structures = [crystal(), water(3), Atoms("O", [[0.0, 0, 0]])]
    batch = predict(potential, padded(*structures))
    singles = [predict(potential, padded(structure)) for structure in structures]
    close(batch.energy, [s.energy[0] for s in singles], 1e-13)
    forces = [s.forces[: len(structure)] for s, structure in zip(singles, structures, strict=True)]
    close(batch.forces[:16], np.concatenate(forces), 1e-13)
    assert not np.asarray(batch.forces[16:]).any()
    assert not np.asarray(singles[0].energy[1:]).any()
    bare = graph_from_atoms(crystal(), CUTOFF, dtype=np.float64)
    close(energies(potential, bare), singles[0].energy[:1], 1e-13)


def test_tiers_change_nothing(x64: None) -> None:
    """Atoms in groups by number of neighbours: the same energy, forces and derivatives by the parameters."""
    potential = build(SMALL.model_copy(update={"channels": 2, "l_max": 1, "correlation": 2}), heads=2)
    graph = padded(crystal())
    degree = np.sort(np.sum(np.asarray(graph.neighbors) >= 0, axis=1))[::-1]
    tiers = ((4, int(degree[0])), (13, int(degree[4])), (ATOMS - 17, max(1, int(degree[17]))))
    assert len({slots for _, slots in tiers}) > 1
    tiered, order = in_tiers(graph, tiers)

    @jax.jit
    def everything(potential, graph):
        def total(params, positions):
            return jnp.sum(potential.replace(params=params).readouts(graph.replace(positions=positions)) ** 2)

        return total(potential.params, graph.positions), jax.grad(total, (0, 1))(potential.params, graph.positions)

    (value, (by_params, forces)), (expected, (by_params_plain, forces_plain)) = (
        everything(potential, which) for which in (tiered, graph)
    )
    close(value, expected)
    close(forces, np.asarray(forces_plain)[order])
    jax.tree.map(lambda ours, plain: close(ours, plain, 1e-10), by_params, by_params_plain)


def test_cells_smaller_than_the_cutoff(x64: None) -> None:
    potential, cell = build(), crystal()
    assert min(cell.cell.lengths()) < CUTOFF
    small, large = predict(potential, padded(cell)), predict(potential, padded(cell.repeat(2)))
    close(large.energy[0], 8 * small.energy[0])
    close(large.stress[0], small.stress[0])
    close(large.forces[:6], small.forces[:6])


def test_compiled_once_for_all_potentials_of_a_specification(x64: None) -> None:
    traces = 0

    @jax.jit
    def traced(potential: EquivariantPotential, graph: Graph) -> PerGraph:
        nonlocal traces
        traces += 1
        return potential.energy(graph)

    tiny = Equivariant(channels=2, l_max=1, correlation=1, layers=1, cutoff=CUTOFF, radial_mlp=(4,))
    graph = padded(crystal())
    first, second = (traced(build(tiny, seed), graph) for seed in (0, 1))
    third = traced(build(Equivariant(**tiny.model_dump())).with_heads(2).select_head(1), graph)
    assert traces == 1
    assert float(first[0]) != float(second[0])
    close(third, first)


def test_stacked_potentials_are_an_ensemble(x64: None) -> None:
    members, graph = [build(seed=seed) for seed in range(3)], padded(crystal())
    together = jax.jit(jax.vmap(lambda potential: potential.energy(graph)))(stack([*members]))
    close(together, [predict(member, graph).energy for member in members])


def test_heads(x64: None) -> None:
    potential, graph = build(), padded(crystal())
    two = potential.with_heads(2)
    change = np.array([0.0, 0.5])
    two = two.replace(
        params={**two.params, "readout_1": jax.tree.map(lambda x: x + 0.3 * x[:1] * _rows(x), two.params["readout_1"])},
        shift=two.shift + change,
    )
    readouts = np.asarray(jax.jit(lambda p, g: p.readouts(g))(two, graph))
    assert readouts.shape == (ATOMS, 2)
    assert not readouts[6:].any()
    for head in (0, 1):
        alone = two.select_head(head)
        assert jax.tree.structure(alone) == jax.tree.structure(potential)
        close(predict(alone, graph).energy[0], readouts[:, head].sum())
    close(readouts[:, 0].sum(), predict(potential, graph).energy[0])
    assert abs(readouts[:6, 1] - readouts[:6, 0] - 0.5).max() > 1e-3
    with pytest.raises(ValueError, match="has 2 readouts"):
        two.atomic_energies(graph)
    with pytest.raises(ValueError, match="no head 2: the potential has 2"):
        two.select_head(2)
    with pytest.raises(ValueError, match="2 readouts already"):
        two.with_heads(3)
    with pytest.raises(ValueError, match="heads is 0"):
        potential.with_heads(0)


def _rows(leaf: jax.Array) -> jax.Array:
    """0, 1, … along the axis of heads."""
    return jnp.arange(len(leaf), dtype=leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))


def test_single_precision_agrees_with_double(x64: None) -> None:
    potential, atoms = build(), crystal()
    double, single = (predict(potential, padded(atoms, dtype=dtype)) for dtype in (np.float64, np.float32))
    assert single.energy.dtype == jnp.float32
    close(single.energy, double.energy, 1e-5)
    close(single.forces, double.forces, 1e-4)


def test_scale_shift_and_unknown_elements(x64: None) -> None:
    potential, graph = build(), padded(crystal())
    before = predict(potential, graph)
    after = predict(potential.replace(scale=2 * potential.scale, shift=potential.shift + 1.0), graph)
    close(after.forces, 2 * before.forces)
    # 0.8 x − 0.3 per atom before, 1.6 x + 0.7 after.
    close(after.energy[0], 2 * before.energy[0] + 6 * (0.7 + 2 * 0.3))
    assert potential.species == (1, 8)
    assert potential.cutoff == CUTOFF
    nitrogen = crystal()
    nitrogen.numbers[0] = 7
    assert np.isnan(predict(potential, padded(nitrogen)).energy[0])


def plain_messages(params: dict, sources, radial, harmonics, l_in: int, l_max: int, neighbors: float) -> jax.Array:
    """MACE's interaction edge by edge and path by path, with e3nn's normalisations written out."""
    channels = sources.shape[-1]
    hidden = radial
    for layer in range(2):
        weight = params["radial_network"][f"weight_{layer}"]
        hidden = SILU_SCALE * jax.nn.silu(hidden @ weight / np.sqrt(len(weight)))
    weights = jnp.einsum("asp,pqc->asqc", hidden, params["radial"]) / np.sqrt(8)
    arriving = [[] for _ in range(l_max + 1)]
    for path, (l1, l2, l3) in enumerate(paths(l_in, l_max)):
        up = jnp.einsum("asmc,cd->asmd", sources[:, :, l1**2 : (l1 + 1) ** 2], params[f"up_{l1}"]) / np.sqrt(channels)
        y = harmonics[:, :, l2**2 : (l2 + 1) ** 2]
        symbol = e3nn.clebsch_gordan(l1, l2, l3) * np.sqrt(2 * l3 + 1)
        arriving[l3].append(jnp.einsum("asc,asmc,asn,mno->aoc", weights[:, :, path], up, y, symbol))
    mixed = []
    for ell, parts in enumerate(arriving):
        together = jnp.concatenate(parts, axis=-1)
        matrix = params[f"mix_{ell}"].reshape(-1, channels)
        mixed.append(together @ matrix / np.sqrt(len(matrix)) / neighbors)
    return jnp.concatenate(mixed, axis=1)


@pytest.mark.parametrize(("l_in", "l_max"), [(0, 3), pytest.param(1, 2, marks=pytest.mark.slow), (2, 2)])
def test_interaction_equals_the_plain_form(l_in: int, l_max: int, x64: None) -> None:
    draw = np.random.default_rng(0)
    atoms, slots, elements, channels = 3, 5, 2, 4
    specification = SMALL.model_copy(update={"l_max": l_max})
    interaction = Interaction(specification, l_in, 7.0)
    radial = draw.standard_normal((atoms, slots, 4))
    harmonics = draw.standard_normal((atoms, slots, (l_max + 1) ** 2))
    sources = draw.standard_normal((atoms, slots, (l_in + 1) ** 2, channels))
    given = [jnp.asarray(x) for x in (sources, radial, harmonics)]
    shapes = jax.eval_shape(interaction.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape)), shapes)
    cotangent = jnp.asarray(draw.standard_normal((atoms, (l_max + 1) ** 2, channels)))

    def values_and_gradients(form: Callable, *arguments) -> Any:
        def total(*arguments):
            result = form(*arguments)
            return jnp.sum(result * cotangent), result

        return jax.jit(jax.grad(total, argnums=tuple(range(len(arguments))), has_aux=True))(*arguments)

    def compare(fast: Callable, plain: Callable, *arguments) -> None:
        """Values and gradients by all arguments, parameters among them."""
        ours, right = values_and_gradients(fast, *arguments), values_and_gradients(plain, *arguments)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
            close(x, y, 1e-12)

    def general(params, sources, radial, harmonics):
        messages: Any = interaction.apply(params)
        projected = jnp.stack([messages.sources(of_slot) for of_slot in jnp.moveaxis(sources, 1, 0)], axis=1)
        return messages(projected, radial, harmonics).swapaxes(0, 1)

    def plain(params, sources, radial, harmonics):
        return plain_messages(params["params"], sources, radial, harmonics, l_in, l_max, 7.0)

    compare(general, plain, params, *given)
    if l_in == 0:
        element = jnp.asarray(draw.integers(elements, size=(atoms, slots)))
        table = jnp.asarray(draw.standard_normal((elements, 1, channels)))

        def of_elements(params, table, radial, harmonics):
            messages: Any = interaction.apply(params)
            return messages.of_elements(messages.folded(table[:, 0]), radial, harmonics, element).swapaxes(0, 1)

        def plain_of_elements(params, table, radial, harmonics):
            return plain(params, table[element], radial, harmonics)

        compare(of_elements, plain_of_elements, params, table, *given[1:])


def test_many_elements_equal_few(monkeypatch: pytest.MonkeyPatch, x64: None) -> None:
    """The first layer's shortcut for few elements changes nothing."""
    potential, graph = build(), padded(crystal())
    few = predict(potential, graph)
    monkeypatch.setattr(equivariant_network, "FEW_ELEMENTS", 0)
    many = jax.jit(evaluate)(potential, graph)
    close(many.energy, few.energy)
    close(many.forces, few.forces)


@pytest.mark.slow
def test_learned_radial_scale(x64: None) -> None:
    """It starts at the plain potential, a scale stretches what an element sees, and forces remain derivatives."""
    plain, scaled = build(), build(SMALL.model_copy(update={"learned_radial_scale": True}))
    graph = padded(crystal())
    assert np.all(np.asarray(scaled.params["radial_scale"]) == 0)
    params = scaled.params | plain.params
    scaled = scaled.replace(params=params)
    close(predict(scaled, graph).forces, predict(plain, graph).forces, 1e-13)
    scaled = scaled.replace(params=params | {"radial_scale": jnp.array([0.1, -0.05])})
    forces = np.asarray(predict(scaled, graph).forces)
    assert np.abs(forces - predict(plain, graph).forces).max() > 1e-3
    shift = np.random.default_rng(0).standard_normal(forces.shape) * np.asarray(graph.atom_mask)[:, None]

    def energy(step: float) -> float:
        return float(jnp.sum(energies(scaled, graph.replace(positions=graph.positions + step * shift))))

    close(derivative(energy, 1e-3), -np.sum(forces * shift), 1e-8)


def test_repulsion_keeps_atoms_apart(x64: None) -> None:
    """Without it random parameters may attract at any distance; with it two atoms repel, the more the closer."""
    potential = build(SMALL.model_copy(update={"repulsion": True}))
    distances = np.array([0.05, 0.1, 0.2, 0.3])
    pairs = [Atoms("OH", [[0, 0, 0], [0, 0, r]]) for r in distances]
    found = [predict(potential, padded(pair)) for pair in pairs]
    apart = np.array([float(prediction.forces[1, 2]) for prediction in found])
    assert (apart > 20.0).all()
    assert (np.diff(apart) < 0).all()
    assert (np.diff([float(prediction.energy[0]) for prediction in found]) < 0).all()


def test_paths_are_those_of_mace() -> None:
    assert [path[1] for path in paths(0, 3)] == [0, 1, 2, 3]
    assert paths(1, 2) == ((0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 2, 1), (0, 2, 2), (1, 1, 2))


def test_average_neighbors() -> None:
    copper = graph_from_atoms(bulk("Cu", cubic=True), 5.0)
    assert average_neighbors([copper], cutoff=3.0) == 12.0
    assert average_neighbors([copper], cutoff=3.7) == 18.0
    dimer = batch_graphs([graph_from_atoms(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), 3.0)], n_atoms=9, slots=4)
    assert average_neighbors([dimer]) == 1.0
    with pytest.raises(ValueError, match="no atoms"):
        average_neighbors([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"message_l": 1, "l_max": 0}, "message_l is 1 and l_max is 0"),
        ({"correlation": 0}, "correlation is 0, but it must be between 1 and 4"),
        ({"correlation": 5}, "correlation is 5"),
        ({"message_l": 3}, "message_l is 3, but it must be between 0 and 2"),
        ({"layers": 0}, "layers is 0, but it must be at least 1"),
        ({"cutoff": -1.0}, "cutoff is -1.0 Å"),
        ({"cutoff": float("nan")}, "cutoff is nan Å"),
        ({"radial_mlp": ()}, "radial_mlp is ()"),
        ({"chanels": 3}, "chanels"),
    ],
    ids=str,
)
def test_bad_specifications_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Equivariant(**values)


def test_bad_builds_are_refused() -> None:
    with pytest.raises(ValueError, match="must name atomic numbers from 1 to 118"):
        SMALL.build([0, 1], average_neighbors=1.0)
    with pytest.raises(ValueError, match="species is"):
        SMALL.build([], average_neighbors=1.0)
    with pytest.raises(ValueError, match="so it must be positive"):
        SMALL.build([1], average_neighbors=0.0)
    with pytest.raises(ValueError, match="heads is 0"):
        SMALL.build([1], average_neighbors=1.0, heads=0)
    with pytest.raises((ValueError, TypeError), match="references"):  # TypeError from the shape checks of the tests
        SMALL.build([1], average_neighbors=1.0, references=np.zeros(3))


def test_specification_is_hashable_and_travels_as_json() -> None:
    again = Equivariant.model_validate_json(SMALL.model_dump_json())
    assert again == SMALL
    assert hash(again) == hash(SMALL)
