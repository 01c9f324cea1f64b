"""The pair potential obeys the laws of physics, and equals a plain sum over pairs."""

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation

from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.pairs import PairForces, PairPotential, element_pairs, log_centres
from jaxmlip.potentials.potential import Prediction, evaluate
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms, strained

CUTOFF = 4.0
POTENTIAL = PairPotential(np.random.default_rng(0).standard_normal((3, 12)), np.zeros(119), (1, 8), CUTOFF, 0.7)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@jax.jit
def predict(potential: PairPotential, graph: Graph) -> Prediction:
    return evaluate(potential, graph, stress=True)


def waters(periodic: bool = True) -> Atoms:
    atoms = molecule("H2O")
    other = molecule("H2O")
    other.rotate(70, (1, 2, 3))
    other.positions += [2.6, 0.4, 0.3]
    atoms += other
    atoms.rattle(0.05, seed=1)
    if periodic:
        atoms.set_cell([[5.3, 0.1, 0.0], [0.4, 3.2, 0.2], [-0.3, 0.5, 3.4]])
        atoms.pbc = True
    return atoms


def padded(*structures: Atoms) -> Graph:
    graphs = [graph_from_atoms(atoms, CUTOFF, dtype=np.float64) for atoms in structures]
    return batch_graphs(graphs, n_atoms=24, n_graphs=3, slots=64)


def test_energy_is_a_plain_sum_over_pairs():
    atoms = waters(periodic=False)
    centres, pairs = log_centres(0.7, CUTOFF, 12), element_pairs((8, 1))
    assert pairs == [(1, 1), (1, 8), (8, 8)]
    total = 0.0
    for i in range(6):
        for j in range(i):
            r = atoms.get_distance(i, j)
            u = r / CUTOFF
            smooth = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7 if u < 1 else 0.0
            one, other = int(atoms.numbers[i]), int(atoms.numbers[j])
            kind = pairs.index((min(one, other), max(one, other)))
            basis = np.exp(-0.5 * ((np.log(r) - centres) / (centres[1] - centres[0])) ** 2)
            total += smooth * POTENTIAL.params[kind] @ basis
    assert float(predict(POTENTIAL, padded(atoms)).energy[0]) == pytest.approx(total, rel=1e-12)


def test_forces_and_stress_are_derivatives():
    graph = padded(waters())
    at = predict(POTENTIAL, graph)
    direction = np.zeros((24, 3))
    direction[:6] = np.random.default_rng(2).standard_normal((6, 3))
    step = 1e-5
    up, down = (predict(POTENTIAL, graph.replace(positions=graph.positions + s * direction)) for s in (step, -step))
    slope = float(up.energy[0] - down.energy[0]) / (2 * step)
    assert -np.sum(np.asarray(at.forces) * direction) == pytest.approx(slope, rel=1e-6)

    strain = np.zeros((3, 3, 3))
    strain[0, 0, 1] = strain[0, 1, 0] = strain[0, 2, 2] = 1.0
    up, down = (predict(POTENTIAL, strained(graph, graph.positions, s * strain)) for s in (step, -step))
    slope = float(up.energy[0] - down.energy[0]) / (2 * step)
    virial = float(np.sum(np.asarray(at.stress[0]) * strain[0])) * float(graph.volume()[0])
    assert virial == pytest.approx(slope, rel=1e-6)


def test_rotation_permutation_and_padding_change_nothing():
    atoms, order = waters(periodic=False), np.array([3, 0, 5, 1, 4, 2])
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    turned = Atoms(atoms.numbers[order], atoms.positions[order] @ turn.T + 7.0)
    one = predict(POTENTIAL, padded(waters(), turned))
    other = predict(POTENTIAL, padded(atoms))
    assert float(one.energy[1]) == pytest.approx(float(other.energy[0]), rel=1e-10)
    np.testing.assert_allclose(one.forces[6:12], np.asarray(other.forces)[order] @ turn.T, atol=1e-10)
    np.testing.assert_array_equal(one.forces[12:], 0.0)
    assert float(one.energy[2]) == 0.0


def test_energy_ends_smoothly_at_the_cutoff_and_lone_atoms_have_none():
    def pair(distance: float) -> Prediction:
        return predict(POTENTIAL, padded(Atoms("OH", [[0, 0, 0], [distance, 0, 0]])))

    near = pair(CUTOFF - 1e-4)
    assert abs(float(near.energy[0])) < 1e-10
    assert np.abs(np.asarray(near.forces)).max() < 1e-6
    apart = pair(9.0)
    assert float(apart.energy[0]) == 0.0
    np.testing.assert_array_equal(apart.forces, 0.0)


def test_unknown_elements_are_nan_and_files_keep_every_bit(tmp_path):
    assert np.isnan(predict(POTENTIAL, padded(Atoms("OC", [[0, 0, 0], [1.5, 0, 0]]))).energy[0])
    save(POTENTIAL, tmp_path / "pairs.jaxmlip")
    back = load(tmp_path / "pairs.jaxmlip")
    assert jax.tree.structure(back) == jax.tree.structure(POTENTIAL)
    np.testing.assert_array_equal(back.params, POTENTIAL.params)  # pyright: ignore[reportAttributeAccessIssue]


FORCES = PairForces(np.random.default_rng(1).standard_normal((3, 16)), np.zeros(119), (1, 8), CUTOFF)


def test_forces_are_linear_between_knots():
    """Of two atoms, on the knots and halfway between; the energy is its integral up to the cutoff."""
    width = CUTOFF / 16
    for at in np.arange(2, 16, 0.5):
        apart = Atoms("OH", positions=[[0, 0, 0], [0, 0, at * width]])
        found = predict(FORCES, graph_from_atoms(apart, CUTOFF, dtype=np.float64))
        at_knots = np.append(FORCES.params[1], 0.0)
        force = np.interp(at, np.arange(17), at_knots)
        assert float(np.asarray(found.forces)[1, 2]) == pytest.approx(force, abs=1e-12)
        halves = np.arange(at, 16.5, 0.5)
        energy = width * np.trapezoid(np.interp(halves, np.arange(17), at_knots), halves)
        assert float(np.asarray(found.energy)[0]) == pytest.approx(energy, abs=1e-12)


def test_forces_of_functions_are_derivatives_of_functions():
    graph = padded(waters(), waters(periodic=False))
    found = predict(FORCES, graph).forces
    linear = np.einsum("acpk,pk->ac", np.asarray(FORCES.forces_of_functions(graph)), FORCES.params)
    np.testing.assert_allclose(linear, found, atol=1e-12)
    energies = np.einsum("apk,pk->a", np.asarray(FORCES.functions(graph)), FORCES.params)
    np.testing.assert_allclose(energies, FORCES.atomic_energies(graph), atol=1e-12)
