"""Files of earlier versions of the format mean today what they meant when they were written."""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import bulk
from test_files import assert_identical, contents, rewrite

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import HEADER, load, read_header, save
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.potential import Sum
from jaxmlip.potentials.upgrades import UPGRADES, VERSION, upgraded

FIRST = Path(__file__).parent / "data" / "first_version.jaxmlip"
"""Written by the program that wrote the first files: Equivariant(channels=2, l_max=1, correlation=2, cutoff=3.7,
radial_functions=3, radial_mlp=(4,)).build([29, 1], average_neighbors=12.0, scale=0.8, shift=-0.3, seed=3), with
references of -3.5 eV (Cu) and -13.6 eV (H)."""

ENERGY = -26.072223043441774
FORCES = [
    [0.006388467270880938, 0.0014049895107746124, -0.008466890081763268],
    [0.007018255535513163, -0.008392170071601868, 0.0029617054387927055],
    [-0.009140732698142529, 0.00044089119182899594, 0.008224551565945148],
    [-0.004265987779945135, 0.006546290125697851, -0.002719369251281023],
]
"""What that program said of `structure()`, in eV and eV/Å; single precision."""


def structure():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.symbols[1] = "H"
    return atoms


def test_the_first_files_give_the_energies_they_gave(tmp_path: Path) -> None:
    """And written anew they are files of today's version, with the versions that made them."""
    with zipfile.ZipFile(FIRST) as archive:
        static = json.loads(archive.read(HEADER))["potential"]["static"]
    assert not {"tabulated", "trained_on"} & static.keys(), "the file is as it was written"
    assert read_header(FIRST)["version"] == 1
    potential = load(FIRST)
    assert isinstance(potential, EquivariantPotential)
    assert (potential.trained_on, potential.tabulated, potential.repulsion.tolist()) == (None, False, [1.0])
    (found,) = predict(potential, [structure()])
    assert found.energy == pytest.approx(ENERGY, abs=1e-6)
    np.testing.assert_allclose(found.forces, FORCES, atol=1e-7)

    save(potential, tmp_path / "new.jaxmlip", provenance=read_header(FIRST)["provenance"])
    header = read_header(tmp_path / "new.jaxmlip")
    assert header["version"] == VERSION > 1
    assert header["provenance"] == read_header(FIRST)["provenance"]
    assert_identical(potential, load(tmp_path / "new.jaxmlip"))


def test_sums_and_tangents_of_the_first_version(tmp_path: Path) -> None:
    """Terms lack what they lacked alone, and tangents did not say of what they were."""
    old = load(FIRST)
    assert isinstance(old, EquivariantPotential)
    tangent = LinearizedPotential(base=old, change=old.params, references=old.references)
    save(Sum((old, tangent)), tmp_path / "new.jaxmlip")
    header, arrays = contents(tmp_path / "new.jaxmlip")
    for place, term in enumerate(header["potential"]["terms"]):
        del arrays[f"{place}/repulsion"], term["arrays"]["repulsion"], term["class"]
        for key in ("tabulated", "trained_on", "base"):
            term["static"].pop(key, None)
    rewrite(tmp_path / "old.jaxmlip", header | {"version": 1}, arrays)
    assert_identical(load(tmp_path / "new.jaxmlip"), load(tmp_path / "old.jaxmlip"))


def test_several_readouts_get_as_many_weights() -> None:
    specification = Equivariant(channels=2, l_max=1).model_dump(mode="json")
    static = {"specification": specification, "known": [1], "average_neighbors": 1.0, "heads": 3}
    header = {"version": 1, "potential": {"kind": "equivariant", "static": static, "arrays": {}}}
    before = json.dumps(header)
    new, arrays = upgraded(header, {})
    assert arrays["repulsion"].tolist() == [1, 1, 1]
    assert new["potential"]["arrays"]["repulsion"] == {"shape": [3], "dtype": "float64"}
    assert json.dumps(header) == before


def test_there_is_a_way_from_every_version() -> None:
    assert sorted(UPGRADES) == list(range(1, VERSION))
    leaves = jax.tree.leaves(load(FIRST))
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
