"""Labelled frames: from files and back, split, and dealt into batches."""

from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from jaxmlip.systems.dataset import (
    Batch,
    Frame,
    Sample,
    make_batches,
    make_samples,
    padding_waste,
    read_frames,
    slot_waste,
    split,
    write_frames,
)
from jaxmlip.systems.graph import GHOST, edge_vectors, in_tiers
from jaxmlip.systems.ice import ice_ih

STRESS = np.array([[0.1, 0.01, -0.02], [0.01, 0.2, 1 / 3], [-0.02, 1 / 3, -0.3]])


def labelled_ice(seed: int = 0) -> Frame:
    """Ice with made-up labels: what happens to numbers does not depend on where they come from."""
    rng = np.random.default_rng(seed)
    atoms = ice_ih(16, seed=seed)
    atoms.positions += rng.normal(scale=0.1, size=(48, 3))
    info = {"config_type": "ice Ih", "temperature_K": 250}
    return Frame(atoms, -266453.1135206173 + rng.normal(), rng.normal(size=(48, 3)), STRESS, info)


def written_by_ase(path: Path, frame: Frame) -> Path:
    """The frame as other programs leave it: labels in a calculator, the first molecule held by a constraint."""
    atoms = frame.atoms.copy()
    atoms.calc = SinglePointCalculator(
        atoms, energy=frame.energy, forces=frame.forces, stress=STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    )
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    atoms.info["config_type"] = "ice Ih"
    if path.suffix == ".db":
        database = ase.db.connect(path)
        database.write(atoms, key_value_pairs={"config_type": "ice Ih"}, data={"r2_forces": frame.forces})
    else:
        ase.io.write(path, atoms)
    return path


def test_round_trip_is_exact(tmp_path: Path) -> None:
    frames = [labelled_ice(0), labelled_ice(1)]
    for prefix in ("", "r2_"):
        write_frames(tmp_path / "ice.extxyz", frames, prefix=prefix)
        keys = {f"{label}_key": f"{prefix}{label}" for label in ("energy", "forces", "stress")}
        returned = read_frames(tmp_path / "ice.extxyz", **keys)
        assert len(returned) == 2
        for number, (one, back) in enumerate(zip(frames, returned, strict=True)):
            assert back.energy == one.energy
            np.testing.assert_array_equal(back.forces, one.forces)
            np.testing.assert_array_equal(back.stress, one.stress)
            np.testing.assert_array_equal(back.atoms.positions, one.atoms.positions)
            np.testing.assert_array_equal(back.atoms.cell.array, one.atoms.cell.array)
            assert back.atoms.pbc.all()
            assert back.info == one.info | {"file": str(tmp_path / "ice.extxyz"), "frame": number}
    assert [path.name for path in tmp_path.iterdir()] == ["ice.extxyz"]


def test_absent_labels_stay_absent(tmp_path: Path) -> None:
    water = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    half = np.full((3, 3), np.nan)
    half[0] = 1.0
    write_frames(tmp_path / "a.extxyz", [Frame(water, np.nan, np.full((3, 3), np.nan)), Frame(water, -1.0, half)])
    first, second = read_frames(tmp_path / "a.extxyz", energy_key=None, forces_key=None)
    assert np.isnan([first.energy, second.energy]).all()
    assert np.isnan(first.forces).all()
    assert np.isnan(first.stress).all()
    assert not first.atoms.pbc.any()
    with pytest.raises(ValueError, match=r"a\.extxyz, frame 0 has no 'energy'; the keys that are there: none\."):
        read_frames(tmp_path / "a.extxyz")
    (second,) = read_frames(tmp_path / "a.extxyz", index=1)
    assert second.energy == -1.0
    np.testing.assert_array_equal(second.forces, half)


@pytest.mark.parametrize("name", ["ice.extxyz", "ice.db", "ice.traj"])
def test_labels_in_a_calculator_despite_constraints(tmp_path: Path, name: str) -> None:
    frame = labelled_ice()
    (back,) = read_frames(written_by_ase(tmp_path / name, frame), stress_key="stress")
    assert back.energy == pytest.approx(frame.energy, abs=1e-9)
    np.testing.assert_allclose(back.forces, frame.forces, atol=1e-8)
    assert np.abs(back.forces[:3]).min() > 0, "the constraint has zeroed forces"
    np.testing.assert_allclose(back.stress, STRESS, atol=1e-12)
    np.testing.assert_allclose(back.atoms.positions, frame.atoms.positions, atol=1e-8)
    assert back.atoms.calc is None
    assert not back.atoms.constraints
    assert back.info["config_type"] == "ice Ih"
    if name == "ice.db":
        (other,) = read_frames(tmp_path / name, energy_key=None, forces_key="r2_forces")
        np.testing.assert_array_equal(other.forces, frame.forces)


def test_published_ice(ice_data: Path) -> None:
    low = read_frames(ice_data / "bulk.extxyz", energy_key="mp0_energy", forces_key="mp0_forces")
    high = read_frames(ice_data / "bulk.extxyz", energy_key="off23_energy", forces_key="off23_forces", index="5:")
    assert len(low) == 15
    assert [frame.info["frame"] for frame in high] == list(range(5, 15))
    assert low[0].energy == -1898.7603474682498
    forces = np.concatenate([frame.forces for frame in high])
    gap = forces - np.concatenate([frame.forces for frame in low[5:]])
    # Stated with the data for all 15 frames: 690 and 541 meV/Å.
    assert 1e3 * np.sqrt((forces**2).mean()) == pytest.approx(690, rel=0.02)
    assert 1e3 * np.sqrt((gap**2).mean()) == pytest.approx(541, rel=0.02)
    with pytest.raises(ValueError, match="r2scan_energy") as caught:
        read_frames(ice_data / "bulk.extxyz", energy_key="r2scan_energy", forces_key="off23_forces", index="3:5")
    assert str(caught.value) == (
        f"{ice_data / 'bulk.extxyz'}, frame 3 has no 'r2scan_energy'; the keys that are there: "
        "mp0_energy, mp0_forces, off23_energy, off23_forces."
    )


def test_files_that_are_refused(tmp_path: Path) -> None:
    atom = 'Properties=species:S:1:pos:R:3:forces:R:3 energy=-1 pbc="F F F"\nH 0 0 0 1 2 3\n'
    for name, text, sentence in [
        ("empty.extxyz", "", "empty.extxyz has no frames: it is empty"),
        ("data.csv", "1,2,3\n", "is of no format that ASE knows; use extended XYZ"),
        ("cut.extxyz", "2\n" + atom, "cannot be read as a file of atomic structures: .*1 atoms, expected 2"),
        ("infinite.extxyz", "1\n" + atom.replace("-1", "inf"), "frame 0: 'energy' is infinite"),
        ("words.extxyz", "1\n" + atom.replace("-1", "low"), "frame 0: 'energy' is not numeric .'low'"),
        ("nan.extxyz", "1\n" + atom + "1\n" + atom.replace("0 0 0", "0 nan 0"), "frame 1: The position of atom 0"),
        (
            "shape.extxyz",
            "1\n" + atom.replace("forces:R:3", "forces:R:2:x:R:1"),
            r"'forces' has shape \(1, 2\) .* \(1, 3\)",
        ),
        (
            "flat.extxyz",
            "1\n" + 'Lattice="1 0 0 0 1 0 1 1 0" ' + atom.replace("F F F", "T T T"),
            "frame 0: .* singular",
        ),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=sentence) as caught:
            read_frames(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.extxyz"):
        read_frames(tmp_path / "nowhere.extxyz")
    (tmp_path / "one.extxyz").write_text("1\n" + atom)
    for index in ("7", "7:", "last", 7):
        with pytest.raises(ValueError, match=r"one\.extxyz has 1 frames, and"):
            read_frames(tmp_path / "one.extxyz", index=index)
    assert read_frames(tmp_path / "one.extxyz", index=-1)[0].forces.tolist() == [[1, 2, 3]]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    good = labelled_ice()
    write_frames(tmp_path / "ice.extxyz", [good])
    before = (tmp_path / "ice.extxyz").read_text()
    broken = Frame(good.atoms, 0.0, good.forces)
    object.__setattr__(broken, "forces", np.zeros((2, 3)))
    with pytest.raises(ValueError):  # noqa: PT011 — numpy's own, the point is what is left behind
        write_frames(tmp_path / "ice.extxyz", [good, broken])
    assert (tmp_path / "ice.extxyz").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["ice.extxyz"]


def test_split() -> None:
    frames = list(range(103))
    parts = split(frames, [0.7, 0.2, 0.1], seed=1)
    assert [len(part) for part in parts] == [72, 21, 10]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == frames
    assert parts == split(frames, [0.7, 0.2, 0.1], seed=1)
    assert parts != split(frames, [0.7, 0.2, 0.1], seed=2)
    numbers = split(frames, [90, 3], seed=1)
    assert [len(part) for part in numbers] == [90, 3]
    assert numbers[0][:72] == parts[0], "one shuffle, whatever the parts"
    with pytest.raises(ValueError, match=r"\[100, 4\] needs 104 frames, but there are 103"):
        split(frames, [100, 4])
    with pytest.raises(ValueError, match=r"sum to 1\.1, more than 1"):
        split(frames, [0.9, 0.2])
    with pytest.raises(ValueError, match="not a mixture"):
        split(frames, [100, 0.1])
    with pytest.raises(ValueError, match="cannot be negative"):
        split(frames, [10, -1])


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Droplets of 2 to 9 molecules, told apart by their energies and forces; every third without forces."""
    rng = np.random.default_rng(0)
    ice = ice_ih(32)
    references = np.zeros(119)
    references[[1, 8]] = -13.5, -2043.9
    frames = []
    for number in range(50):
        molecules = int(rng.integers(2, 10))
        atoms = ice[: 3 * molecules]
        assert isinstance(atoms, Atoms)
        atoms.pbc = False
        forces = np.full((len(atoms), 3), np.nan if number % 3 == 0 else float(number))
        frames.append(Frame(atoms, number + molecules * (-2 * 13.5 - 2043.9), forces))
    return make_samples(frames[:25], 5.0, 2.0, references) + make_samples(
        frames[25:], 5.0, 2.0, references, 1, weight=0.5
    )


def shapes(batches: list[Batch]) -> set[tuple]:
    return {(b.graph.neighbors.shape, b.energy.shape, b.graph.inner) for b in batches}


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_every_sample_is_in_one_batch(samples: list[Sample], batch_size: int) -> None:
    batches = make_batches(samples, batch_size, seed=0)
    seen = []
    for batch in batches:
        graph = batch.graph
        assert batch.energy.shape[0] == graph.n_graphs <= batch_size
        assert graph.n_slots % 4 == 0
        real = batch.index >= 0
        assert real.sum() <= batch_size
        np.testing.assert_array_equal(np.bincount(graph.owner, minlength=graph.n_graphs)[: graph.n_graphs] > 0, real)
        assert np.isnan(batch.energy[~real]).all()
        assert np.isnan(batch.forces[graph.species == 0]).all()
        assert np.isnan(batch.stress).all()
        assert (batch.weight[~real] == 0).all()
        for place in np.flatnonzero(real):
            number = batch.index[place]
            mine = graph.owner == place
            np.testing.assert_array_equal(graph.positions[mine], samples[number].graph.positions)
            np.testing.assert_array_equal(graph.species[mine], samples[number].graph.species)
            np.testing.assert_array_equal(batch.forces[mine], samples[number].forces)
            assert batch.energy[place] == pytest.approx(number, abs=1e-5), "relative to the references"
            assert (batch.head[place], batch.weight[place]) == ((0, 1.0) if number < 25 else (1, 0.5))
            seen.append(int(number))
    assert sorted(seen) == list(range(50))
    assert len(batches) <= -(-50 // batch_size) + 3


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_epochs_differ_but_not_in_shape(samples: list[Sample], batch_size: int) -> None:
    epochs = [make_batches(samples, batch_size, seed=seed) for seed in (0, 1, 2, None)]
    assert len({len(epoch) for epoch in epochs}) == 1
    assert len(shapes(epochs[0])) <= 4
    assert all(shapes(epoch) == shapes(epochs[0]) for epoch in epochs)
    order = [np.concatenate([batch.index for batch in epoch]).tolist() for epoch in epochs]
    assert order[0] != order[1]
    again = make_batches(samples, batch_size, seed=0)
    assert np.concatenate([batch.index for batch in again]).tolist() == order[0]
    if batch_size > 1:
        assert len(shapes(epochs[0])) == 1
        company = [{frozenset(batch.index.tolist()) for batch in epoch} for epoch in epochs[:2]]
        assert len(company[0] & company[1]) <= 1, "batches are the same in every epoch"


def test_little_padding(samples: list[Sample]) -> None:
    """Sizes from 6 to 27 atoms: padding to the largest graph would waste 40 %, to the largest batch 20 %."""
    assert padding_waste(make_batches(samples, 10, seed=3)) < 0.12
    assert padding_waste(make_batches(samples[:1], 10)) < 8 / samples[0].graph.n_atoms


def test_bulk_and_clusters_get_shapes_of_their_own(samples: list[Sample]) -> None:
    ice = ice_ih(128)
    bulk = make_samples([Frame(ice, 0.0, np.zeros((384, 3)))] * 6, 3.0, 2.0, np.zeros(119))
    batches = make_batches([*samples, *bulk], 4, seed=0)
    assert 1 < len(shapes(batches)) <= 4
    assert padding_waste(batches) < 0.25
    mixed = [b for b in batches if (b.index >= 50).any() and ((b.index < 50) & (b.index >= 0)).any()]
    assert not mixed
    assert sum((b.index >= 0).sum() for b in batches) == 56


def test_published_clusters(ice_data: Path) -> None:
    frames = read_frames(
        ice_data / "clusters_4.0A.extxyz", energy_key="off23_energy", forces_key="off23_forces", index=":200"
    )
    references = np.zeros(119)
    references[[1, 8]] = -13.571964772646918, -2043.933693071156
    samples = make_samples(frames, 5.0, 3.0, references)
    per_molecule = [3 * sample.energy / sample.graph.n_atoms for sample in samples]
    assert -10.5 < min(per_molecule) < max(per_molecule) < -9.5, "water's atomisation energy is 9.5 to 10.4 eV"
    batches = make_batches(samples, 16, seed=0)
    assert len(shapes(batches)) == 1
    assert padding_waste(batches) < 0.1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no samples"):
        make_batches([], 4)
    damaged = Atoms("H", [[0, 0, np.nan]])
    frame = Frame(damaged, 0.0, np.zeros((1, 3)), info={"file": "water.extxyz", "frame": 12})
    with pytest.raises(ValueError, match=r"water\.extxyz, frame 12: The position of atom 0"):
        make_samples([frame], 5.0, 0.0, np.zeros(119))
    with pytest.raises(ValueError, match="Frame 0: Atoms 0 and 1 coincide"):
        make_samples([Frame(Atoms("H2"), 0.0, np.zeros((2, 3)))], 5.0, 0.0, np.zeros(119))
    good = make_samples([Frame(Atoms("H"), 0.0, np.zeros((1, 3)))], 5.0, 0.0, np.zeros(119))
    with pytest.raises(ValueError, match="batch size must be at least 1, not 0"):
        make_batches(good, 0)


@pytest.mark.parametrize("tiers", [2, 5])
def test_tiers_hold_the_same_structures(samples: list[Sample], tiers: int) -> None:
    """Atoms change places with everything that belongs to them; shapes are those of every epoch."""
    plain = make_batches(samples, 7, seed=0)
    batches = make_batches(samples, 7, seed=0, tiers=tiers)
    assert slot_waste(batches) < slot_waste(plain)
    epochs = [make_batches(samples, 7, seed=seed, tiers=tiers) for seed in range(3)]
    assert len({batch.graph.tiers for epoch in epochs for batch in epoch}) <= 2
    for before, after in zip(plain, batches, strict=True):
        first = 0
        for atoms, slots in after.graph.tiers:
            assert (after.graph.neighbors[first : first + atoms, slots:] == GHOST).all()
            first += atoms
        assert first in (0, after.graph.n_atoms)
        np.testing.assert_array_equal(after.index, before.index)
        for graph in np.flatnonzero(before.index >= 0):
            old, new = (np.flatnonzero(batch.graph.owner == graph) for batch in (before, after))
            place = {tuple(row): k for k, row in zip(new, after.graph.positions[new], strict=True)}
            where = np.array([place[tuple(row)] for row in before.graph.positions[old]])
            np.testing.assert_array_equal(after.forces[where], before.forces[old])
            np.testing.assert_array_equal(after.graph.species[where], before.graph.species[old])
            lengths = [
                np.linalg.norm(np.asarray(edge_vectors(batch.graph)[0])[rows], axis=2)
                for batch, rows in ((before, old), (after, where))
            ]
            np.testing.assert_array_equal(lengths[0], lengths[1])


def test_tiers_of_published_clusters(ice_data: Path) -> None:
    """Half of a dense batch of clusters is empty slots; in tiers, less than 15 % are."""
    keys = {"energy_key": "off23_energy", "forces_key": "off23_forces"}
    frames = read_frames(ice_data / "clusters_5.0A.extxyz", **keys, index=":100")
    samples = make_samples(frames, 5.0, 0.0, np.zeros(119))
    assert slot_waste(make_batches(samples, 5, seed=0)) > 0.5
    assert slot_waste(make_batches(samples[:5], 5, tiers=5)) < 0.15
    epochs = [make_batches(samples, 5, seed=seed, tiers=5) for seed in range(20)]
    assert slot_waste(epochs[0]) < 0.25
    assert len({batch.graph.tiers for epoch in epochs for batch in epoch}) <= 2


def test_tiers_that_are_too_small_are_refused(samples: list[Sample]) -> None:
    graph = samples[0].graph
    with pytest.raises(ValueError, match=r"do not hold \d+ atoms with up to \d+ neighbours"):
        in_tiers(graph, ((graph.n_atoms, 1),))
    with pytest.raises(ValueError, match="do not hold"):
        in_tiers(graph, ((graph.n_atoms - 1, graph.n_slots),))
