"""Labelled frames: from files and back, and split."""

from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from furnished import assert_furnished, furnished

from jaxmlip.systems.dataset import Frame, read_frames, split, write_frames
from jaxmlip.systems.ice import ice_ih

STRESS = np.array([[0.1, 0.01, -0.02], [0.01, 0.2, 1 / 3], [-0.02, 1 / 3, -0.3]])


def labelled_ice(seed: int = 0) -> Frame:
    """Ice with made-up labels: what happens to numbers does not depend on where they come from."""
    rng = np.random.default_rng(seed)
    atoms = ice_ih(16, seed=seed)
    atoms.positions += rng.normal(scale=0.1, size=(48, 3))
    info = {"config_type": "ice Ih", "temperature_K": 250}
    return Frame(atoms, -266453.1135206173 + rng.normal(), rng.normal(size=(48, 3)), STRESS, info)


def test_no_more_is_read_than_an_index_needs(tmp_path: Path) -> None:
    """What comes after the last frame may be anything, unless it is to be counted."""
    path = tmp_path / "ice.extxyz"
    write_frames(path, [labelled_ice(seed) for seed in range(3)])
    with path.open("a") as file:
        file.write("7\nno structure\n")
    for index, numbers in ((1, [1]), ("2", [2]), (":2", [0, 1]), ("1:3", [1, 2]), ("0:3:2", [0, 2])):
        found = read_frames(path, index=index)
        assert [frame.info["frame"] for frame in found] == numbers
        np.testing.assert_array_equal(found[0].forces, labelled_ice(numbers[0]).forces)
    for index in (":", "1:", -1, ":-1", "::-1", ":9", 3):
        with pytest.raises(ValueError, match="cannot be read as a file of atomic structures"):
            read_frames(path, index=index)


def test_repr_says_what_there_is() -> None:
    """Labels that are absent, and a whole frame with its file."""
    atoms = Atoms("OH2", positions=np.eye(3))
    bare = Frame(atoms, float("nan"), np.full((3, 3), np.nan))
    assert repr(bare) == "<Frame: OH2, no energy, no forces>"
    info = {"file": "a.xyz", "frame": 3}
    full = Frame(atoms, -1.5, np.diag([1.0, -2.0, 0.5]), np.zeros((3, 3)), info)
    assert repr(full) == "<Frame: OH2, -1.500000 eV, longest force 2 eV/Å, stress, a.xyz, frame 3>"
    assert len(repr([labelled_ice()])) < 120


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
        keys: dict[str, Any] = {f"{label}_key": f"{prefix}{label}" for label in ("energy", "forces", "stress")}
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
    with pytest.raises(
        ValueError, match=r"a\.extxyz, frame 0 has neither 'energy' nor 'forces'; the keys that are there: none\."
    ):
        read_frames(tmp_path / "a.extxyz", index=0)
    first, other = read_frames(tmp_path / "a.extxyz")
    assert np.isnan(first.energy)
    assert np.isnan(first.forces).all(), "what one frame lacks and another has is NaN"
    assert other.energy == -1.0
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
    assert back.atoms.constraints[0].index.tolist() == [0, 1, 2], "the constraint is kept, and has zeroed no force"
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
        f"{ice_data / 'bulk.extxyz'}, frame 3 has no 'r2scan_energy', nor has any other; the keys that are there: "
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


def test_all_that_is_said_of_a_structure_is_kept(tmp_path: Path) -> None:
    atoms = furnished()
    frame = Frame(atoms, -1.0, np.arange(9.0).reshape(3, 3), STRESS, {"kind": "water"})
    write_frames(tmp_path / "all.extxyz", [frame])
    (back,) = read_frames(tmp_path / "all.extxyz")
    assert_furnished(back.atoms, atoms)
    assert (back.info["kind"], back.info["charge"], back.info["code"]) == ("water", 1, "007")
    assert "vector" not in back.info
    write_frames(tmp_path / "again.extxyz", [back])
    assert_furnished(read_frames(tmp_path / "again.extxyz")[0].atoms, atoms)
    by_ase = ase.io.read(tmp_path / "all.extxyz")
    assert isinstance(by_ase, Atoms)
    np.testing.assert_array_equal(by_ase.get_masses(), atoms.get_masses())
    np.testing.assert_array_equal(by_ase.get_momenta(), atoms.get_momenta())
    assert by_ase.get_forces(apply_constraint=False).tolist() == frame.forces.tolist()


@pytest.mark.parametrize("name", ["all.traj", "all.db", "all.json", "all.xyz"])
def test_what_ase_writes_is_kept(tmp_path: Path, name: str) -> None:
    atoms = furnished()
    ase.io.write(tmp_path / name, atoms)
    (frame,) = read_frames(tmp_path / name, energy_key=None, forces_key=None)
    for get in (Atoms.get_masses, Atoms.get_tags, Atoms.get_initial_charges, Atoms.get_initial_magnetic_moments):
        np.testing.assert_allclose(get(frame.atoms), get(atoms), atol=1e-8)
    np.testing.assert_allclose(frame.atoms.arrays["momenta"], atoms.arrays["momenta"], atol=1e-8)
    assert frame.atoms.constraints[0].index.tolist() == [0, 2]
    if name in ("all.traj", "all.xyz"):  # ASE's databases leave out info
        assert frame.info["charge"] == 1


def test_results_that_are_no_labels_are_kept(tmp_path: Path) -> None:
    """Moments and dipoles stay; energies and forces that are not read go, as another potential will give others."""
    atoms = furnished()
    results = {"energy": -1.0, "forces": np.ones((3, 3)), "magmoms": np.array([2.0, 0, 0]), "dipole": np.arange(3.0)}
    atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(tmp_path / "a.xyz", atoms)
    (frame,) = read_frames(tmp_path / "a.xyz", energy_key=None, forces_key=None)
    write_frames(tmp_path / "b.xyz", [frame])
    (back,) = read_frames(tmp_path / "b.xyz", energy_key=None, forces_key=None)
    np.testing.assert_array_equal(back.magmoms, [2, 0, 0])
    back.atoms.arrays["magmoms"] = np.ones((3, 3))
    with pytest.raises(ValueError, match=r"b\.xyz, frame 0: 'magmoms' has shape \(3, 3\) instead of \(3,\)"):
        _ = back.magmoms
    np.testing.assert_array_equal(back.atoms.info["dipole"], [0, 1, 2])
    assert not {"energy", "forces", "free_energy"} & (back.atoms.info.keys() | back.atoms.arrays.keys())


def test_a_constraint_that_the_format_lacks_is_told(tmp_path: Path) -> None:
    atoms = furnished()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.warns(UserWarning, match="cannot hold the constraint FixBondLength"):
        write_frames(tmp_path / "a.xyz", [Frame(atoms, 0.0, np.zeros((3, 3)))])
    atoms.set_constraint(FixCartesian(1, mask=[True, False, True]))
    write_frames(tmp_path / "a.xyz", [Frame(atoms, 0.0, np.zeros((3, 3)))])
    (back,) = read_frames(tmp_path / "a.xyz")
    assert back.atoms.constraints[1].index.tolist() == [1]
    assert back.atoms.constraints[1].mask.tolist() == [True, False, True]


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
