"""The CHGNet teachers against the original's numbers, and against the laws every potential obeys.

Compilation is what takes time here, so that structures share a few padded shapes and compiled functions.
"""

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms

from jaxmlip.potentials import chgnet_checkpoint
from jaxmlip.potentials.chgnet import NOT_IN_MPTRJ, CHGNet, CHGNetModel, drawn_params, reverse_slots
from jaxmlip.potentials.chgnet_checkpoint import load_chgnet, read_chgnet
from jaxmlip.potentials.potential import Prediction, check_species, evaluate, reference_energy, stack
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.units import GPA

REFERENCE = Path(__file__).parent / "data" / "chgnet_reference.npz"
TEACHERS = ("gga", "r2scan")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("chgnet") is None, reason="needs the checkpoints of the package chgnet"
)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """The committed file, by key."""
    return dict(np.load(REFERENCE))


@pytest.fixture(scope="module")
def structures(reference: dict) -> dict[str, Atoms]:
    """Its structures, by name."""
    found = {}
    for index, name in enumerate(reference["names"]):
        cell = reference[f"{index}.cell"]
        numbers, positions = reference[f"{index}.numbers"], reference[f"{index}.positions"]
        found[str(name)] = Atoms(numbers, positions, cell=cell, pbc=cell.any(axis=1))
    return found


@pytest.fixture(scope="module")
def teachers() -> dict[str, CHGNet]:
    """Both, float32."""
    return {which: load_chgnet(which) for which in TEACHERS}


def of_group(structures: dict[str, Atoms], group: str) -> dict[str, Atoms]:
    """Ice, or all else, which is small."""
    return {name: atoms for name, atoms in structures.items() if name.startswith("ice") == (group == "ice")}


@pytest.fixture(scope="module")
def small(structures: dict) -> Graph:
    """What is small, in one batch."""
    return batch_graphs([graph_from_atoms(atoms, 6.0, 3.0) for atoms in of_group(structures, "small").values()])


compiled_everything = jax.jit(
    lambda teacher, graph: (evaluate(teacher, graph, stress=True), teacher.magnetic_moments(graph))
)


def everything(teacher: CHGNet, graph: Graph) -> tuple[Prediction, np.ndarray]:
    """Energy, forces, stress and magnetic moments, on the host."""
    return jax.tree.map(np.asarray, compiled_everything(teacher, graph))


def disguised(teacher: CHGNet, as_teacher: CHGNet) -> CHGNet:
    """A teacher with the static fields of another, so that both share what is compiled."""
    return as_teacher.replace(params=teacher.params)


@pytest.mark.optimised
@pytest.mark.parametrize("which", TEACHERS)
@pytest.mark.parametrize("group", ["small", pytest.param("ice", marks=pytest.mark.slow)])
def test_agrees_with_the_original(group: str, which: str, reference: dict, structures: dict, teachers: dict) -> None:
    """Energy within 2e-5 eV/atom, forces 1e-3 eV/Å, stress 2e-3 GPa, magnetic moments 1e-4 μB, in float32."""
    chosen = of_group(structures, group)
    assert len(chosen) >= (2 if group == "ice" else 20)
    graph = batch_graphs([graph_from_atoms(atoms, 6.0, 3.0) for atoms in chosen.values()])
    prediction, magnetic = everything(disguised(teachers[which], teachers["gga"]), graph)
    starts = np.flatnonzero(np.diff(graph.owner)) + 1
    forces, moments = (np.split(each, starts) for each in (prediction.forces, magnetic))
    for place, (name, atoms) in enumerate(chosen.items()):
        index = [*structures].index(name)
        total = prediction.energy[place] + reference_energy(teachers[which], atoms.numbers)
        wanted = {key: reference[f"{index}.{which}.{key}"] for key in ("energy", "forces", "stress", "magmoms")}
        assert total / len(atoms) == pytest.approx(float(wanted["energy"]), abs=2e-5), name
        np.testing.assert_allclose(forces[place], wanted["forces"], rtol=0, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(moments[place], wanted["magmoms"], rtol=0, atol=1e-4, err_msg=name)
        stress = prediction.stress[place]
        if atoms.pbc.all():
            np.testing.assert_allclose(stress / GPA, wanted["stress"], rtol=0, atol=2e-3, err_msg=name)
        else:
            assert np.isnan(stress).all(), name


def test_agrees_with_the_original_live(structures: dict, teachers: dict, small: Graph) -> None:
    """The same on structures displaced anew, where the original itself can be run."""
    pytest.importorskip("torch", reason="the live comparison needs torch")
    pytest.importorskip("pymatgen", reason="the live comparison needs pymatgen")
    from chgnet.model.model import CHGNet as Original  # pyright: ignore[reportMissingImports]
    from pymatgen.io.ase import AseAtomsAdaptor  # pyright: ignore[reportMissingImports]

    original = Original.load(model_name="0.3.0", use_device="cpu", verbose=False)
    noise = np.random.default_rng(20).normal(0.0, 0.01, small.positions.shape).astype(np.float32)
    graph = small.replace(positions=small.positions + noise)
    prediction, _ = everything(teachers["gga"], graph)
    for index, atoms in enumerate(of_group(structures, "small").values()):
        if atoms.pbc.all():
            atoms = atoms.copy()
            atoms.positions = graph.positions[graph.owner == index]
            said: Any = original.predict_structure(AseAtomsAdaptor.get_structure(atoms), task="efs")
            total = float(prediction.energy[index]) + reference_energy(teachers["gga"], atoms.numbers)
            assert total / len(atoms) == pytest.approx(float(said["e"]), abs=2e-5)
            forces = np.asarray(prediction.forces)[graph.owner == index]
            np.testing.assert_allclose(forces, said["f"], rtol=0, atol=1e-3)
            np.testing.assert_allclose(prediction.stress[index] / GPA, said["s"], rtol=0, atol=2e-3)


@pytest.fixture(scope="module")
def together(teachers: dict, small: Graph) -> tuple[Prediction, np.ndarray]:
    """What one teacher says of the batch."""
    return everything(teachers["gga"], small)


@pytest.mark.optimised
@pytest.mark.parametrize("name", ["spinel LiMn2O4", "water molecule and a lone nickel"])
def test_batch_equals_single_and_padding_changes_nothing(
    name: str, structures: dict, teachers: dict, small: Graph, together: tuple
) -> None:
    """A structure alone, padded to the shape of the batch, has the energy, forces and moments it has in the batch."""
    batch = small
    index = [*of_group(structures, "small")].index(name)
    single = batch_graphs(
        [graph_from_atoms(structures[name], 6.0, 3.0)],
        n_atoms=batch.n_atoms,
        n_graphs=batch.n_graphs,
        slots=batch.n_slots,
    )
    said, moments = together
    alone, moment = everything(teachers["gga"], single.replace(inner=batch.inner))
    n, mine = len(structures[name]), batch.owner == index
    assert alone.energy[0] == pytest.approx(said.energy[index], abs=1e-5 * n)
    assert not alone.energy[1:].any()
    np.testing.assert_allclose(alone.forces[:n], said.forces[mine], atol=2e-4)
    assert not alone.forces[n:].any()
    np.testing.assert_allclose(moment[:n], moments[mine], atol=1e-5)
    assert not moment[n:].any()


SHAPE = {"slots": 120, "inner": 20}
"""Of all float64 graphs below, which have 12 atoms."""


@pytest.fixture(scope="module")
def exact() -> Callable[[Atoms], tuple[Prediction, Graph]]:
    """Energy, forces and stress of at most 12 atoms in float64 by the r2SCAN teacher."""
    teacher = load_chgnet("r2scan", dtype=np.float64)
    compiled = jax.jit(lambda graph: evaluate(teacher, graph, stress=True))

    def run(atoms: Atoms) -> tuple[Prediction, Graph]:
        graph = graph_from_atoms(atoms, 6.3, 3.3, slots=SHAPE["slots"], inner=SHAPE["inner"], dtype=np.float64)
        graph = batch_graphs([graph], n_atoms=12)
        return jax.tree.map(np.asarray, compiled(graph)), graph

    return run


@pytest.fixture(scope="module")
def quartz(structures: dict) -> Atoms:
    """A crystal without any symmetry."""
    return structures["triclinic strained quartz"]


@pytest.mark.usefixtures("x64")
def test_forces_and_stress_are_derivatives(exact: Callable, quartz: Atoms) -> None:
    """Central differences in float64; the step is small because the radial basis has frequencies of 30/Å."""
    prediction, _ = exact(quartz)
    assert prediction.forces.dtype == np.float64
    step = 2e-5
    for atom, axis in [(3, 1), (7, 2)]:
        energies = []
        for sign in (1, -1):
            moved = quartz.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(exact(moved)[0].energy[0])
        slope = (energies[0] - energies[1]) / (2 * step)
        assert prediction.forces[atom, axis] == pytest.approx(-slope, abs=1e-6)
    for i, j in [(0, 0), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = quartz.copy()
            strained.set_cell(quartz.cell.array @ strain, scale_atoms=True)
            energies.append(exact(strained)[0].energy[0])
        slope = (energies[0] - energies[1]) / (2 * step) / quartz.get_volume()
        assert prediction.stress[0, i, j] == pytest.approx(slope, abs=1e-7)


@pytest.mark.usefixtures("x64")
def test_symmetries(exact: Callable, quartz: Atoms) -> None:
    """Permutation, translation (through the boundary), rotation with reflection, and another choice of the cell."""
    here, _ = exact(quartz)
    rng = np.random.default_rng(0)

    order = rng.permutation(len(quartz))
    permuted, _ = exact(quartz[order])
    assert permuted.energy[0] == pytest.approx(here.energy[0], rel=1e-10)
    np.testing.assert_allclose(permuted.forces, here.forces[order], atol=1e-9)

    moved = quartz.copy()
    moved.positions += rng.normal(size=3) * 10
    moved.wrap()
    translated, _ = exact(moved)
    assert translated.energy[0] == pytest.approx(here.energy[0], rel=1e-10)
    np.testing.assert_allclose(translated.forces, here.forces, atol=1e-9)

    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = Atoms(quartz.numbers, quartz.positions @ turn, cell=quartz.cell.array @ turn, pbc=True)
    rotated, _ = exact(turned)
    assert rotated.energy[0] == pytest.approx(here.energy[0], rel=1e-10)
    np.testing.assert_allclose(rotated.forces, here.forces @ turn, atol=1e-9)
    np.testing.assert_allclose(rotated.stress[0], turn.T @ here.stress[0] @ turn, atol=1e-10)

    sheared = Atoms(
        quartz.numbers, quartz.positions, cell=[[1, 0, 0], [1, 1, 0], [0, -1, 1]] @ quartz.cell.array, pbc=1
    )
    again, _ = exact(sheared)
    assert again.energy[0] == pytest.approx(here.energy[0], rel=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cutoff", [3.0, 6.0])
def test_smooth_where_a_neighbour_leaves(cutoff: float, exact: Callable) -> None:
    """Energy and force run on without a step through both cutoffs; the list reaches further than they do."""
    water = Atoms("OH2", [[0, 0, 0], [0.76, 0, 0.59], [-0.76, 0, 0.59]])
    results = []
    for distance in cutoff + np.array([-1e-4, 1e-4]):
        prediction, graph = exact(water + Atoms("Mg", [[0.0, 0.0, -distance]]))
        assert (graph.neighbors[3] == 0).any()
        results.append((prediction.energy[0], prediction.forces))
    (before, forces_before), (after, forces_after) = results
    assert after == pytest.approx(before, abs=1e-3 * max(1e-3, np.abs(forces_before).max()))
    np.testing.assert_allclose(forces_after, forces_before, atol=2e-3)


def test_isolated_atom_is_finite(teachers: dict) -> None:
    """An atom without neighbours, and hence a graph without slots for bonds, has an energy and no forces."""
    graph = graph_from_atoms(Atoms("Fe", [[0.0, 0, 0]]), 6.0, 3.0)
    assert graph.inner == 0
    prediction = jax.jit(evaluate)(teachers["gga"], graph)
    assert np.isfinite(prediction.energy).all()
    assert not prediction.forces.any()


@pytest.mark.slow
def test_vmap_equals_loop(structures: dict, teachers: dict) -> None:
    """Over stacked parameters: an ensemble; over stacked graphs: replicas."""
    graph = graph_from_atoms(structures["water cluster of 5"], 6.0, 3.0)
    one, other = teachers["gga"], disguised(teachers["r2scan"], teachers["gga"])

    def energy(teacher: CHGNet, graph: Graph) -> jax.Array:
        return teacher.energy(graph)[0]

    compiled = jax.jit(energy)
    ensemble = jax.jit(jax.vmap(energy, in_axes=(0, None)))(stack([one, other]), graph)
    np.testing.assert_allclose(ensemble, [compiled(one, graph), compiled(other, graph)], rtol=1e-5)
    assert abs(ensemble[0] - ensemble[1]) > 0.1

    moved = graph.replace(
        positions=graph.positions + np.float32(0.02) * np.sin(np.arange(45.0, dtype="f").reshape(15, 3))
    )
    replicas = jax.tree.map(lambda *leaves: np.stack(leaves), graph, moved)
    both = jax.jit(jax.vmap(energy, in_axes=(None, 0)))(one, replicas)
    np.testing.assert_allclose(both, [compiled(one, graph), compiled(one, moved)], rtol=1e-5)
    assert abs(both[0] - both[1]) > 0.01


def test_missing_inner_slots_are_not_silent(structures: dict, teachers: dict) -> None:
    """A bond that moved out of the leading slots makes the energies of its atoms NaN instead of slightly wrong."""
    graph = graph_from_atoms(structures["water molecule"], 6.0, 3.0)
    energies = teachers["gga"].atomic_energies(graph.replace(inner=0))
    assert np.isnan(energies).all()


def test_reverse_slots_find_the_same_bond(structures: dict) -> None:
    """Back and forth is where one started, for an atom bonded to its own images and for a molecule with ghosts."""
    for name in ("bcc Fe, one atom", "water cluster of 17"):
        graph = graph_from_atoms(structures[name], 6.0, 3.0)
        neighbors, shifts = graph.neighbors[:, : graph.inner], graph.shifts[:, : graph.inner]
        back = np.asarray(reverse_slots(neighbors, shifts)).ravel()
        real = back < back.size
        assert real.sum() > 0
        np.testing.assert_array_equal(back[back[real]], np.flatnonzero(real))
        np.testing.assert_array_equal(shifts.reshape(-1, 3)[back[real]], -shifts.reshape(-1, 3)[real])


def test_species_without_reference_are_refused_by_name(teachers: dict) -> None:
    """The r2SCAN checkpoint has no reference for six elements; five of these were never in the data of GGA either."""
    assert set(range(1, 95)) - set(teachers["gga"].species) == {84, 85, 86, 87, 88}
    assert set(range(1, 95)) - set(teachers["r2scan"].species) == {70, 84, 85, 86, 87, 88}
    with pytest.raises(ValueError, match="does not know Yb, Ra;"):
        check_species(teachers["r2scan"], np.array([8, 70, 88]))
    with pytest.raises(ValueError, match="does not know Po, Ra;"):
        check_species(teachers["gga"], np.array([8, 70, 84, 88]))


def test_elements_that_no_training_structure_had(teachers: dict) -> None:
    """Their embeddings are those of the initialisation, N(0, 1); the transfer left them, and Yb, as they were."""
    before, after = (teachers[which].params["params"]["atom_embedding"] for which in ("gga", "r2scan"))
    rms = np.sqrt((before**2).mean(axis=1))
    initial = np.abs(rms - 1) < 0.1
    assert tuple(np.flatnonzero(initial) + 1) == NOT_IN_MPTRJ
    assert (rms[~initial] > 1.4).all()
    assert tuple(np.flatnonzero((before == after).all(axis=1)) + 1) == (70, *NOT_IN_MPTRJ)


def test_references_are_those_of_the_checkpoint(teachers: dict) -> None:
    """AtomRef of hydrogen and oxygen, as printed in the original's source."""
    assert teachers["gga"].references[[1, 8]] == pytest.approx([-3.4431, -8.3861], abs=1e-4)
    assert teachers["r2scan"].references[[1, 8]] == pytest.approx([-3.4690, -9.1242], abs=1e-4)
    assert teachers["gga"].references.shape == (119,)
    assert sum(leaf.size for leaf in jax.tree.leaves(teachers["gga"].params)) == 412_525 - 94 - 33_152


def test_unknown_name() -> None:
    """Names are gga and r2scan."""
    with pytest.raises((ValueError, TypeError), match="pbe"):  # TypeError from the type checks of the tests
        load_chgnet("pbe")  # pyright: ignore[reportArgumentType]


def test_chgnet_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says how to get the checkpoints."""
    monkeypatch.setattr(chgnet_checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"chgnet:gga needs .* `uv sync` .* `pip install --no-deps chgnet`"):
        load_chgnet("gga")


def test_another_chgnet_is_refused(tmp_path: Path) -> None:
    """The older architecture in the same wheel is named for what it lacks; a truncated file for being truncated."""
    spec = importlib.util.find_spec("chgnet")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "pretrained"
    (old,) = (folder / "0.2.0").glob("*.pth.tar")
    with pytest.raises(ValueError, match=r"is a checkpoint, but not of CHGNet 0.3.0 or r2SCAN: it lacks "):
        read_chgnet(old)
    (good,) = (folder / "0.3.0").glob("*.pth.tar")
    cut = tmp_path / "cut.pth.tar"
    cut.write_bytes(good.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut.pth.tar is not a PyTorch checkpoint or is truncated"):
        read_chgnet(cut)


def test_wrong_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a wider network has the right names and the wrong shapes."""
    from jaxmlip.potentials.torch_checkpoint import read_checkpoint

    def wider(path: Path) -> dict:
        checkpoint = read_checkpoint(path)
        weights = checkpoint["model"]["state_dict"]
        weights["site_wise.weight"] = np.concatenate([weights["site_wise.weight"]] * 2, axis=1)
        return checkpoint

    monkeypatch.setattr(chgnet_checkpoint, "read_checkpoint", wider)
    with pytest.raises(ValueError, match=r"moment.kernel has shape \(128, 1\) instead of \(64, 1\)"):
        load_chgnet("gga")


def test_network_can_start_from_scratch() -> None:
    """The linen module initialises itself with the shapes of the checkpoints."""
    ours = jax.tree.map(lambda x: x.shape, load_chgnet("gga").params["params"])
    fresh = jax.tree.map(lambda x: x.shape, drawn_params(0))
    assert ours == fresh


def test_a_new_one_starts_as_the_original_does() -> None:
    """Linear layers uniform within 1/√inputs, elements normal, bases and normalisations where torch.nn has them."""
    new = CHGNetModel().build([8, 26], scale=2.0, shift=-3.0, seed=1)
    params = new.params["params"]
    assert params["atom_embedding"].std() == pytest.approx(1.0, abs=0.03)
    np.testing.assert_allclose(params["atom_basis"]["frequencies"], np.pi * np.arange(1, 32), rtol=1e-6)
    perceptron = params["atom_convolutions_1"]["perceptron"]
    for part in (*(perceptron[name] for name in ("center", "bond", "neighbor")), perceptron["bias"]):
        # 192 inputs: the original concatenates the three parts.
        assert np.abs(part).max() == pytest.approx(192**-0.5, rel=0.05)
        assert part.mean() == pytest.approx(0.0, abs=0.01)
    assert (perceptron["scale"] == 1).all()
    assert not perceptron["shift"].any()
    assert np.abs(params["readout_3"]["kernel"]).max() == pytest.approx(2 / 8, rel=0.1)
    assert params["readout_3"]["bias"][0] == pytest.approx(-3.0, abs=0.25)
    with pytest.raises(ValueError, match=r"species is \(8, 95\), but it must name atomic numbers from 1 to 94\."):
        CHGNetModel().build([8, 95])


def test_readouts_are_copied_and_taken(teachers: dict) -> None:
    """Each as it was, to the last bit; the trunk is shared."""
    one = teachers["gga"]
    three = one.with_heads(3, fresh=7)
    assert three.params["params"]["readout_0"]["kernel"].shape == (3, 64, 64)
    assert three.params["params"]["atom_embedding"] is one.params["params"]["atom_embedding"]
    back = three.select_head(1)
    assert all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(one)))
    assert not np.array_equal(
        three.select_head(2).params["params"]["moment"]["kernel"], one.params["params"]["moment"]["kernel"]
    )
    with pytest.raises(ValueError, match="3 readouts already"):
        three.with_heads(2)
    with pytest.raises(ValueError, match=r"3 readouts, and its energy is not defined"):
        three.atomic_energies(graph_from_atoms(Atoms("Fe", [[0.0, 0, 0]]), 6.0, 3.0))


def test_references_that_vanish_are_references(teachers: dict) -> None:
    """Elements are known by what was fitted to a checkpoint only until references are set."""
    assert teachers["r2scan"].with_references(np.zeros(119)).species == teachers["r2scan"].species


def test_zip_is_importable() -> None:
    """The checkpoint files in the wheel are zip archives, which is what the reader relies on."""
    spec = importlib.util.find_spec("chgnet")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = list(Path(spec.submodule_search_locations[0]).glob("pretrained/*/*.pth.tar"))
    assert len(files) == 3
    assert all(zipfile.is_zipfile(path) for path in files)
