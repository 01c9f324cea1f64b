"""The JSON layout of the Materials Project's trajectories, on files of that layout made here."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.mptrj import is_mptrj, iterate_mptrj
from jaxmlip.systems.store import FrameStore, write_store
from jaxmlip.units import GPA

STRESS_KBAR = np.array([[10.0, 1.0, 2.0], [1.0, 20.0, 3.0], [2.0, 3.0, -30.0]])


def published(atoms: Atoms, energy: float, **labels) -> dict:
    """A frame as MPtrj has it, with the keys of its figshare page and pymatgen's structure."""
    matrix = atoms.cell.array
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": list(abc), "xyz": list(xyz), "label": symbol}
        for symbol, abc, xyz in zip(atoms.symbols, atoms.get_scaled_positions(), atoms.positions, strict=True)
    ]
    structure = {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0,
        "lattice": {"matrix": matrix.tolist(), "pbc": [True, True, True], "volume": atoms.get_volume()},
        "sites": sites,
    }
    return {
        "structure": structure,
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 1.0,
        "energy_per_atom": (energy - 1.0) / len(atoms),
        "ef_per_atom": -0.5,
        "e_per_atom_relaxed": -1.5,
        "ef_per_atom_relaxed": -0.6,
        "force": (0.01 * np.arange(3.0 * len(atoms)).reshape(-1, 3)).tolist(),
        "stress": STRESS_KBAR.tolist(),
        "magmom": [0.1 * k for k in range(len(atoms))],
        "bandgap": 0.25,
        "mp_id": "mp-22862",
    } | labels


@pytest.fixture
def crystal() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.fixture
def path(crystal: Atoms, tmp_path: Path) -> Path:
    silicon = bulk("Si")
    layout = {
        "mp-22862": {
            "mp-22862-0-0": published(crystal, -27.5),
            "mp-22862-0-1": published(crystal, -27.0, magmom=None, stress=None, bandgap=None),
        },
        "mp-149": {"mp-149-1-2": published(silicon, -10.8)},
    }
    path = tmp_path / "MPtrj_2022.9_full.json"
    path.write_text(json.dumps(layout))
    return path


def test_units_signs_and_names(path: Path, crystal: Atoms) -> None:
    assert is_mptrj(path)
    first, second, third = iterate_mptrj(path)
    np.testing.assert_array_equal(first.atoms.positions, crystal.positions)
    np.testing.assert_array_equal(first.atoms.cell.array, crystal.cell.array)
    assert first.atoms.symbols.get_chemical_formula() == "Cl4Na4"
    assert first.atoms.pbc.all()
    assert [frame.energy for frame in (first, second, third)] == [-27.5, -27.0, -10.8]
    np.testing.assert_array_equal(first.forces, 0.01 * np.arange(24.0).reshape(8, 3))
    # VASP's 10 kBar of compression are 1 GPa of pressure: a stress of −1 GPa.
    assert first.stress[0, 0] == pytest.approx(-1.0 * GPA)
    np.testing.assert_allclose(first.stress, -0.1 * GPA * STRESS_KBAR)
    assert np.isnan(second.stress).all()
    assert first.info == {
        "corrected_total_energy": -28.5,
        "energy_per_atom": -28.5 / 8,
        "ef_per_atom": -0.5,
        "e_per_atom_relaxed": -1.5,
        "ef_per_atom_relaxed": -0.6,
        "bandgap": 0.25,
        "mp_id": "mp-22862",
        "material": "mp-22862",
        "frame_id": "mp-22862-0-0",
        "file": str(path),
        "frame": 0,
    }
    np.testing.assert_array_equal(first.magmoms, [0.1 * k for k in range(8)])
    assert np.isnan(second.magmoms).all()
    assert second.info.keys() == first.info.keys() - {"bandgap"}
    assert (third.info["material"], third.info["frame_id"], third.info["frame"]) == ("mp-149", "mp-149-1-2", 2)


def test_energies_per_atom_become_total(path: Path) -> None:
    assert [frame.energy for frame in iterate_mptrj(path, energy_key="energy_per_atom")] == pytest.approx(
        [-28.5, -28.0, -11.8]
    )


def test_into_a_store_and_compressed(path: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.json.gz"
    small.write_bytes(gzip.compress(path.read_bytes()))
    assert is_mptrj(small)
    assert write_store(tmp_path / "mp.h5", iterate_mptrj(small)) == 3
    store = FrameStore(tmp_path / "mp.h5")
    for one, other in zip(store, iterate_mptrj(path), strict=True):
        np.testing.assert_array_equal(one.stress, other.stress)
        np.testing.assert_array_equal(one.magmoms, other.magmoms)
        assert one.info == other.info | {"file": str(small)}
    assert store.species == [11, 14, 17]


def test_one_material_at_a_time(path: Path) -> None:
    """A file that breaks off gives what comes before: it is not read whole first."""
    text = path.read_text()
    path.write_text(text[: text.index('"mp-149"') + 40])
    frames, seen = iterate_mptrj(path), []
    with pytest.raises(ValueError, match=r"MPtrj_2022\.9_full\.json cannot be read to its end: it is truncated"):
        seen.extend(frame.energy for frame in frames)
    assert [next(iterate_mptrj(path)).energy] == [-27.5]


def test_frames_that_are_refused(crystal: Atoms, tmp_path: Path) -> None:
    def said_of(frame: object) -> str:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({"mp-1": {"mp-1-0-0": frame}}))
        with pytest.raises(ValueError, match=r"bad\.json, mp-1, frame mp-1-0-0") as caught:
            list(iterate_mptrj(path))
        return str(caught.value)

    good = published(crystal, -1.0)
    assert "has no structure or no 'uncorrected_total_energy'; the keys that are there: energy" in said_of(
        {"energy": 1}
    )
    assert "'force' has shape (2, 3) instead of (8, 3)" in said_of(good | {"force": np.zeros((2, 3)).tolist()})
    assert "'stress' is not numeric" in said_of(good | {"stress": "low"})
    structure = good["structure"]
    mixed = [{"species": [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}], "xyz": [0, 0, 0]}]
    assert "site 0 is not occupied by one element alone (Na 0.5, K 0.5)" in said_of(
        good | {"structure": structure | {"sites": mixed}}
    )
    assert "the structure cannot be used: it lacks 'lattice'" in said_of(good | {"structure": {"sites": []}})
    flat = structure | {"lattice": {"matrix": np.ones((3, 3)).tolist()}}
    assert "singular" in said_of(good | {"structure": flat})
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.json"):
        list(iterate_mptrj(tmp_path / "nowhere.json"))
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match=r"empty\.json has no frames"):
        list(iterate_mptrj(tmp_path / "empty.json"))


def test_bad_entries_are_left_out_by_name(crystal: Atoms, tmp_path: Path) -> None:
    good = published(crystal, -1.0)
    bad = [json.loads(json.dumps(good)) for _ in range(3)]
    bad[0]["structure"]["sites"][0]["species"][0]["element"] = "Qq"
    bad[1]["structure"]["sites"][1]["species"][0]["occu"] = 0.5
    bad[2]["structure"]["sites"][2]["xyz"] = (np.array(good["structure"]["sites"][0]["xyz"]) + 0.01).tolist()
    frames = {f"mp-1-0-{k}": frame for k, frame in enumerate([*bad, good, {"energy": 1}, None])}
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"mp-1": frames, "mp-2": None, "mp-3": {"mp-3-0-0": good}}))
    left_out: list[str] = []
    kept = [*iterate_mptrj(path, left_out=left_out)]
    assert [frame.info["frame_id"] for frame in kept] == ["mp-1-0-3", "mp-3-0-0"]
    for said, expected in zip(
        left_out,
        [
            "mp-1, frame mp-1-0-0: the structure cannot be used: site 0: 'Qq' is no element.",
            "mp-1, frame mp-1-0-1: the structure cannot be used: site 1 is not occupied by one element alone (",
            "mp-1, frame mp-1-0-2: the structure cannot be used: Atoms 0 (",
            "mp-1, frame mp-1-0-4 has no structure or no 'uncorrected_total_energy'",
            "mp-1, frame mp-1-0-5 has no structure or no",
            "'mp-2' is no table of frames",
        ],
        strict=True,
    ):
        assert expected in said
    assert len([*iterate_mptrj(path, left_out=[], allow_close=True)]) == 3
    with pytest.raises(ValueError, match=r"frame mp-1-0-0: the structure cannot be used"):
        next(iterate_mptrj(path))
    path.write_text(json.dumps({"mp-1": dict.fromkeys(map(str, range(1500)), bad[0])}))
    with pytest.raises(ValueError, match=r"No frame of .*some\.json can be used; of the 1000 .* frame 0: .*'Qq'"):
        next(iterate_mptrj(path, left_out=[]))


def test_deuterium(crystal: Atoms, tmp_path: Path) -> None:
    frame = published(crystal, -1.0)
    for site in frame["structure"]["sites"][4:]:
        site["species"][0]["element"] = "D"
    (tmp_path / "d.json").write_text(json.dumps({"mp-1": {"mp-1-0-0": frame}}))
    (one,) = iterate_mptrj(tmp_path / "d.json")
    assert one.atoms.numbers[4:].tolist() == [1] * 4
    assert one.atoms.get_masses()[4:].tolist() == [2.01410178] * 4
    assert one.atoms.get_masses()[0] == crystal.get_masses()[0]
    assert one.atoms.info["mp_id"] == "mp-22862"
    write_store(tmp_path / "d.h5", [one])
    assert FrameStore(tmp_path / "d.h5")[0].atoms.get_masses()[4:].tolist() == [2.01410178] * 4


def test_other_json_is_told_apart(tmp_path: Path) -> None:
    import ase.db

    ase.db.connect(tmp_path / "ase.json").write(bulk("Si"))
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("energies")
    for name in ("ase.json", "list.json", "text.json", "nowhere.json"):
        assert not is_mptrj(tmp_path / name)


def test_fractional_coordinates_alone_are_enough(crystal: Atoms, tmp_path: Path) -> None:
    frame = published(crystal, -1.0)
    for site in frame["structure"]["sites"]:
        del site["xyz"]
    (tmp_path / "abc.json").write_text(json.dumps({"mp-1": {"mp-1-0-0": frame}}))
    one: Frame = next(iterate_mptrj(tmp_path / "abc.json"))
    difference = one.atoms.get_scaled_positions() - crystal.get_scaled_positions()
    np.testing.assert_allclose(difference - np.rint(difference), 0.0, atol=1e-12)
