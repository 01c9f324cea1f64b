"""Molecules and bonds against ASE's structures, whose bonds are known."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.molecules import angles_between, bonds_between, covalent_bonds, molecules_in
from jaxmlip.systems.water import molecules_of


@pytest.mark.parametrize(
    ("name", "bonds"), [("H2O", 2), ("CH3CH2OH", 8), ("C6H6", 12), ("CO2", 2), ("H2", 1), ("N2", 1), ("CH4", 4)]
)
def test_molecules_of_the_g2_set(name: str, bonds: int) -> None:
    atoms = molecule(name)
    assert len(covalent_bonds(atoms)) == bonds
    (whole,) = molecules_in(atoms)
    assert sorted(whole.atoms) == list(range(len(atoms)))
    assert whole.parents[0] == 0
    assert all(parent < place for place, parent in enumerate(whole.parents) if place)


def test_a_liquid_of_several_kinds() -> None:
    """Through the boundaries, and wherever its atoms have been wrapped to."""
    box = Atoms(cell=[[9.0, 0, 0], [1.0, 9.5, 0], [-0.5, 1.5, 10.0]], pbc=True)
    for name, where in (
        ("CH3OH", (0.0, 0.0, 0.0)),
        ("H2O", (5.0, 5.0, 5.0)),
        ("CO2", (0.0, 5.0, 0.0)),
        ("Ar", (5, 0, 0)),
    ):
        one = Atoms("Ar") if name == "Ar" else molecule(name)
        one.translate(np.array(where) - one.positions.mean(axis=0))
        box += one
    box.wrap()
    found = molecules_in(box)
    assert [len(each.atoms) for each in found] == [6, 3, 3, 1]
    assert sorted(atom for each in found for atom in each.atoms) == list(range(len(box)))
    assert len(bonds_between(box, "O", "H")) == 3
    assert bonds_between(box, "H", "O") == tuple(sorted((j, i) for i, j in bonds_between(box, "O", "H")))
    assert len(angles_between(box, "O", "C", "O")) == 1
    assert len(angles_between(box, "H", "C", "O")) == 3
    assert len(angles_between(box, "H", "C", "H")) == 3


def test_water_is_that_of_clusters() -> None:
    """Stretched hydrogens too: beyond the covalent radii, but nearest to their oxygen."""
    ice = ice_ih(molecules=16, seed=0)
    water = molecules_of(ice)
    ice.positions[water[0, 1]] += 0.35 * ice.get_distance(water[0, 0], water[0, 1], mic=True, vector=True)
    found = {tuple(sorted(each.atoms)) for each in molecules_in(ice)}
    assert found == {tuple(sorted(each)) for each in molecules_of(ice).tolist()}
    assert len(angles_between(ice, "H", "O", "H")) == 16


def test_crystals_are_no_molecules() -> None:
    with pytest.raises(ValueError, match=r"not made of molecules: covalent bonds lead from atom 0 \(C\)"):
        molecules_in(bulk("C", "diamond", a=3.57))
    with pytest.raises(ValueError, match="not made of molecules"):
        molecules_in(bulk("C", "diamond", a=3.57, cubic=True).repeat(2))
    with pytest.raises(ValueError, match="dissociated"):
        molecules_in(Atoms("OHH", positions=[[0, 0, 0], [0.97, 0, 0], [5.0, 0, 0]]))
