"""Structures of many elements: the same from the same seed, no two the same, and as near as no bond is."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import make_supercell

from jaxmlip.systems.checks import check_input
from jaxmlip.systems.crystals import _fingerprint, many_crystals
from jaxmlip.systems.ions import CATIONS
from jaxmlip.systems.prototypes import PROTOTYPES

SOME = ["Li", "Na", "K", "Mg", "Ca", "Sr", "Al", "Fe", "La", "Ti", "Si", "Zn", "O", "S", "F", "Cl", "N", "As", "C"]


def undistorted(number: int, **wanted: Any) -> list[Atoms]:
    return many_crystals(number, volume_spread=0.0, max_strain=0.0, max_rattle_A=0.0, **wanted)


@pytest.fixture(scope="module")
def crystals() -> list[Atoms]:
    return many_crystals(480, seed=3)


def test_a_list_goes_on_and_is_that_of_its_seed(crystals: list[Atoms]) -> None:
    for one, other in zip(many_crystals(100, seed=3), crystals[:100], strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.cell.array, other.cell.array)
        assert (one.info, [*one.symbols]) == (other.info, [*other.symbols])
    assert [atoms.info for atoms in many_crystals(100, seed=4)] != [atoms.info for atoms in crystals[:100]]


def test_shares_elements_and_distances(crystals: list[Atoms]) -> None:
    assert set(Counter(atoms.info["kind"] for atoms in crystals).values()) == {480 // len(PROTOTYPES)}
    assert {*CATIONS} <= {symbol for atoms in crystals for symbol in atoms.symbols}
    for atoms in crystals:
        check_input(atoms)
        assert atoms.cell.handedness == 1


def test_distortions_are_what_was_asked_for() -> None:
    plain = undistorted(32, elements=SOME)
    spread = many_crystals(32, elements=SOME, volume_spread=0.1, max_strain=0.04, max_rattle_A=0.1)
    rattled = []
    for one, other in zip(plain, spread, strict=True):
        assert one.info == other.info
        deformation = np.linalg.solve(one.cell.array, other.cell.array)
        factor = np.linalg.det(deformation)
        assert 0.89 < factor < 1.11
        strain = deformation / np.cbrt(factor) - np.eye(3)
        assert np.abs(strain).max() < 0.06
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
        moved = (other.get_scaled_positions(wrap=False) - one.get_scaled_positions(wrap=False)) @ other.cell.array
        rattled.append(np.sqrt(np.mean(moved**2)))
    assert 0.02 < np.mean(rattled) < 0.08
    assert max(rattled) < 0.2


def test_elements_may_be_chosen_by_symbol_or_number() -> None:
    chosen = many_crystals(60, elements=["Na", 17, "Mg", 8, "At"])
    assert {symbol for atoms in chosen for symbol in atoms.symbols} <= {"Na", "Cl", "Mg", "O"}
    only = many_crystals(20, elements=SOME, prototypes=["spinel", "layered"])
    assert {atoms.info["kind"] for atoms in only} == {"spinel", "layered"}
    alone = many_crystals(10, elements=SOME, prototypes=["spinel"])
    assert [atoms.info["composition"] for atoms in alone] == [atoms.info["composition"] for atoms in only[::2]]


def test_a_teacher_may_relax_what_is_to_be_distorted() -> None:
    given: list[Atoms] = []

    def relax(atoms: list[Atoms]) -> list[Atoms | None]:
        given.extend(atoms)
        for each in atoms:
            each.set_cell(each.cell.array * 1.1, scale_atoms=True)
        return [None if "O" in each.symbols else each for each in atoms]

    relaxed = undistorted(40, elements=SOME, relax=relax)
    plain = undistorted(200, elements=SOME)
    without = [atoms for atoms in plain if "O" not in atoms.symbols][:40]
    assert len({(atoms.info["composition"], atoms.info["kind"]) for atoms in relaxed}) == len(relaxed) == 40
    assert len(given) > 40
    for one, other in zip(relaxed, without, strict=True):
        assert one.info == other.info
        np.testing.assert_allclose(one.cell.array, 1.1 * other.cell.array)
    with pytest.raises(ValueError, match=r"relax was given 5 crystals and gave back 4"):
        many_crystals(5, elements=SOME, relax=lambda atoms: atoms[1:])
    with pytest.raises(ValueError, match=r"relax was given .* and gave back He"):
        many_crystals(5, elements=SOME, relax=lambda atoms: [Atoms("He")] * len(atoms))


def test_the_same_crystal_by_another_cell_is_known() -> None:
    (first, *_) = many_crystals(1, prototypes=["wurtzite"])
    other = make_supercell(first, [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    other.rotate(40, (1, 2, 3), rotate_cell=True)
    other.translate([0.3, 0.2, 0.1])
    np.testing.assert_allclose(_fingerprint(other), _fingerprint(first), rtol=1e-8)
    other.positions[0] += 0.05
    assert np.abs(_fingerprint(other) / _fingerprint(first) - 1).max() > 1e-4
    close = undistorted(6, prototypes=["fcc", "hcp"], elements=["Na", "K", "Li"])
    assert len({(atoms.info["kind"], atoms.info["composition"]) for atoms in close}) == 6
    close = undistorted(8, prototypes=["zincblende", "wurtzite"], elements=["Na", "K", "F", "I"])
    assert len({(atoms.info["kind"], atoms.info["composition"]) for atoms in close}) == 8
    (only,) = undistorted(1, prototypes=["bcc"], elements=["Na"])
    with pytest.raises(ValueError, match=r"There are 1 distinct crystals"):
        undistorted(2, prototypes=["bcc", "hcp"], elements=["Na"], relax=lambda atoms: [only] * len(atoms))
    with pytest.raises(ValueError, match=r"There are 1 distinct crystals .* and 2 are wanted; give more"):
        undistorted(2, prototypes=["fcc", "CsCl"], elements=["Na"])


def test_wrong_wishes_are_told() -> None:
    with pytest.raises(ValueError, match="'Qq' is no element"):
        many_crystals(1, elements=["Qq"])
    with pytest.raises(ValueError, match="200 is no element"):
        many_crystals(1, elements=[200])
    with pytest.raises(ValueError, match="There is no prototype 'garnet'; there are bcc, fcc"):
        many_crystals(1, prototypes=["garnet"])
    with pytest.raises(ValueError, match="There is no crystal of these elements"):
        many_crystals(1, elements=["O"])
    with pytest.raises(ValueError, match=r"max_strain is 2\.0; it must be between 0 and 0\.2"):
        many_crystals(1, max_strain=2.0)
    with pytest.raises(ValueError, match=r"number of structures is -1"):
        many_crystals(-1)
