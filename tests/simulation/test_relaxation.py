"""Relaxation against lattice sums."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from scipy.optimize import minimize_scalar
from simple_potentials import lennard_jones

from jaxmlip.simulation.relaxation import Relaxed, relax
from jaxmlip.simulation.trajectory import Outcome
from jaxmlip.units import GPA

RANGE = 2.58
"""Å; between the fifth and the sixth shell of the crystal, so that no rattled atom meets the cutoff."""

SHELLS = np.array([1, 2, 3, 4, 5]), np.array([12, 6, 24, 12, 24])


def lattice_energy(nearest: float) -> float:
    """Energy of an atom of the fcc crystal, cut and shifted."""
    squared, counts = SHELLS

    def pair(d2):
        return 4.0 * (d2**-6.0 - d2**-3.0)

    return float(0.5 * (counts * (pair(nearest**2 * squared) - pair(RANGE**2))).sum())


@pytest.fixture
def rattled() -> Atoms:
    """Four atoms of the crystal, its cell too wide and sheared."""
    atoms = bulk("Ar", "fcc", a=1.1 * np.sqrt(2.0), cubic=True)
    strain = np.array([[1.03, 0.02, 0.0], [0.0, 1.01, -0.01], [0.0, 0.0, 0.99]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_repr_is_the_summary() -> None:
    relaxed = Relaxed(Atoms("Ar2"), Outcome.NOT_CONVERGED, 7, -1.25, np.eye(3)[:2], None)
    assert repr(relaxed) == "<Relaxed: Ar2, NOT_CONVERGED, 7 steps, -1.250000 eV, longest force 1 eV/Å>"


def run(atoms: Atoms, **options) -> Relaxed:
    return relax(lennard_jones(range_=RANGE), atoms, forces_eV_A=0.003, skin=0.2, **options)


@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_cell_and_positions(rattled: Atoms, pressure: float) -> None:
    """The crystal of least enthalpy, from a rattled and sheared one."""
    best: Any = minimize_scalar(
        lambda d: lattice_energy(d) + pressure * d**3 / np.sqrt(2.0), bounds=(0.95, 1.15), method="bounded"
    )
    relaxed = run(rattled, stress_GPa=0.01 / GPA, pressure_GPa=pressure / GPA)
    assert relaxed.converged, relaxed.summary()
    assert relaxed.energy / 4 == pytest.approx(lattice_energy(best.x), abs=2e-4)
    assert relaxed.atoms.get_volume() / 4 == pytest.approx(best.x**3 / np.sqrt(2.0), rel=3e-4)
    np.testing.assert_allclose(relaxed.atoms.cell.angles(), 90.0, atol=0.05)
    assert relaxed.stress is not None
    np.testing.assert_allclose(relaxed.stress, -pressure * np.eye(3), atol=0.011)
    assert np.linalg.norm(relaxed.forces, axis=1).max() < 0.003


def test_positions_alone(rattled: Atoms) -> None:
    """In a fixed cell every atom of the crystal goes back to its place; the start is left as it was."""
    before = rattled.positions.copy()
    relaxed = run(rattled)
    np.testing.assert_array_equal(rattled.positions, before)
    np.testing.assert_array_equal(relaxed.atoms.cell.array, rattled.cell.array)
    assert relaxed.outcome is Outcome.COMPLETED
    assert relaxed.stress is None
    places = relaxed.atoms.get_scaled_positions(wrap=False)
    places -= places[0]
    np.testing.assert_allclose(places * 2, np.round(places * 2), atol=2e-3)
    again = run(relaxed.atoms)
    assert again.steps == 0


def test_says_that_it_has_not_converged(rattled: Atoms) -> None:
    relaxed = run(rattled, steps=3)
    assert relaxed.outcome is Outcome.NOT_CONVERGED
    assert relaxed.steps == 3
    assert "3 steps" in relaxed.summary()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "positive steps, not 0"),
        ({"stress_GPa": -1.0}, "positive stress_GPa, not -1.0"),
    ],
)
def test_refuses_senseless_values(rattled: Atoms, change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(rattled, **change)


def test_refuses_a_cell_that_is_not_periodic(rattled: Atoms) -> None:
    rattled.pbc = (True, True, False)
    with pytest.raises(ValueError, match="leave out stress_GPa"):
        run(rattled, stress_GPa=0.1)
