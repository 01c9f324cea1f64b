"""Bond lengths and angles against ASE's, in molecules that cross the boundaries."""

import jax
import numpy as np
import pytest
from ase.build import bulk, molecule
from made_runs import as_run
from test_structure import as_frame

from jaxmlip.observables.molecular import BondAngle, BondLength
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.water import molecules_of
from jaxmlip.testing import check_observable
from jaxmlip.validation.averages import average, observe


def test_equals_ase() -> None:
    """In rattled ice, wrapped so that molecules are torn apart."""
    ice = ice_ih(molecules=16, seed=0)
    ice.rattle(0.05, seed=1)
    ice.wrap()
    water = molecules_of(ice)
    lengths = [ice.get_distance(o, h, mic=True) for o, *ends in water.tolist() for h in ends]
    bends = [ice.get_angle(first, o, second, mic=True) for o, first, second in water.tolist()]
    bond, angle = BondLength("O", "H").bound_to(ice), BondAngle("H", "O", "H").bound_to(ice)
    assert float(jax.jit(bond.per_frame)(as_frame(ice))) == pytest.approx(np.mean(lengths), rel=1e-5)
    assert float(jax.jit(angle.per_frame)(as_frame(ice))) == pytest.approx(np.mean(bends), rel=1e-5)
    assert bond.bound_to(ice_ih(molecules=16, seed=1)) == bond


def test_molecules_without_a_cell() -> None:
    """Straight angles included."""
    carbon_dioxide, ethanol = molecule("CO2"), molecule("CH3CH2OH")
    angle = BondAngle("O", "C", "O").bound_to(carbon_dioxide)
    assert float(angle.per_frame(as_frame(carbon_dioxide))) == pytest.approx(180.0, abs=0.05)
    bond = BondLength("C", "C").bound_to(ethanol)
    assert float(bond.per_frame(as_frame(ethanol))) == pytest.approx(ethanol.get_distance(0, 1), rel=1e-5)


def test_averages_find_the_molecules() -> None:
    """Of a run, at its start: a hydrogen that leaves later stays with its oxygen."""
    ice = ice_ih(molecules=16, seed=0)
    positions = np.repeat(ice.positions[None, None], 40, axis=1).repeat(2, axis=0)
    oxygen, hydrogen, _ = molecules_of(ice)[0]
    away = ice.get_distance(oxygen, hydrogen, mic=True, vector=True)
    positions[:, 20:, hydrogen] += 2.0 * away
    run = as_run(positions, ice.numbers, ice.cell.array)
    values = observe(run, BondLength("O", "H"))
    np.testing.assert_allclose(values[0, 30] - values[0, 0], 2.0 * np.linalg.norm(away) / 32, rtol=1e-3)
    found = average(run, BondAngle("H", "O", "H"), equilibration=0)
    assert float(found.value) == pytest.approx(109.5, abs=5.0)
    assert found.unit == "degree"


def test_they_conform() -> None:
    check_observable(BondLength("O", "H"), ice_ih(molecules=16, seed=0))
    check_observable(BondAngle("H", "O", "H"), ice_ih(molecules=16, seed=0))


def test_what_has_no_bonds() -> None:
    ice = ice_ih(molecules=16, seed=0)
    with pytest.raises(
        ValueError, match=r"bonds which are found once: give BondLength\(\.\.\.\)\.bound_to\(structure\)"
    ):
        BondLength("O", "H").check(as_frame(ice))
    with pytest.raises(ValueError, match="no covalent bonds of O and O"):
        BondLength("O", "O").bound_to(ice)
    with pytest.raises(ValueError, match="no bond angles O-H-O"):
        BondAngle("O", "H", "O").bound_to(ice)
    with pytest.raises(ValueError, match="was bound to a structure of other atoms"):
        BondLength("O", "H").bound_to(ice).check(as_frame(molecule("H2O")))
    with pytest.raises(ValueError, match="not made of molecules"):
        BondLength("C", "C").bound_to(bulk("C", "diamond", a=3.57))
