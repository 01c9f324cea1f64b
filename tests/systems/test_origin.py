"""Single precision far from the origin."""

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule, nanotube

from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import Graph, edge_vectors, graph_from_atoms, periodic_cell
from jaxmlip.systems.origin import NEAR, offset_from_origin
from jaxmlip.types import Leaf, PerAtom

AWAY = np.array([0.77, -0.39, 0.51])


@flax.struct.dataclass
class Springs(Potential):
    """½ k (r − 1)² for all pairs within 3 Å, k as of a stiff bond: params {"k": []} in eV/Å²."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(119))

    @property
    def cutoff(self) -> float:
        """Å."""
        return 3.0

    @property
    def species(self) -> tuple[int, ...]:
        """Any element."""
        return tuple(range(1, 119))

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Half the springs, eV."""
        vectors, mask = edge_vectors(graph)
        length = jnp.sqrt((vectors**2).sum(-1))
        near = mask & (length < 3.0)
        return 0.25 * self.params["k"] * jnp.where(near, (length - 1.0) ** 2, 0.0).sum(-1)


@pytest.fixture(scope="module")
def potential() -> Potential:
    return Springs({"k": np.float32(10.0)})


def structures() -> dict[str, Atoms]:
    """Periodic in two directions, in none and in three; stiff enough to tell 10⁻⁶ Å."""
    found = {
        "graphene": graphene(vacuum=10) * (2, 2, 1),
        "water": molecule("H2O"),
        "NaCl": bulk("NaCl", "rocksalt", 5.6),
    }
    for atoms in found.values():
        atoms.rattle(0.05, seed=3)
    return found


@pytest.mark.parametrize("name", structures())
def test_forces_do_not_depend_on_the_origin(potential: Potential, name: str) -> None:
    """Less than 0.1 meV/Å, for `predict` and for the calculator, in all shells of distance."""
    near = structures()[name]
    moved = []
    for distance in (0.0, 1e2, 1e3, 1e4, 1e5):
        moved.append(near.copy())
        moved[-1].positions += distance * AWAY
    expected, *found = (frame.forces for frame in predict(potential, moved))
    calculator = Calculator(potential)
    for forces, atoms in zip(found, moved[1:], strict=True):
        np.testing.assert_allclose(forces, expected, atol=1e-4)
        atoms.calc = calculator
        np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-4)


def test_atoms_may_be_any_number_of_cells_away(potential: Potential) -> None:
    """Positions that were never wrapped, each atom in a cell of its own, beyond what eight bits of a shift hold."""
    wrapped = structures()["NaCl"] * (2, 1, 1)
    unwrapped = wrapped.copy()
    unwrapped.positions += np.random.default_rng(0).integers(-20000, 20000, (4, 3)) @ wrapped.cell.array
    expected, found = predict(potential, [wrapped, unwrapped], stress=True)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-4)
    np.testing.assert_allclose(found.stress, expected.stress, atol=1e-5)
    assert found.energy == pytest.approx(expected.energy, abs=1e-5)


def test_calculator_keeps_its_list_far_away(potential: Potential) -> None:
    """Atoms that move, and a cell that is strained, while the list and its offsets stay."""
    near = structures()["NaCl"]
    far = near.copy()
    far.positions += np.array([[3, -700, 9000], [0, 5000, -1]]) @ near.cell.array
    calculators = Calculator(potential), Calculator(potential)
    for atoms, calculator in zip((near, far), calculators, strict=True):
        atoms.calc = calculator
        atoms.get_potential_energy()
    lists = [calculator._graph for calculator in calculators]
    for atoms in (near, far):
        atoms.positions[1] += [0.05, -0.02, 0.01]
    np.testing.assert_allclose(far.get_forces(), near.get_forces(), atol=1e-4)
    for atoms in (near, far):
        atoms.set_cell(1.001 * atoms.cell.array, scale_atoms=True)
    np.testing.assert_allclose(far.get_forces(), near.get_forces(), atol=1e-4)
    np.testing.assert_allclose(far.get_stress(), near.get_stress(), atol=1e-5)
    assert [calculator._graph for calculator in calculators] == lists, "no list was made anew"


def test_what_is_near_keeps_its_bits() -> None:
    """In the cell, a little out of it, or up to 16 Å from the origin where there is none."""
    for atoms in [*structures().values(), bulk("Cu", cubic=True) * (6, 6, 6)]:
        graph = graph_from_atoms(atoms, 3.0)
        np.testing.assert_array_equal(graph.positions, atoms.positions.astype(np.float32))


def test_along_a_tilted_tube() -> None:
    """Lattice vectors are taken off along the axis, a translation of the whole across it."""
    tube = nanotube(5, 0, length=1, vacuum=5.0)
    tube.pbc = (False, False, True)
    tube.rotate(40, (1, 2, 0), rotate_cell=True)
    far = tube.copy()
    cell = periodic_cell(tube)
    turns = np.random.default_rng(1).integers(-1000, 1000, (len(tube), 1))
    far.positions += turns * cell[2] + [3e4, -5e4, 1e4]
    offset = offset_from_origin(far.positions, cell)
    near = far.positions - offset.vectors(cell)
    assert np.abs(near).max() < 2 * NEAR
    assert offset.centre @ cell[2] == pytest.approx(0.0, abs=1e-6)
    between = (near - near[0]) - (tube.positions - tube.positions[0])
    along = between @ cell[2] / (cell[2] @ cell[2])
    np.testing.assert_allclose(along, np.rint(along), atol=1e-6)
    np.testing.assert_allclose(between, along[:, None] * cell[2], atol=1e-6)


def test_one_that_left_does_not_take_the_others_along() -> None:
    positions = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 3.0], [5e4, 0.0, 0.0]])
    assert not offset_from_origin(positions, np.zeros((3, 3))).vectors(np.zeros((3, 3))).any()
