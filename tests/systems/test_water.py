"""Water molecules in structures that are cut by faces of their cells, or broken."""

import numpy as np
import pytest
from ase import Atoms
from ase.geometry import find_mic

from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.water import molecules_of


def test_molecules_through_the_boundary() -> None:
    for seed in (0, 1):
        atoms = ice_ih(96, seed=seed)
        atoms.rattle(0.05, seed=seed)
        atoms.wrap()
        molecules = molecules_of(atoms)
        assert molecules.shape == (96, 3)
        assert sorted(molecules.ravel().tolist()) == list(range(len(atoms)))
        assert (atoms.numbers[molecules] == [8, 1, 1]).all()
        vectors = atoms.positions[molecules[:, 1:]] - atoms.positions[molecules[:, :1]]
        _, lengths = find_mic(vectors.reshape(-1, 3), atoms.cell)
        assert lengths.max() < 1.25
        assert np.linalg.norm(vectors, axis=2).max() > 5, "no molecule is cut by a face: the test has no teeth"


def test_broken_water_is_refused() -> None:
    ice = ice_ih(16)
    ionised = ice.copy()
    ionised.positions[4] = [4.5, 3.9, 0.0]
    with pytest.raises(ValueError, match=r"Hydrogen atom 4 has no oxygen within 1\.5 Å"):
        molecules_of(ionised)
    broken = ice.copy()
    del broken[7]
    with pytest.raises(ValueError, match="Oxygen atom 6 has 1 hydrogens instead of 2"):
        molecules_of(broken)
    with pytest.raises(ValueError, match="not pure water: it contains Na"):
        molecules_of(ice + Atoms("Na", [[1, 1, 1]]))
    assert molecules_of(Atoms()).shape == (0, 3)
