"""Ice Ih: density, the ice rules, and randomness that is the caller's to choose."""

import logging
import random

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from jaxmlip.systems.ice import ice_ih
from jaxmlip.units import G_PER_CM3


def hydrogen_bonds(ice: Atoms) -> np.ndarray:
    """Pairs (donor, acceptor) of molecules: a hydrogen of one lies within 2.1 Å of the oxygen of the other."""
    i, j, distance = neighbor_list("ijd", ice, {("O", "H"): 2.1})
    bonded = (distance > 1.2) & (ice.numbers[i] == 1)
    return np.column_stack([i[bonded] // 3, j[bonded] // 3])


@pytest.mark.parametrize("molecules", [16, 32, 96, 128, 768])
def test_ice_rules(molecules: int) -> None:
    ice = ice_ih(molecules, seed=1)
    assert ice.get_chemical_symbols() == ["O", "H", "H"] * molecules
    assert ice.pbc.all()
    np.testing.assert_allclose(ice.cell.array, np.diag(ice.cell.lengths()))
    density = ice.get_masses().sum() / ice.cell.volume / G_PER_CM3
    assert density == pytest.approx(0.92, rel=1e-7)

    i, distance = neighbor_list("id", ice, {("O", "O"): 3.2})
    np.testing.assert_array_equal(np.bincount(i[ice.numbers[i] == 8], minlength=len(ice))[::3], 4)
    np.testing.assert_allclose(distance, 2.763, atol=0.006)

    bonds = hydrogen_bonds(ice)
    for role in (0, 1):
        np.testing.assert_array_equal(np.bincount(bonds[:, role], minlength=molecules), 2)
    pairs = {frozenset(pair) for pair in bonds.tolist()}
    assert len(pairs) == 2 * molecules, "two molecules share two hydrogens"


def test_molecules_are_whole_and_rigid() -> None:
    molecules = ice_ih(32).positions.reshape(-1, 3, 3)
    to_hydrogens = molecules[:, 1:] - molecules[:, :1]
    np.testing.assert_allclose(np.linalg.norm(to_hydrogens, axis=2), 0.9572, atol=1e-6)
    cosines = np.einsum("mx,mx->m", to_hydrogens[:, 0], to_hydrogens[:, 1]) / 0.9572**2
    np.testing.assert_allclose(np.degrees(np.arccos(cosines)), 104.52, atol=1e-4)


def test_little_net_dipole() -> None:
    molecules = ice_ih(96, seed=5).positions.reshape(-1, 3, 3)
    dipoles = molecules[:, 1] + molecules[:, 2] - 2 * molecules[:, 0]
    one = np.linalg.norm(dipoles[0])
    assert np.linalg.norm(dipoles.sum(axis=0)) < 0.1 * one, "random orientations would give about 10"


def test_boxes_are_cubic_and_scale_with_density() -> None:
    for molecules in (96, 128, 768):
        sides = ice_ih(molecules).cell.lengths()
        assert sides.max() / sides.min() < 1.24
    dense, thin = ice_ih(32, density_g_cm3=1.0), ice_ih(32, density_g_cm3=0.8)
    np.testing.assert_allclose(dense.get_scaled_positions()[::3], thin.get_scaled_positions()[::3], atol=1e-12)
    assert thin.cell.volume / dense.cell.volume == pytest.approx(1.25)
    assert len(ice_ih(cells=(2, 1, 3))) == 3 * 48


def test_lattice_is_that_of_the_experiment() -> None:
    """Röttger et al. (1994) at 250 K: 4.51842 and 7.35556 Å, at 0.920 g/cm³."""
    sides = ice_ih(cells=(2, 1, 1)).cell.lengths()
    np.testing.assert_allclose(sides, [2 * 4.51842, np.sqrt(3) * 4.51842, 7.35556], rtol=1e-4)


def test_seed_decides_the_protons_alone() -> None:
    first, again, other = ice_ih(96, seed=3), ice_ih(96, seed=3), ice_ih(96, seed=4)
    np.testing.assert_array_equal(first.positions, again.positions)
    np.testing.assert_allclose(first.positions[::3], other.positions[::3])
    donors = {tuple(bond) for bond in hydrogen_bonds(first).tolist()}
    others = {tuple(bond) for bond in hydrogen_bonds(other).tolist()}
    assert 0.25 < len(donors & others) / len(donors) < 0.75, "independent orders agree in half of the bonds"


def test_caller_is_left_alone(capfd: pytest.CaptureFixture) -> None:
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = logging.root.level, list(logging.root.handlers)
    expected = random.Random(7).random(), np.random.RandomState(7).random_sample()
    ice_ih(16)
    assert (random.random(), np.random.random_sample()) == expected  # noqa: NPY002
    assert (logging.root.level, logging.root.handlers) == before
    assert logging.root.manager.disable == logging.NOTSET
    assert capfd.readouterr() == ("", "")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="100 molecules of ice Ih; the nearest possible sizes are 96 and 120"):
        ice_ih(100)
    with pytest.raises(ValueError, match="nearest possible size is 16"):
        ice_ih(8)
    with pytest.raises(ValueError, match=r"104 molecules.*cells="):
        ice_ih(104)
    with pytest.raises(ValueError, match=r"cells=\(1, 2, 2\) cannot hold"):
        ice_ih(cells=(1, 2, 2))
    with pytest.raises(ValueError, match="not both"):
        ice_ih(32, cells=(2, 1, 2))
    with pytest.raises(ValueError, match="density must be positive, not -1"):
        ice_ih(32, density_g_cm3=-1.0)
