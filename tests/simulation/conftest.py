"""One fluid and one compiled engine for most tests of the dynamics."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk


def fcc(repeats: int, rattle: float = 0.1) -> Atoms:
    """Face-centred cubic lattice of unit masses at ρ = 0.75 in reduced Lennard-Jones units, rattled."""
    atoms = bulk("Ar", "fcc", a=(4.0 / 0.75) ** (1.0 / 3.0), cubic=True).repeat(repeats)
    atoms.set_masses(np.ones(len(atoms)))
    atoms.rattle(rattle, seed=1)
    return atoms


@pytest.fixture(scope="session")
def small_fluid() -> Atoms:
    """32 atoms in a cell of 3.5 σ, narrower than two cutoffs."""
    return fcc(2)
