"""The JSON layout of MatPES, on files of that layout made here."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.study.convert import convert_data
from jaxmlip.systems.matpes import is_matpes, isolated_atom_energies, iterate_matpes
from jaxmlip.systems.mptrj import is_mptrj
from jaxmlip.systems.store import FrameStore
from jaxmlip.units import GPA

STRESS_KBAR = [-3.7, 45.6, -9.6, -0.8, 30.3, -29.1]
"""xx yy zz yz xz xy"""


def published(atoms: Atoms, energy: float | None, **labels) -> dict:
    """An entry as MatPES has it, with the keys of its page and pymatgen's structure."""
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": list(abc),
            "properties": {"magmom": 0.5 * place},
            "label": symbol,
            "xyz": list(xyz),
        }
        for place, (symbol, abc, xyz) in enumerate(
            zip(atoms.symbols, atoms.get_scaled_positions(), atoms.positions, strict=True)
        )
    ]
    return {
        "builder_meta": {"emmet_version": "0.84.6", "run_id": None},
        "nsites": len(atoms),
        "elements": sorted(set(atoms.symbols)),
        "formula_pretty": atoms.get_chemical_formula(empirical=True),
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": 0.0,
            "lattice": {"matrix": atoms.cell.array.tolist(), "pbc": [True, True, True]},
            "properties": {},
            "sites": sites,
        },
        "energy": energy,
        "forces": (0.01 * np.arange(3.0 * len(atoms)).reshape(-1, 3)).tolist(),
        "stress": STRESS_KBAR,
        "matpes_id": "matpes-20240214_30496_38",
        "bandgap": 0.0,
        "functional": "r2SCAN",
        "formation_energy_per_atom": None,
        "cohesive_energy_per_atom": -1.25,
        "bader_magmoms": [0.0] * len(atoms),
        "provenance": {"original_mp_id": "mp-30496", "md_temperature": 300.0, "md_step": 726, "mlip_name": None},
    } | labels


@pytest.fixture
def crystal() -> Atoms:
    atoms = bulk("NiO", "rocksalt", a=4.2)
    atoms.rattle(0.1, seed=0)
    return atoms


def written(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_units_signs_and_names(crystal: Atoms, tmp_path: Path) -> None:
    path = written(tmp_path / "MatPES-R2SCAN-2025.1.json", [published(crystal, -13.2), published(bulk("Si"), -10.8)])
    assert is_matpes(path)
    first, second = iterate_matpes(path)
    np.testing.assert_array_equal(first.atoms.positions, crystal.positions)
    np.testing.assert_array_equal(first.atoms.cell.array, crystal.cell.array)
    assert [first.energy, second.energy] == [-13.2, -10.8]
    np.testing.assert_array_equal(first.forces, 0.01 * np.arange(6.0).reshape(2, 3))
    # 10 kBar are 1 GPa; VASP's compression is a negative stress here.
    assert first.stress[1, 1] == pytest.approx(-4.56 * GPA)
    assert first.stress[1, 2] == pytest.approx(0.08 * GPA)
    assert first.stress[0, 2] == pytest.approx(-3.03 * GPA)
    assert first.stress[0, 1] == first.stress[1, 0] == pytest.approx(2.91 * GPA)
    np.testing.assert_array_equal(first.magmoms, [0.0, 0.5])
    assert first.info == {
        "nsites": 2,
        "formula_pretty": "NiO",
        "matpes_id": "matpes-20240214_30496_38",
        "bandgap": 0.0,
        "functional": "r2SCAN",
        "cohesive_energy_per_atom": -1.25,
        "original_mp_id": "mp-30496",
        "md_temperature": 300.0,
        "md_step": 726,
        "file": str(path),
        "frame": 0,
    }
    assert second.info["frame"] == 1


def test_absent_labels_and_stress_as_a_matrix(crystal: Atoms, tmp_path: Path) -> None:
    bare = published(crystal, None, stress=None, forces=None)
    bare["structure"]["sites"][1]["properties"] = None
    matrix = np.arange(9.0).reshape(3, 3)
    path = written(tmp_path / "a.json", [bare, published(crystal, -1.0, stress=None, stress_matrix=matrix.tolist())])
    first, second = iterate_matpes(path)
    assert np.isnan(first.energy)
    assert np.isnan(first.forces).all()
    assert np.isnan(first.stress).all()
    assert np.isnan(first.magmoms).all()
    np.testing.assert_allclose(second.stress, -0.05 * GPA * (matrix + matrix.T))


@pytest.mark.parametrize("name", ["m.json", "m.json.gz", "m.jsonl", "m.jsonl.gz"])
def test_into_a_store_in_every_form(crystal: Atoms, tmp_path: Path, name: str) -> None:
    entries = [published(crystal, -13.2), published(bulk("Si"), -10.8)]
    text = "\n".join(map(json.dumps, entries)) if "jsonl" in name else json.dumps(entries)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert is_matpes(path)
    assert not is_mptrj(path)
    assert convert_data(path, tmp_path / "m.h5", {}) == (2, [])
    store = FrameStore(tmp_path / "m.h5")
    for one, other in zip(store, iterate_matpes(path), strict=True):
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.stress, other.stress)
        np.testing.assert_array_equal(one.magmoms, other.magmoms)
        assert one.info == other.info
    assert convert_data(path, tmp_path / "c.h5", {"energy": "cohesive_energy_per_atom"}) == (2, [])
    assert [frame.energy for frame in FrameStore(tmp_path / "c.h5")] == [-2.5, -2.5]
    with pytest.raises(ValueError, match=r"of the MatPES layout, whose forces and stress have fixed names"):
        convert_data(path, tmp_path / "d.h5", {"forces": "f"})


def test_bad_entries_are_left_out_by_name(crystal: Atoms, tmp_path: Path) -> None:
    good = published(crystal, -1.0)
    partly = json.loads(json.dumps(good))
    partly["structure"]["sites"][1]["species"][0]["occu"] = 0.5
    spins = json.loads(json.dumps(good))
    spins["structure"]["sites"][0]["properties"]["magmom"] = [0.0, 0.0, 1.0]
    bad = [partly, good | {"stress": [1.0, 2.0]}, good | {"forces": [[0.0] * 3]}, {"energy": 1.0}, None, spins]
    path = written(tmp_path / "bad.json", [*bad, good])
    left_out: list[str] = []
    (kept,) = iterate_matpes(path, left_out=left_out)
    assert kept.info["frame"] == 6
    for said, expected in zip(
        left_out,
        [
            "bad.json, entry 0 (matpes-20240214_30496_38): the structure cannot be used: site 1 is not occupied by",
            "entry 1 (matpes-20240214_30496_38): 'stress' has shape (2,) instead of (6,)",
            "entry 2 (matpes-20240214_30496_38): 'forces' has shape (1, 3) instead of (2, 3)",
            "entry 3 has no structure or no 'energy'; the keys that are there: energy",
            "entry 4 has no structure or no 'energy'",
            "entry 5 (matpes-20240214_30496_38): 'magmom' is not numeric",
        ],
        strict=True,
    ):
        assert expected in said
    with pytest.raises(ValueError, match=r"entry 0 .*the structure cannot be used"):
        next(iterate_matpes(path))


def test_files_that_are_refused(crystal: Atoms, tmp_path: Path) -> None:
    text = json.dumps([published(crystal, -1.0)] * 3)
    broken = tmp_path / "broken.json"
    broken.write_text(text[: 2 * len(text) // 3])
    assert next(iterate_matpes(broken)).energy == -1.0
    with pytest.raises(ValueError, match=r"broken\.json cannot be read to its end: it is truncated"):
        list(iterate_matpes(broken))
    with pytest.raises(ValueError, match=r"table\.json is no list of entries"):
        list(iterate_matpes(written(tmp_path / "table.json", {"a": 1})))
    with pytest.raises(ValueError, match=r"empty\.json has no frames"):
        list(iterate_matpes(written(tmp_path / "empty.json", [])))
    with pytest.raises(FileNotFoundError, match=r"There is no file"):
        list(iterate_matpes(tmp_path / "nowhere.json"))
    assert not is_matpes(tmp_path / "table.json")
    assert not is_matpes(tmp_path / "nowhere.json")
    assert not is_matpes(written(tmp_path / "numbers.json", [1, 2]))


def test_isolated_atoms_are_references(crystal: Atoms, tmp_path: Path) -> None:
    box = [15.0, 15.1, 15.2]
    zinc, oxygen = (Atoms(symbol, cell=box, pbc=True) for symbol in ("Zn", "O"))
    entries = [published(zinc, -7.44, matpes_id=None), published(oxygen, -2.5, matpes_id=None)]
    references = isolated_atom_energies(written(tmp_path / "atoms.json", entries))
    assert references.shape == (119,)
    assert {int(z): references[z] for z in np.flatnonzero(references)} == {30: -7.44, 8: -2.5}
    with pytest.raises(ValueError, match=r"atoms\.json, entry 2: Zn has -1 eV, and -7\.44 eV in an entry before"):
        isolated_atom_energies(written(tmp_path / "atoms.json", [*entries, published(zinc, -1.0)]))
    with pytest.raises(ValueError, match=r"entry 0 \(Zn\) has no energy"):
        isolated_atom_energies(written(tmp_path / "atoms.json", [published(zinc, None)]))
    with pytest.raises(ValueError, match=r"entry 0 has 2 atoms; is this the file of isolated atoms\?"):
        isolated_atom_energies(written(tmp_path / "atoms.json", [published(crystal, -1.0)]))
