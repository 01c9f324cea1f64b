"""Many structures through a potential agree with each of them alone, to the last digit that matters."""

import inspect

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from morse import TRACES, morse

from jaxmlip.potentials import evaluation
from jaxmlip.potentials.ase import AseTeacher
from jaxmlip.potentials.evaluation import compiled_evaluate, label, predict, round_up
from jaxmlip.potentials.potential import Prediction, reference_energy
from jaxmlip.systems.graph import graph_from_atoms


def rattled(atoms: Atoms, seed: int) -> Atoms:
    atoms.rattle(0.1, seed=seed)
    return atoms


def mixed_structures() -> list[Atoms]:
    """Crystals, molecules, a slab, a wire, one-atom cells and a lone atom, in no order."""
    slab = bulk("Cu", cubic=True) * (2, 2, 1)
    slab.center(vacuum=6.0, axis=2)
    slab.pbc = (True, True, False)
    wire = Atoms("Ag2", [[0, 0, 0], [0, 0, 2.6]], cell=[0, 0, 5.0], pbc=(False, False, True))
    structures = [
        molecule("H2O"),
        bulk("Cu"),
        rattled(slab, 2),
        Atoms("O", [[1.0, 2.0, 3.0]]),
        wire,
        rattled(bulk("Cu", cubic=True) * (3, 2, 2), 4),
    ]
    for index, atoms in enumerate(structures):
        atoms.info["kind"] = f"kind {index}"
    return structures


@pytest.fixture(scope="module")
def singles() -> list[Prediction]:
    """Every mixed structure in a graph of its own, without padding."""
    potential = morse()
    graphs = [graph_from_atoms(atoms, potential.cutoff, potential.inner_cutoff) for atoms in mixed_structures()]
    return [jax.device_get(compiled_evaluate(potential, graph, True)) for graph in graphs]


@pytest.mark.parametrize("batch_atoms", [20, 512])
def test_batches_equal_singles(batch_atoms, singles):
    structures, potential = mixed_structures(), morse()
    frames = predict(potential, structures, stress=True, batch_atoms=batch_atoms)
    for index, (atoms, frame, alone) in enumerate(zip(structures, frames, singles, strict=True)):
        energy = float(alone.energy[0])
        tolerance = 2e-6 * len(atoms) + 1e-6 * abs(energy)
        assert frame.energy - reference_energy(potential, atoms.numbers) == pytest.approx(energy, abs=tolerance)
        np.testing.assert_allclose(frame.forces, alone.forces, atol=5e-6, rtol=1e-5)
        if atoms.pbc.all():
            np.testing.assert_allclose(frame.stress, alone.stress[0], atol=1e-7)
        else:
            assert np.isnan(frame.stress).all()
        assert frame.atoms == atoms
        assert frame.info["kind"] == f"kind {index}"


def test_no_stress_unless_asked_for():
    (frame,) = predict(morse(), [bulk("Cu")])
    assert np.isnan(frame.stress).all()
    assert predict(morse(), []) == []


def test_double_precision_follows_the_parameters(x64):
    atoms = rattled(bulk("Cu", cubic=True), 5)
    potential = morse(np.float64)
    step = 1e-4
    moved = []
    for sign in (1, -1):
        moved.append(atoms.copy())
        moved[-1].positions[2, 1] += sign * step
    plus, minus, here = predict(potential, [*moved, atoms])
    assert here.forces[2, 1] == pytest.approx(-(plus.energy - minus.energy) / (2 * step), abs=1e-7)


def test_references_are_summed_in_double():
    """A 128-molecule cell holds −261 632 eV of references, where float32 counts in steps of 0.03 eV."""
    rng = np.random.default_rng(0)
    water = []
    for count in (1, 16, 128):
        cell = Atoms()
        for place in np.ndindex(8, 4, 4):
            if len(cell) < 3 * count:
                one = molecule("H2O")
                one.rotate(rng.uniform(0, 360), "x")
                one.positions += 3.1 * np.array(place)
                cell += one
        water.append(cell)
    heavy, light = predict(morse(oxygen=-2044.0), water), predict(morse(oxygen=0.0), water)
    for count, one, other in zip((1, 16, 128), heavy, light, strict=True):
        assert one.energy - other.energy == pytest.approx(-2044.0 * count, abs=1e-6)


def test_few_compilations_and_shared_ones():
    """Thirty clusters of 4 to 60 atoms take at most two compilations, those of an equal potential none."""
    rng = np.random.default_rng(1)
    crystal = bulk("Cu", cubic=True) * 4
    clusters = []
    for size in rng.integers(4, 61, size=30):
        near = np.argsort(np.linalg.norm(crystal.positions - crystal.positions[90], axis=1))[:size]
        cluster = crystal[near]
        cluster.pbc = False
        clusters.append(rattled(cluster, int(size)))
    TRACES.clear()
    first = predict(morse(depth=0.31), clusters)
    assert 1 <= len(TRACES) <= 2
    TRACES.clear()
    second = predict(morse(depth=0.32), clusters)
    assert TRACES == []
    assert all(one.energy != other.energy for one, other in zip(first, second, strict=True))


def test_a_crowded_structure_does_not_burden_the_others():
    """Angles go with the square of the inner slots: one dense crystal is a program of its own as soon as that pays."""
    plain, dense = bulk("Cu", cubic=True), bulk("Cu", cubic=True, a=1.9)
    graphs = [graph_from_atoms(atoms, 6.0, 3.0) for atoms in (plain, dense)]
    assert graphs[1].inner > 4 * graphs[0].inner
    few, many = dict.fromkeys(range(1, 3), graphs[0]), dict.fromkeys(range(1, 101), graphs[0])
    assert [sorted(group) for group in evaluation._alike({0: graphs[1]} | few)] == [[0, 1, 2]]
    assert sorted(sorted(group) for group in evaluation._alike({0: graphs[1]} | many)) == [[0], [*range(1, 101)]]
    assert evaluation._alike({}) == []


def test_rounded_sizes():
    sizes = [round_up(n) for n in range(1, 2000)]
    assert all(n <= size <= 1.25 * n + 1e-9 for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 45
    assert [round_up(n) for n in (96, 384, 97)] == [96, 384, 112]


def test_constraints_do_not_reach_the_labels():
    free = rattled(bulk("Cu", cubic=True), 6)
    held = free.copy()
    held.set_constraint(FixAtoms([0, 1, 2, 3]))
    (one,), (other,) = predict(morse(), [free]), predict(morse(), [held])
    np.testing.assert_array_equal(one.forces, other.forces)
    assert np.abs(other.forces).max() > 0.01
    assert other.atoms.constraints[0].index.tolist() == [0, 1, 2, 3], "kept, but without effect"
    assert other.atoms.calc is None
    assert held.constraints
    (taught,) = label([held], AseTeacher("ase.calculators.emt:EMT"))
    assert np.abs(taught.forces).min() > 0
    assert taught.atoms.constraints[0].index.tolist() == [0, 1, 2, 3]


def test_what_a_structure_carries_is_kept():
    carried = rattled(bulk("Cu", cubic=True), 6)
    carried.set_masses([65.0, 63, 63, 63])  # type: ignore[arg-type]
    carried.set_tags([1, 2, 3, 4])
    carried.info = {"config_type": "bulk", "vector": np.arange(2.0)}
    for teacher in (morse(), AseTeacher("ase.calculators.emt:EMT")):
        (frame,) = label([carried], teacher)
        assert frame.atoms.get_masses().tolist() == [65, 63, 63, 63]
        assert frame.atoms.get_tags().tolist() == [1, 2, 3, 4]
        assert frame.info["config_type"] == frame.atoms.info["config_type"] == "bulk"


def test_close_atoms_are_labelled_only_if_meant():
    """A doubled site is refused by every teacher, and a potential still says what it thinks of it."""
    doubled = bulk("Cu", cubic=True) + Atoms("Cu", [[0.02, 0, 0]])
    for teacher in (morse(), AseTeacher("ase.calculators.emt:EMT")):
        with pytest.raises(ValueError, match=r"Frame 1 \(Cu5\): Atoms 0 \(Cu\) and 4 \(Cu\) are 0\.02 Å apart"):
            label([bulk("Cu", cubic=True), doubled], teacher)
    sound, meant = label([bulk("Cu", cubic=True), doubled], morse(), allow_close=True)
    assert meant.atoms.info == {"allow_close": True}
    assert not sound.atoms.info
    (said,) = predict(morse(), [doubled])
    assert said.energy == pytest.approx(meant.energy)


def test_unknown_elements_are_named_before_anything_is_computed():
    TRACES.clear()
    with pytest.raises(ValueError, match=r"Frame 2 \(HAu\): .* does not know Au; .* H O Cu Ag"):
        predict(morse(), [bulk("Cu"), molecule("H2O"), Atoms("HAu", [[0, 0, 0], [0, 0, 1.5]])])
    assert TRACES == []


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (Atoms("H", [[np.nan, 0, 0]]), "position of atom 0"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0]]), "coincide"),
        (Atoms("H", cell=[1, 1, 0], pbc=True), "singular"),
        (Atoms(), "no atoms"),
    ],
)
def test_damaged_structures_are_named(atoms, reason):
    with pytest.raises(ValueError, match=f"^Frame 1 .*{reason}"):
        predict(morse(), [bulk("Cu"), atoms])


def test_results_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"Frame 0 \(Cu4\): the energy .* not finite"):
        predict(morse(depth=np.nan), [bulk("Cu", cubic=True)])
    with pytest.raises(ValueError, match="batch_atoms must be at least 1, not 0"):
        predict(morse(), [], batch_atoms=0)


def test_label_takes_potentials_and_ase_teachers():
    structures = [rattled(bulk("Cu", cubic=True), 7), bulk("Cu")]
    ours = label(structures, morse(), stress=True)
    theirs = label(structures, AseTeacher("ase.calculators.emt:EMT"), stress=True)
    for one, other in zip(ours, theirs, strict=True):
        assert one.atoms == other.atoms
        assert np.isfinite(one.stress).all()
        assert np.isfinite(other.stress).all()
    with pytest.raises(TypeError, match="A teacher is a Potential or an AseTeacher, not str"):
        inspect.unwrap(label)(structures, "chgnet:gga")  # past the type checker of the tests
