"""Which crystal a study is of: ice Ih as ever, or another one from a file."""

from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.crystal import crystal_of, longest_bond, made, pairs_of
from jaxmlip.study.config import resolve
from jaxmlip.study.section import ConfigError


def configured(**system: object) -> ClustersToBulk:
    config = resolve({"study": "clusters_to_bulk", "system": system}, "crystal")
    assert isinstance(config, ClustersToBulk)
    return config


@pytest.fixture
def ammonia(tmp_path: Path) -> str:
    one = molecule("NH3")
    cell = Atoms(one.numbers, one.positions - one.positions[0] + 0.3, cell=[4.0, 4.2, 4.4], pbc=True)
    cell.wrap()
    cell.write(tmp_path / "ammonia.extxyz")
    return str(tmp_path / "ammonia.extxyz")


def test_ice_is_said_as_before() -> None:
    """Digests of stages in folders of earlier versions depend on it."""
    assert configured(molecules=16).system.model_dump(mode="json") == {
        "molecules": 16,
        "density_g_cm3": 0.92,
        "temperature_K": 250.0,
    }
    known = crystal_of(configured(molecules=16).system)
    start = made(configured(molecules=16).system, 3)
    assert (known.molecules, known.molecules * known.atoms, known.numbers) == (16, len(start), (1, 8))
    assert known.density == pytest.approx(16 / start.get_volume(), rel=2e-3)
    assert pairs_of(start) == {"OO": ("O", "O"), "OH": ("O", "H"), "HH": ("H", "H")}
    assert longest_bond(("O", "H")) == pytest.approx(1.21, abs=0.01)


def test_another_crystal(ammonia: str) -> None:
    system = configured(structure=ammonia, repeat=[2, 2, 2], temperature_K=150).system
    assert "molecules" not in system.model_dump(mode="json")
    known, start = crystal_of(system), made(system, 0)
    assert (known.molecules, known.atoms, known.numbers) == (8, 4.0, (1, 7))
    assert (len(start), start.get_volume()) == (32, pytest.approx(8 / known.density))
    assert known.name == "the crystal of ammonia.extxyz, H24N8 in 8 molecules"
    assert list(pairs_of(start)) == ["NN", "NH", "HH"]


def test_mistakes(ammonia: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="molecules is of ice, and structure names another crystal"):
        configured(structure=ammonia, molecules=32)
    with pytest.raises(ConfigError, match="repeat is of the cell in a file"):
        configured(repeat=[2, 2, 2])
    with pytest.raises(ConfigError, match=r"system.structure: .*ammonia.extxyz: NH3 is a single molecule; repeat it"):
        crystal_of(configured(structure=ammonia).system)
    salt, cluster = tmp_path / "salt.extxyz", tmp_path / "cluster.extxyz"
    bulk("NaCl", "rocksalt", a=5.64).write(salt)
    molecule("CO2").write(cluster)
    for path, said in ((salt, "not made of molecules"), (cluster, "periodic in all three"), ("none.cif", "none.cif")):
        with pytest.raises(ConfigError, match=said):
            crystal_of(configured(structure=str(path)).system)
