"""Coordination numbers against freud's neighbours, sums over ASE's, and crystals."""

from typing import Any

import freud
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from test_structure import TRICLINIC, as_frame

from jaxmlip.observables.coordination import CoordinationNumber
from jaxmlip.systems.ice import ice_ih
from jaxmlip.testing import check_observable


@pytest.fixture(scope="module")
def gas() -> Atoms:
    rng = np.random.default_rng(5)
    return Atoms("O12H24", positions=rng.uniform(-1, 2, size=(36, 3)) @ TRICLINIC, cell=TRICLINIC, pbc=True)


@pytest.mark.parametrize("pair", [("O", "O"), ("O", "H"), ("H", "O")])
def test_sharp_ones_count_as_freud_does(gas: Atoms, pair: tuple[str, str]) -> None:
    upright = Atoms(gas.numbers, scaled_positions=gas.get_scaled_positions(), cell=gas.cell.standard_form()[0])
    box = freud.box.Box.from_matrix(upright.cell.array.T)
    first, second = (box.wrap(upright.positions[np.array(gas.symbols) == symbol]) for symbol in pair)
    query = freud.locality.AABBQuery(box, second).query(first, {"r_max": 3.2, "exclude_ii": pair[0] == pair[1]})
    wanted = len(query.toNeighborList()) / len(first)
    found = float(CoordinationNumber(*pair, r_0=3.2, width=1e-4).per_frame(as_frame(gas)))
    assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("switching", ["fermi", "rational"])
def test_sums_over_neighbours(gas: Atoms, switching: Any) -> None:
    """In plain numpy; r_0 + 1.6 Å and 1.47 r_0 are as far as it goes."""
    observable = CoordinationNumber("O", "H", r_0=2.4, width=0.1, switching=switching)
    distance = neighbor_list("d", gas, {("O", "H"): 6.0})
    if switching == "fermi":
        wanted = (1 / (1 + np.exp((distance - 2.4) / 0.1))).sum()
    else:
        x = distance / 2.4
        wanted = np.maximum(((1 - x**12) / (1 - x**24) - 0.01) / 0.99, 0.0).sum()
    # ASE gives each pair in both directions.
    assert float(jax.jit(observable.per_frame)(as_frame(gas))) == pytest.approx(wanted / 2 / 12, rel=1e-4)


def test_crystals() -> None:
    """12 in fcc, 8 in bcc, 4 in ice, from small cells; 2 hydrogens at each oxygen."""
    fcc, bcc = (as_frame(bulk("Ar", kind, a=5.0, cubic=True)) for kind in ("fcc", "bcc"))
    assert float(CoordinationNumber("Ar", "Ar", r_0=4.2, width=0.02).per_frame(fcc)) == pytest.approx(12.0, abs=1e-4)
    assert float(CoordinationNumber("Ar", "Ar", r_0=4.7, width=0.01).per_frame(bcc)) == pytest.approx(8.0, abs=1e-4)
    ice = as_frame(ice_ih(molecules=16, seed=0))
    assert float(CoordinationNumber("O", "O").per_frame(ice)) == pytest.approx(4.0, abs=0.05)
    assert float(CoordinationNumber("O", "H", r_0=1.3, width=0.01).per_frame(ice)) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("switching", ["fermi", pytest.param("rational", marks=pytest.mark.slow)])
def test_they_conform(switching: Any) -> None:
    check_observable(CoordinationNumber("O", "O", width=0.3, switching=switching), ice_ih(molecules=16, seed=0))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 0.0}, "a positive r_0 and width"),
        ({"exponent": 1}, "exponent of at least 2"),
        ({"switching": "step"}, "'fermi' or 'rational', not 'step'"),
    ],
)
def test_senseless_ones(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CoordinationNumber("O", "O", **options)
